"""The algorithms that the search spaces came with, which FiGS is compared with.

MorphNet (Gordon et al. 2017, arXiv 1711.06798) and AtomNAS (Mei et al. 2019, arXiv 1912.09640) shrink BatchNorm's
scales under a penalty that weighs every channel by its cost, and keep the largest; DARTS (Liu et al. 2018, arXiv
1806.09055) mixes operators by a softmax and keeps the strongest. FiGS itself is here as its authors set it.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.figs.budget import Scores, scales, score_evenly
from nkdlib.figs.cost_model import CostModel
from nkdlib.figs.gates import Gates
from nkdlib.networks.module import device_of
from nkdlib.networks.spaces import Sum
from nkdlib.training.kernels import better_kernels
from nkdlib.training.loop import Schedule, Trainer, minimize

# DEVIATION D12: short versions; ranks within the budget decide what is kept, without a width multiplier.
ALIVE = 0.01  # a scale from which on a channel counts as alive (MorphNet's threshold for "gamma")
Mixed = dict[tuple[str, str], dict[str, float]]  # operators' weights by their paths, by the sum's path and the edge


def shrink(
    model: CostModel,
    batches: Iterable,
    metric: str,
    strength: float,
    schedule: Schedule,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[float]:
    """Train with a penalty on BatchNorm's scales, weighed by the costs of their channels.

    The penalty is `strength` times the sum over channels of `|gamma|` and the cost that one more channel of its group
    has beside those that live, as a share of the whole network's cost (MorphNet, equation 5). `score_by_scale` then
    ranks the channels, for any target.

    Args:
        model: costs of the network, which is trained in place.
        batches: of (images, labels).
        metric: the cost.
        strength: of the penalty.
        schedule: of the weights.

    Returns:
        The loss of every step, without the penalty.

    Raises:
        ValueError: a group that no BatchNorm carries.
    """
    network, device, losses = model.network, device_of(model.network), []
    scale_penalty(model, metric)  # before the first step: can every group be paid for?

    def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
        value = loss(network(batch[0].to(device)), batch[1].to(device))
        losses.append(value.detach())
        return value + strength * scale_penalty(model, metric)

    minimize(network, batches, objective, schedule, "a network with shrinking scales")
    return torch.stack(losses).tolist()


def scale_penalty(model: CostModel, metric: str) -> Tensor:
    """The sum over channels of |gamma| times the cost of one more channel of the group, over the whole cost."""
    sizes = [scales(model, name) for name in model.groups]
    living = torch.stack([(size.detach() > ALIVE).sum() for size in sizes]).double()
    counts = torch.cat([living, living.new_ones(len(model.operators))]).requires_grad_()
    (each,) = torch.autograd.grad(model.expected(counts, metric), counts)
    paid = torch.stack([size.sum() for size in sizes]) @ each[: len(sizes)].float()
    return paid / model.total(model.sizes, metric)


class Mixture(nn.Module):
    """Weights on the operators of every edge, a softmax with one entry for no operator at all (DARTS, equation 2).

    An edge holds the operators of a sum that read the same input.

    Args:
        network: with `Sum` modules; mixed in place until `remove`.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.edges = {
            (path, edge): [f"{path}.operators.{name}" for name in names]
            for path, part in network.named_modules()
            if isinstance(part, Sum)
            for edge, names in part.edges().items()
        }
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(len(names) + 1)) for names in self.edges.values())
        self.to(device_of(network))
        self._hooks = [
            network.get_submodule(path).register_forward_hook(
                lambda _, __, y, logits=logits, number=number: y * logits.softmax(0)[number]
            )
            for logits, names in zip(self.logits, self.edges.values(), strict=True)
            for number, path in enumerate(names)
        ]

    @property
    def weights(self) -> Mixed:
        """The weight of every operator, by edge and path."""
        return {
            edge: dict(zip(names, logits.softmax(0).tolist(), strict=False))
            for (edge, names), logits in zip(self.edges.items(), self.logits, strict=True)
        }

    def remove(self) -> None:
        """Take the mixture off again."""
        for hook in self._hooks:
            hook.remove()


