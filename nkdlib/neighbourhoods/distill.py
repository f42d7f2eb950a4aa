"""Neighbourhood Distillation: one teacher pass, then every student neighbourhood by itself.

Shao et al., arXiv 2010.01189.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import Boundaries, capture, first_batch, repeatable
from nkdlib.neighbourhoods.local import LocalTraining, Recipe, train_local
from nkdlib.neighbourhoods.split import recompose, split
from nkdlib.neighbourhoods.starts import Student, check_order, seed_of, start_students
from nkdlib.neighbourhoods.tables import Tabled
from nkdlib.networks.cost import Cost, cost
from nkdlib.networks.module import device_of, evaluating
from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import InProcess, Processes, gather, make_executor
from nkdlib.tasks.measure import Stopwatch
from nkdlib.tasks.progress import Progress

Executor = InProcess | Processes
Students = Mapping[str, Student | Mapping[str, Student]]
Started = Mapping[tuple[str, str], nn.Module]  # students by neighbourhood and label
Infos = dict[tuple[str, str], dict[str, object]]  # what is known of each


@dataclass
class Distilled:
    """One student neighbourhood, how well it imitates its teacher's part, and what it cost."""

    name: str  # of the neighbourhood
    label: str  # of the candidate, "" where there is one
    module: nn.Module = field(repr=False)
    local_error: float  # on held-out inputs, see `local_error`
    cost: Cost
    device_s: float  # of its own gradient steps
    losses: list[float] = field(default_factory=list, repr=False)  # of every step


