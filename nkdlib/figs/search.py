"""One search: weights and gates trained together until the network costs what was asked for.

FiGS (arXiv 2006.09581): cross-entropy plus a penalty on the expected cost. What differs: the user names a target
instead of a penalty weight; what is paid for is the expected cost above a geometric path from the whole network to the
target, and at the end the most probable channels within the target are kept.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.figs.gates import Gates
from nkdlib.models.cost import Cost
from nkdlib.runtime.progress import progress
from nkdlib.training.evaluate import device_of
from nkdlib.training.loop import Schedule, own_random_numbers


@dataclass(frozen=True)
class Search(Schedule):
    """How a network is searched. All values are our choice."""

    gate_lr: float = 2e-2  # of the log-odds, constant
    open_share: float = 0.2  # of the steps, at the start, in which every channel lives
    arrive_share: float = 0.8  # of the other steps, after which the path has come to the target
    temperature: float = 0.5  # of the masks
    stiffness: float = 10.0  # of the penalty: half of it times the squared logarithm of what is above the path

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("open_share", "arrive_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) is a share of the steps; choose 0 to below 1")


@dataclass
class Found:
    """The slim network that a search ends with, and how it came about."""

    network: nn.Module = field(repr=False)
    cost: Cost
    counts: dict[str, int]  # channels left, by the layer that makes them
    history: pd.DataFrame = field(repr=False)  # step, loss, expected and counted cost, path


def cross_entropy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a classifier on (images, labels)."""
    return F.cross_entropy(output, batch[1].to(output.device))


def search(
    network: nn.Module,
    example: Tensor,
    batches: Iterable,
    target: float,
    metric: str = "params",
    recipe: Search | None = None,
    loss: Callable[[Tensor, object], Tensor] = cross_entropy,
    seed: int = 0,
) -> Found:
    """Train a network with gates until it costs `target`, and cut out what lives.

    Args:
        network: trained in place; plain again afterwards.
        example: (B, C, H, W), an input of the size that MACs are counted for.
        batches: of (images, ...), at least `recipe.steps` of them.
        target: the cost asked for, in `metric`; the slim network's is the largest that does not exceed it.
        metric: `params` or `macs`.
        recipe: steps and rates.
        loss: of the output and the batch.
        seed: of the gates' noise.

    Raises:
        ValueError: a target that no slim network has, batches that end too soon, a network that cannot be gated.
        FloatingPointError: a loss that is not finite.
    """
    recipe, device = recipe or Search(), device_of(network)
    gates = Gates(network, example, temperature=recipe.temperature)
    try:
        gates.check(metric, target)
        rows = _train(gates, batches, target, metric, recipe, loss, seed, device)
        gates.fit(metric, target)
        slim, counts = gates.slim(), gates.counts
        return Found(slim, gates.model(counts), counts, pd.DataFrame(rows))
    finally:
        gates.remove()
        network.eval()


def _train(
    gates: Gates,
    batches: Iterable,
    target: float,
    metric: str,
    recipe: Search,
    loss: Callable[[Tensor, object], Tensor],
    seed: int,
    device: torch.device,
) -> list[dict[str, float]]:
    network, generator = gates.network.train(), torch.Generator().manual_seed(seed)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
            {"params": [gates.log_odds], "lr": recipe.gate_lr, "weight_decay": 0.0},
        ]
    )
    opened = round(recipe.open_share * recipe.steps)
    arrive = max(round(recipe.arrive_share * (recipe.steps - opened)), 1)
    whole, rows = gates.expected_cost(metric).item(), []
    iterator = iter(batches)
    for step in progress(range(recipe.steps), f"searching for {target:,.0f} {metric}", unit="steps"):
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(f"batches ended after {step}, recipe.steps is {recipe.steps}; give more or fewer steps")
        optimizer.param_groups[0]["lr"] = recipe.lr * recipe.rate(step)
        gated, counted = step >= opened, getattr(gates.model(gates.counts), metric)
        gates.opened = not gated
        gates.draw(generator)
        with own_random_numbers(device, seed + step):
            value = loss(network(batch[0].to(device)), batch)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss is not finite at step {step} with lr (={recipe.lr:g}) and gate_lr (={recipe.gate_lr:g}); "
                "choose smaller ones or check the images for NaN"
            )
        share = min(max(step - opened, 0) / arrive, 1.0)
        expected, path = gates.expected_cost(metric), whole * (target / whole) ** share
        excess = (expected / path).log().clamp_min(0.0)
        optimizer.zero_grad(set_to_none=True)
        (value + 0.5 * recipe.stiffness * excess.square() if gated else value).backward()
        if recipe.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        rows.append({"step": step, "loss": value.item(), "expected": expected.item(), "counted": counted, "path": path})
    gates.opened = False
    return rows
