"""One candidate of one neighbourhood, made and measured by tasks of the cache.

ND (arXiv 2010.01189), with the closed form of `closed_form` as a start. A candidate is solved on what
the teacher feeds it, never on what other students produce, so that it can stand beside any of them.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.models.cost import Cost, cost
from nkdlib.models.latency import Latency
from nkdlib.neighbourhoods.closed_form import Normal, Pairs, Ranking, rank_channels, solve_neighbourhood
from nkdlib.neighbourhoods.distill import Portable, classes_of
from nkdlib.neighbourhoods.local import Recipe, local_error, train_local
from nkdlib.neighbourhoods.split import Neighbourhood
from nkdlib.neighbourhoods.starts import CHUNK, Student, seed_of
from nkdlib.neighbourhoods.students import narrow, reset
from nkdlib.runtime.cache import Artefact, Task
from nkdlib.runtime.measure import Stopwatch
from nkdlib.training.store import Store, images_of


@dataclass
class Candidate:
    """One architecture for one neighbourhood; what is None is not known yet."""

    student: Student | None = field(repr=False)  # None is the teacher's own part
    recipe: Recipe = field(repr=False)
    cost: Cost
    error: float | None = None  # on held-out images: local, or in context
    latency: Latency | None = None
    artefact: Artefact | None = field(default=None, repr=False)


@dataclass
class Known:
    """A value that stands in a key by what determines it, so that the key is there before the value is."""

    fingerprint: str
    value: Store | Artefact | None = None


def look_at(inputs: Iterable) -> tuple[Tensor, str]:
    """The first batch of images and the SHA-256 of all; ValueError where there is none or passes differ."""
    first, digest = next(map(images_of, inputs), None), hashlib.sha256()
    if first is None:
        raise ValueError("inputs holds no batch; give at least one")
    for index, images in enumerate(map(images_of, inputs)):
        if index == 0 and not torch.equal(images, first):
            raise ValueError("inputs gives other images in every pass; give a loader with shuffle=False, or a list")
        digest.update(f"{images.dtype} {tuple(images.shape)}".encode())
        digest.update(images.cpu().contiguous().view(torch.uint8).numpy())
    return first, digest.hexdigest()


def _pairs(boundary: Store, holdout: int, solve_images: int) -> Pairs:
    """Batches of the teacher's inputs, twice: for the teacher's part and for a student that may work in place."""
    rows = boundary[holdout : holdout + solve_images].select(["x"])

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        return ((a["x"], b["x"]) for a, b in zip(rows.chunks(CHUNK), rows.chunks(CHUNK), strict=True))

    return pairs


def rank(
    piece: Portable, classes: tuple[type, ...], boundary: Known, holdout: int, solve_images: int, ridge: float
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What the closed form of every width shares, see `Ranking`; `classes` stands for the modules' code."""
    with Stopwatch(boundary.value.take(slice(0, 1))["x"].device) as watch:
        found = rank_channels(copy.deepcopy(piece.module), _pairs(boundary.value, holdout, solve_images), ridge)
    tensors, plain = {"order": found.order}, {"seconds": watch.device_s}
    for name, value in vars(found.normal).items():
        (tensors if isinstance(value, Tensor) else plain)[name] = value
    return tensors, plain


def _ranking(artefact: Artefact, device: torch.device) -> Ranking:
    tensors = {name: value.to(device) for name, value in artefact.tensors.items()}
    plain = {name: value for name, value in artefact.info.items() if name != "seconds"}
    return Ranking(order=tensors.pop("order").cpu(), normal=Normal(**tensors, **plain))


def distill_candidate(
    name: str,
    piece: Portable,
    student: Portable | float,
    teacher_classes: tuple[type, ...],
    student_classes: tuple[type, ...],
    boundary: Known,
    ranking: Known | None,
    recipe: Recipe,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Make one candidate.

    Args:
        name: of the neighbourhood, for errors.
        piece: the teacher's neighbourhood.
        student: a module, or a width of the teacher's own layers.
        teacher_classes, student_classes: in a key they stand for the modules' code.
        boundary: x (N, ...) and y (N, ...) of the neighbourhood, the held-out images first.
        ranking: the artefact of `rank`, where a width is solved.
        recipe: start, steps, rates.
        seed: of random weights and of the order of examples.

    Returns:
        Its state; local_error on the held-out images, losses, params, macs, and device-seconds of start,
        steps and the ranking that all widths share.
    """
    teacher, store = copy.deepcopy(piece.module).eval(), boundary.value
    module = copy.deepcopy(student.module) if isinstance(student, Portable) else student
    example = store.take(slice(0, 1))["x"]
    with Stopwatch(example.device) as watch:
        if recipe.start == "solved":
            pairs = _pairs(store, recipe.holdout, recipe.solve_images)
            known = _ranking(ranking.value, example.device) if ranking else None
            module = solve_neighbourhood(teacher, module, pairs, recipe.ridge, known)
        else:
            module = shape_of(teacher, module, example)
            module = reset(module, seed) if recipe.start == "random" else module
    counted, module = cost(module, example), module.requires_grad_(True)
    if recipe.steps:
        _, info = train_local(name, module, store, recipe, seed)
    else:
        info = {"local_error": local_error(module, store[: recipe.holdout]), "losses": [], "device_s": 0.0}
    info |= {"params": counted.params, "macs": counted.macs, "start_s": watch.device_s}
    info["ranking_s"] = ranking.value.info["seconds"] if ranking else 0.0  # shared by all widths
    return module.state_dict(), info


def shape_of(piece: nn.Module, student: Student, example: Tensor) -> nn.Module:
    """The module that a student is, before it has learned anything: itself, or the teacher's part made narrower."""
    return student if isinstance(student, nn.Module) else narrow(piece, example, student)


def candidate_task(
    here: Neighbourhood, student: Student, recipe: Recipe, boundary: Known, teacher: nn.Module, label: str
) -> Task:
    """The task that makes a candidate; its boundary and what widths share, `ranking`, may become known later."""
    module = isinstance(student, nn.Module)
    kwargs = {
        "name": here.name,
        "piece": Portable(here.module),
        "student": Portable(student) if module else student,
        "teacher_classes": classes_of(teacher),
        "student_classes": classes_of(student) if module else (),
        "boundary": boundary,
        "ranking": Known("follows from the rest") if recipe.start == "solved" and not module else None,
        "recipe": recipe,
        "seed": seed_of(recipe.seed, here.name, "library"),
    }
    return Task(distill_candidate, kwargs, label)


def ranking_task(task: Task) -> Task:
    """The task whose result all widths of a neighbourhood share, from the task of one of them."""
    recipe, given = task.kwargs["recipe"], {name: task.kwargs[name] for name in ("piece", "boundary")}
    given |= {"classes": task.kwargs["teacher_classes"], "holdout": recipe.holdout}
    return Task(rank, given | {"solve_images": recipe.solve_images, "ridge": recipe.ridge}, task.kwargs["name"])
