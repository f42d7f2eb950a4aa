"""Plain ways to choose channels, which a search is compared with: by share, at random, by magnitude.

Each gives every gate a score in place of its log-odds; `Gates.fit` then keeps the best within the same target, so that
all ways answer the same question.
"""

import torch
from torch import nn

from nkdlib.figs.gates import Gates


@torch.no_grad()
def score_evenly(gates: Gates) -> Gates:
    """The same share of every group: uniform width."""
    for odds in gates.log_odds:
        odds.copy_(1 - (torch.arange(len(odds), device=odds.device) + 0.5) / len(odds))
    return gates


@torch.no_grad()
def score_at_random(gates: Gates, seed: int, spread: float = 1.0) -> Gates:
    """Random widths: every group a random share around the same one (our choice: logit-normal with this spread)."""
    draw = torch.Generator().manual_seed(seed)
    for odds in gates.log_odds:
        ranks = (torch.arange(len(odds)) + 0.5) / len(odds)
        odds.copy_((torch.randn((), generator=draw) * spread - ranks.logit()).to(odds.device))
    return gates


@torch.no_grad()
def score_by_scale(gates: Gates) -> Gates:
    """By BatchNorm's scales, as AtomNAS (arXiv 1912.09640) and MorphNet (arXiv 1711.06798) prune after shrinking them.

    A channel's score is the largest |gamma| of the BatchNorms that carry it, which is what ties in those papers keep.

    Raises:
        ValueError: a group that no BatchNorm carries.
    """
    for (name, group), odds in zip(gates.groups.items(), gates.log_odds, strict=True):
        layers = map(gates.network.get_submodule, group.carriers)
        scales = [m.weight.abs() for m in layers if isinstance(m, nn.BatchNorm2d) and m.affine]
        if not scales:
            raise ValueError(f"the channels that {name!r} makes pass no BatchNorm with a scale; score them otherwise")
        odds.copy_(torch.stack(scales).amax(0))
    return gates
