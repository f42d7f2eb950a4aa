"""The cost of a network as a function of the channels that each group keeps and of the operators that stay.

FiGS (arXiv 2006.09581) pays for a convolution its kernel area (times the output area for MACs) times alive inputs times
alive outputs. Here every layer counts, biases and BatchNorm too, so that the prediction for whole numbers of channels
is the count of the network that is cut out.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nkdlib.networks.channels import channel_groups
from nkdlib.networks.cost import Cost, macs_by_module
from nkdlib.networks.cutting import channel_dim, check_own
from nkdlib.networks.module import NORMS
from nkdlib.networks.spaces import Sum

COUNTED = (nn.Conv2d, nn.Linear, *NORMS)
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
    whole: Cost  # with all of its channels


class CostModel:
    """The cost of a network in channels and operators that stay, exact for whole numbers and differentiable in others.

    Channels can go by `groups` (by the first layer that makes them), operators of a `Sum` by their paths; `sizes` has
    both, an operator counting 1, and `slots` their places in a vector of one number for each channel and operator. Of
    each slice in `needed`, a group or the operators of a sum with no path around it, one must stay. Layers whose cost
    is not known stay whole; they are named with it in `uncounted`.

    Args:
        network: traceable by `torch.fx`, with channels in dimension 1, or behind a linear layer in the last.
        example: (B, ...), an input of the size that MACs are counted for.
        whole: groups that stay whole, by name, such as those that residual connections tie.

    Raises:
        ValueError: a name in `whole` of no group; an operator with a part whose cost is not known, or that shares
            weights with other layers.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(2), nn.Flatten(1), nn.Linear(8, 2)).eval()
    >>> model = CostModel(net, torch.zeros(1, 3, 3, 3))
    >>> model({"0": 8}), model({"0": 4})
    (Cost(params=234, macs=232), Cost(params=118, macs=116))
    """

    def __init__(self, network: nn.Module, example: Tensor, whole: Collection[str] = ()):
        self.network, self.example = network, example
        groups = {group.name: group for group in channel_groups(network, example)}
        if unknown := sorted({*whole} - groups.keys()):
            raise ValueError(f"whole holds {unknown[0]!r}, which is no group; choose from {list(groups)}")
        self.groups = {name: group for name, group in groups.items() if name not in whole}
        self.sums = {path: part for path, part in network.named_modules() if isinstance(part, Sum)}
        self.operators = [name for path, part in self.sums.items() for name in part.paths(path)]
        if both := self.groups.keys() & set(self.operators):
            raise ValueError(f"operator {min(both)!r} is itself a layer with gated channels; put it into nn.Sequential")
        self.sizes = {name: group.size for name, group in self.groups.items()} | dict.fromkeys(self.operators, 1)
        ends = torch.tensor(list(self.sizes.values()), dtype=torch.long).cumsum(0).tolist()
        self.slots = {name: slice(end - self.sizes[name], end) for name, end in zip(self.sizes, ends, strict=True)}
        self.needed = [self.slots[name] for name in self.groups]
        for path, part in self.sums.items():
            if not part.optional and (names := part.paths(path)):
                self.needed.append(slice(self.slots[names[0]].start, self.slots[names[-1]].stop))
        check_own(network, [p for p, _ in network.named_modules() for name in self.operators if _within(p, name)])
        passers = {path for group in self.groups.values() for path in group.passers}
        areas, macs = _areas_and_macs(network, example, passers)
        self.terms = [self._term(path, areas[path]) for path, _ in network.named_modules() if path in areas]
        self._tabulate()
        self.rest: dict[str, float] = {}  # the cost that depends on no group
        self._rates: dict[str, Tensor] = {}
        self.uncounted = self._uncounted(macs)
        for metric in FREE:
            rest = sum(getattr(spent, metric) for spent in self.uncounted.values())
            self.add(metric, {term.path: term.rates[metric] for term in self.terms}, rest)

    def _term(self, path: str, area: float) -> _Term:
        layer, groups = self.network.get_submodule(path), self.groups.values()
        made = [g.name for g in groups if path in g.producers]
        made += [g.name for g in groups for _ in g.slices(path) if path in (*g.carriers, *g.passers)]
        read = [g.name for g in groups for _ in g.slices(path) if path in g.consumers]
        free = 0, sum(self.sizes[name] for name in made), FREE
        inputs, outputs, rates = _rates(layer, area) if isinstance(layer, COUNTED) else free
        whole = Cost(*(pair * inputs * outputs + out * outputs for pair, out, *_ in rates.values()))
        inputs, outputs = inputs - sum(self.sizes[name] for name in read), outputs - sum(self.sizes[n] for n in made)
        within = [name for name in self.operators if _within(path, name)]
        return _Term(path, inputs, outputs, read, made, within, rates, whole)

    def _tabulate(self) -> None:
        """Put the terms into matrices, a row each."""
        names = {name: column for column, name in enumerate(self.sizes)}
        deepest = max((len(term.within) for term in self.terms), default=0)
        self._reads, self._makes = torch.zeros(2, len(self.terms), len(names), dtype=torch.float64)
        self._within = torch.full((len(self.terms), deepest), len(names))  # there stands a one
        for row, term in enumerate(self.terms):
            for matrix, side in ((self._reads, term.read), (self._makes, term.made)):
                for name in side:
                    matrix[row, names[name]] += 1
            self._within[row, : len(term.within)] = torch.tensor([names[name] for name in term.within])
        fixed = torch.tensor([(t.inputs, t.outputs) for t in self.terms], dtype=torch.float64)
        self._fixed = fixed.reshape(-1, 2).T  # there may be no term

    def _uncounted(self, together: Mapping[str, int]) -> dict[str, Cost]:
        """Costs by module that no term has: of unknown layers, and of layers that the example does not reach."""
        counted, params, seen = {term.path: term.whole for term in self.terms}, defaultdict(int), set()
        for path, part in self.network.named_modules():
            layer = next((p for p in counted if _within(path, p)), path)  # a parametrization holds its layer's weights
            params[layer] += sum(parameter.numel() for parameter in {*part.parameters(recurse=False)} - seen)
            seen.update(part.parameters(recurse=False))
        for term in self.terms:
            params[term.path] -= term.whole.params
            assert params[term.path] >= 0 or not (term.made or term.read), f"{term.path}: counted more than is there"
        macs: dict[str, int] = {}  # each module's own
        for path in sorted(together, key=len, reverse=True):  # parts before wholes
            known = sum(spent.macs for p, spent in counted.items() if _within(p, path))
            macs[path] = together[path] - known - sum(own for p, own in macs.items() if _within(p, path))
        found = {p: Cost(params[p], macs.get(p, 0)) for p in {**params, **macs} if params[p] or macs.get(p)}
        for path, operator in itertools.product(found, self.operators):
            if _within(path, operator):
                raise ValueError(
                    f"operator {operator!r} has a part {path!r} ({type(self.network.get_submodule(path)).__name__}) "
                    "whose cost is not known; build it of Conv2d, Linear and BatchNorm, or take it out of the Sum"
                )
        return found

    def add(self, metric: str, rates: Mapping[str, Rates], rest: float = 0.0) -> None:
        """Know one more cost, or the same one anew.

        Args:
            metric: its name.
            rates: by the path of each term's layer, for each pair of an input and an output, each output, each input,
                and once.
            rest: paid whatever stays.

        Raises:
            ValueError: rates that miss a layer, or are of one that is no term.
        """
        paths = [term.path for term in self.terms]
        if wrong := sorted(rates.keys() ^ set(paths)):
            raise ValueError(f"rates (of {metric!r}) and the terms differ in {wrong}; give rates of this very network")
        self._rates[metric] = torch.tensor([rates[path] for path in paths], dtype=torch.float64).reshape(-1, 4).T
        self.rest[metric] = float(rest)

    @property
    def metrics(self) -> list[str]:
        """Names of the costs that are known."""
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
        counts, where = counts.double(), {"device": counts.device, "non_blocking": True}  # a search asks in every step
        inputs, outputs = self.channels(counts)
        pair, out, into, once = self._rates[metric].to(**where)
        layers = pair * inputs * outputs + out * outputs + into * inputs + once
        stays = torch.cat([counts, counts.new_ones(1)])[self._within.to(**where)].prod(1)
        return (stays * layers).sum() + self.rest[metric]

    def channels(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of each term's layer, (terms,) both, for numbers in the order of `sizes`."""
        counts, where = counts.double(), {"device": counts.device, "non_blocking": True}
        inputs, outputs = self._fixed.to(**where)
        return inputs + self._reads.to(**where) @ counts, outputs + self._makes.to(**where) @ counts


