"""Neighbourhood Distillation: one teacher pass, then every student neighbourhood by itself.

Shao et al., arXiv 2010.01189.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nkdlib.models.cost import cost
from nkdlib.neighbourhoods.capture import Boundaries, capture
from nkdlib.neighbourhoods.distillation import Distillation, Distilled
from nkdlib.neighbourhoods.local import LocalTraining, Recipe, local_error, train_local
from nkdlib.neighbourhoods.split import split
from nkdlib.neighbourhoods.starts import Student, check_order, seed_of, start_students
from nkdlib.runtime.cache import Cache, Task
from nkdlib.runtime.executors import InProcess, Processes
from nkdlib.runtime.keys import qualified_name
from nkdlib.runtime.measure import Stopwatch
from nkdlib.runtime.progress import Progress
from nkdlib.training.evaluate import device_of
from nkdlib.training.store import Store, images_of

Executor = InProcess | Processes
Students = Mapping[str, Student | Mapping[str, Student]]
PLAIN = (bool, int, float, str, tuple, type(None))  # settings of a module that its `repr` may not show
BATCH = 256  # images of one tensor that go through the teacher at a time


@dataclass
class Portable:
    """A module on its way to a worker; its fingerprint covers structure, settings and weights."""

    module: nn.Module

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.module).encode())
        for name, part in self.module.named_modules():
            plain = {key: value for key, value in vars(part).items() if isinstance(value, PLAIN) and key != "training"}
            digest.update(repr((name, sorted(plain.items()))).encode())
        trained = [name for name, value in self.module.named_parameters() if value.requires_grad]
        digest.update(repr(trained).encode())
        for name, value in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def distill(
    teacher: nn.Module,
    students: Students,
    inputs: Iterable,
    recipe: Recipe | None = None,
    executor: Executor | None = None,
    cache: Cache | None = None,
) -> Distillation:
    """Distill neighbourhoods of a teacher, each by itself, from one pass of the teacher.

    Args:
        teacher: any network; not changed.
        students: by neighbourhood name (a submodule path, or first:last for a run of children), what to put there:
            a module with the same input and output shapes, or a width (0.5, or a number of channels) for the
            teacher's own layers with fewer inner channels, or a dict of such candidates by label.
        inputs: batches of images, with or without labels; labels are not used.
        recipe: start, steps, rates; `Recipe()` where omitted.
        executor: where students are trained; this process where omitted. Boundaries that do not fit in memory are
            streamed and trained in this process whatever the executor, since every worker would need a teacher;
            the batches of a step are then parts of those of `inputs`.
        cache: keeps each trained student as an artefact, so that an interrupted call goes on where it was.

    Returns:
        The students by name, with local errors on held-out inputs and seconds.

    Raises:
        ValueError: names or shapes that do not fit, too few images.
        FloatingPointError: a loss that is not finite.

    >>> from nkdlib.models import resnet
    >>> teacher, images = resnet(8, 10, seed=0).eval(), [torch.randn(64, 3, 16, 16)]
    >>> result = distill(teacher, {"layer1.0": 0.5}, images, Recipe(steps=2, batch_size=16, holdout=16))
    ... # doctest: +ELLIPSIS
    distilling 1 neighbourhoods ... done after ...
    >>> result["layer1.0"].module.conv1.out_channels
    8
    """
    modes = {module: module.training for module in teacher.modules()}
    try:
        return _distill(teacher, students, inputs, recipe or Recipe(), executor, cache)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _distill(
    teacher: nn.Module,
    students: Students,
    inputs: Iterable,
    recipe: Recipe,
    executor: Executor | None,
    cache: Cache | None,
) -> Distillation:
    inputs = inputs.split(BATCH) if isinstance(inputs, Tensor) else inputs
    candidates = {n: dict(s) if isinstance(s, Mapping) else {"": s} for n, s in students.items()}
    for name, mine in candidates.items():
        if not mine:
            raise ValueError(f"students[{name!r}] (={{}}) names no candidate; give at least one")
    if iter(inputs) is inputs:  # can be gone through once only
        inputs = list(inputs)
    batch = next(iter(inputs), None)
    if batch is None:
        raise ValueError("inputs holds no batch; give at least one")
    example = images_of(batch)[:2].to(device_of(teacher))
    neighbourhoods = split(teacher, list(candidates), example)
    wanted = recipe.holdout + max(
        recipe.steps * recipe.batch_size, recipe.solve_images if recipe.start == "solved" else 2
    )
    with Stopwatch(example.device) as teacher_watch:
        boundaries = capture(
            teacher,
            neighbourhoods,
            inputs,
            images=wanted,
            keep=recipe.holdout + recipe.solve_images,
            memory_limit_gb=recipe.memory_limit_gb,
            dtype=recipe.dtype,
            adapt=recipe.adapt,
        )
    if len(boundaries.store) < recipe.holdout + 2:
        raise ValueError(
            f"inputs holds {len(boundaries.store)} images, recipe.holdout (={recipe.holdout}) leaves fewer than 2 "
            "to learn from; give more images or a smaller holdout"
        )
    started, start_s = start_students(boundaries, candidates, recipe)
    if recipe.steps == 0:
        infos = {key: _measured(boundaries, *key, started, recipe.holdout) for key in _keys(started)}
    elif boundaries.complete:
        infos = _train_apart(boundaries, started, recipe, executor, cache)
    else:
        infos = _train_streaming(boundaries, started, recipe)
    results: dict[str, dict[str, Distilled]] = {}
    for (name, label), info in infos.items():
        module = started[name][label].eval()
        results.setdefault(name, {})[label] = Distilled(
            name, label, module, cost=cost(module, neighbourhoods[name].example), **info
        )
    return Distillation(
        {n: r if isinstance(students[n], Mapping) else r[""] for n, r in results.items()},
        teacher_watch.device_s,
        start_s,
        sequential_start=recipe.start == "solved" and recipe.front_to_back and boundaries.linked,
        boundaries=repr(boundaries),
    )


def solve(teacher: nn.Module, students: Students, inputs: Iterable, recipe: Recipe | None = None) -> Distillation:
    """Students in closed form alone, without a gradient step; arguments and result as for `distill`."""
    recipe = recipe or Recipe()
    return distill(teacher, students, inputs, dataclasses.replace(recipe, start="solved", steps=0))


def _keys(started: Mapping[str, Mapping[str, nn.Module]]) -> list[tuple[str, str]]:
    return [(name, label) for name, mine in started.items() for label in mine]


def _measured(
    boundaries: Boundaries, name: str, label: str, started: Mapping[str, Mapping[str, nn.Module]], holdout: int
) -> dict[str, object]:
    """A student that takes no step: its local error only."""
    held_out = boundaries.of(name)[:holdout]
    return {"local_error": local_error(started[name][label], held_out), "device_s": 0.0, "wall_s": 0.0}


def _train_apart(
    boundaries: Boundaries,
    started: dict[str, dict[str, nn.Module]],
    recipe: Recipe,
    executor: Executor | None,
    cache: Cache | None,
) -> dict[tuple[str, str], dict[str, object]]:
    """One task a student, from boundaries in memory; the longest first, so that no worker waits for it at the end."""
    stores = {name: boundaries.of(name) for name in started}
    costs = {n.name: n.cost.macs for n in boundaries.neighbourhoods}
    keys = sorted(_keys(started), key=lambda key: -costs[key[0]])
    title = f"distilling {len(keys)} neighbourhoods ({boundaries})"
    infos = {}
    if cache is not None:
        tasks = [
            Task(train_portable, _task(key, stores, started, recipe), f"{key[0]} {key[1]}".strip()) for key in keys
        ]
        for (name, label), artefact in zip(keys, cache.run(tasks, executor, title), strict=True):
            started[name][label].load_state_dict(artefact.tensors)
            infos[name, label] = artefact.info
    else:
        with Progress(title, len(keys) * recipe.steps, "steps") as steps:
            if executor is None:
                given = ((key, _task(key, stores, started, recipe)) for key in keys)
                done = ((key, train_portable(**task, advance=steps.advance)) for key, task in given)
            else:
                futures = {executor.submit(train_portable, **_task(key, stores, started, recipe)): key for key in keys}
                done = ((futures[future], future.result()) for future in as_completed(futures))
            for (name, label), (state, info) in done:
                started[name][label].load_state_dict(state)
                infos[name, label] = info
                if executor is not None:  # a worker tells of its steps when they are done
                    steps.advance(recipe.steps)
    return {key: infos[key] for key in _keys(started)}


def _task(
    key: tuple[str, str], stores: dict[str, Store], started: dict[str, dict[str, nn.Module]], recipe: Recipe
) -> dict[str, object]:
    name, label = key
    return {
        "name": name,
        "student": Portable(started[name][label]),
        "classes": classes_of(started[name][label]),
        "store": stores[name],
        "recipe": recipe,
        "seed": seed_of(recipe.seed, name, label, "order"),
    }


def classes_of(*modules: nn.Module) -> tuple[type, ...]:
    """The classes that modules are made of; in a key they stand for their code."""
    return tuple(sorted({type(part) for module in modules for part in module.modules()}, key=qualified_name))


def train_portable(
    name: str,
    student: Portable,
    classes: tuple[type, ...],
    store: Store,
    recipe: Recipe,
    seed: int,
    advance: Callable[[], None] | None = None,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """`train_local` for a student from another process; in a cache's key, `classes` stands for their code."""
    return train_local(name, student.module, store, recipe, seed, advance)