@dataclass(repr=False)
class Distillation(Tabled, Mapping[str, Distilled | dict[str, Distilled]]):
    """What `distill` returns: by neighbourhood, a `Distilled`, or several by label where candidates were given."""

    students: dict[str, Distilled | dict[str, Distilled]]
    teacher_s: float  # device-seconds of the teacher's one pass
    start_s: dict[str, float]  # device-seconds of each neighbourhood's start (the closed form, mostly)
    sequential_start: bool  # starts waited for each other (front to back)
    boundaries: str  # whether and how they were kept, in words

    def __getitem__(self, name: str) -> Distilled | dict[str, Distilled]:
        return self.students[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.students)

    def __len__(self) -> int:
        return len(self.students)

    def every(self) -> Iterator[Distilled]:
        """All students, front to back."""
        for value in self.students.values():
            yield from value.values() if isinstance(value, dict) else (value,)

    @property
    def device_s(self) -> float:
        """Device-seconds on one worker: the teacher's pass, the starts and every student's steps."""
        return self.teacher_s + sum(self.start_s.values()) + sum(d.device_s for d in self.every())

    def critical_path_s(self, workers: int | None = None) -> float:
        """Seconds until the last student is done with one worker for each neighbourhood; boundaries take no time.

        Args:
            workers: that share the teacher's pass; the number of neighbourhoods where omitted.
        """
        # DEVIATION D6: computed from measured tasks, not run on as many machines.
        workers = len(self) if workers is None else workers
        steps = {name: sum(d.device_s for d in self.every() if d.name == name) for name in self}
        if self.sequential_start:
            longest = sum(self.start_s.values()) + max(steps.values())
        else:
            longest = max(self.start_s[name] + steps[name] for name in self)
        return self.teacher_s / workers + longest

    def recompose(self, teacher: nn.Module, **chosen: str) -> nn.Module:
        """The teacher with these students in place, see `recompose`; where there are candidates, `name=label`."""
        labels = {name: list(value) for name, value in self.students.items() if isinstance(value, dict)}
        for name in labels.keys() | chosen.keys():
            if chosen.get(name) not in labels.get(name, ()):
                raise ValueError(
                    f"chosen[{name!r}] (={chosen.get(name)!r}) is no candidate; choose one for each of {labels}"
                )
        students = {n: v[chosen[n]] if isinstance(v, dict) else v for n, v in self.students.items()}
        return recompose(teacher, {name: student.module for name, student in students.items()})

    def table(self) -> pd.DataFrame:
        """Local errors and costs, a row a student."""
        return pd.DataFrame(
            [
                {
                    "neighbourhood": d.name,
                    **({"candidate": d.label} if d.label else {}),
                    "local error": d.local_error,
                    "params": d.cost.params,
                    "MACs": d.cost.macs,
                    "start [s]": self.start_s[d.name],
                    "steps [s]": d.device_s,
                }
                for d in self.every()
            ]
        )

    def caption(self) -> str:
        """Where boundaries were, and what the teacher's pass took."""
        return f"{self.boundaries}; teacher's pass {self.teacher_s:.2f} device-seconds"


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
        executor: where students are trained; this process where omitted, and where boundaries do not fit in memory:
            these are streamed, and the batches of a step are then parts of those of `inputs`.
        cache: keeps each trained student as an artefact, so that an interrupted call goes on where it was.

    Raises:
        ValueError: names or shapes that do not fit, too few images.
        FloatingPointError: a loss that is not finite.

    >>> import torch
    >>> from nkdlib.networks import resnet
    >>> teacher, images = resnet(8, 10, seed=0).eval(), [torch.randn(64, 3, 16, 16)]
    >>> result = distill(teacher, {"layer1.0": 0.5}, images, Recipe(steps=2, batch_size=16, holdout=16))
    ... # doctest: +ELLIPSIS
    distilling 1 neighbourhoods ... done after ...
    >>> result["layer1.0"].module.conv1.out_channels
    8
    """
    recipe, inputs = recipe or Recipe(), repeatable(inputs)
    candidates = {n: dict(s) if isinstance(s, Mapping) else {"": s} for n, s in students.items()}
    for name, mine in candidates.items():
        if not mine:
            raise ValueError(f"students[{name!r}] (={{}}) names no candidate; give at least one")
    example = first_batch(inputs)[:2].to(device_of(teacher))
    with evaluating(teacher):
        neighbourhoods = split(teacher, list(candidates), example)
        solve_images = recipe.solve_images if recipe.start == "solved" else 2
        with Stopwatch(example.device) as teacher_watch:
            boundaries = capture(
                teacher,
                neighbourhoods,
                inputs,
                images=recipe.holdout + max(recipe.steps * recipe.batch_size, solve_images),
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
        if boundaries.complete or recipe.steps == 0:
            infos = _train_apart(boundaries, started, recipe, executor, cache)
        else:
            infos = _train_streaming(boundaries, started, recipe)
        done = {
            place: Distilled(*place, module, cost=cost(module.eval(), neighbourhoods[place[0]].example), **infos[place])
            for place, module in started.items()
        }
    return Distillation(
        {
            here.name: {label: done[here.name, label] for label in candidates[here.name]}
            if isinstance(students[here.name], Mapping)
            else done[here.name, ""]
            for here in neighbourhoods
        },
        teacher_watch.device_s,
        start_s,
        sequential_start=recipe.start == "solved" and recipe.front_to_back and boundaries.linked,
        boundaries=repr(boundaries),
    )


def solve(teacher: nn.Module, students: Students, inputs: Iterable, recipe: Recipe | None = None) -> Distillation:
    """Students in closed form alone, without a gradient step; arguments and result as for `distill`.

    >>> import torch
    >>> from nkdlib.networks import resnet
    >>> teacher, images = resnet(8, 10, seed=0).eval(), [torch.randn(64, 3, 16, 16)]
    >>> result = solve(teacher, {"layer1.0": 0.5}, images, Recipe(holdout=16))
    >>> 0 < result["layer1.0"].local_error < 1
    True
    """
    recipe = recipe or Recipe()
    return distill(teacher, students, inputs, dataclasses.replace(recipe, start="solved", steps=0))


def _train_apart(
    boundaries: Boundaries, started: Started, recipe: Recipe, executor: Executor | None, cache: Cache | None
) -> Infos:
    """One task a student, from boundaries in memory; the longest first, so that no worker waits for it at the end."""
    tasks = {}
    for name, label in sorted(started, key=lambda place: -boundaries.neighbourhoods[place[0]].cost.macs):
        kwargs = {"name": name, "student": started[name, label], "store": boundaries.of(name), "recipe": recipe}
        kwargs["seed"] = seed_of(recipe.seed, name, label, "order")
        if recipe.inner:
            kwargs["piece"] = boundaries.neighbourhoods[name].module
        tasks[name, label] = Task(train_local, kwargs, f"{name} {label}".strip())
    title = f"distilling {len(tasks)} neighbourhoods ({boundaries})"
    if recipe.steps == 0:
        made = [task.fn(**task.kwargs) for task in tasks.values()]
    elif cache is not None:
        made = [(artefact.tensors, artefact.info) for artefact in cache.run(tasks.values(), executor, title)]
    else:
        calls = [(task.label, functools.partial(task.fn, **task.kwargs)) for task in tasks.values()]
        made = gather(calls, executor or make_executor(threads=torch.get_num_threads()), title)
    trained = dict(zip(tasks, made, strict=True))
    for place, (state, _) in trained.items():
        started[place].load_state_dict(state)
    return {place: info for place, (_, info) in trained.items()}


def _train_streaming(boundaries: Boundaries, started: Started, recipe: Recipe) -> Infos:
    """All students side by side on one stream of boundaries; the first images of a pass stay held out."""
    stores = {place: boundaries.of(place[0]) for place in started}
    runs = {
        (name, label): LocalTraining(
            name,
            student,
            stores[name, label][: recipe.holdout],
            recipe,
            seed_of(recipe.seed, name, label, "order"),
            boundaries.neighbourhoods[name].module,
        )
        for (name, label), student in started.items()
    }
    seconds = dict.fromkeys(runs, 0.0)
    device = boundaries.neighbourhoods[0].example.device
    with Progress(f"distilling {len(runs)} neighbourhoods ({boundaries})", recipe.steps, "steps") as progress:
        for _, pairs in zip(range(recipe.steps), _stream(boundaries, recipe), strict=False):
            for place, run in runs.items():
                x, y = pairs[place[0]]
                with Stopwatch(device) as watch:
                    run.step(x.clone(), y)  # others need it, and a student may begin by working in place
                seconds[place] += watch.device_s
            progress.advance()
    return {p: {**run.finish(stores[p][recipe.holdout :]), "device_s": seconds[p]} for p, run in runs.items()}


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
