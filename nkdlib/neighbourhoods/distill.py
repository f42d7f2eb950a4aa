"""Neighbourhood Distillation: one teacher pass, then every student neighbourhood by itself.

Shao et al., arXiv 2010.01189.
"""

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import BATCH, Boundaries, capture, first_batch, passes, repeatable
from nkdlib.neighbourhoods.closed_form import Pairs, Ranking, solve_neighbourhood
from nkdlib.neighbourhoods.local import Recipe, train_local
from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods, recompose, split
from nkdlib.neighbourhoods.students import narrow
from nkdlib.neighbourhoods.tables import Tabled
from nkdlib.networks.cost import Cost, cost
from nkdlib.networks.module import device_of, evaluating, reset
from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import InProcess, Processes, gather, make_executor
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training.store import Store

Executor = InProcess | Processes
Student = nn.Module | float | int  # a module, or an inner width of the teacher's own layers


@dataclass
class Distilled:
    """One student neighbourhood, how well it imitates its teacher's part, and what it cost."""

    name: str  # of the neighbourhood
    module: nn.Module = field(repr=False)
    local_error: float  # on held-out inputs, see `local_error`
    cost: Cost
    device_s: float  # of its own gradient steps
    losses: list[float] = field(default_factory=list, repr=False)  # of every step


@dataclass(repr=False)
class Distillation(Tabled, Mapping[str, Distilled]):
    """Distilled students by neighbourhood, front to back; prints itself as a table."""

    students: dict[str, Distilled]
    teacher_s: float  # device-seconds of the teacher's passes
    start_s: dict[str, float]  # device-seconds of each neighbourhood's start (the closed form, mostly)
    sequential_start: bool  # starts waited for each other (front to back)
    boundaries: str  # their number and size, and how many passes they took

    def __getitem__(self, name: str) -> Distilled:
        return self.students[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.students)

    def __len__(self) -> int:
        return len(self.students)

    @property
    def device_s(self) -> float:
        """Device-seconds on one worker: the teacher's passes, the starts and every student's steps."""
        return self.teacher_s + sum(self.start_s.values()) + sum(student.device_s for student in self.values())

    def critical_path_s(self, workers: int | None = None) -> float:
        """Seconds until the last student is done with one worker for each neighbourhood; boundaries take no time.

        Args:
            workers: that share the teacher's pass; by default one for each neighbourhood.
        """
        # DEVIATION D6: computed from measured tasks, not run on as many machines.
        workers = len(self) if workers is None else workers
        if self.sequential_start:
            longest = sum(self.start_s.values()) + max(student.device_s for student in self.values())
        else:
            longest = max(self.start_s[name] + student.device_s for name, student in self.items())
        return self.teacher_s / workers + longest

    def recompose(self, teacher: nn.Module) -> nn.Module:
        """The teacher with these students in place, see `recompose`."""
        return recompose(teacher, {name: student.module for name, student in self.items()})

    def table(self) -> pd.DataFrame:
        """Local errors and costs, a row a student."""
        return pd.DataFrame(
            [
                {
                    "neighbourhood": name,
                    "local error": student.local_error,
                    "params": student.cost.params,
                    "MACs": student.cost.macs,
                    "start [s]": self.start_s[name],
                    "steps [s]": student.device_s,
                }
                for name, student in self.items()
            ]
        )

    def caption(self) -> str:
        """Size of the boundaries, and seconds of the teacher."""
        return f"{self.boundaries}; teacher {self.teacher_s:.2f} device-seconds"


