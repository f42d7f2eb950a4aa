"""FiGS: what gates cost in a training step, and what choosing and cutting cost.

Aim: a gated step at most 1.15 times the plain step of the same network.
"""

import statistics
import time

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn

from nkdlib.figs import CostModel, Gates, keep_best
from nkdlib.networks import CellNetwork, mixed_space, residual_space, resnet

STEPS = 15
NETWORKS = {  # and images of a step
    "ResNet-20": (lambda: resnet(20, 10, seed=0), (64, 3, 32, 32)),
    "ResNet filters": (lambda: residual_space(10, in_channels=1, widths=(24, 24, 24), stem_stride=2), (64, 1, 28, 28)),
    "mixed kernels": (
        lambda: mixed_space(10, in_channels=1, stem=16, stages=((6, 16, 2, 2), (6, 24, 2, 2)), head=64),
        (64, 1, 28, 28),
    ),
    "DARTS cells": (
        lambda: CellNetwork(10, in_channels=1, channels=8, cells="rn", nodes=2, stem_stride=2),
        (64, 1, 28, 28),
    ),
    "MobileNetV2": (lambda: zoo.mobilenet_v2(num_classes=10), (16, 3, 96, 96)),
}


def compare(name: str, network: nn.Module, x: torch.Tensor) -> None:
    """Steps with and without gates in turns, then a choice and a cut."""
    network = network.to(memory_format=torch.channels_last).train()
    gates, labels = Gates(CostModel(network, x[:1])), torch.randint(10, (len(x),))
    optimizer = torch.optim.AdamW(gates.parameters(), 1e-3, fused=True)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(STEPS):
        for gates.opened in (True, False):
            start = time.perf_counter()
            if not gates.opened:
                gates.draw()
            loss = F.cross_entropy(network(x), labels)
            loss = loss if gates.opened else loss + gates.expected_cost("params").log()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds[gates.opened].append(time.perf_counter() - start)
    plain, gated = (1e3 * statistics.median(seconds[opened][2:]) for opened in (True, False))
    start = time.perf_counter()
    gates.log_odds.data.normal_(generator=torch.Generator().manual_seed(0))
    target = 0.2 * gates.model.total(gates.model.sizes, "params")
    gates.keep(keep_best(gates.model, gates.scores, "params", target))
    gates.slim()
    chosen = time.perf_counter() - start
    gates.remove()
    print(f"{name}: {plain:.1f} ms plain, {gated:.1f} ms gated, {gated / plain:.2f} times; fit and cut {chosen:.2f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for label, (make, shape) in NETWORKS.items():
        compare(label, make(), torch.randn(shape).to(memory_format=torch.channels_last))
