"""What a network costs as a function of how many channels each of its groups keeps.

FiGS (arXiv 2006.09581) pays for a convolution its kernel area (times the output area for MACs) times alive inputs times
alive outputs. Here every layer counts, biases and BatchNorm too, so that the prediction for whole numbers of channels
is the count of the network that is cut out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nkdlib.models.channels import ChannelGroup
from nkdlib.models.cost import Cost, cost
from nkdlib.models.modes import evaluating

METRICS = ("params", "macs")


@dataclass(frozen=True)
class _Term:
    """What one layer costs: each of its inputs times each of its outputs, and each output by itself."""

    inputs: str | int  # a group's name, or a number of channels that no group has
    outputs: str | int
    pair: Cost
    single: Cost


class CostModel:
    """The cost of a network in channels that stay, exact for whole numbers and differentiable in expected ones.

    Args:
        network: whose channels `groups` are.
        groups: from `channel_groups` of the same network.
        example: (B, C, H, W), an input of the size that MACs are counted for.

    >>> from nkdlib.models.channels import channel_groups
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(2), nn.Flatten(1), nn.Linear(8, 2)).eval()
    >>> model = CostModel(net, channel_groups(net, torch.zeros(1, 3, 3, 3)), torch.zeros(1, 3, 3, 3))
    >>> model({"0": 8}), model({"0": 4})
    (Cost(params=234, macs=232), Cost(params=118, macs=116))
    """

    def __init__(self, network: nn.Module, groups: Sequence[ChannelGroup], example: Tensor):
        self.sizes = {group.name: group.size for group in groups}
        made = {path: group.name for group in groups for path in (*group.producers, *group.carriers)}
        read = {path: group.name for group in groups for path in group.consumers}
        areas = _areas(network, example)
        self.terms = [
            _term(layer, areas[path], read.get(path), made.get(path))
            for path, layer in network.named_modules()
            if path in areas
        ]
        self.rest = Cost(0, 0)  # what depends on no group
        whole, known = cost(network, example), self(self.sizes)
        self.rest = Cost(whole.params - known.params, whole.macs - known.macs)

    def __call__(self, counts: Mapping[str, int]) -> Cost:
        """The cost with so many channels left in each group, by group name."""
        return Cost(*(round(float(self.expected(counts, metric))) for metric in METRICS))

    def expected(self, counts: Mapping[str, Tensor | float], metric: str) -> Tensor | float:
        """The cost in `params` or `macs` for expected numbers of channels; differentiable in them."""
        total = float(getattr(self.rest, metric))
        for term in self.terms:
            inputs, outputs = (counts[side] if isinstance(side, str) else side for side in (term.inputs, term.outputs))
            total = total + outputs * (inputs * getattr(term.pair, metric) + getattr(term.single, metric))
        return total


def _areas(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Output positions of one example by the path of each layer with channels; layers that are not run are left out."""
    areas: dict[str, int] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, y, path=path: areas.__setitem__(path, y[0, 0].numel()))
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
    ]
    try:
        with torch.no_grad(), evaluating(network):
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return areas


def _term(layer: nn.Module, area: int, read: str | None, made: str | None) -> _Term:
    if isinstance(layer, nn.BatchNorm2d):
        return _Term(0, made or layer.num_features, Cost(0, 0), Cost(2 * layer.affine, 0))
    bias, kernel = int(layer.bias is not None), layer.weight[0, 0].numel()
    outputs, area = made or layer.weight.shape[0], area if isinstance(layer, nn.Conv2d) else 1
    if getattr(layer, "groups", 1) > 1:  # one filter reads the inputs of its own group only
        each = layer.weight[0].numel()
        return _Term(0, outputs, Cost(0, 0), Cost(each + bias, each * area))
    return _Term(read or layer.weight.shape[1], outputs, Cost(kernel, kernel * area), Cost(bias, 0))
