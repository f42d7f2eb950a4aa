"""Where student neighbourhoods start: as they are given, random, copied from the teacher, or solved."""

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import Boundaries, boundary_rows
from nkdlib.neighbourhoods.closed_form import solve_neighbourhood
from nkdlib.neighbourhoods.local import Recipe
from nkdlib.neighbourhoods.recompose import recompose
from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods
from nkdlib.neighbourhoods.students import narrow, reset
from nkdlib.runtime.measure import Stopwatch

Student = nn.Module | float  # a module, or an inner width of the teacher's own layers
CHUNK = 256  # images at a time


def seed_of(seed: int, *words: str) -> int:
    """A seed of its own for each student, whatever the order or number of workers."""
    return int.from_bytes(hashlib.sha256("/".join((str(seed), *words)).encode()).digest()[:6])


def start_students(
    boundaries: Boundaries, students: Mapping[str, Mapping[str, Student]], recipe: Recipe
) -> tuple[dict[str, dict[str, nn.Module]], dict[str, float]]:
    """Make every student's starting weights.

    Args:
        boundaries: of the teacher.
        students: by neighbourhood and label; modules are copied, not changed.
        recipe: `start` and what the closed form takes.

    Returns:
        The students by neighbourhood and label, on the teacher's device; device-seconds by neighbourhood.

    Raises:
        ValueError: a start that a student cannot have, or an output of another shape than the teacher's.
    """
    started: dict[str, dict[str, nn.Module]] = {}
    seconds: dict[str, float] = {}
    drift = Drift(boundaries, recipe) if recipe.start == "solved" else None
    for here in boundaries.neighbourhoods:
        mine = students[here.name]
        with Stopwatch(here.example.device) as watch:
            made = {label: _start(here, student, label, recipe, drift) for label, student in mine.items()}
            if drift is not None and recipe.front_to_back and boundaries.linked and len(made) == 1:
                drift.advance(here, next(iter(made.values())))
        started[here.name], seconds[here.name] = made, watch.device_s
    return started, seconds


def _start(here: Neighbourhood, student: Student, label: str, recipe: Recipe, drift: "Drift | None") -> nn.Module:
    if isinstance(student, nn.Module):
        student = copy.deepcopy(student).to(here.example.device)
        check_shape(here, label, student)
        if recipe.start == "copied":
            raise ValueError(
                f"start (='copied') needs a width for {here.name!r}, not a module; give a share such as 0.5, "
                "or start='given'"
            )
        if recipe.start == "random":
            return reset(student, seed_of(recipe.seed, here.name, label))
    elif recipe.start != "solved":
        narrowed = narrow(here.module, here.example, student).requires_grad_(True)  # also of a frozen teacher
        if recipe.start == "random":
            return reset(narrowed, seed_of(recipe.seed, here.name, label))
        return narrowed
    if drift is not None:
        solved = solve_neighbourhood(here.module, student, lambda: drift.pairs(here), recipe.ridge)
        return solved if isinstance(student, nn.Module) else solved.requires_grad_(True)
    return student


def check_shape(here: Neighbourhood, label: str, student: nn.Module) -> None:
    """Raise ValueError where a student does not take what the teacher's part takes and return what it returns."""
    with torch.no_grad():
        try:
            output = student.eval()(here.example)
        except RuntimeError as error:
            raise ValueError(
                f"{_called(here, label)} cannot take the neighbourhood's input of shape {here.input_shape}: {error}"
            ) from error
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if shape != here.output_shape:
        raise ValueError(
            f"{_called(here, label)} returns shape {shape}, the teacher's part {here.output_shape}; "
            "give a student with the same output shape"
        )


def _called(here: Neighbourhood, label: str) -> str:
    return f"students[{here.name!r}]" + (f"[{label!r}]" if label else "")


def check_order(boundaries: Boundaries, x: Tensor) -> None:
    """Raise ValueError where the first images of another pass over the inputs are not those of the first pass.

    Args:
        boundaries: of the first pass.
        x: (B, ...), what the first neighbourhood takes for the first batch of the other pass.
    """
    count = min(len(x), len(boundaries.store), 8)
    before = boundaries.of(boundaries.neighbourhoods[0].name).take(slice(0, count))["x"]
    if (x[:count] - before).abs().max() > 0.01 * before.abs().max():  # far above the rounding to recipe.dtype
        raise ValueError(
            "inputs gives other images, or another order, in every pass, so that held-out images would be learned "
            "from; give a loader with shuffle=False and without augmentation, or a list of batches"
        )


class Drift:
    """What the students solved so far feed to the next neighbourhood, beside what the teacher feeds it."""

    def __init__(self, boundaries: Boundaries, recipe: Recipe):
        self.boundaries = boundaries
        self.rows = slice(recipe.holdout, recipe.holdout + recipe.solve_images)
        self.students: dict[str, nn.Module] = {}
        self.output: list[Tensor] = []  # what the students cause, chunk by chunk
        self.feeds: str | None = None  # the neighbourhood that takes `output`, where it is known
        if len(boundaries.store) < recipe.holdout + 2:
            raise ValueError(
                f"inputs holds {len(boundaries.store)} images, recipe.holdout (={recipe.holdout}) leaves fewer "
                "than 2 to solve from; give more images or a smaller holdout"
            )

    def theirs(self, here: Neighbourhood) -> Iterator[Tensor]:
        """The teacher's inputs of a neighbourhood."""
        return (rows["x"] for rows in self.boundaries.of(here.name)[self.rows].select(["x"]).chunks(CHUNK))

    def ours(self, here: Neighbourhood) -> Iterator[Tensor]:
        """The inputs that the students before it cause."""
        if not self.students:
            return self.theirs(here)
        if self.feeds != here.name:
            self.output, self.feeds = self._through(here), here.name
        return (x.clone() for x in self.output)  # a student may begin by working in place

    def pairs(self, here: Neighbourhood) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (the teacher's input, the student's input)."""
        return zip(self.theirs(here), self.ours(here), strict=True)

    @torch.no_grad()
    def advance(self, here: Neighbourhood, student: nn.Module) -> None:
        """Note a solved student and run it on what it will see."""
        self.output = [student.eval()(x) for x in self.ours(here)]
        self.students[here.name] = student
        names = self.boundaries.neighbourhoods.names
        after = self.boundaries.neighbourhoods[names.index(here.name) + 1 :]
        self.feeds = after[0].name if after and after[0].chained else None

    def _through(self, here: Neighbourhood) -> list[Tensor]:
        """The inputs of a neighbourhood that does not follow the last student at once: run what lies between."""
        inputs = self.boundaries.inputs
        if iter(inputs) is inputs:
            raise ValueError(
                f"front_to_back (=True) needs inputs that can be gone through again, since {here.name!r} does not "
                "follow the neighbourhood before it at once; give a list or loader, or front_to_back=False"
            )
        network = recompose(self.boundaries.teacher, self.students)
        first = self.boundaries.neighbourhoods[0]
        ends = Neighbourhoods([first, dataclasses.replace(here, chained=False)], self.boundaries.neighbourhoods.total)
        found, count = [], 0
        for row in boundary_rows(network, ends, inputs):
            if not found:
                check_order(self.boundaries, row[f"{first.name}:x"])
            found.append(row[f"{here.name}:x"])
            count += len(found[-1])
            if count >= self.rows.stop:
                break
        x = torch.cat(found)[self.rows]
        return list(x.split(CHUNK))
