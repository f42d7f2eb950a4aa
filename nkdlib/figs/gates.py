"""Logistic-Sigmoid gates on a network's channels and operators.

FiGS (arXiv 2006.09581) and its authors' code (morph-net): a channel c has log-odds l_c; in each step one
e_c ~ Logistic(0, 1) for the whole batch gives the mask sigmoid((l_c + e_c) / temperature); at inference a channel lives
where l_c > 0 and is scaled by sigmoid(l_c). What differs: one gate for each group of tied channels; the mask is
multiplied into the weights that read the channel instead of the activations, which is the same and costs less; and
an operator of a `Sum` has a gate of its own, so that it can vanish where its output channels are shared with others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nkdlib.figs.cost import COUNTED, CostModel
from nkdlib.networks.channels import channel_groups, cut
from nkdlib.networks.module import evaluating
from nkdlib.networks.spaces import Sum


class Gates(nn.Module):
    """Gates on every inner channel group and on every operator of a `Sum`; in the network's place until `remove`.

    `draw` has to be called before every training step. In evaluation mode the network is the one that `slim` cuts out.

    Args:
        network: traceable by `torch.fx`, with channels in dimension 1.
        example: (B, C, H, W), an input of the size that MACs are counted for.
        log_odds: that every gate starts at; 2.5 is a probability of 0.92 (the authors' value).
        temperature: of the mask; the authors' 0.001 gives hardly any gradient in short runs.
        hard: the mask is 0 or 1 in the forward pass, with the soft mask's gradient (straight-through).

    Raises:
        ValueError: nothing that could be gated, an operator whose cost is not known, a temperature that is not
            positive.

    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> gates = Gates(net, torch.zeros(1, 1, 4, 4))
    >>> gates.counts, gates.fit("params", 9).counts, gates.slim()[0].out_channels
    ({'0': 6}, {'0': 1}, 1)
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        log_odds: float = 2.5,
        temperature: float = 0.5,
        hard: bool = True,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature (={temperature}) must be positive; 0.5 works in short runs")
        if any(isinstance(part, _Masked) for part in network.modules()):
            raise ValueError(f"network (={type(network).__name__}) has gates already; call their remove() first")
        # DEVIATION D10: tied channels have one gate instead of several in a union, and operators have gates.
        groups = channel_groups(network, example)
        self.sums = {path: part for path, part in network.named_modules() if isinstance(part, Sum)}
        operators = [name for path, part in self.sums.items() for name in _paths(path, part)]
        if not groups and not operators:
            layers = ", ".join([path or "itself" for path, m in network.named_modules() if isinstance(m, COUNTED)][:9])
            raise ValueError(
                f"network (={type(network).__name__}) has no inner channels to gate (layers: {layers}): a "
                "group needs a convolution or linear layer that makes it and one that reads it, with only known "
                "operations between them; put operators that may vanish into a Sum"
            )
        for path in operators:
            _check_operator(path, network.get_submodule(path))
            if path in (group.name for group in groups):
                raise ValueError(
                    f"operator {path!r} is itself a layer with gated channels; put it into an nn.Sequential"
                )
        self.groups, self.operators = {group.name: group for group in groups}, operators
        self.model = CostModel(network, groups, example, operators)
        self.temperature, self.hard, self.opened = temperature, hard, False
        self.network = network
        self.slots: dict[str, slice] = {}  # by name of group or operator, its part of the log-odds
        for name, size in self.model.sizes.items():
            start = next(reversed(self.slots.values())).stop if self.slots else 0
            self.slots[name] = slice(start, start + size)
        device = next(network.parameters()).device
        self.log_odds = nn.Parameter(torch.full((sum(self.model.sizes.values()),), log_odds, device=device))
        owner = [place for place, size in enumerate(self.model.sizes.values()) for _ in range(size)]
        self._owner = torch.tensor(owner, device=device)
        self._least = torch.tensor([1.0] * len(groups) + [0.0] * len(operators), device=device)
        # Of each of these sets of gates one always lives: a group's channels, the operators of a sum with no path
        # around it.
        self._needed = [slot for name, slot in self.slots.items() if name in self.groups]
        for path, part in self.sums.items():
            if not part.optional and part.operators:
                names = _paths(path, part)
                self._needed.append(slice(self.slots[names[0]].start, self.slots[names[-1]].stop))
        self._masks: dict[str, Tensor] = {}
        self.use(torch.zeros_like(self.log_odds))
        self._attach()

    def _attach(self) -> None:
        reads: dict[str, list[tuple[str, slice]]] = {}
        for name, group in self.groups.items():
            for path in group.consumers:
                reads.setdefault(path, []).extend((name, place) for place in group.places(path))
        for path, parts in reads.items():
            layer = self.network.get_submodule(path)
            whole = _Masked(self.mask, sorted(parts, key=lambda part: part[1].start), layer.weight.shape[1])
            parametrize.register_parametrization(layer, "weight", whole)
        self._hooks = [
            self.network.get_submodule(path).register_forward_hook(
                lambda _, __, y, path=path: y if (mask := self.mask(path)) is None else y * mask
            )
            for path in self.operators
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The gated network's output: network and gates are one module, which DistributedDataParallel can wrap."""
        return self.network(x)

    @property
    def ungated(self) -> list[str]:
        """Layers whose outputs stay whole: a network's own, grouped convolutions, what an unknown operation reads."""
        made = {path for group in self.groups.values() for path in (*group.producers, *group.carriers)}
        layers = (nn.Conv2d, nn.Linear)
        return [path for path, part in self.network.named_modules() if isinstance(part, layers) and path not in made]

    def draw(self, generator: torch.Generator | None = None) -> None:
        """New noise for the next step; one sample a channel, whatever the batch."""
        uniform = torch.rand(self.log_odds.shape, generator=generator).clamp_(1e-6, 1 - 1e-6)
        self.use(uniform.logit())

    def use(self, noise: Tensor) -> None:
        """The masks of the next step from noise, (gates,)."""
        soft = torch.sigmoid((self.log_odds + noise.to(self.log_odds.device)) / self.temperature)
        mask = soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if self.hard else soft
        self._masks = dict(zip(self.slots, mask.split(list(self.model.sizes.values())), strict=True))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it every mask is 1, such as in a warm-up."""
        self.opened = True
        try:
            yield
        finally:
            self.opened = False

    def mask(self, name: str) -> Tensor | None:
        """The mask of one group or operator, (size,), by its name; None where all is open."""
        if self.opened:
            return None
        if self.network.training:
            return self._masks[name]
        slot = self.slots[name]
        scale = 1 if name in self.operators else torch.sigmoid(self.log_odds[slot])
        return scale * self.lives()[slot]

    @torch.no_grad()
    def lives(self) -> Tensor:
        """Which channels and operators live, bool (gates,): log-odds above 0; the most probable where one is needed."""
        lives = self.log_odds > 0
        for slot in self._needed:
            if not lives[slot].any():
                lives[slot.start + int(self.log_odds[slot].argmax())] = True
        return lives

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """Of each group's channels and of each operator to live, by name."""
        return {name: torch.sigmoid(self.log_odds[slot]) for name, slot in self.slots.items()}

    @property
    def alive(self) -> dict[str, Tensor]:
        """Indices of the channels that live, by group; of an operator 0, or nothing where it does not."""
        lives = self.lives().cpu()
        return {name: lives[slot].nonzero()[:, 0] for name, slot in self.slots.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many channels live in each group, and whether (0 or 1) each operator does."""
        return dict(zip(self.slots, map(int, self._sums(self.lives()).tolist()), strict=True))

    def _sums(self, values: Tensor) -> Tensor:
        """The sum of (gates,) over each group and operator, float64."""
        return torch.zeros(len(self.slots), dtype=torch.float64, device=values.device).index_add(
            0, self._owner, values.double()
        )

    def expected_cost(self, metric: str) -> Tensor:
        """The cost of the expected numbers, differentiable in the log-odds; never below one channel a group."""
        counts = torch.maximum(self._sums(torch.sigmoid(self.log_odds)), self._least)
        return self.model.expected(counts, metric)

    def check(self, metric: str, target: float) -> None:
        """Raise ValueError for an unknown cost, or a target below the smallest or above the largest network."""
        if metric not in self.model.metrics:
            raise ValueError(f"metric (={metric!r}) must be one of {', '.join(self.model.metrics)}")
        smallest = {name: int(name in self.groups) for name in self.slots}
        for path, part in self.sums.items():
            names = _paths(path, part)
            if names and not part.optional:
                smallest[min(names, key=lambda name: self.model.total(smallest | {name: 1}, metric))] = 1
        least, most = (self.model.total(counts, metric) for counts in (smallest, self.model.sizes))
        if not least <= target <= most:
            raise ValueError(
                f"target (={target:,}) must lie between {least:,.6g} and {most:,.6g} {metric} of this network"
            )

    @torch.no_grad()
    def fit(self, metric: str, target: float) -> "Gates":
        """Keep the most probable channels and operators that a target has room for.

        All log-odds are shifted alike until the counted cost does not exceed the target; then what still fits is let
        in, the most probable first. Log-odds of plus or minus infinity stay as they are: kept and left out.

        Raises:
            ValueError: an unknown cost, or a target below the smallest or above the largest network.
        """
        self.check(metric, target)
        given = self.log_odds.clone()

        def cost_above(edge: float) -> float:
            self.log_odds.copy_(given - edge)
            return self.model.expected(self._sums(self.lives()), metric).item()

        every = given[given.isfinite()].double().unique()
        edges = torch.cat([every[:1] - 1, (every[1:] + every[:-1]) / 2, every[-1:] + 1]).tolist() or [0.0]
        low, high = 0, len(edges) - 1  # below edges[low] too much lives, above edges[high] it is little enough
        if cost_above(edges[low]) <= target:
            high = low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if cost_above(edges[middle]) <= target else (middle, high)
        if (found := cost_above(edges[high])) > target:
            raise ValueError(
                f"target (={target:,}) cannot be met with the operators that are kept: with one channel in each group "
                f"they cost {found:,.6g} {metric}"
            )
        lives = self.lives()
        self.log_odds[lives] = self.log_odds[lives].clamp_min(1e-6)  # where one is needed and none was above 0
        numbers = self._sums(lives)
        for gate in self.log_odds.argsort(descending=True).tolist():
            if lives[gate] or self.log_odds[gate] == -torch.inf:
                continue
            numbers[self._owner[gate]] += 1
            if self.model.expected(numbers, metric) <= target:
                self.log_odds[gate] = 1e-6
            else:
                numbers[self._owner[gate]] -= 1
        return self

    @torch.no_grad()
    def slim(self) -> nn.Module:
        """The plain network of what lives, in evaluation mode, the gates' scales in its weights."""
        paths = {path for group in self.groups.values() for path in group.consumers}
        with evaluating(self.network):
            masked = {path: self.network.get_submodule(path).weight.clone() for path in paths}
        network = deepcopy(self.remove())
        self._attach()
        for path, weight in masked.items():
            network.get_submodule(path).weight.copy_(weight)
        alive = self.alive
        slim = cut(network, list(self.groups.values()), {name: alive[name] for name in self.groups})
        leave_out(slim, [path for path in self.operators if not len(alive[path])])
        return slim.eval()

    def remove(self) -> nn.Module:
        """Take the gates off again; the network with its own weights."""
        for hook in self._hooks:
            hook.remove()
        for path in {path for group in self.groups.values() for path in group.consumers}:
            layer = self.network.get_submodule(path)
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return self.network


def rebuild(network: nn.Module, example: Tensor, counts: Mapping[str, int]) -> nn.Module:
    """A copy of a network with so many channels in each group and so many (0 or 1) of each operator, as `counts` says.

    It has the shape of the slim network that `counts` describes, whose `state_dict` it can load.

    Args:
        network: as before the search; of its weights the first channels stay.
        example: (B, C, H, W).
        counts: of a search's result.

    Raises:
        ValueError: counts of another network.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> rebuild(net, torch.zeros(1, 1, 4, 4), {"0": 3})[3].in_channels
    3
    """
    groups = channel_groups(network, example)
    operators = [n for path, part in network.named_modules() if isinstance(part, Sum) for n in _paths(path, part)]
    if wrong := sorted(counts.keys() ^ {*(group.name for group in groups), *operators}):
        raise ValueError(
            f"counts and the groups and operators of network differ in {wrong[:9]}; give those of its search"
        )
    slim = cut(network, groups, {group.name: torch.arange(counts[group.name]) for group in groups})
    names = {group.name for group in groups}
    leave_out(slim, [path for path, count in counts.items() if path not in names and not count])
    return slim


def _paths(path: str, part: Sum) -> list[str]:
    """Paths of the operators of a sum, by its own path."""
    return [f"{path}.operators.{name}" for name in part.operators]


def leave_out(network: nn.Module, operators: list[str]) -> None:
    """Delete operators of sums, by path, in place; those within others first."""
    for path in sorted(operators, reverse=True):
        owner, _, name = path.rpartition(".")
        del network.get_submodule(owner)[name]


def _check_operator(path: str, operator: nn.Module) -> None:
    """Raise ValueError for a part with weights whose cost is not known."""
    for name, part in operator.named_modules():
        if next(part.parameters(recurse=False), None) is not None and not isinstance(part, COUNTED):
            raise ValueError(
                f"operator {path!r} has a part {name!r} ({type(part).__name__}) whose cost is not known; build it of "
                "Conv2d, Linear and BatchNorm2d, or take it out of the Sum"
            )


class _Masked(nn.Module):
    """A weight whose input channels, dimension 1, are multiplied with the masks of the groups that it reads."""

    def __init__(self, mask: Callable[[str], Tensor | None], parts: list[tuple[str, slice]], size: int):
        super().__init__()
        self.mask, self.parts, self.size = mask, parts, size

    def forward(self, weight: Tensor) -> Tensor:
        if self.mask(self.parts[0][0]) is None:
            return weight
        pieces, start = [], 0
        for name, place in self.parts:
            if place.start > start:  # channels of no group
                pieces.append(weight.new_ones(place.start - start))
            pieces.append(self.mask(name))
            start = place.stop
        if start < self.size:
            pieces.append(weight.new_ones(self.size - start))
        mask = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return weight * mask.view(1, -1, *(1,) * (weight.dim() - 2))
