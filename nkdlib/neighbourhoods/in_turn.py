"""Neighbourhoods distilled one after another, each on what the students before it produce.

Our extension of ND (arXiv 2010.01189), whose students learn S_i(h_{i-1}) ~ h_i apart: here S_i(h'_{i-1}) ~ h_i, with
h'_{i-1} what the students before give, so that each makes up for the mistakes of those before it. Nothing runs side by
side then. Worth it where images are few and students must fit together without fine-tuning.
"""

import copy
import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from nkdlib.models.cost import cost
from nkdlib.models.modes import evaluating
from nkdlib.neighbourhoods.capture import BATCH, capture, first_batch, repeatable
from nkdlib.neighbourhoods.distill import Distillation, Distilled
from nkdlib.neighbourhoods.local import Recipe, train_local
from nkdlib.neighbourhoods.split import Neighbourhoods, split
from nkdlib.neighbourhoods.starts import Student, begin, check_student, pairs_of, seed_of
from nkdlib.runtime.measure import Stopwatch
from nkdlib.training.evaluate import device_of
from nkdlib.training.store import Store


class InTurn(Distillation):
    """What `distill_in_turn` returns: a `Distillation` whose students waited for each other."""

    def critical_path_s(self, workers: int | None = None) -> float:
        """Seconds until the last student is done, where workers share no more than the teacher's pass."""
        return self.device_s - self.teacher_s * (1 - 1 / (workers or len(self)))


def distill_in_turn(
    teacher: nn.Module, students: Mapping[str, Student], inputs: Iterable, recipe: Recipe | None = None
) -> InTurn:
    """Distill neighbourhoods front to back: start, steps, and on to the next with what this student produces.

    Args:
        teacher: any network; not changed.
        students: one by neighbourhood name, a module or a width, as for `distill`. Each neighbourhood takes what the
            one before gives, with nothing between.
        inputs: batches of images, with or without labels.
        recipe: as for `distill`; local errors are those on what the students before produce.

    Raises:
        ValueError: names or shapes that do not fit, too few images, or boundaries beyond `recipe.memory_limit_gb`.

    >>> from nkdlib.models import resnet
    >>> teacher, images = resnet(14, 10, seed=0).eval(), [torch.randn(64, 3, 16, 16)]
    >>> recipe = Recipe(steps=2, batch_size=16, holdout=16)
    >>> result = distill_in_turn(teacher, {"layer1.0": 0.5, "layer1.1": 0.5}, images, recipe)
    >>> result["layer1.1"].module.conv1.out_channels
    8
    """
    recipe, inputs = recipe or Recipe(), repeatable(inputs)
    example = first_batch(inputs)[:2].to(device_of(teacher))
    with evaluating(teacher):
        neighbourhoods = split(teacher, list(students), example)
        check_chain(neighbourhoods)
        with Stopwatch(example.device) as teacher_watch:
            limit = recipe.memory_limit_gb
            boundaries = capture(teacher, neighbourhoods, inputs, keep=2, memory_limit_gb=limit, dtype=recipe.dtype)
        if not boundaries.complete or len(boundaries.store) < recipe.holdout + 2:
            raise ValueError(
                f"inputs ({boundaries!r}) must fit within recipe.memory_limit_gb (={limit:g}) and hold at least 2 "
                f"images more than recipe.holdout (={recipe.holdout}); give more or fewer images, or other limits"
            )
        done: dict[str, Distilled] = {}
        start_s: dict[str, float] = {}
        produced: Tensor | None = None  # by the student before, (N, ...) as a store keeps it
        for here in neighbourhoods:
            theirs = boundaries.of(here.name)
            ours = theirs if produced is None else Store({"x": produced, "y": theirs.tensors["y"]})
            with Stopwatch(example.device) as watch:
                student = copy.deepcopy(students[here.name])
                if isinstance(student, nn.Module):
                    check_student(here, "", student.to(example.device), recipe)
                taken = [rows["x"] for rows in ours[recipe.solved].select(["x"]).chunks(BATCH)]
                pairs = pairs_of(theirs[recipe.solved], taken)
                student = begin(here.module, student, recipe, pairs, seed_of(recipe.seed, here.name))
            start_s[here.name] = watch.device_s
            state, info = train_local(here.name, student, ours, recipe, seed_of(recipe.seed, here.name, "order"))
            student.load_state_dict(state)
            done[here.name] = Distilled(here.name, "", student, cost=cost(student.eval(), here.example), **info)
            with torch.no_grad():
                rows = ({"x": student(chunk["x"]).to(recipe.dtype)} for chunk in ours.select(["x"]).chunks(BATCH))
                produced = Store.collect(rows).tensors["x"]
    return InTurn(done, teacher_watch.device_s, start_s, sequential_start=True, boundaries=repr(boundaries))


def check_chain(neighbourhoods: Neighbourhoods) -> None:
    """Raise ValueError where a neighbourhood does not take just what the one before it gives."""
    for before, here in itertools.pairwise(neighbourhoods):
        if not here.chained:
            raise ValueError(
                f"{here.name!r} does not take what {before.name!r} gives and nothing else; name what lies between "
                "as well (a width of 1.0 keeps it whole)"
            )
