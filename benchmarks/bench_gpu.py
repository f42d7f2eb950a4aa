"""ND and end-to-end distillation on one GPU: all blocks in one step, and the step in one CUDA graph.

    python benchmarks/bench_gpu.py        # on a GPU if there is one; else small and without graphs, in a minute

Students of ResNet-20 and ResNet-56 with half the inner width, from the same random weights, in bfloat16 steps.

- Eager: one process launches every kernel, block after block.
- Graph: a step (forward, backward, clipping, AdamW) is captured once and replayed, with a stream for each block.

Seconds are those of the wall clock, with the teacher's pass, warm-up, capture, and for ND BatchNorm measured again. The
roofline takes every operator by itself, at the device's measured speed of matrix products and copies.

At last the method that is behind after equal steps gets twice as many, until it reaches the accuracy of the other.
"""

import copy
import json
import sys
from collections.abc import Iterable
from functools import partial

import pandas as pd
import torch
from roofline import Roofline, peaks
from together import Part, Together
from torch import Tensor, nn

from nkdlib.compendium.speed import spent_at
from nkdlib.compendium.teachers import divided, open_teachers
from nkdlib.neighbourhoods import Recipe, capture, distill, split
from nkdlib.neighbourhoods.distill import seed_of
from nkdlib.neighbourhoods.local import squared_error, variance
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule, accuracy, reestimate_batchnorm
from nkdlib.training.end_to_end import capture_logits, soft_targets

SIZES = {  # data, depths, images, steps
    "cpu": ("digits", (8,), 1000, 20),
    "cuda": ("cifar10", (20, 56), 12800, 800),
}
RATES, TEMPERATURE = {"ND": 0.04, "end to end": 0.005}, 2.0  # as 02 tunes them at cpu
HOLDOUT, DOUBLINGS = 256, 3


def blocks(teacher: nn.Module, student: nn.Module, inputs: Iterable, images: int, amp: bool = True) -> list[Part]:
    """Return the blocks of a student, each with its teacher's inputs and outputs."""
    named, parts = split(teacher, teacher.block_names, next(iter(inputs))[0][:2]), []
    boundaries = capture(teacher, named, inputs, images=images, dtype=Recipe(Schedule(amp=amp)).dtype)
    for name in [part.name for part in named]:
        rows, block = boundaries.of(name), student.get_submodule(name)
        loss = partial(local_loss, block, 1 / variance(rows[:HOLDOUT]))
        parts.append(Part(block, rows[HOLDOUT:], loss, seed_of(0, name, "", "order")))
    return parts


def local_loss(block: nn.Module, scale: float, rows: dict[str, Tensor]) -> Tensor:
    """Return the error of a block, 1 if it always gives the mean."""
    return squared_error(block(rows["x"]), rows["y"]) * scale


def whole(teacher: nn.Module, student: nn.Module, inputs: Iterable, images: int) -> list[Part]:
    """Return the student in one piece, with images and the teacher's logits."""
    store = capture_logits(teacher, inputs)
    return [Part(student, store[:images], partial(soft_loss, student), seed=0)]


def soft_loss(student: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """Return the divergence from the teacher's softened predictions."""
    return soft_targets(student(rows["images"]), rows["logits"], TEMPERATURE)


METHODS = {"ND": blocks, "end to end": whole}


class Bench:
    """Both methods on one teacher of a depth."""

    def __init__(self, data: str, depth: int, images: int, device: str):
        train, _, test = divided(data)
        [self.teacher] = open_teachers(data, depth, [0], device=device)
        self.inputs = train.subset(min(images, len(train)), seed=0).in_order(device, batch_size=256)
        self.test, self.images, self.device, self.depth = test.in_order(device), images, device, depth
        widths, random = dict.fromkeys(self.teacher.block_names, 0.5), Recipe(Schedule(0), start="random")
        self.start = distill(self.teacher, widths, self.inputs, random).recompose(self.teacher)

    def together(self, student: nn.Module, method: str, steps: int, graph: bool = False) -> Together:
        """Prepare a training: the teacher's pass and what the steps need."""
        parts = METHODS[method](self.teacher, student, self.inputs, self.images)
        return Together(parts, Schedule(steps, lr=RATES[method], amp=True), graph)

    def run(self, method: str, steps: int, graph: bool) -> dict[str, object]:
        """Train a student from the start that all have, and judge it."""
        student = copy.deepcopy(self.start)
        with Stopwatch(self.device) as watch:
            step_ms = self.together(student, method, steps, graph).run()
            if method == "ND":
                reestimate_batchnorm(student, self.inputs)
        about = {"layers": self.depth, "method": method, "how": "graph" if graph else "eager", "steps": steps}
        return about | {"seconds": watch.wall_s, "step_ms": step_ms, "accuracy": accuracy(student, self.test)}

    def floor_ms(self, method: str, peak: tuple[float, float]) -> float:
        """Return the roofline's milliseconds of a step."""
        training = self.together(copy.deepcopy(self.start), method, 1)
        with Roofline(*peak) as mode:
            training.step()
        return 1e3 * mode.seconds


def main(device: str = "cuda" if torch.cuda.is_available() else "cpu") -> None:
    """Measure every depth and print a table, and who is faster to equal accuracy."""
    data, depths, images, steps = SIZES[device]
    rows, peak = [], peaks(device, torch.bfloat16)
    print(f"{device}: {peak[0] / 1e12:.3g} T MACs and {peak[1] / 1e12:.3g} TB a second")
    for depth in depths:
        bench = Bench(data, depth, images, device)
        floors = {method: bench.floor_ms(method, peak) for method in METHODS}
        best = device == "cuda"  # graphs where there are any
        rows += [bench.run(method, steps, graph) for graph in dict.fromkeys([False, best]) for method in METHODS]
        behind, ahead = sorted(rows[-2:], key=lambda row: row["accuracy"])
        curve = [behind]
        while curve[-1]["accuracy"] < ahead["accuracy"] and len(curve) <= DOUBLINGS:
            curve.append(bench.run(behind["method"], 2 * curve[-1]["steps"], best))
        rows += curve[1:]
        seconds, reached = ([row[name] for row in curve] for name in ("seconds", "accuracy"))
        needed = spent_at(ahead["accuracy"], seconds, reached)
        said = f"{ahead['method']} reaches {ahead['accuracy']:.2f} % in {ahead['seconds']:.2f} s, {behind['method']} "
        said += f"in {needed / ahead['seconds']:.2f} times as many" if needed else f"not in {seconds[-1]:.2f} s"
        print(f"ResNet-{depth}: {said}")
        for row in rows:
            if row["layers"] == depth:
                row["share of the roofline"] = floors[row["method"]] / row["step_ms"]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    print(json.dumps({"bench": "gpu", "device": device, "peaks": peak, "runs": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
