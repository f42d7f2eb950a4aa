"""Neighbourhood Distillation: one teacher pass, then every student neighbourhood by itself.

Shao et al., arXiv 2010.01189.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import pandas as pd
import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import Boundaries, capture, first_batch, input_pairs, passes, repeatable
from nkdlib.neighbourhoods.closed_form import Pairs
from nkdlib.neighbourhoods.local import STATE, Recipe, train_local
from nkdlib.neighbourhoods.split import Neighbourhood, Student, recompose, split
from nkdlib.neighbourhoods.students import check_student, initialize_student
from nkdlib.neighbourhoods.tables import Tabled
from nkdlib.networks.cost import Cost, cost
from nkdlib.networks.module import check_float32, device_of, evaluating, in_evaluation, load_state
from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import InProcess, Processes, gather, make_executor
from nkdlib.tasks.measure import Stopwatch

Executor = InProcess | Processes


@dataclass
class Distilled:
    """One student neighbourhood, how well it imitates its teacher's part, and what it cost."""

    name: str  # of the neighbourhood
    module: nn.Module = field(repr=False)
    example: Tensor = field(repr=False)  # an input of the right shape
    start_s: float  # device-seconds of its start (the closed form, mostly)
    device_s: float  # and of its gradient steps
    local_error: float  # on held-out inputs, see `local_error`
    losses: list[float] = field(default_factory=list, repr=False)  # of every step

    @cached_property
    def cost(self) -> Cost:
        """Its parameters, and MACs of one example."""
        return cost(self.module, self.example.to(device_of(self.module)))


@dataclass(repr=False)
class Distillation(Tabled, Mapping[str, Distilled]):
    """Distilled students by neighbourhood, front to back; prints itself as a table."""

    students: dict[str, Distilled]
    teacher_s: float  # device-seconds of the teacher's passes
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
        return self.teacher_s + sum(student.start_s + student.device_s for student in self.values())

    def critical_path_s(self, workers: int | None = None) -> float:
        """Seconds until the last student is done with one worker for each neighbourhood; boundaries take no time.

        Args:
            workers: that share the teacher's pass; by default one for each neighbourhood.
        """
        # DEVIATION D6: computed from measured tasks, not run on as many machines.
        workers = len(self) if workers is None else workers
        if self.sequential_start:
            longest = sum(s.start_s for s in self.values()) + max(s.device_s for s in self.values())
        else:
            longest = max(s.start_s + s.device_s for s in self.values())
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
                    "start [s]": student.start_s,
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
    recipe = recipe or Recipe()
    inputs = repeatable(inputs, recipe.images)
    check_float32(teacher, "teacher")
    example = first_batch(inputs)[:2].to(device_of(teacher))
    how = {"images": recipe.images, "dtype": recipe.dtype, "adapt": recipe.adapt}
    several = executor is not None and executor.jobs > 1
    teacher_s, start_s, done, said = 0.0, {}, {}, ""
    previous: list[Tensor] | None = None  # outputs of the student before, batch by batch
    with evaluating(teacher):
        neighbourhoods = split(teacher, list(students), example)
        students = {
            part.name: check_student(part, students[part.name], recipe.start, f"students[{part.name!r}]")
            for part in neighbourhoods
        }
        sets, how["images"] = passes(neighbourhoods, inputs, memory_limit_gb=recipe.memory_limit_gb, **how)
        for number, parts in enumerate(sets, 1):
            with Stopwatch(example.device) as watch:
                boundaries = capture(teacher, parts, inputs, **how, shared=several)
            teacher_s += watch.device_s
            if (images := len(boundaries.store)) < recipe.holdout + 2:
                raise ValueError(
                    f"inputs holds {images} images, recipe.holdout (={recipe.holdout}) leaves fewer than 2 to learn "
                    "from; give more images or a smaller holdout"
                )
            for part in parts:
                with Stopwatch(example.device) as watch:
                    rows = boundaries.of(part.name)[recipe.solved]
                    pairs = input_pairs(rows, previous if part.chained else None)
                    student = initialize_student(
                        part.module, students[part.name], recipe, pairs, seed_of(recipe.seed, part.name, "")
                    )
                    if recipe.in_sequence:
                        previous = outputs_of(student, pairs)
                students[part.name], start_s[part.name] = student, watch.device_s
            said = f"{boundaries}, pass {number} of {len(sets)}" if len(sets) > 1 else repr(boundaries)
            infos = _train(parts, students, boundaries, recipe, executor, cache, said)
            for part in parts:
                student = in_evaluation(students[part.name])
                done[part.name] = Distilled(part.name, student, part.example, start_s[part.name], **infos[part.name])
            del boundaries, rows, pairs  # room for the next set
    if len(sets) > 1:
        said = (
            f"boundaries above recipe.memory_limit_gb (={recipe.memory_limit_gb:g}): {len(sets)} passes of the teacher"
        )
    return Distillation(done, teacher_s, recipe.in_sequence, said)


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


@torch.no_grad()
def outputs_of(student: nn.Module, pairs: Pairs) -> list[Tensor]:
    """Outputs of a solved student, batch by batch."""
    student.eval()
    return [student(x) for _, x in pairs()]


def _train(
    parts: list[Neighbourhood],
    students: Mapping[str, nn.Module],
    boundaries: Boundaries,
    recipe: Recipe,
    executor: Executor | None,
    cache: Cache | None,
    said: str,
) -> dict[str, dict[str, object]]:
    """Train each student in a task of its own, the dearest first, so that no worker waits for it at the end."""
    tasks = {}
    for part in sorted(parts, key=lambda part: -part.cost.macs):
        given = {"name": part.name, "student": students[part.name], "store": boundaries.of(part.name), "recipe": recipe}
        tasks[part.name] = Task(train_local, given | {"seed": seed_of(recipe.seed, part.name, "", "order")}, part.name)
    title = f"distilling {len(tasks)} neighbourhoods ({said})"
    if recipe.schedule.steps == 0:
        made = [task.fn(**task.kwargs) for task in tasks.values()]
    elif cache is not None:
        made = [{**artefact.tensors, **artefact.info} for artefact in cache.run(tasks.values(), executor, title)]
    else:
        calls = [(task.label, partial(task.fn, **task.kwargs)) for task in tasks.values()]
        made = gather(calls, executor or make_executor(threads=torch.get_num_threads()), title)
    for name, found in zip(tasks, made, strict=True):
        state = [key for key in found if key.startswith(STATE)]
        load_state(students[name], {key.removeprefix(STATE): found.pop(key) for key in state})
    return dict(zip(tasks, made, strict=True))
