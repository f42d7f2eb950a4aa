"""Supernets of search spaces, described so that a task can build them; their search, training anew, a step's time."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from nkdlib.compendium.sweep import experiment, sweep
from nkdlib.data.images import Batches, Images, random_shift_flip
from nkdlib.figs import CostModel, Gates, Search, rebuild, search
from nkdlib.networks import cost, reset
from nkdlib.tasks.executors import InProcess, Processes
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule, accuracy, fit
from nkdlib.training.kernels import better_kernels


@dataclass(frozen=True)
class Supernet:
    """A search space's whole network: the function that makes it, and arguments beside the number of classes."""

    title: str
    make: Callable[..., nn.Module]
    options: dict[str, object]

    def cost_model(self, images: Images, seed: int = 0, device: str = "cpu") -> CostModel:
        """The costs of the supernet (`.network`), with weights from a seed, in channels-last layout."""
        network = reset(self.make(images.num_classes, **self.options), seed)
        network = network.to(device, memory_format=torch.channels_last)
        return CostModel(network, torch.zeros(1, *images.shape, device=device))

    def slim(self, images: Images, counts: Mapping[str, int], seed: int, device: str = "cpu") -> nn.Module:
        """The network with `counts` of channels and operators, its weights drawn anew from a seed."""
        network = rebuild(self.make(images.num_classes, **self.options), torch.zeros(1, *images.shape), counts)
        return reset(network, seed).to(device, memory_format=torch.channels_last)


def training_batches(images: Images, schedule: Schedule, seed: int, augment: bool, device: str) -> Batches:
    """Batches for the steps of a schedule, on request shifted by up to an eighth of the width, and flipped."""
    change = random_shift_flip(pad=max(images.shape[-1] // 8, 1)) if augment else None
    options = {"augment": change, "device": device, "channels_last": True}
    return images.batches(schedule.batch_size, steps=schedule.steps, seed=seed, **options)


@experiment
def by_figs(
    spaces: Mapping[str, Supernet],
    space: str,
    metric: str,
    share: float,
    train: Images,
    schedules: Mapping[str, Schedule],
    seed: int,
    augment: bool,
    device: str,
) -> dict:
    """Search one of `spaces` by FiGS for a share of its cost; no fine-tuning, since networks found are trained anew.

    Returns:
        counts: what stays; loss: of every step; course: the costs on the way; search_s; log_odds (moments, gates).
    """
    model = spaces[space].cost_model(train, seed, device)
    target = share * model.total(model.sizes, metric)
    recipe = Search(schedules[space], finetune_share=0.0)
    batches = training_batches(train, recipe.schedule, seed, augment, device)
    given = {"recipe": recipe, "seed": seed, "cost_model": model}
    with Stopwatch(device) as watch:
        found = search(model.network, model.example, batches, target, metric, **given)
    course = found.history[["step", "path", "expected", "counted"]].to_dict("list")
    about = {"counts": found.counts, "loss": list(found.history.loss), "course": course}
    return {**about, "search_s": watch.device_s, "log_odds": found.log_odds}


@experiment
def from_scratch(
    spaces: Mapping[str, Supernet],
    space: str,
    counts: Mapping[str, int],
    train: Images,
    judge: Images,
    schedules: Mapping[str, Schedule],
    seed: int,
    augment: bool,
    device: str,
) -> dict:
    """Train the network with `counts` from new weights; its accuracy on `judge` in percent, its cost, its seconds."""
    slim, schedule = spaces[space].slim(train, counts, seed, device), schedules[space]
    with Stopwatch(device) as watch:
        fit(slim, training_batches(train, schedule, seed, augment, device), schedule)
    spent = cost(slim, torch.zeros(1, *train.shape, device=device))
    reached = {"accuracy": accuracy(slim, judge.in_order(device))}
    return reached | {"train_s": watch.device_s, "parameters": spent.params, "MACs": spent.macs}


def trained_anew(
    plan: Sequence[Mapping[str, object]], fixed: Mapping[str, object], executor: InProcess | Processes, title: str
) -> pd.DataFrame:
    """Train every network of a plan from new weights.

    Args:
        plan: a row a network, with `space`, `counts` and `seed`; further columns are kept.
        fixed: the arguments of `from_scratch` that all share.
        executor, title: as in `sweep`.

    Returns:
        The plan without counts, with what each network reached.
    """
    cases = [{name: row[name] for name in ("space", "counts", "seed")} for row in plan]
    runs = sweep(from_scratch, cases, fixed=fixed, executor=executor, title=title)
    kept = runs.drop(columns=["space", "seed", "run"])
    return pd.concat([pd.DataFrame(plan).drop(columns="counts"), kept], axis=1)


def step_ms(model: CostModel, batches: Iterable, device: str) -> tuple[float, float]:
    """Median milliseconds of a plain and of a gated training step of one supernet, in turns; the first two not counted.

    Args:
        model: costs of the supernet, which is trained in place.
        batches: of (images, labels), three or more.
    """
    gates, ms = Gates(model), {True: [], False: []}
    optimizer = torch.optim.AdamW(gates.train().parameters(), 1e-3, fused=True)
    for images, labels in batches:
        for gates.opened in ms:
            with Stopwatch(device) as watch, better_kernels(gates):
                if not gates.opened:
                    gates.draw()
                loss = F.cross_entropy(gates(images), labels)
                loss = loss if gates.opened else loss + gates.expected_cost("params").log()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            ms[gates.opened].append(1e3 * watch.device_s)
    gates.remove()
    plain, gated = (statistics.median(ms[opened][2:]) for opened in (True, False))
    return plain, gated
