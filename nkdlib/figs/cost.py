"""What a network costs as a function of how many channels each of its groups keeps, and of which operators stay.

FiGS (arXiv 2006.09581) pays for a convolution its kernel area (times the output area for MACs) times alive inputs times
alive outputs. Here every layer counts, biases and BatchNorm too, so that the prediction for whole numbers of channels
is the count of the network that is cut out.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.networks.channels import ChannelGroup
from nkdlib.networks.cost import Cost, cost
from nkdlib.networks.module import evaluating

COUNTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
FREE = {"params": (0, 0, 0, 0), "macs": (0, 0, 0, 0)}
Rates = tuple[float, float, float, float]  # for each pair of input and output, each output, each input, and once


@dataclass(frozen=True)
class _Term:
    """One layer: numbers of channels that no search changes, and the groups and operators that it depends on."""

    path: str
    inputs: int  # that no group has
    outputs: int
    read: Sequence[str]  # groups that it reads, again for each time
    made: Sequence[str]  # groups that it makes, carries or passes on
    within: Sequence[str]  # operators that it is a part of
    rates: Mapping[str, Rates]


@dataclass(eq=False)
class CostModel:
    """The cost of a network in channels and operators that stay, exact for whole numbers and differentiable in others.

    Args:
        network: whose channels `groups` are.
        groups: from `channel_groups` of the same network.
        example: (B, C, H, W), an input of the size that MACs are counted for.
        operators: paths of submodules that can be left out as a whole; each counts 0 or 1.

    >>> from nkdlib.networks.channels import channel_groups
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(2), nn.Flatten(1), nn.Linear(8, 2)).eval()
    >>> model = CostModel(net, channel_groups(net, torch.zeros(1, 3, 3, 3)), torch.zeros(1, 3, 3, 3))
    >>> model({"0": 8}), model({"0": 4})
    (Cost(params=234, macs=232), Cost(params=118, macs=116))
    """

    network: nn.Module = field(repr=False)
    groups: Sequence[ChannelGroup] = field(repr=False)
    example: Tensor = field(repr=False)
    operators: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.sizes = {group.name: group.size for group in self.groups} | dict.fromkeys(self.operators, 1)
        areas = _areas(self.network, self.example, {path for group in self.groups for path in group.passers})
        self.terms = [self._term(path, areas[path]) for path, _ in self.network.named_modules() if path in areas]
        names = {name: place for place, name in enumerate(self.sizes)}
        deepest = max((len(term.within) for term in self.terms), default=0)
        self._reads, self._makes = torch.zeros(2, len(self.terms), len(names), dtype=torch.float64)
        self._within = torch.full((len(self.terms), deepest), len(names))  # there stands a one
        for row, term in enumerate(self.terms):
            for matrix, side in ((self._reads, term.read), (self._makes, term.made)):
                for name in side:
                    matrix[row, names[name]] += 1
            self._within[row, : len(term.within)] = torch.tensor([names[name] for name in term.within])
        self._fixed = torch.tensor([[t.inputs, t.outputs] for t in self.terms], dtype=torch.float64).T
        self._rates: dict[str, Tensor] = {}
        self.rest: dict[str, float] = {}  # what depends on no group
        whole = cost(self.network, self.example)
        for metric in ("params", "macs"):
            rates = {term.path: term.rates[metric] for term in self.terms}
            self.add(metric, rates)
            self.add(metric, rates, getattr(whole, metric) - self.total(self.sizes, metric))

    def add(self, metric: str, rates: Mapping[str, Rates], rest: float = 0.0) -> None:
        """Know one more cost, or the same one anew.

        Args:
            metric: its name.
            rates: by the path of each term's layer, for each pair of an input and an output, each output, each input,
                and once.
            rest: what is paid whatever stays.

        Raises:
            ValueError: rates that miss a layer, or are of one that is no term.
        """
        paths = [term.path for term in self.terms]
        if wrong := sorted(rates.keys() ^ set(paths)):
            raise ValueError(f"rates (of {metric!r}) and the terms differ in {wrong}; give rates of this very network")
        self._rates[metric] = torch.tensor([rates[path] for path in paths], dtype=torch.float64).T
        self.rest[metric] = float(rest)

    def _term(self, path: str, area: int) -> _Term:
        layer = self.network.get_submodule(path)
        made = [g.name for g in self.groups if path in g.producers]
        made += [g.name for g in self.groups for _ in g.places(path) if path in (*g.carriers, *g.passers)]
        read = [g.name for g in self.groups for _ in g.places(path) if path in g.consumers]
        sizes = {group.name: group.size for group in self.groups}
        free = 0, sum(sizes[name] for name in made), FREE
        inputs, outputs, rates = _rates(layer, area) if isinstance(layer, COUNTED) else free
        return _Term(
            path,
            inputs - sum(sizes[name] for name in read),
            outputs - sum(sizes[name] for name in made),
            read,
            made,
            [name for name in self.operators if f"{path}.".startswith(f"{name}.")],
            rates,
        )

    @property
    def metrics(self) -> list[str]:
        """Costs that are known."""
        return list(self.rest)

    def __call__(self, counts: Mapping[str, int]) -> Cost:
        """The cost with so many channels left in each group and so many (0 or 1) of each operator, by name."""
        return Cost(*(round(self.total(counts, metric)) for metric in ("params", "macs")))

    def total(self, counts: Mapping[str, int], metric: str) -> float:
        """The cost in one metric for whole numbers of channels."""
        numbers = [float(counts[name]) for name in self.sizes]
        return self.expected(torch.tensor(numbers, dtype=torch.float64), metric).item()

    def expected(self, counts: Tensor, metric: str) -> Tensor:
        """The cost for expected numbers, (groups and operators in the order of `sizes`,); differentiable in them."""
        counts, device = counts.double(), counts.device
        inputs, outputs = self.channels(counts)
        pair, out, into, once = self._rates[metric].to(device)
        layers = pair * inputs * outputs + out * outputs + into * inputs + once
        stays = torch.cat([counts, counts.new_ones(1)])[self._within.to(device)].prod(1)
        return (stays * layers).sum() + self.rest[metric]

    def channels(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of each term's layer, (terms,) both, for numbers in the order of `sizes`."""
        counts, device = counts.double(), counts.device
        inputs, outputs = self._fixed.to(device)
        return inputs + self._reads.to(device) @ counts, outputs + self._makes.to(device) @ counts


