"""Logistic-Sigmoid gates on a network's channels.

FiGS (arXiv 2006.09581) and its authors' code (morph-net): a channel c has log-odds l_c; in each step one
e_c ~ Logistic(0, 1) for the whole batch gives the mask sigmoid((l_c + e_c) / temperature); at inference a channel lives
where l_c > 0 and is scaled by sigmoid(l_c). What differs: one gate for each group of tied channels, and the mask is
multiplied into the weights that read the channel instead of the activations, which is the same and costs less.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nkdlib.figs.cost import METRICS, CostModel
from nkdlib.models.channels import channel_groups, cut
from nkdlib.models.modes import evaluating


class Gates(nn.Module):
    """Gates on every inner channel group of a network; the network is gated in place until `remove`.

    `draw` has to be called before every training step. In evaluation mode the network is the one that `slim` cuts out.

    Args:
        network: traceable by `torch.fx`, with channels in dimension 1.
        example: (B, C, H, W), an input of the size that MACs are counted for.
        log_odds: that every gate starts at; 2.5 is a probability of 0.92 (the authors' value).
        temperature: of the mask; the authors' 0.001 gives hardly any gradient in short runs.
        hard: the mask is 0 or 1 in the forward pass, with the soft mask's gradient (straight-through).

    Raises:
        ValueError: no channel that could be gated, or a temperature that is not positive.

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
        groups = channel_groups(network, example)
        if not groups:
            raise ValueError(
                f"network (={type(network).__name__}) has no inner channels to gate; its convolutions must follow "
                "one another with nothing but BatchNorm, activations, sums and products between"
            )
        self.groups = {group.name: group for group in groups}
        self.model = CostModel(network, groups, example)
        self.temperature, self.hard, self.opened = temperature, hard, False
        self._network = [network]  # in a list, so that its parameters are not taken for ours
        device = next(network.parameters()).device
        self.log_odds = nn.ParameterList(nn.Parameter(torch.full((g.size,), log_odds, device=device)) for g in groups)
        self.noise = [torch.zeros_like(odds) for odds in self.log_odds]
        self._attach()

    def _attach(self) -> None:
        for place, group in enumerate(self.groups.values()):
            for path in group.consumers:
                layer = self.network.get_submodule(path)
                parametrize.register_parametrization(layer, "weight", _Masked(self, place))

    @property
    def network(self) -> nn.Module:
        """The gated network."""
        return self._network[0]

    def draw(self, generator: torch.Generator | None = None) -> None:
        """New noise for the next step; one sample a channel, whatever the batch."""
        for noise in self.noise:
            uniform = torch.rand(noise.shape, generator=generator).clamp_(1e-6, 1 - 1e-6)
            noise.copy_(uniform.logit())

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it every mask is 1, such as in a warm-up."""
        self.opened = True
        try:
            yield
        finally:
            self.opened = False

    def mask(self, place: int) -> Tensor:
        """The mask of one group, (size,), in order of `groups`."""
        odds = self.log_odds[place]
        if self.opened:
            return torch.ones_like(odds)
        if not self.network.training:
            return torch.sigmoid(odds) * _lives(odds)
        soft = torch.sigmoid((odds + self.noise[place]) / self.temperature)
        return soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if self.hard else soft

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """Of each group's channels to live, by the group's name."""
        return {name: torch.sigmoid(odds) for name, odds in zip(self.groups, self.log_odds, strict=True)}

    @property
    def alive(self) -> dict[str, Tensor]:
        """Indices of the channels with log-odds above 0; of a group without one, the most probable channel."""
        return {n: _lives(odds).nonzero()[:, 0].cpu() for n, odds in zip(self.groups, self.log_odds, strict=True)}

    @property
    def counts(self) -> dict[str, int]:
        """How many channels live in each group."""
        return {name: len(index) for name, index in self.alive.items()}

    def expected_cost(self, metric: str) -> Tensor:
        """The cost of the expected numbers of channels, differentiable in the log-odds; never below one a group."""
        counts = {name: p.sum().clamp_min(1.0) for name, p in self.probabilities.items()}
        return self.model.expected(counts, metric)

    def check(self, metric: str, target: float) -> None:
        """Raise ValueError for an unknown cost, or a target below the smallest or above the largest network."""
        if metric not in METRICS:
            raise ValueError(f"metric (={metric!r}) must be one of {', '.join(METRICS)}")
        least = getattr(self.model(dict.fromkeys(self.groups, 1)), metric)
        most = getattr(self.model(self.model.sizes), metric)
        if not least <= target <= most:
            raise ValueError(f"target (={target:,}) must lie between {least:,} and {most:,} {metric} of this network")

    @torch.no_grad()
    def fit(self, metric: str, target: float) -> "Gates":
        """Keep the most probable channels that a target has room for.

        All log-odds are shifted alike until the counted cost does not exceed the target; then channels that still fit
        are let in, the most probable first.

        Raises:
            ValueError: an unknown cost, or a target below the smallest or above the largest network.
        """
        self.check(metric, target)
        every = torch.cat([odds.flatten() for odds in self.log_odds]).double().sort().values
        edges = torch.cat([every[:1] - 1, (every[1:] + every[:-1]) / 2, every[-1:] + 1]).tolist()
        low, high = 0, len(edges) - 1  # below edges[low] too much lives, above edges[high] it is little enough
        if self._cost_above(edges[low], metric) <= target:
            high = low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._cost_above(edges[middle], metric) <= target else (middle, high)
        for odds in self.log_odds:
            odds -= edges[high]
        counts, rows = self.counts, []
        for name, odds in zip(self.groups, self.log_odds, strict=True):
            rows += [(value, name, odds, place) for place, value in enumerate(odds.tolist()) if value <= 0]
        for _, name, odds, place in sorted(rows, key=lambda row: -row[0]):  # the most probable of those that still fit
            more = {**counts, name: counts[name] + 1}
            if not (odds > 0).any() and place == int(odds.argmax()):
                odds[place] = 1e-6  # lives already, since no group ends empty
            elif getattr(self.model(more), metric) <= target:
                odds[place], counts = 1e-6, more
        return self

    def _cost_above(self, threshold: float, metric: str) -> int:
        counts = {n: max(int((o > threshold).sum()), 1) for n, o in zip(self.groups, self.log_odds, strict=True)}
        return getattr(self.model(counts), metric)

    @torch.no_grad()
    def slim(self) -> nn.Module:
        """The plain network of the channels that live, in evaluation mode, the gates' scales in its weights."""
        paths = [path for group in self.groups.values() for path in group.consumers]
        with evaluating(self.network):
            masked = {path: self.network.get_submodule(path).weight.clone() for path in paths}
        network = deepcopy(self.remove())
        self._attach()
        for path, weight in masked.items():
            network.get_submodule(path).weight.copy_(weight)
        return cut(network, list(self.groups.values()), self.alive).eval()

    def remove(self) -> nn.Module:
        """Take the gates off again; the network with its own weights."""
        for group in self.groups.values():
            for path in group.consumers:
                layer = self.network.get_submodule(path)
                if parametrize.is_parametrized(layer, "weight"):
                    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return self.network


@torch.no_grad()
def _lives(odds: Tensor) -> Tensor:
    """Which channels live, (size,): never none, since what follows would have nothing to read."""
    lives = odds > 0
    if not lives.any():
        lives[odds.argmax()] = True
    return lives


class _Masked(nn.Module):
    """A weight whose input channels, dimension 1, are multiplied with a gate's mask."""

    def __init__(self, gates: Gates, place: int):
        super().__init__()
        self._gates, self.place = [gates], place

    def forward(self, weight: Tensor) -> Tensor:
        mask = self._gates[0].mask(self.place)
        return weight * mask.view(1, -1, *(1,) * (weight.dim() - 2))
