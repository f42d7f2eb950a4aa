"""Students made from a teacher's own neighbourhood: the same layers with fewer channels inside."""

from torch import Tensor, nn

from nkdlib.networks.channels import ChannelGroup, channel_groups, cut


def width_of(group: ChannelGroup, width: float) -> int:
    """How many channels of a group a width leaves: a share where it is at most 1, else a number of channels."""
    if not width > 0 or (width > 1 and width % 1):
        raise ValueError(f"width (={width}) must be a share above 0 and up to 1, or a whole number of channels")
    channels = round(group.size * width) if width <= 1 else int(width)
    return min(max(channels, 1), group.size)


def importance(module: nn.Module, group: ChannelGroup) -> Tensor:
    """How much each channel of a group weighs, (size,): the norm of the weights that read it times its scale.

    The scale is |gamma| of the last BatchNorm that carries it, else the norm of the weights that make it.
    """
    readers = [
        (module.get_submodule(path).weight.detach(), place) for path in group.consumers for place in group.places(path)
    ]
    score = sum(weight.transpose(0, 1)[place].flatten(1).norm(dim=1) for weight, place in readers)
    for path in reversed(group.carriers):
        if isinstance(norm := module.get_submodule(path), nn.BatchNorm2d) and norm.affine:
            return score * norm.weight.detach()[group.places(path)[0]].abs()
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


def inner_groups(piece: nn.Module, example: Tensor, joined: bool = True) -> list[ChannelGroup]:
    """The inner channel groups of a neighbourhood, on request without concatenated ones; ValueError where none is."""
    groups = [group for group in channel_groups(piece, example) if joined or not group.starts]
    if not groups:
        raise ValueError(
            f"width was given for a neighbourhood ({type(piece).__name__}) that has no inner channels to leave "
            "out; give a student module instead"
        )
    return groups
