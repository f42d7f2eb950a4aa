"""Milliseconds of a network on this machine, with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor, nn

from nkdlib.networks.module import in_evaluation
from nkdlib.tasks.measure import Stopwatch

TURN = 5  # timed passes in a row


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one forward pass over a batch, with a 95 % interval of that median."""

    ms: float
    low_ms: float
    high_ms: float
    batch: int  # examples of one pass
    threads: int  # of a CPU
    device: str  # the processor's or GPU's name

    def __str__(self) -> str:
        said = f"{self.ms:.3g} ms [{self.low_ms:.3g}, {self.high_ms:.3g}], batch {self.batch}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return ", ".join(filter(None, [said, self.device, threads]))


@torch.inference_mode()
def latencies(models: Sequence[tuple[nn.Module, Tensor]], repeats: int = 50, hardware: str = "") -> list[Latency]:
    """Time forward passes, in evaluation mode, under the current number of threads.

    Models take turns of a few passes, so that what else the machine does meets all of them alike; the first pass of a
    turn, which finds the caches as another model left them, is not timed.

    Args:
        models: (model, example (B, ...)) each; a model is put into evaluation mode.
        repeats: timed passes of each.
        hardware: the processor's name, for the record; a GPU is asked for its own.

    Raises:
        ValueError: fewer than 6 repeats, from which no 95 % interval of a median can be had.

    >>> (found,) = latencies([(nn.Linear(4, 4), torch.zeros(2, 4))], repeats=6)
    >>> 0 < found.low_ms <= found.ms <= found.high_ms
    True
    """
    if not repeats >= 6 or repeats % 1:
        raise ValueError(f"repeats (={repeats}) must be at least 6, and whole, for a 95 % interval of the median")
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(-(-repeats // TURN) + 1):
        for (model, example), taken in zip(models, seconds, strict=True):
            in_evaluation(model)(example)
            for _ in range(TURN):
                with Stopwatch(example.device) as watch:
                    model(example)
                taken.append(watch.wall_s)
    return [_summary(taken[-repeats:], example, hardware) for (_, example), taken in zip(models, seconds, strict=True)]


def _summary(seconds: list[float], example: Tensor, hardware: str) -> Latency:
    cuda, repeats, ordered = example.device.type == "cuda", len(seconds), sorted(1e3 * s for s in seconds)
    below = int(binom.ppf(0.025, repeats, 0.5)) - 1  # order statistics that hold the median with 95 %, and more
    middle = (ordered[(repeats - 1) // 2] + ordered[repeats // 2]) / 2
    threads, name = (0, torch.cuda.get_device_name(example.device)) if cuda else (torch.get_num_threads(), hardware)
    return Latency(middle, ordered[max(below, 0)], ordered[-1 - max(below, 0)], len(example), threads, name)