def _areas(network: nn.Module, example: Tensor, passers: Container[str]) -> dict[str, int]:
    """Output positions of one example by path, of layers with channels and of `passers`, where they are run."""
    areas: dict[str, int] = {}

    def add(path: str, layer: nn.Module, y: Tensor) -> None:  # of a layer that is run twice, both
        channels_last = isinstance(layer, nn.Linear)
        areas[path] = areas.get(path, 0) + y.numel() // y.shape[-1 if channels_last else 1]

    handles = [
        layer.register_forward_hook(lambda layer, _, y, path=path: add(path, layer, y))
        for path, layer in network.named_modules()
        if isinstance(layer, COUNTED) or path in passers
    ]
    try:
        with torch.no_grad(), evaluating(network):
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return areas


def _rates(layer: nn.Module, area: int) -> tuple[int, int, dict[str, Rates]]:
    """Inputs and outputs of a layer, and what they cost in each metric."""
    if isinstance(layer, nn.BatchNorm2d):
        return 0, layer.num_features, {"params": (0, 2 * layer.affine, 0, 0), "macs": (0, 0, 0, 0)}
    bias, kernel = int(layer.bias is not None), layer.weight[0, 0].numel()
    outputs = layer.weight.shape[0]
    if getattr(layer, "groups", 1) > 1:  # one filter reads the inputs of its own group only
        each = layer.weight[0].numel()
        return 0, outputs, {"params": (0, each + bias, 0, 0), "macs": (0, each * area, 0, 0)}
    return layer.weight.shape[1], outputs, {"params": (kernel, bias, 0, 0), "macs": (kernel * area, 0, 0, 0)}