def distill(
    teacher: nn.Module,
    students: Mapping[str, Student],
    inputs: Iterable,
    recipe: Recipe | None = None,
    executor: Executor | None = None,
    cache: Cache | None = None,
) -> Distillation:
    """Distill neighbourhoods of a teacher, each by itself, from one pass of the teacher.

    Args:
        teacher: any network; not changed.
        students: by neighbourhood name (a submodule path, or first:last for a run of children): a module with the
            same input and output shapes, or a width (0.5, or a number of channels) for the teacher's own layers with
            fewer inner channels. Several candidates for one neighbourhood are for `Library`.
        inputs: batches of images, with or without labels; labels are not used.
        recipe: start, steps, rates; by default `Recipe()`.
        executor: runs the training of students; by default in this process.
        cache: keeps each trained student as an artefact, so that an interrupted call goes on where it was.

    Boundaries that do not fit into `recipe.memory_limit_gb` together are captured for as many neighbourhoods at a time
    as do, front to back, in a pass of the teacher each; students are the same.

    Raises:
        ValueError: names or shapes that do not fit, too few images, a neighbourhood with boundaries above the limit.
        FloatingPointError: a loss that is not finite.

    >>> import torch
    >>> from nkdlib.networks import resnet
    >>> from nkdlib.training import Schedule
    >>> teacher, images = resnet(8, 10, seed=0), [torch.randn(64, 3, 16, 16)]
    >>> recipe = Recipe(schedule=Schedule(steps=2, batch_size=16), holdout=16)
    >>> result = distill(teacher, {"layer1.0": 0.5}, images, recipe)  # doctest: +ELLIPSIS
    distilling 1 neighbourhoods ... done after ...
    >>> result["layer1.0"].module.conv1.out_channels
    8
    """
    recipe, inputs = recipe or Recipe(), repeatable(inputs)
    example = first_batch(inputs)[:2].to(device_of(teacher))
    how = {"images": recipe.images, "dtype": recipe.dtype, "adapt": recipe.adapt}
    teacher_s, start_s, done, said = 0.0, {}, {}, ""
    previous: list[Tensor] | None = None  # outputs of the student before, batch by batch
    with evaluating(teacher):
        neighbourhoods = split(teacher, list(students), example)
        students = {n.name: copy.deepcopy(students[n.name]) for n in neighbourhoods}
        for neighbourhood in neighbourhoods:
            check_student(neighbourhood, students[neighbourhood.name], recipe, f"students[{neighbourhood.name!r}]")
        sets = passes(neighbourhoods, inputs, memory_limit_gb=recipe.memory_limit_gb, **how)
        for number, members in enumerate(sets, 1):
            with Stopwatch(example.device) as watch:
                boundaries = capture(teacher, members, inputs, **how)
            teacher_s += watch.device_s
            if (images := len(boundaries.store)) < recipe.holdout + 2:
                raise ValueError(
                    f"inputs holds {images} images, recipe.holdout (={recipe.holdout}) leaves fewer than 2 to learn "
                    "from; give more images or a smaller holdout"
                )
            said = f"{boundaries}, pass {number} of {len(sets)}" if len(sets) > 1 else repr(boundaries)
            started, seconds, previous = _start(members, boundaries, students, recipe, previous)
            start_s |= seconds
            done |= _train(members, boundaries, started, recipe, executor, cache, said)
    if len(sets) > 1:
        said = (
            f"boundaries above recipe.memory_limit_gb (={recipe.memory_limit_gb:g}): {len(sets)} passes of the teacher"
        )
    return Distillation(done, teacher_s, start_s, _front_to_back(recipe), said)


def solve(
    teacher: nn.Module, students: Mapping[str, Student], inputs: Iterable, recipe: Recipe | None = None
) -> Distillation:
    """Solve students in closed form, without a gradient step; arguments and result as for `distill`."""
    recipe = recipe or Recipe()
    untrained = dataclasses.replace(recipe.schedule, steps=0)
    return distill(teacher, students, inputs, dataclasses.replace(recipe, start="solved", schedule=untrained))


def seed_of(seed: int, *words: str) -> int:
    """A seed of its own for each student, whatever the order or number of workers."""
    return int.from_bytes(hashlib.sha256("/".join((str(seed), *words)).encode()).digest()[:6])


def check_student(neighbourhood: Neighbourhood, student: Student, recipe: Recipe, called: str) -> None:
    """Raise ValueError for a student that is none, cannot start as the recipe says, or has other shapes.

    A module is moved to the teacher's device and put into evaluation mode; a width is left to `narrow`. `called` is its
    name in errors.
    """
    if not isinstance(student, Student):
        raise ValueError(f"{called} (={student}) must be a module or a width; several candidates are for Library")
    if not isinstance(student, nn.Module):
        return
    if recipe.start == "copied":
        raise ValueError(
            f"start (='copied') needs a width for {called}, not a module; give a share such as 0.5, or start='given'"
        )
    with torch.no_grad():
        try:
            output = student.to(neighbourhood.example.device).eval()(neighbourhood.example)
        except RuntimeError as error:
            raise ValueError(
                f"{called} cannot take the neighbourhood's input of shape {neighbourhood.input_shape}: {error}"
            ) from error
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if shape != neighbourhood.output_shape:
        raise ValueError(
            f"{called} returns shape {shape}, the teacher's part {neighbourhood.output_shape}; "
            "give a student with the same output shape"
        )