def mix(
    network: nn.Module,
    batches: Iterable,
    held_out: Iterable,
    schedule: Schedule,
    rate: float,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> tuple[Mixed, list[float]]:
    """Train by DARTS of first order: in turns a step of the weights on `batches` and of the mixture on `held_out`.

    Args:
        network: trained in place.
        batches, held_out: of (images, labels), of different images.
        schedule: of the weights.
        rate: of the mixture's Adam; betas and weight decay are DARTS' own (0.5 and 0.999, 1e-3).

    Returns:
        The weight of every operator, by edge and path, and the loss of every step of the weights.

    >>> from nkdlib.networks import CellNetwork
    >>> batch = torch.randn(8, 3, 8, 8), torch.arange(8) % 2
    >>> network = CellNetwork(2, channels=4, cells="n", nodes=1)
    >>> weights, losses = mix(network, [batch] * 2, [batch] * 2, Schedule(steps=2), rate=3e-3)
    >>> list(weights)
    [('cells.0.nodes.0', '0'), ('cells.0.nodes.0', '1')]
    """
    mixture, device = Mixture(network), device_of(network)
    chooser = torch.optim.Adam(mixture.parameters(), rate, (0.5, 0.999), weight_decay=1e-3)
    trainer = Trainer(network, schedule, "a mixture of operators")

    def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(network(batch[0].to(device)), batch[1].to(device))

    try:
        for _, batch, other in zip(range(schedule.steps), batches, held_out, strict=False):
            chooser.zero_grad()
            with better_kernels(network):
                objective(other).backward()
            chooser.step()
            trainer.step(lambda batch=batch: objective(batch))
        losses = trainer.finish()
    finally:
        mixture.remove()
    return mixture.weights, losses


def score_by_mixture(model: CostModel, weights: Mixed, edges: int = 2) -> Scores:
    """Scores that keep of each sum the strongest operator of its strongest `edges` (DARTS, 2.4), channels evenly."""
    scores = score_evenly(model)
    for path, part in model.sums.items():
        strongest = [max(ops.items(), key=lambda item: item[1]) for (owner, _), ops in weights.items() if owner == path]
        kept = {name for name, _ in sorted(strongest, key=lambda item: -item[1])[:edges]}
        scores |= {name: torch.tensor([torch.inf if name in kept else -torch.inf]) for name in part.paths(path)}
    return scores


def weigh(
    model: CostModel,
    batches: Iterable,
    metric: str,
    weight: float,
    schedule: Schedule,
    seed: int,
    temperature: float = 0.001,
    gate_lr: float = 0.1,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> tuple[Scores, list[float]]:
    """Train weights and gates as FiGS' authors do: the penalty is a weight times the expected cost.

    Args:
        model: costs of the network, which is trained in place.
        batches: of (images, labels).
        metric: the cost, as a share of the whole network's.
        weight: of the penalty.
        schedule: of the weights.
        seed: of the gates' noise.
        temperature: of the masks, which are soft; the authors' value.
        gate_lr: of the log-odds' Adam, our choice.

    Returns:
        The log-odds as scores, and the loss of every step without the penalty.
    """
    gates, noise = Gates(model, temperature=temperature, hard=False), torch.Generator().manual_seed(seed)
    chooser, losses = torch.optim.Adam([gates.log_odds], gate_lr), []
    trainer = Trainer(gates, schedule, "a search with a weighted cost", seed, model.network.parameters())
    whole, device = model.total(model.sizes, metric), device_of(gates)

    def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
        gates.draw(noise)
        value = loss(gates(batch[0].to(device)), batch[1].to(device))
        losses.append(value.detach())
        return value + weight * gates.expected_cost(metric) / whole

    for _, batch in zip(range(schedule.steps), batches, strict=False):
        trainer.step(lambda batch=batch: objective(batch))
        chooser.step()
    trainer.finish()
    gates.remove()
    return {name: score.detach() for name, score in gates.scores.items()}, torch.stack(losses).tolist()
