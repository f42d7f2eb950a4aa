"""Logistic-Sigmoid gates on a network's channels and operators.

FiGS (arXiv 2006.09581) and its authors' code (morph-net): a channel c has log-odds l_c; in each step one
e_c ~ Logistic(0, 1) for the whole batch gives the mask sigmoid((l_c + e_c) / temperature); at inference a channel lives
if l_c > 0 and is scaled by sigmoid(l_c). Three things differ: one gate for each group of tied channels; the mask is
multiplied into the weights that read the channel instead of the activations, which is the same and costs less; and
an operator of a `Sum` has a gate of its own, so that it can vanish although its output channels are shared.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nkdlib.figs.budget import living
from nkdlib.figs.cost_model import CostModel, check_counts
from nkdlib.networks.channels import channel_groups, obstacles
from nkdlib.networks.cutting import ChannelGroup, cut
from nkdlib.networks.module import copied, device_of, evaluating, in_evaluation
from nkdlib.networks.spaces import Sum


class Gates(nn.Module):
    """Gates on every inner channel group and on every operator of a `Sum`; in the network's place until `remove`.

    Network and log-odds are one module. `draw` has to be called before every training step. In evaluation mode the
    network is the one that `slim` cuts out.

    Args:
        model: costs of the network to gate, which is changed in place.
        log_odds: of every gate at the start; 2.5 is a probability of 0.92 (the authors' value).
        temperature: of the mask; the authors' 0.001 gives hardly any gradient in short runs.
        hard: the mask is 0 or 1 in the forward pass, with the soft mask's gradient (straight-through).

    Attributes:
        opened: every mask is 1, such as in a warm-up.

    Raises:
        ValueError: nothing that could be gated, gates already, or a temperature or log-odds out of range.

    >>> net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    >>> gates = Gates(CostModel(net, torch.zeros(1, 1, 4, 4)))
    >>> gates.keep({"0": 2})
    >>> gates.counts, gates.slim()[0].out_channels
    ({'0': 2}, 2)
    """

    def __init__(self, model: CostModel, log_odds: float = 2.5, temperature: float = 0.5, hard: bool = True):
        super().__init__()
        network = model.network
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature (={temperature}) must be positive; 0.5 works in short runs")
        if not math.isfinite(log_odds):
            raise ValueError(f"log_odds (={log_odds}) must be finite; 2.5 is a probability of 0.92")
        if any(isinstance(part, _Masked) for part in network.modules()):
            raise ValueError(f"network (={type(network).__name__}) has gates already; call their remove() first")
        if not model.sizes:
            way = obstacles(network, model.example)
            raise ValueError(
                f"network (={type(network).__name__}) has no inner channels to gate; in the way: {way}; put operators "
                "that may vanish into a Sum"
            )
        self.network, self.model = network, model
        self.temperature, self.hard, self.opened = temperature, hard, False
        device, sizes = device_of(network), torch.tensor(list(model.sizes.values()))
        self.log_odds = nn.Parameter(torch.full((int(sizes.sum()),), float(log_odds), device=device))
        self._owner = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)  # the group or operator of each gate
        # DEVIATION D10: tied channels have one gate instead of several in a union, and operators have gates.
        self._least = torch.tensor([float(name in model.groups) for name in model.sizes], device=device)
        self._masks: dict[str, Tensor] = {}
        self.use(torch.zeros_like(self.log_odds))
        self._readers: dict[str, list[tuple[str, slice]]] = {}  # the groups that a layer reads, and where
        for name, group in model.groups.items():
            for path in group.consumers:
                self._readers.setdefault(path, []).extend((name, part) for part in group.slices(path))
        for path in self._readers:
            if parametrize.is_parametrized(network.get_submodule(path)):
                raise ValueError(f"layer {path!r} has been parametrized since model was built; build model anew")
        self._hooks = []
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    def _attach(self) -> None:
        for path, parts in self._readers.items():
            layer = self.network.get_submodule(path)
            masked = _Masked(self.mask, sorted(parts, key=lambda part: part[1].start), layer.weight.shape[1])
            parametrize.register_parametrization(layer, "weight", masked)
        for path in self.model.operators:
            operator = self.network.get_submodule(path)
            self._hooks.append(operator.register_forward_hook(partial(self._gated, path)))

    def _gated(self, path: str, _: nn.Module, __: tuple, y: Tensor) -> Tensor:
        """The output of an operator, times its mask."""
        if (mask := self.mask(path)) is None:
            return y
        return y * (mask if torch.is_autocast_enabled(y.device.type) else mask.to(y.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The gated network's output."""
        return self.network(x)

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw new noise for the next step; one sample a channel, whatever the batch."""
        uniform = torch.rand(self.log_odds.shape, generator=generator).clamp_(1e-6, 1 - 1e-6)
        self.use(uniform.logit().to(self.log_odds.device, non_blocking=True))

    def use(self, noise: Tensor) -> None:
        """Compute the masks of the next step from noise, (gates,)."""
        soft = torch.sigmoid((self.log_odds + noise.to(self.log_odds.device)) / self.temperature)
        mask = soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if self.hard else soft
        self._masks = dict(zip(self.model.sizes, mask.split(list(self.model.sizes.values())), strict=True))

    def mask(self, name: str) -> Tensor | None:
        """The mask of one group or operator, (size,), by its name; None if all is open."""
        if self.opened:
            return None
        if self.network.training:
            return self._masks[name]
        slot = self.model.slots[name]
        scale = torch.sigmoid(self.log_odds[slot]) if name in self.model.groups else 1
        return scale * self.lives()[slot]

    @torch.no_grad()
    def lives(self) -> Tensor:
        """Channels and operators that live, bool (gates,): log-odds above 0, or the most probable if one must stay."""
        return living(self.model, self.log_odds)

    @property
    def scores(self) -> dict[str, Tensor]:
        """Log-odds of each group's channels and of each operator, by name."""
        return {name: self.log_odds[slot] for name, slot in self.model.slots.items()}

    @property
    def alive(self) -> dict[str, Tensor]:
        """Indices of the channels that live, by group; of an operator 0, or nothing if it does not live."""
        lives = self.lives().cpu()
        return {name: lives[slot].nonzero()[:, 0] for name, slot in self.model.slots.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many channels live in each group, and whether (0 or 1) each operator does."""
        return dict(zip(self.model.sizes, map(int, self._sums(self.lives()).tolist()), strict=True))

    def _sums(self, values: Tensor) -> Tensor:
        """The sum of (gates,) over each group and operator, float64."""
        sums = torch.zeros(len(self.model.sizes), dtype=torch.float64, device=values.device)
        return sums.index_add(0, self._owner, values.double())

    def expected_cost(self, metric: str) -> Tensor:
        """The cost of the expected numbers, differentiable in the log-odds; never below one channel a group."""
        counts = torch.maximum(self._sums(torch.sigmoid(self.log_odds)), self._least)
        return self.model.expected(counts, metric)

    @torch.no_grad()
    def keep(self, counts: Mapping[str, int]) -> None:
        """Let exactly so many of the most probable channels live, moving log-odds across zero if they must.

        Raises:
            ValueError: counts of another network, or out of range.
        """
        check_counts(counts, {name: group.size for name, group in self.model.groups.items()}, self.model.sums)
        for name, slot in self.model.slots.items():
            order = slot.start + self.log_odds[slot].argsort(descending=True)
            stay, go = order[: counts[name]], order[counts[name] :]
            self.log_odds[stay] = self.log_odds[stay].clamp_min(1e-6)
            self.log_odds[go] = self.log_odds[go].clamp_max(0.0)

    @torch.no_grad()
    def slim(self) -> nn.Module:
        """The plain network of the living channels and operators, in evaluation mode, scaled as the gated one."""
        with evaluating(self.network):
            masked = {path: self.network.get_submodule(path).weight.clone() for path in self._readers}
        try:
            network = copied(self.remove())
        finally:
            self._attach()
        for path, weight in masked.items():
            network.get_submodule(path).weight.copy_(weight)
        return in_evaluation(cut_out(network, list(self.model.groups.values()), self.alive))

    def remove(self) -> nn.Module:
        """Take the gates off again; the network with its own weights."""
        while self._hooks:
            self._hooks.pop().remove()
        for path in self._readers:
            layer = self.network.get_submodule(path)
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
                if layer.bias is not None:  # it came after the weight, and so in every optimizer's state
                    bias = layer.bias
                    del layer.bias
                    layer.register_parameter("bias", bias)
        return self.network


def rebuild(network: nn.Module, example: Tensor, counts: Mapping[str, int], whole: Collection[str] = ()) -> nn.Module:
    """A copy of a network with only so many channels in each group and so many (0 or 1) of each operator.

    It has the shape of the slim network that `counts` describes, and can load its `state_dict`.

    Args:
        network: as before the search; of its weights the first channels stay.
        example: (B, C, H, W).
        counts: of a search's result.
        whole: groups without a count, which stay whole, as for the `CostModel` of the search.

    Raises:
        ValueError: counts of another network, or out of range.
    """
    groups = [group for group in channel_groups(network, example) if group.name not in whole]
    sums = {path: part for path, part in network.named_modules() if isinstance(part, Sum)}
    check_counts(counts, {group.name: group.size for group in groups}, sums)
    return cut_out(network, groups, {name: torch.arange(int(count)) for name, count in counts.items()})


def cut_out(network: nn.Module, groups: list[ChannelGroup], alive: Mapping[str, Tensor]) -> nn.Module:
    """A copy with only the living channels (indices, by group) and operators (one or none, by path)."""
    slim = cut(network, groups, {group.name: alive[group.name] for group in groups})
    for path in sorted(alive, reverse=True):  # operators within others first
        if not len(alive[path]):
            owner, _, name = path.rpartition(".")
            del slim.get_submodule(owner)[name]
    return slim


class _Masked(nn.Module):
    """A weight with its input channels, dimension 1, multiplied by the masks of the groups that it reads."""

    def __init__(self, mask: Callable[[str], Tensor | None], parts: list[tuple[str, slice]], size: int):
        super().__init__()
        self.mask, self.parts, self.size = mask, parts, size

    def forward(self, weight: Tensor) -> Tensor:
        pieces, start = [], 0
        for name, part in self.parts:
            if (mask := self.mask(name)) is None:
                return weight
            if part.start > start:  # channels of no group
                pieces.append(weight.new_ones(part.start - start))
            pieces.append(mask)
            start = part.stop
        if start < self.size:
            pieces.append(weight.new_ones(self.size - start))
        mask = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return weight * mask.to(weight.dtype).view(1, -1, *(1,) * (weight.dim() - 2))
