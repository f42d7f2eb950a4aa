"""Candidates of a library, distilled and timed by tasks of the cache.

A candidate is solved and trained on the teacher's own activations, never on the output of other students, so that it
can stand beside any of them (ND, arXiv 2010.01189, with the closed form of `closed_form` as a start).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import Boundaries, input_pairs, repeatable
from nkdlib.neighbourhoods.closed_form import Ranking, rank_channels
from nkdlib.neighbourhoods.local import STATE, Recipe, train_local
from nkdlib.neighbourhoods.split import Neighbourhood, Student
from nkdlib.neighbourhoods.students import initialize_student, thaw
from nkdlib.networks.cost import Cost
from nkdlib.networks.latency import Latency, latencies
from nkdlib.networks.least_squares import Normal
from nkdlib.networks.module import copied, in_evaluation, load_state
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.executors import make_executor
from nkdlib.tasks.keys import digest, fingerprint, sha256
from nkdlib.tasks.measure import Stopwatch, cpu_name
from nkdlib.training.store import Store, first_images, images_of


class SameImages:
    """Batches of images with one fingerprint; ValueError if a later pass gives other images or another order."""

    def __init__(self, inputs: Iterable):
        self.inputs = repeatable(inputs)
        self.digests, self.count = [], 0
        for images in first_images(self.inputs):
            self.digests.append(digest([images]))
            self.count += len(images)
        self.fingerprint = sha256(self.digests)

    def __iter__(self) -> Iterator[Tensor]:
        for batch, known in itertools.zip_longest(self.inputs, self.digests):
            if batch is None or digest([images_of(batch)]) != known:
                raise ValueError(
                    "inputs gives other images in every pass; give a loader with shuffle=False and without "
                    "augmentation, or a list of batches"
                )
            yield images_of(batch)


@dataclass
class Candidate:
    """One architecture for one neighbourhood of the teacher, and what is known of it so far."""

    piece: Neighbourhood = field(repr=False)
    label: str
    student: Student | None = field(repr=False)  # an inner width or a module; None for the teacher's own part
    module: nn.Module = field(repr=False)  # the architecture, before it is distilled
    recipe: Recipe = field(repr=False)
    seed: int = field(repr=False)  # of its random weights and of the order of examples
    cost: Cost
    latency: Latency | None = None
    artefact: Artefact | None = field(default=None, repr=False)  # its learned weights

    @property
    def error(self) -> float | None:
        """Local error on held-out images: 0 for the teacher's part, None before the candidate is distilled."""
        if self.student is None:
            return 0.0
        return self.artefact.info["local_error"] if self.artefact else None

    @property
    def ranked(self) -> bool:
        """Whether its channels are chosen by the ranking that all widths of the neighbourhood share."""
        return self.recipe.start == "solved" and isinstance(self.student, int | float)

    def build(self) -> nn.Module:
        """A copy with its learned weights, if there are any, in evaluation mode; what is fixed stays so."""
        module = copied(self.module)
        if self.artefact:
            load_state(module, self.artefact.state(STATE))
        return in_evaluation(module if isinstance(self.student, nn.Module) else thaw(module))

    def task(self, source: str, boundaries: Boundaries | None = None, ranking: Artefact | None = None) -> Task:
        """The task that distills it; without boundaries the task has a key and cannot be run.

        `source` is a digest of the teacher and the images, which determine the boundaries.
        """
        name = self.piece.name
        kwargs = {"name": name, "piece": self.piece.module, "student": self.student, "recipe": self.recipe}
        kwargs |= {"seed": self.seed, "source": source}
        inputs = {"boundary": lambda: boundaries.of(name), "ranking": lambda: ranking}
        return Task(distill_candidate, kwargs, f"{name} {self.label}", inputs)

    def ranking_task(self, source: str, boundaries: Boundaries) -> Task:
        """The task that ranks channels for it and for all other widths of the neighbourhood with the same ridge."""
        name, recipe = self.piece.name, self.recipe
        kwargs = {"piece": self.piece.module, "ridge": recipe.ridge, "to_own": recipe.ridge_to == "own"}
        kwargs |= {"holdout": recipe.holdout, "solve_images": recipe.solve_images}
        kwargs["source"] = sha256([source, name, str(recipe.dtype), recipe.adapt])
        return Task(rank, kwargs, name, {"boundary": lambda: boundaries.of(name)})


