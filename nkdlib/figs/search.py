"""A search: weights and gates trained together until the network costs as little as asked for.

FiGS (arXiv 2006.09581): cross-entropy plus a penalty on the expected cost. Three things differ: the user names a target
instead of a penalty weight; the penalty is on the expected cost above a geometric path from the whole network to the
target; at the end the most probable channels within the target are kept, and the slim network is fine-tuned.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.figs.budget import Scores, check_target, keep_best
from nkdlib.figs.cost_model import CostModel
from nkdlib.figs.gates import Gates
from nkdlib.networks.cost import Cost
from nkdlib.networks.module import device_of, evaluating
from nkdlib.tasks.checks import check_number
from nkdlib.tasks.progress import Progress
from nkdlib.training.distributed import Checkpoints, check_same
from nkdlib.training.loop import Schedule, Trainer, minimize
from nkdlib.training.store import labeled, naming_batch

MOMENTS = 21  # of a search at which the log-odds are kept
ROWS = 10_000  # of a history at most: longer searches note every second step, or every third, ...


@dataclass(frozen=True)
class Search:
    """Settings of a search. All values are our choice, but for the log-odds at the start."""

    schedule: Schedule = field(default_factory=Schedule)  # of the weights, over all steps
    gate_lr: float = 0.1  # of the log-odds, constant; at 0.02 all gates fall alike in short runs
    gate_betas: tuple[float, float] = (0.9, 0.99)  # of their Adam
    log_odds: float = 2.5  # of every gate at the start: it lives in 92 % of the steps
    temperature: float = 0.5  # of the masks
    penalty: float = 10.0  # weight of half the squared logarithm of the expected cost over the path
    open_share: float = 0.2  # of the steps, at the start, in which every channel lives
    path_share: float = 0.7  # of the steps with gates, after which the path has come to the target
    finetune_share: float = 0.2  # of the steps, at the end, in which the slim network is fine-tuned

    def __post_init__(self) -> None:
        for name in ("gate_lr", "temperature"):
            check_number(name, getattr(self, name), 0, above=True)
        check_number("penalty", self.penalty, 0)
        check_number("log_odds", self.log_odds)
        if len(self.gate_betas) != 2:
            raise ValueError(f"gate_betas (={self.gate_betas}) are the two decays of Adam; choose 0 to below 1")
        for beta in self.gate_betas:
            check_number("gate_betas", beta, 0, 1, below=True)
        for name in ("open_share", "path_share", "finetune_share"):
            check_number(name, getattr(self, name), 0, 1, below=True)
        if self.open_share + self.finetune_share >= 1:
            raise ValueError(
                f"open_share (={self.open_share}) and finetune_share (={self.finetune_share}) leave no steps to "
                "search in; lower one"
            )

    @property
    def finetuning(self) -> Schedule:
        """The schedule of the slim network."""
        return replace(self.schedule, steps=round(self.finetune_share * self.schedule.steps))

    @property
    def searching(self) -> Schedule:
        """The schedule before, without averages of the weights: those of the slim network are averaged."""
        return replace(self.schedule, steps=self.schedule.steps - self.finetuning.steps, ema=0.0)


@dataclass
class SearchResult:
    """The slim network of a search, and the search's course."""

    network: nn.Module = field(repr=False)
    cost: Cost
    counts: dict[str, int]  # channels left, by the layer that makes them; 0 or 1 for an operator, by its path
    scores: Scores = field(repr=False)  # log-odds at the end, by the same names, as `prune` takes them
    history: pd.DataFrame = field(repr=False)  # by step: loss, expected and counted cost, path, accuracy (%)
    log_odds: Tensor = field(repr=False)  # of all gates, (moments, gates): before, at equal distances, and at the end