def _train_streaming(
    boundaries: Boundaries, started: dict[str, dict[str, nn.Module]], recipe: Recipe
) -> dict[tuple[str, str], dict[str, object]]:
    """All students side by side on one stream of boundaries; the first images of a pass stay held out."""
    keys = _keys(started)
    held_out = {name: boundaries.of(name)[: recipe.holdout] for name in started}
    seeds = {key: seed_of(recipe.seed, *key, "order") for key in keys}
    runs = {(n, c): LocalTraining(n, started[n][c], held_out[n], recipe, seeds[n, c]) for n, c in keys}
    watches = dict.fromkeys(keys, 0.0)
    device = boundaries.neighbourhoods[0].example.device
    with Progress(f"distilling {len(keys)} neighbourhoods ({boundaries})", recipe.steps, "steps") as progress:
        for _, pairs in zip(range(recipe.steps), _stream(boundaries, recipe), strict=False):
            for name, label in keys:
                x, y = pairs[name]
                with Stopwatch(device) as watch:
                    # A copy, since a student may begin by working in place.
                    runs[name, label].step(x.clone() if len(started[name]) > 1 else x, y)
                watches[name, label] += watch.device_s
            progress.advance()
    infos = {}
    for name, label in keys:
        x = boundaries.of(name)[recipe.holdout :].select(["x"])
        info = runs[name, label].finish(lambda x=x: (rows["x"] for rows in x.chunks(256)))
        infos[name, label] = {**info, "device_s": watches[name, label], "wall_s": watches[name, label]}
    return infos


def _stream(boundaries: Boundaries, recipe: Recipe) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Batches of (x, y) by neighbourhood, one pass of the teacher after another, without the held-out images."""
    first = boundaries.neighbourhoods[0].name
    while True:
        seen, given = 0, False
        for pairs in boundaries.rows():
            size = len(pairs[first][0])
            if seen == 0:
                check_order(boundaries, pairs[first][0])
            for start in range(max(recipe.holdout - seen, 0), size - 1, recipe.batch_size):
                rows, given = slice(start, start + recipe.batch_size), True
                yield {name: (x[rows], y[rows]) for name, (x, y) in pairs.items()}
            seen += size
        if not given:
            raise ValueError(
                f"inputs gave no batch beyond the first recipe.holdout (={recipe.holdout}) images; give more"
            )
