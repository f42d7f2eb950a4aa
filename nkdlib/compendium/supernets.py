"""Supernets of search spaces, described so that a task can build them, batches to train them on, and a step's time."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nkdlib.data.images import Batches, Images, random_shift_flip
from nkdlib.figs import CostModel, Gates, rebuild
from nkdlib.networks import reset
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule


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
            with Stopwatch(device) as watch:
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