def search(
    network: nn.Module,
    example: Tensor,
    batches: Iterable,
    target: float,
    metric: str = "params",
    recipe: Search | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    seed: int = 0,
    cost_model: CostModel | None = None,
    checkpoints: Checkpoints | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> SearchResult:
    """Train a network with gates until it costs `target`, and cut out what lives.

    Args:
        network: trained in place; plain, whole and in its own mode again afterwards.
        example: (B, C, H, W), an input of the size that MACs are counted for.
        batches: of (images, labels), at least `recipe.schedule.steps` of them; with `checkpoints` those from step
            `checkpoints.start` on.
        target: the cost asked for, in `metric`; the slim network's is the largest that does not exceed it.
        metric: `params`, `macs`, or another cost that `cost_model` knows.
        recipe: steps and rates.
        loss: of the network's output and the labels, whatever these are, a scalar. Labels that are no tensor stay on
            their device. The history's accuracy is NaN unless output and labels are (B, classes, ...) and (B, ...).
        seed: of the gates' noise.
        cost_model: of this network, such as one with measured latency; by default parameters and MACs are known.
        checkpoints: to resume from and to write to.
        wrap: of each module before it is trained: `data_parallel` if the processes of a group share each step.

    Raises:
        ValueError: a target that no slim network has, batches that end too soon or are too small for BatchNorm, a
            network that cannot be gated or trained.
        FloatingPointError: a loss that is not finite.

    >>> from nkdlib.networks import residual_space
    >>> batch = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    >>> space, recipe = residual_space(2, blocks=(1, 1), widths=(8, 8)), Search(Schedule(steps=10))
    >>> found = search(space, batch[0][:1], [batch] * 10, 1_000, recipe=recipe)  # doctest: +ELLIPSIS
    searching for 1,000 params...
    >>> 500 < found.cost.params <= 1_000
    True
    """
    recipe, model = recipe or Search(), cost_model or CostModel(network, example)
    if model.network is not network:
        raise ValueError("cost_model is of another network; build it of the network that is searched")
    gates, start = Gates(model, recipe.log_odds, recipe.temperature), checkpoints.start if checkpoints else 0
    inputs = enumerate(batches, start)
    with evaluating(network), ExitStack() as undo:
        undo.callback(gates.remove)
        check_target(model, metric, target)
        if (given := start + length_hint(batches, recipe.schedule.steps)) < recipe.schedule.steps:
            raise _too_few(given, recipe)
        if recipe.finetuning.steps and not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(
                f"network (={type(network).__name__}) has no parameters to train, all are frozen; unfreeze some "
                "(requires_grad_), or search for channels alone (recipe.finetune_share=0)"
            )
        history, log_odds = _train(gates, inputs, target, metric, recipe, loss, seed, checkpoints, wrap)
        scores = {name: score.detach().clone() for name, score in gates.scores.items()}
        counts = keep_best(model, scores, metric, target)
        gates.keep(counts)
        slim = gates.slim()
    forward, device = wrap(slim), device_of(slim)

    def objective(batch: tuple[int, Any]) -> Tensor:
        output, labels = _forward(forward, batch, device)
        return loss(output, labels)

    minimize(forward, inputs, objective, recipe.finetuning, "the slim network", seed, checkpoints)
    return SearchResult(slim, model(counts), counts, scores, history, log_odds)


def _too_few(given: int, recipe: Search) -> ValueError:
    return ValueError(
        f"batches ended after {given}, recipe.schedule.steps asks for {recipe.schedule.steps} or more; give more "
        "batches or fewer steps"
    )


def _forward(model: nn.Module, numbered: tuple[int, Any], device: torch.device) -> tuple[Any, Any]:
    """A model's output for a numbered batch, and the batch's labels, on a device."""
    x, labels = labeled(numbered[1])
    with naming_batch(numbered[0], x):
        output = model(x.to(device, copy=True))
    return output, labels.to(device) if isinstance(labels, Tensor) else labels


def _accuracy(output: Any, labels: Any) -> Tensor:
    """Percent of labels that are the greatest of an output's dimension 1, float32; NaN if they are no such labels."""
    tensors = isinstance(output, Tensor) and isinstance(labels, Tensor)
    if tensors and not labels.is_floating_point() and labels.shape == (*output.shape[:1], *output.shape[2:]):
        return 100 * (output.argmax(1) == labels).float().mean()
    return torch.tensor(math.nan)


def _train(
    gates: Gates,
    inputs: Iterator,
    target: float,
    metric: str,
    recipe: Search,
    loss: Callable[[Any, Any], Tensor],
    seed: int,
    checkpoints: Checkpoints | None,
    wrap: Callable[[nn.Module], nn.Module],
) -> tuple[pd.DataFrame, Tensor]:
    """Train weights and log-odds; returns history and log-odds as in `SearchResult`."""
    model, device, generator = gates.model, device_of(gates), torch.Generator().manual_seed(seed)
    forward, name = wrap(gates), f"a search for {target:,.6g} {metric}"
    weights = Trainer(forward, recipe.searching, name, seed, gates.network.parameters())
    chooser = torch.optim.Adam([gates.log_odds], recipe.gate_lr, recipe.gate_betas)
    opened, steps = round(recipe.open_share * recipe.schedule.steps), recipe.searching.steps
    arrival = max(round(recipe.path_share * (steps - opened)), 1)  # steps with gates until the path is at the target
    whole, rows = model.total(model.sizes, metric), []
    moments = {round(part * (steps - 1) / (MOMENTS - 1)) for part in range(MOMENTS)}
    log_odds = [gates.log_odds.detach().cpu().clone()]
    asked = {**vars(recipe), "schedule": None, "target": float(target), "metric": metric}  # the weights have it
    (charged,) = torch.autograd.grad(gates.expected_cost(metric), gates.log_odds)
    charged = charged > 0  # gates that the cost depends on

    def objective(path: float, seen: list[Tensor], batch: tuple[int, Any]) -> Tensor:
        gates.draw(generator)
        (output, labels), expected = _forward(forward, batch, device), gates.expected_cost(metric)
        value = loss(output, labels)
        seen.extend(n.detach().double().to(device) for n in (value, expected, _accuracy(output, labels)))
        penalty = 0.0 if gates.opened else recipe.penalty  # the log-odds always get a gradient, if of zeros
        return value + 0.5 * penalty * (expected / path).log().clamp_min(0.0).square()

    def state() -> dict[str, object]:
        rows[:] = [{name: float(value) for name, value in row.items()} for row in rows]
        kept = {"rows": rows, "moments": log_odds, "noise": generator.get_state(), "settings": asked}
        return kept | {"weights": weights.state_dict(), "chooser": chooser.state_dict()}

    if checkpoints and (saved := checkpoints.load("search")):
        check_same(asked, saved.get("settings", {}), "the search")
        weights.load_state_dict(saved["weights"])
        chooser.load_state_dict(saved["chooser"])
        generator.set_state(saved["noise"])
        rows, log_odds = saved["rows"], saved["moments"]
    begin = len(weights.losses)
    with Progress(f"searching for {target:,.6g} {metric}", steps, "steps") as bar:
        bar.advance(begin)
        for step in range(begin, steps):
            batch = next(inputs, None)
            if batch is None:
                raise _too_few(step, recipe)
            # DEVIATION D11: a path to the target that the user names, in place of a weight for the cost.
            path = whole * (target / whole) ** min(max(step - opened, 0) / arrival, 1.0)
            gates.opened, seen = step < opened, []
            weights.step(lambda path=path, seen=seen, batch=batch: objective(path, seen, batch))
            if not gates.opened:
                chooser.step()
                with torch.no_grad():  # raise the log-odds when the cost undershoots the path
                    gates.log_odds += 0.5 * recipe.gate_lr * charged * (gates.expected_cost(metric) < path)
            if step % -(-steps // ROWS) == 0:
                numbers, counts = weights.mean(torch.stack([n.reshape(()) for n in seen])), gates.counts
                row = dict(zip(("loss", "expected", "accuracy"), numbers, strict=True))
                rows.append({"step": step, "path": path, **row, "counted": model.total(counts, metric)})
                if step % 10 == 0:
                    channels, operators = (sum(counts[n] for n in names) for names in (model.groups, model.operators))
                    text = f"{rows[-1]['counted']:,.6g} {metric}, loss {row['loss']:.3g}, {channels} channels"
                    bar.note(text + f", {operators} operators" * bool(model.operators))
            if step in moments:
                log_odds.append(gates.log_odds.detach().cpu().clone())
            if checkpoints:
                checkpoints.save("search", step + 1, steps, state, rows[-1])
            bar.advance()
    gates.opened = False
    weights.finish()
    history = pd.DataFrame([{name: float(value) for name, value in row.items()} for row in rows])
    return history, torch.stack(log_odds)
