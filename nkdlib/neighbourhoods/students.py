"""Students before they are trained: the teacher's own layers with fewer channels inside, and starting weights."""

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.closed_form import Pairs, Ranking, check_solvable, solve_neighbourhood
from nkdlib.neighbourhoods.local import Recipe
from nkdlib.neighbourhoods.split import Neighbourhood, Student, seen
from nkdlib.networks.channels import inner_groups, width_of
from nkdlib.networks.cutting import ChannelGroup, cut
from nkdlib.networks.module import NORMS, check_float32, check_plain, copied, in_evaluation, reset


def importance(module: nn.Module, group: ChannelGroup) -> Tensor:
    """Importance of each channel of a group, (size,): the norm of the weights that read it times its scale.

    The scale is |gamma| of the last BatchNorm that carries it, else the norm of the weights that make it.
    """
    readers = [
        (module.get_submodule(path).weight.detach(), place) for path in group.consumers for place in group.slices(path)
    ]
    score = sum(weight.transpose(0, 1)[place].flatten(1).norm(dim=1) for weight, place in readers)
    for path in reversed(group.carriers):
        if isinstance(norm := module.get_submodule(path), NORMS) and norm.weight is not None:
            return score * norm.weight.detach()[group.slices(path)[0]].abs()
    return score * module.get_submodule(group.producers[0]).weight.detach().flatten(1).norm(dim=1)


# DEVIATION D5: the students of a claim are the teacher's own layers with fewer inner channels.
def narrow(piece: nn.Module, example: Tensor, width: float) -> nn.Module:
    """A student with the layers of a teacher's neighbourhood and its most important inner channels, copied.

    Args:
        piece: the teacher's neighbourhood.
        example: an input of the right shape, (B, C, H, W).
        width: of every inner channel group, a share (0 to 1] or a number of channels.

    Raises:
        ValueError: a width that is not positive, or a neighbourhood without inner channels.

    >>> import torch
    >>> from nkdlib.networks import BasicBlock
    >>> narrow(BasicBlock(8, 8), torch.zeros(1, 8, 4, 4), 0.5).conv1.out_channels
    4
    """
    groups = inner_groups(piece, example)
    keep = {g.name: importance(piece, g).topk(width_of(g, width)).indices for g in groups}
    return cut(piece, groups, keep)


def initialize_student(
    piece: nn.Module, student: Student, recipe: Recipe, pairs: Pairs, seed: int, ranking: Ranking | None = None
) -> nn.Module:
    """A student of the teacher's `piece` with the weights that it starts from; a module is changed in place.

    `pairs` and `ranking` are for the closed form, see `solve_neighbourhood`, `seed` is for random weights.
    """
    given = isinstance(student, nn.Module)
    if recipe.start == "solved":
        module = solve_neighbourhood(piece, student, pairs, recipe.ridge, ranking, recipe.ridge_to == "own")
    else:
        module = student if given else narrow(piece, next(pairs())[0][:1], student)
    module = module if given else thaw(module)
    if recipe.start == "random":
        before, module = module, reset(module, seed)
        for new, old in zip(module.parameters(), before.parameters(), strict=True):
            if not (given or old.requires_grad):
                new.data = old.data  # a filter that is fixed in the teacher stays what it is
    return module


def thaw(module: nn.Module) -> nn.Module:
    """Let a module be trained that is a frozen teacher's; one that has some weights to train keeps the others fixed."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return module if trained else module.requires_grad_(True)


def check_student(part: Neighbourhood, student: Student, start: str, called: str) -> Student:
    """A copy of a student; ValueError for one that cannot take the place of a part of the teacher, or cannot start.

    Args:
        part: of the teacher, see `split`.
        student: a module, whose copy is on the teacher's device and in evaluation mode, or a width.
        start: of a `Recipe`.
        called: the student's name in errors.
    """
    if not isinstance(student, Student):
        raise ValueError(f"{called} (={student}) must be a module or a width; several candidates are for Library")
    if isinstance(student, nn.Module):
        check_plain(student, called)
        check_float32(student, called)
        student = in_evaluation(copied(student).to(part.example.device))
        _check_module(part, student, start, called)
    try:
        module = student if isinstance(student, nn.Module) else narrow(part.module, part.example, student)
        if start == "random":
            reset(module, 0)
        if start == "solved":
            check_solvable(part.module, student, part.example)
    except ValueError as error:
        raise ValueError(f"{called}: {error}") from error
    return student


@torch.no_grad()
def _check_module(part: Neighbourhood, student: nn.Module, start: str, called: str) -> None:
    if start == "copied":
        raise ValueError(f"start (='copied') needs a width for {called}, not a module; give 0.5, or start='given'")
    layout = part.layout if part.example.dim() == 4 else torch.contiguous_format
    try:
        output = student(part.example.clone(memory_format=layout))
    except RuntimeError as error:
        raise ValueError(
            f"{called} cannot take the neighbourhood's input of shape {part.input_shape}: {error}"
        ) from error
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if shape != part.output_shape:
        raise ValueError(
            f"{called} returns shape {shape}, the teacher's part {part.output_shape}; "
            "give a student with the same output shape"
        )
    for name, value in part.read.items():
        if not hasattr(student, name) or seen(getattr(student, name)) != value:
            raise ValueError(
                f"{called} must have {name} (={value}) as the teacher's part has, since layers outside {part.name!r} "
                "read it; give it to the student, or name a larger part"
            )
