"""Plain ways to choose channels, which a search is compared with: by share, at random, by magnitude.

Each gives every gate a score in place of its log-odds; `Gates.fit` then keeps the best within the same target, so that
all ways answer the same question.
"""

import torch
from torch import nn

from nkdlib.figs.gates import Gates


@torch.no_grad()
def score_evenly(gates: Gates) -> Gates:
    """The same share of every group, all operators: uniform width.

    >>> import torch
    >>> from torch import nn
    >>> from nkdlib.figs import Gates
    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> score_evenly(Gates(net, torch.zeros(1, 1, 4, 4))).fit("params", 20).counts
    {'0': 3}
    """
    for name, slot in gates.slots.items():
        size = gates.model.sizes[name]
        evenly = 1 - (torch.arange(size, device=gates.log_odds.device) + 0.5) / size
        gates.log_odds[slot] = evenly if name in gates.groups else torch.inf
    return gates


@torch.no_grad()
def score_at_random(gates: Gates, seed: int, spread: float = 1.0) -> Gates:
    """Random widths and operators: random pruning of the same network.

    Our choice: every group keeps a random share around the same one (logit-normal with this spread), every operator
    stays with probability 1/2, and of a sum with no path around it at least one.

    >>> import torch
    >>> from torch import nn
    >>> from nkdlib.figs import Gates
    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> score_at_random(Gates(net, torch.zeros(1, 1, 4, 4)), seed=0).fit("params", 20).counts
    {'0': 3}
    """
    draw = torch.Generator().manual_seed(seed)
    for name in gates.groups:
        ranks = (torch.arange(gates.model.sizes[name]) + 0.5) / gates.model.sizes[name]
        shares = torch.randn((), generator=draw) * spread - ranks.logit()
        gates.log_odds[gates.slots[name]] = shares.to(gates.log_odds.device)
    for path, part in gates.sums.items():
        slots = [gates.slots[f"{path}.operators.{name}"] for name in part.operators]
        stays = torch.rand(len(slots), generator=draw) < 0.5
        if not part.optional and not stays.any():
            stays[int(torch.randint(len(slots), (), generator=draw))] = True
        for slot, kept in zip(slots, stays.tolist(), strict=True):
            gates.log_odds[slot] = torch.inf if kept else -torch.inf
    return gates


@torch.no_grad()
def score_by_scale(gates: Gates) -> Gates:
    """By BatchNorm's scales, as AtomNAS (arXiv 1912.09640) and MorphNet (arXiv 1711.06798) prune after shrinking them.

    A channel's score is the largest `|gamma|` of the BatchNorms that carry it, which is what ties in those papers keep.
    An operator ends with the last channel of a group that only it makes.

    Raises:
        ValueError: a group that no BatchNorm carries.

    >>> import torch
    >>> from torch import nn
    >>> from nkdlib.figs import Gates
    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> score_by_scale(Gates(net, torch.zeros(1, 1, 4, 4))).fit("params", 20).counts
    {'0': 3}
    """
    for name in gates.groups:
        gates.log_odds[gates.slots[name]] = scales(gates, name)
    return _score_operators(gates)


@torch.no_grad()
def score_by_magnitude(gates: Gates) -> Gates:
    """By the weights that make a channel: their norm as a share of the layer's mean (our reading of magnitude pruning).

    Channels of layers of any size are so compared with each other. An operator ends with the last channel of a group
    that only it makes.

    >>> import torch
    >>> from torch import nn
    >>> from nkdlib.figs import Gates
    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> score_by_magnitude(Gates(net, torch.zeros(1, 1, 4, 4))).fit("params", 20).counts
    {'0': 3}
    """
    for name, group in gates.groups.items():
        norms = [gates.network.get_submodule(path).weight.flatten(1).norm(dim=1) for path in group.producers]
        gates.log_odds[gates.slots[name]] = torch.stack([norm / norm.mean() for norm in norms]).amax(0)
    return _score_operators(gates)


def _score_operators(gates: Gates) -> Gates:
    """Let an operator live as long as each group that only it makes has a channel; without such a group, always."""
    for path in gates.operators:
        own = [
            name
            for name, group in gates.groups.items()
            if all(producer.startswith(f"{path}.") for producer in group.producers)
        ]
        best = [gates.log_odds[gates.slots[name]].max() for name in own]
        gates.log_odds[gates.slots[path]] = torch.stack(best).min() if best else torch.inf
    return gates


def scales(gates: Gates, name: str) -> torch.Tensor:
    """|gamma| of each channel of a group, (size,), differentiable; the largest where several BatchNorms carry it."""
    group, found = gates.groups[name], []
    for path in group.carriers:
        norm = gates.network.get_submodule(path)
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            found += [norm.weight[place].abs() for place in group.places(path)]
    if not found:
        raise ValueError(f"the channels that {name!r} makes pass no BatchNorm with a scale; score them otherwise")
    return torch.stack(found).amax(0)
