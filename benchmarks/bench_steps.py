"""What bfloat16 is worth on this CPU: training steps with `amp` against steps in float32 and under plain autocast.

CPU seconds on one thread, by turns, median. MobileNetV2's depthwise convolutions are those that plain autocast makes
slow; with `amp` a step should take at most as long as in float32.
"""

import json
import statistics
import time

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from nkdlib.networks import mixed_space, resnet
from nkdlib.training.loop import Schedule, Trainer

REPEATS = 7
CASES = {  # network, images of a step
    "ResNet-20, 128 of 32": (lambda: resnet(20, 10), (128, 3, 32, 32)),
    "MobileNetV2, 16 of 160": (lambda: mobilenet_v2(weights=None), (16, 3, 160, 160)),
    "mixed kernels, 128 of 32": (
        lambda: mixed_space(10, stem_stride=4, stem=32, stages=[[3, 32, 1, 1], [6, 64, 1, 2]], head=192),
        (128, 3, 32, 32),
    ),
}


def plain_autocast(network: nn.Module, x: torch.Tensor) -> None:
    """A forward and a backward pass as anyone would write them."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(x).square().mean()
    loss.backward()


def main() -> None:
    """Measure each network and print one line of JSON."""
    torch.set_num_threads(1)
    row = {}
    for title, (build, shape) in CASES.items():
        network = build().to(memory_format=torch.channels_last)
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        ways = {"plain": lambda network=network, x=x: plain_autocast(network, x)}
        for name, amp in (("float32", False), ("amp", True)):
            trainer = Trainer(network, Schedule(REPEATS, lr=1e-4, amp=amp))
            loss = lambda network=network, x=x: network(x).square().mean()  # noqa: E731
            ways[name] = lambda trainer=trainer, loss=loss: trainer.step(loss)
        seconds = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, step in ways.items():
                started = time.process_time()
                step()
                seconds[name].append(time.process_time() - started)
        found = {name: statistics.median(each[1:]) for name, each in seconds.items()}
        row[title] = {"float32_s": round(found["float32"], 3)}
        row[title] |= {f"{name}_share": round(found[name] / found["float32"], 2) for name in ("plain", "amp")}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