def build_student(piece: nn.Module, student: Student, example: Tensor) -> nn.Module:
    """An untrained student's module: itself, or the teacher's `piece` made narrower."""
    return student if isinstance(student, nn.Module) else narrow(piece, example, student)


def initialize_student(
    piece: nn.Module, student: Student, recipe: Recipe, pairs: Pairs, seed: int, ranking: Ranking | None = None
) -> nn.Module:
    """A student of the teacher's `piece` with the weights that it starts from; a module is changed in place.

    `pairs` and `ranking` are for the closed form, see `solve_neighbourhood`, `seed` is for random weights.
    """
    if recipe.start == "solved":
        module = solve_neighbourhood(piece, student, pairs, recipe.ridge, ranking, recipe.ridge_to == "own")
    else:
        module = build_student(piece, student, next(pairs())[0][:1])
        module = reset(module, seed) if recipe.start == "random" else module
    return module if isinstance(student, nn.Module) else module.requires_grad_(True)  # also of a frozen teacher


def input_pairs(rows: Store, previous: list[Tensor] | None = None) -> Pairs:
    """Batches to solve from: the teacher's input, and the student's: `previous`, or the same.

    Both are copies, since a layer may work in place.
    """

    def of_teacher() -> Iterator[Tensor]:
        return (row["x"] for row in rows.select(["x"]).chunks(BATCH))

    return lambda: zip(of_teacher(), of_teacher() if previous is None else (x.clone() for x in previous), strict=True)


def _front_to_back(recipe: Recipe) -> bool:
    return recipe.start == "solved" and recipe.front_to_back and not recipe.adapt


def _start(
    members: Neighbourhoods,
    boundaries: Boundaries,
    students: Mapping[str, Student],
    recipe: Recipe,
    previous: list[Tensor] | None,
) -> tuple[dict[str, nn.Module], dict[str, float], list[Tensor] | None]:
    """Students with their starting weights, their device-seconds, and the outputs of the last one, batch by batch."""
    started, seconds = {}, {}
    for neighbourhood in members:
        name, piece = neighbourhood.name, neighbourhood.module
        with Stopwatch(boundaries.store.device) as watch:
            pairs = input_pairs(boundaries.of(name)[recipe.solved], previous if neighbourhood.chained else None)
            started[name] = initialize_student(piece, students[name], recipe, pairs, seed_of(recipe.seed, name, ""))
            if _front_to_back(recipe):
                with torch.no_grad():
                    previous = [started[name].eval()(x) for _, x in pairs()]
        seconds[name] = watch.device_s
    return started, seconds, previous


def _train(
    members: Neighbourhoods,
    boundaries: Boundaries,
    started: Mapping[str, nn.Module],
    recipe: Recipe,
    executor: Executor | None,
    cache: Cache | None,
    said: str,
) -> dict[str, Distilled]:
    """Train each student in a task of its own, the dearest first, so that no worker waits for it at the end."""
    tasks = {}
    for name in sorted(started, key=lambda name: -members[name].cost.macs):
        given = {"name": name, "student": started[name], "store": boundaries.of(name), "recipe": recipe}
        tasks[name] = Task(train_local, {**given, "seed": seed_of(recipe.seed, name, "", "order")}, name)
    title = f"distilling {len(tasks)} neighbourhoods ({said})"
    if recipe.schedule.steps == 0:
        made = [task.fn(**task.kwargs) for task in tasks.values()]
    elif cache is not None:
        made = [(artefact.tensors, artefact.info) for artefact in cache.run(tasks.values(), executor, title)]
    else:
        calls = [(task.label, functools.partial(task.fn, **task.kwargs)) for task in tasks.values()]
        made = gather(calls, executor or make_executor(threads=torch.get_num_threads()), title)
    trained = dict(zip(tasks, made, strict=True))
    done = {}
    for name, module in started.items():
        state, info = trained[name]
        module.load_state_dict(state)
        done[name] = Distilled(name, module, cost=cost(module.eval(), members[name].example), **info)
    return done