def check_counts(counts: Mapping[str, int], groups: Mapping[str, int], sums: Mapping[str, Sum]) -> None:
    """Raise ValueError for counts that are not of these groups, by size, and sums, by path, or that leave nothing."""
    sizes = {**groups, **{name: 1 for path, part in sums.items() for name in part.paths(path)}}
    if wrong := sorted(counts.keys() ^ sizes.keys()):
        raise ValueError(
            f"counts and the groups and operators of network differ in {wrong[:9]}; give those of its search"
        )
    for name, size in sizes.items():
        least = int(name in groups)
        if counts[name] not in range(least, size + 1):
            raise ValueError(f"counts[{name!r}] (={counts[name]}) must be a whole number from {least} to {size}")
    for path, part in sums.items():
        if not part.optional and (names := part.paths(path)) and not any(counts[name] for name in names):
            raise ValueError(f"counts leave no operator of {path!r}; keep one of {names}")


def _within(path: str, owner: str) -> bool:
    """Whether a submodule is another one or a part of it."""
    return not owner or f"{path}.".startswith(f"{owner}.")


def _areas_and_macs(
    network: nn.Module, example: Tensor, passers: Container[str]
) -> tuple[dict[str, float], dict[str, int]]:
    """Output positions of one example by path, of layers with channels and of `passers`, if called; MACs by module."""
    areas: dict[str, float] = {}  # whole numbers, unless a layer reads what does not depend on the examples

    def add(path: str, layer: nn.Module, y: Tensor) -> None:  # of a layer that is called twice, both
        areas[path] = areas.get(path, 0) + y.numel() / y.shape[channel_dim(layer)] / len(example)

    with ExitStack() as hooks:
        for path, layer in network.named_modules():
            if isinstance(layer, COUNTED) or path in passers:
                hook = lambda layer, _, y, path=path: add(path, layer, y)  # noqa: E731
                hooks.enter_context(layer.register_forward_hook(hook))
        macs = macs_by_module(network, example)
    return {path: int(area) if area == int(area) else area for path, area in areas.items()}, macs


def _rates(layer: nn.Module, area: float) -> tuple[int, int, dict[str, Rates]]:
    """Inputs and outputs of a layer, and its rates in each metric."""
    fixed = dict(layer.named_buffers(recurse=False))
    weight, bias = (getattr(layer, name) is not None and name not in fixed for name in ("weight", "bias"))
    if isinstance(layer, NORMS):
        return 0, layer.num_features, {"params": (0, weight + bias, 0, 0), "macs": (0, 0, 0, 0)}
    outputs, kernel = layer.weight.shape[0], layer.weight[0, 0].numel()
    if getattr(layer, "groups", 1) > 1:  # one filter reads the inputs of its own group only
        each = layer.weight[0].numel()
        return 0, outputs, {"params": (0, each * weight + bias, 0, 0), "macs": (0, each * area, 0, 0)}
    return layer.weight.shape[1], outputs, {"params": (kernel * weight, bias, 0, 0), "macs": (kernel * area, 0, 0, 0)}
