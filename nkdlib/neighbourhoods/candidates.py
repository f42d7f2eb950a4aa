"""One candidate of one neighbourhood, made and measured by tasks of the cache.

ND (arXiv 2010.01189), with the closed form of `closed_form` as a start. A candidate is solved on what
the teacher feeds it, never on what other students produce, so that it can stand beside any of them.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import first_batch
from nkdlib.neighbourhoods.closed_form import Normal, Ranking, rank_channels
from nkdlib.neighbourhoods.local import Recipe, train_local
from nkdlib.neighbourhoods.starts import Student, begin, pairs_of
from nkdlib.networks.cost import Cost
from nkdlib.networks.latency import Latency, latencies
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.executors import make_executor
from nkdlib.tasks.keys import digest, fingerprint
from nkdlib.tasks.measure import Stopwatch, cpu_name
from nkdlib.training.store import Store, images_of


@dataclass
class Known:
    """A value that stands in a key by what determines it, so that the key is there before the value is."""

    fingerprint: str
    value: Store | Tensor | Artefact | None = None


@dataclass
class Candidate:
    """One architecture for one neighbourhood; what is None is not known yet."""

    student: Student | None = field(repr=False)  # None is the teacher's own part
    recipe: Recipe = field(repr=False)
    cost: Cost
    error: float | None = None  # on held-out images: local, or in context
    latency: Latency | None = None
    artefact: Artefact | None = field(default=None, repr=False)


def look_at(inputs: Iterable) -> tuple[Tensor, str]:
    """The first batch of images and the SHA-256 of all; ValueError where there is none or passes differ."""
    first = first_batch(inputs)
    if not torch.equal(first_batch(inputs), first):
        raise ValueError("inputs gives other images in every pass; give a loader with shuffle=False, or a list")
    return first, digest(map(images_of, inputs))


def rank(
    piece: nn.Module, boundary: Known, holdout: int, solve_images: int, ridge: float, to_own: bool
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What the closed form of every width shares, see `Ranking`; a task for the cache."""
    rows = boundary.value[holdout : holdout + solve_images]
    with Stopwatch(rows.device) as watch:
        found = rank_channels(piece, pairs_of(rows), ridge, to_own)
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
    piece: nn.Module,
    student: Student,
    boundary: Known,
    ranking: Known | None,
    recipe: Recipe,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Make one candidate of the teacher's `piece`; a task for the cache.

    It learns from the boundary's x (N, ...) and y (N, ...), the held-out images first, and from the artefact of `rank`
    where a width is solved. Returns its state; local_error, losses, and device-seconds of start, steps and ranking.
    """
    store = boundary.value
    with Stopwatch(store.device) as watch:
        shared = _ranking(ranking.value, store.device) if ranking else None
        module = begin(piece, copy.deepcopy(student), recipe, pairs_of(store[recipe.solved]), seed, shared)
    state, info = train_local(name, module, store, recipe, seed, piece)
    ranking_s = ranking.value.info["seconds"] if ranking else 0.0
    return state, {**info, "start_s": watch.device_s, "ranking_s": ranking_s}


def ranking_task(task: Task) -> Task:
    """The task whose result all widths of a neighbourhood share, from the task of one of them."""
    recipe, given = task.kwargs["recipe"], {name: task.kwargs[name] for name in ("piece", "boundary")}
    given |= {"holdout": recipe.holdout, "solve_images": recipe.solve_images, "ridge": recipe.ridge}
    given["to_own"] = recipe.ridge_to == "own"
    return Task(rank, given, task.kwargs["name"])


@dataclass(frozen=True)
class Timing:
    """How latencies are taken."""

    threads: int = 1
    batch: int = 1  # images of one forward pass
    repeats: int = 50  # timed passes
    channels_last: bool = False


def time_together(cache: Cache, modules: Iterable[tuple[nn.Module, Tensor]], timing: Timing) -> list[Latency]:
    """Latencies of (module, example of one image), measured in this process; equal shapes are timed once."""
    modules = list(modules)
    blanks = [(_blank(module), (timing.batch, *example.shape[1:])) for module, example in modules]
    keys = [(fingerprint(module), shape) for module, shape in blanks]
    different = dict(zip(keys, blanks, strict=True))
    kwargs = {"modules": list(different.values()), "timing": timing, "device": str(modules[0][1].device)}
    kwargs["hardware"] = cpu_name()
    task = Task(time_modules, kwargs, f"{len(different)} modules")
    (artefact,) = cache.run([task], make_executor(threads=timing.threads), "measuring latencies")
    found = dict(zip(different, artefact.info["latencies"], strict=True))
    return [Latency(**found[key]) for key in keys]


def time_modules(
    modules: list[tuple[nn.Module, tuple[int, ...]]], timing: Timing, hardware: str, device: str
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Latencies of modules, each on inputs of a shape (B, ...); a task for the cache."""
    layout, models = torch.channels_last if timing.channels_last else torch.contiguous_format, []
    for module, shape in modules:
        example = torch.randn(shape, device=device)
        example = example.contiguous(memory_format=layout) if example.dim() == 4 else example
        models.append((copy.deepcopy(module).to(memory_format=layout), example))
    return {}, {"latencies": [asdict(found) for found in latencies(models, timing.repeats, hardware)]}


@torch.no_grad()
def _blank(module: nn.Module) -> nn.Module:
    """A module with weights of zero, so that those of equal shapes are alike; zeros take no longer than others."""
    module = copy.deepcopy(module)
    for value in module.state_dict().values():
        value.zero_()
    return module
