"""One search: weights and gates trained together until the network costs what was asked for.

FiGS (arXiv 2006.09581): cross-entropy plus a penalty on the expected cost. What differs: the user names a target
instead of a penalty weight; what is paid for is the expected cost above a geometric path from the whole network to the
target; at the end the most probable channels within the target are kept, and the slim network is trained on.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.figs.gates import Gates
from nkdlib.networks.cost import Cost
from nkdlib.networks.module import device_of
from nkdlib.tasks.progress import Progress
from nkdlib.training.distributed import Checkpoints
from nkdlib.training.loop import Schedule, Trainer, minimize

MOMENTS = 21  # of a search in which the gates are kept
ROWS = 10_000  # of a history at most: longer searches note every second step, or every third, ...


@dataclass(frozen=True)
class Search(Schedule):
    """How a network is searched. All values are our choice, but for the log-odds at the start."""

    gate_lr: float = 0.1  # of the log-odds, constant; at 0.02 all gates fall alike in short runs
    gate_betas: tuple[float, float] = (0.9, 0.99)  # of their Adam
    log_odds: float = 2.5  # of every gate at the start: it lives in 92 % of the steps
    temperature: float = 0.5  # of the masks
    stiffness: float = 10.0  # of the penalty: half of it times the squared logarithm of what is above the path
    open_share: float = 0.2  # of the steps, at the start, in which every channel lives
    settle_share: float = 0.2  # of the steps, at the end, in which the slim network is trained on
    arrive_share: float = 0.7  # of the steps between, after which the path has come to the target

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("open_share", "settle_share", "arrive_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) is a share of the steps; choose 0 to below 1")
        if self.open_share + self.settle_share >= 1:
            raise ValueError(
                f"open_share (={self.open_share}) and settle_share (={self.settle_share}) leave no steps to search in"
            )

    @property
    def settling(self) -> Schedule:
        """The steps in which the slim network is trained on."""
        return self._part(round(self.settle_share * self.steps))

    @property
    def searching(self) -> Schedule:
        """The steps before, whose weights are not averaged: the settled ones are."""
        return self._part(self.steps - self.settling.steps, ema=0.0)

    def _part(self, steps: int, **others: float) -> Schedule:
        return Schedule(**{of.name: getattr(self, of.name) for of in fields(Schedule)} | {"steps": steps, **others})


@dataclass
class SearchResult:
    """The slim network that a search ends with, and how it came about."""

    network: nn.Module = field(repr=False)
    cost: Cost
    counts: dict[str, int]  # channels left, by the layer that makes them; 0 or 1 for an operator, by its path
    history: pd.DataFrame = field(repr=False)  # by step: loss, accuracy (%), expected and counted cost, path
    alive: pd.DataFrame = field(repr=False)  # by step and name: channels or operators with log-odds above 0
    log_odds: Tensor = field(repr=False)  # of all gates, (moments, gates): before, at equal distances, and at the end


def search(
    network: nn.Module,
    example: Tensor,
    batches: Iterable,
    target: float,
    metric: str = "params",
    recipe: Search | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    seed: int = 0,
    prepare: Callable[[Gates], object] | None = None,
    checkpoints: Checkpoints | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> SearchResult:
    """Train a network with gates until it costs `target`, and cut out what lives.

    Args:
        network: trained in place; plain and whole again afterwards.
        example: (B, C, H, W), an input of the size that MACs are counted for.
        batches: of (images, labels), at least `recipe.steps` of them; with `checkpoints` those from step
            `checkpoints.start` on.
        target: the cost asked for, in `metric`; the slim network's is the largest that does not exceed it.
        metric: `params`, `macs`, or what `prepare` adds.
        recipe: steps and rates.
        loss: of the output and the labels.
        seed: of the gates' noise.
        prepare: called with the gates before the search.
        checkpoints: to resume from and to write to.
        wrap: of each module before it is trained: `data_parallel` if the processes of a group share each step.

    Raises:
        ValueError: a target that no slim network has, batches that end too soon, a network that cannot be gated.
        FloatingPointError: a loss that is not finite.

    >>> import torch
    >>> from nkdlib.networks import residual_space
    >>> batch = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    >>> found = search(
    ...     residual_space(2, blocks=(1, 1), widths=(8, 8)), batch[0][:1], [batch] * 10, 1_000, recipe=Search(steps=10)
    ... )  # doctest: +ELLIPSIS
    searching for 1,000 params...
    >>> 500 < found.cost.params <= 1_000
    True
    """
    recipe = recipe or Search()
    gates = Gates(network, example, recipe.log_odds, recipe.temperature)
    inputs = iter(batches)
    try:
        if prepare is not None:
            prepare(gates)
        gates.check(metric, target)
        history, alive, log_odds = _train(gates, inputs, target, metric, recipe, loss, seed, checkpoints, wrap)
        gates.fit(metric, target)
        slim, counts = gates.slim(), gates.counts
    finally:
        gates.remove()
        network.eval()

    forward = wrap(slim)

    def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(forward(batch[0].to(device_of(slim))), batch[1].to(device_of(slim)))

    minimize(forward, inputs, objective, recipe.settling, "the slim network", seed, checkpoints)
    return SearchResult(slim, gates.model(counts), counts, history, alive, log_odds)


def _train(
    gates: Gates,
    inputs: Iterator,
    target: float,
    metric: str,
    recipe: Search,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    checkpoints: Checkpoints | None,
    wrap: Callable[[nn.Module], nn.Module],
) -> tuple[pd.DataFrame, pd.DataFrame, Tensor]:
    network, generator = gates.network, torch.Generator().manual_seed(seed)
    device, name = device_of(network), f"a search for {target:,.6g} {metric}"
    forward = wrap(gates)
    weights = Trainer(forward, recipe.searching, name, seed, network.parameters())
    chooser = torch.optim.Adam([gates.log_odds], recipe.gate_lr, recipe.gate_betas)
    opened, steps = round(recipe.open_share * recipe.steps), recipe.searching.steps
    arrive = max(round(recipe.arrive_share * (steps - opened)), 1)
    whole, rows, alive = gates.model.total(gates.model.sizes, metric), [], []
    moments = {round(part * (steps - 1) / (MOMENTS - 1)) for part in range(MOMENTS)}
    log_odds = [gates.log_odds.detach().cpu().clone()]
    (charged,) = torch.autograd.grad(gates.expected_cost(metric), gates.log_odds)
    charged = charged > 0  # gates that the cost depends on

    def objective(path: float, seen: list[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        gates.draw(generator)
        x, labels = batch[0].to(device), batch[1].to(device)
        output, expected = forward(x), gates.expected_cost(metric)
        value = loss(output, labels)
        right = 100 * (output.argmax(1) == labels).float().mean()
        seen.extend(number.detach().double() for number in (value, expected, right))
        stiffness = 0.0 if gates.opened else recipe.stiffness  # the log-odds always get a gradient, if of zeros
        return value + 0.5 * stiffness * (expected / path).log().clamp_min(0.0).square()

    def state() -> dict[str, object]:
        rows[:] = [{name: float(value) for name, value in row.items()} for row in rows]
        kept = {"rows": rows, "alive": alive, "moments": log_odds, "noise": generator.get_state()}
        return kept | {"weights": weights.state_dict(), "chooser": chooser.state_dict()}

    if checkpoints and (saved := checkpoints.load("search")):
        weights.load_state_dict(saved["weights"])
        chooser.load_state_dict(saved["chooser"])
        generator.set_state(saved["noise"])
        rows, alive, log_odds = saved["rows"], saved["alive"], saved["moments"]
    begin = len(weights.losses)
    with Progress(f"searching for {target:,.6g} {metric}", steps, "steps") as bar:
        bar.advance(begin)
        for step in range(begin, steps):
            batch = next(inputs, None)
            if batch is None:
                raise ValueError(
                    f"batches ended after {step}, recipe.steps asks for {recipe.steps} or more; give more batches or "
                    "fewer steps"
                )
            # DEVIATION D11: a path to the target that the user names, in place of a weight for the cost.
            path = whole * (target / whole) ** min(max(step - opened, 0) / arrive, 1.0)
            gates.opened, seen = step < opened, []
            weights.step(lambda path=path, seen=seen, batch=batch: objective(path, seen, batch))
            if not gates.opened:
                chooser.step()
                with torch.no_grad():  # what has fallen too low is raised, so that the path is kept from both sides
                    gates.log_odds += 0.5 * recipe.gate_lr * charged * (gates.expected_cost(metric) < path)
            if step % -(-steps // ROWS) == 0:
                numbers, counts = weights.mean(torch.stack(seen)), gates.counts
                row = dict(zip(("loss", "expected", "accuracy"), numbers, strict=True))
                rows.append({"step": step, "path": path, **row, "counted": gates.model.total(counts, metric)})
                alive.append({"step": step, **counts})
                if step % 10 == 0:
                    live = sum(counts[name] for name in gates.groups), sum(counts[name] for name in gates.operators)
                    bar.note(
                        f"{rows[-1]['counted']:,.6g} {metric}, {row['accuracy']:.0f} %, {live[0]} channels"
                        + f", {live[1]} operators" * bool(gates.operators)
                    )
            if step in moments:
                log_odds.append(gates.log_odds.detach().cpu().clone())
            if checkpoints:
                checkpoints.save("search", step + 1, steps, state, rows[-1])
            bar.advance()
    gates.opened = False
    weights.finish()
    history = pd.DataFrame([{name: float(value) for name, value in row.items()} for row in rows])
    return history, pd.DataFrame(alive), torch.stack(log_odds)