def rank(
    piece: nn.Module, boundary: Store, holdout: int, solve_images: int, ridge: float, to_own: bool, source: str
) -> dict[str, object]:
    """Rank the channels of the teacher's `piece` for all widths at once, see `Ranking`; a task for the cache.

    `source` names the boundary in the key.
    """
    rows = boundary[holdout : holdout + solve_images]
    with Stopwatch(rows.device) as watch:
        ranking = rank_channels(piece, input_pairs(rows), ridge, to_own)
    return {"order": ranking.order, "seconds": watch.device_s, **vars(ranking.normal)}


def _ranking(artefact: Artefact, device: torch.device) -> Ranking:
    tensors = {name: value.to(device) for name, value in artefact.tensors.items()}
    plain = {name: value for name, value in artefact.info.items() if name != "seconds"}
    return Ranking(order=tensors.pop("order").cpu(), normal=Normal(**tensors, **plain))


def distill_candidate(
    name: str,
    piece: nn.Module,
    student: Student,
    recipe: Recipe,
    seed: int,
    source: str,
    boundary: Store,
    ranking: Artefact | None,
) -> dict[str, object]:
    """Make one candidate of the teacher's `piece`; a task for the cache.

    It learns from the boundary's x (N, ...) and y (N, ...), the held-out images first, and from the artefact of `rank`
    if a width is solved; `source` names the boundary in the key. Returns its state; local_error, losses, and
    device-seconds of start, steps and ranking.
    """
    with Stopwatch(boundary.device) as watch:
        pairs, shared = input_pairs(boundary[recipe.solved]), _ranking(ranking, boundary.device) if ranking else None
        given = copied(student) if isinstance(student, nn.Module) else student
        module = initialize_student(piece, given, recipe, pairs, seed, shared)
    trained = train_local(name, module, boundary, recipe, seed)
    return dict(**trained, start_s=watch.device_s, ranking_s=ranking.info["seconds"] if ranking else 0.0)


@dataclass(frozen=True)
class Timing:
    """How latencies are measured."""

    threads: int = 1
    batch: int = 1  # images of one forward pass
    repeats: int = 50  # timed passes
    channels_last: bool = False


def measure(cache: Cache, modules: Sequence[tuple[nn.Module, Tensor]], timing: Timing) -> list[Latency]:
    """Latencies of (module, example of one image), measured in this process; equal shapes are timed once."""
    blanks = [(_blank(module), (timing.batch, *example.shape[1:]), example.dtype) for module, example in modules]
    keys = [(fingerprint(module), *given) for module, *given in blanks]
    different = dict(zip(keys, blanks, strict=True))
    kwargs = {"modules": list(different.values()), "timing": timing, "device": str(modules[0][1].device)}
    task = Task(time_modules, kwargs | {"hardware": cpu_name()}, f"{len(different)} modules")
    (artefact,) = cache.run([task], make_executor(threads=timing.threads), "measuring latencies")
    by_key = dict(zip(different, artefact.info["latencies"], strict=True))
    return [Latency(**by_key[key]) for key in keys]


def time_modules(
    modules: list[tuple[nn.Module, tuple[int, ...], torch.dtype]], timing: Timing, hardware: str, device: str
) -> dict[str, object]:
    """Latencies of modules, each on inputs of a shape (B, ...) and type; a task for the cache."""
    layout, models = torch.channels_last if timing.channels_last else torch.contiguous_format, []
    for module, shape, dtype in modules:
        example = torch.randn(shape, device=device) if dtype.is_floating_point else torch.zeros(shape, device=device)
        example = example.to(dtype)
        example = example.contiguous(memory_format=layout) if example.dim() == 4 else example
        models.append((copied(module).to(memory_format=layout), example))
    return {"latencies": [asdict(latency) for latency in latencies(models, timing.repeats, hardware)]}


@torch.no_grad()
def _blank(module: nn.Module) -> nn.Module:
    """A copy with weights of zero, which take as long as others, so that modules of equal shapes are alike."""
    module = in_evaluation(copied(module))
    for value in module.state_dict().values():
        value.zero_()
    return module
