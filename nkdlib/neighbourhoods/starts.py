"""Where student neighbourhoods start: as they are given, random, copied from the teacher, or solved."""

import copy
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.capture import BATCH, Boundaries, inputs_within
from nkdlib.neighbourhoods.closed_form import Pairs, Ranking, solve_neighbourhood
from nkdlib.neighbourhoods.local import Recipe
from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods, recompose
from nkdlib.neighbourhoods.students import narrow
from nkdlib.networks.module import reset
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training.store import Store, first_images

Student = nn.Module | float  # a module, or an inner width of the teacher's own layers


def seed_of(seed: int, *words: str) -> int:
    """A seed of its own for each student, whatever the order or number of workers."""
    return int.from_bytes(hashlib.sha256("/".join((str(seed), *words)).encode()).digest()[:6])


def shape_of(piece: nn.Module, student: Student, example: Tensor) -> nn.Module:
    """The module that a student is, before it has learned anything: itself, or the teacher's part made narrower."""
    return student if isinstance(student, nn.Module) else narrow(piece, example, student)


def pairs_of(rows: Store, ours: list[Tensor] | None = None) -> Pairs:
    """Batches to solve from: what the teacher's part takes, and what the student takes, the same where omitted.

    Both are copies, since a layer may work in place.
    """

    def theirs() -> Iterator[Tensor]:
        return (row["x"] for row in rows.select(["x"]).chunks(BATCH))

    return lambda: zip(theirs(), theirs() if ours is None else (x.clone() for x in ours), strict=True)


def begin(
    piece: nn.Module, student: Student, recipe: Recipe, pairs: Pairs, seed: int, ranking: Ranking | None = None
) -> nn.Module:
    """A student of the teacher's `piece` with the weights that it starts from; a module is changed in place.

    `pairs` and `ranking` are for the closed form, see `solve_neighbourhood`, `seed` is for random weights.
    """
    if recipe.start == "solved":
        module = solve_neighbourhood(piece, student, pairs, recipe.ridge, ranking, recipe.ridge_to == "own")
    else:
        module = shape_of(piece, student, next(pairs())[0][:1])
        module = reset(module, seed) if recipe.start == "random" else module
    return module if isinstance(student, nn.Module) else module.requires_grad_(True)  # also of a frozen teacher


def start_students(
    boundaries: Boundaries, students: Mapping[str, Mapping[str, Student]], recipe: Recipe
) -> tuple[dict[tuple[str, str], nn.Module], dict[str, float]]:
    """Every student by neighbourhood and label, a copy, with its starting weights; device-seconds by neighbourhood.

    Raises:
        ValueError: a start that a student cannot have, or an output of another shape than the teacher's.
    """
    started: dict[tuple[str, str], nn.Module] = {}
    seconds: dict[str, float] = {}
    front_to_back = recipe.start == "solved" and recipe.front_to_back and boundaries.linked
    before: dict[str, nn.Module] = {}  # the students solved so far
    ours: list[Tensor] | None = None  # what the last of them gives, batch by batch
    for here in boundaries.neighbourhoods:
        with Stopwatch(here.example.device) as watch:
            if before and (ours is None or not here.chained):
                ours = _through(boundaries, before, here, recipe)
            pairs = pairs_of(boundaries.of(here.name)[recipe.solved], ours)
            for label, given in students[here.name].items():
                student = copy.deepcopy(given)
                if isinstance(student, nn.Module):
                    check_student(here, label, student.to(here.example.device), recipe)
                seed = seed_of(recipe.seed, here.name, label)
                student = started[here.name, label] = begin(here.module, student, recipe, pairs, seed)
            ours = None
            if front_to_back and len(students[here.name]) == 1:
                before[here.name] = student
                with torch.no_grad():
                    ours = [student.eval()(x) for _, x in pairs()]
        seconds[here.name] = watch.device_s
    return started, seconds


def check_student(here: Neighbourhood, label: str, student: nn.Module, recipe: Recipe) -> None:
    """Raise ValueError where a module cannot start as the recipe says, or has another input or output shape."""
    called = f"students[{here.name!r}]" + (f"[{label!r}]" if label else "")
    if recipe.start == "copied":
        raise ValueError(
            f"start (='copied') needs a width for {called}, not a module; give a share such as 0.5, or start='given'"
        )
    with torch.no_grad():
        try:
            output = student.eval()(here.example)
        except RuntimeError as error:
            raise ValueError(
                f"{called} cannot take the neighbourhood's input of shape {here.input_shape}: {error}"
            ) from error
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if shape != here.output_shape:
        raise ValueError(
            f"{called} returns shape {shape}, the teacher's part {here.output_shape}; "
            "give a student with the same output shape"
        )


def check_order(boundaries: Boundaries, x: Tensor) -> None:
    """Raise ValueError where x, (B, ...), taken by the first neighbourhood in another pass, is not as in the first."""
    count = min(len(x), len(boundaries.store), 8)
    before = boundaries.of(boundaries.neighbourhoods[0].name).take(slice(0, count))["x"]
    if (x[:count] - before).abs().max() > 0.01 * before.abs().max():  # far above the rounding to recipe.dtype
        raise ValueError(
            "inputs gives other images, or another order, in every pass, so that held-out images would be learned "
            "from; give a loader with shuffle=False and without augmentation, or a list of batches"
        )


def _through(
    boundaries: Boundaries, students: Mapping[str, nn.Module], here: Neighbourhood, recipe: Recipe
) -> list[Tensor]:
    """What students cause at a neighbourhood that does not follow the last of them at once: run what lies between."""
    first = boundaries.neighbourhoods[0]
    network = recompose(boundaries.teacher, students)
    ends, found = Neighbourhoods([first, here], boundaries.neighbourhoods.total), []
    for row in inputs_within(network, ends, first_images(boundaries.inputs, recipe.solved.stop)):
        if not found:
            check_order(boundaries, row[first.name])
        found.append(row[here.name])
    return [row["x"] for row in Store.of({"x": torch.cat(found)[recipe.solved]}).chunks(BATCH)]
