"""Neighbourhood Distillation against end-to-end distillation of the same student, step for step.

A ResNet-20 at 32 pixels, all nine blocks at half the inner width, random weights, bfloat16 in training steps.

- The capture pass: float32 in the teacher, bfloat16 in memory, against the teacher's bare forward pass. Aim: 1.3.
- One step of all neighbourhoods on one worker, against one end-to-end step. Aim: 1.15. A step's cost is the
  difference of two lengths, so that what a call costs once does not count.
- The share of the GEMM floor: a step's MACs, forward and backward, over the fastest matrix product in bfloat16.
- By the wall clock, whole calls of equally many steps: ND on two processes against end to end on two threads.

CPU seconds on one thread, by turns, medians; the wall clock where it is said.
"""

import contextlib
import copy
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from roofline import peaks
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nkdlib.neighbourhoods import Recipe, distill, split
from nkdlib.neighbourhoods.capture import capture
from nkdlib.networks import resnet
from nkdlib.tasks.executors import make_executor
from nkdlib.training import Schedule, distill_end_to_end

BATCH, SHORT, LONG, REPEATS, CORES = 128, 4, 16, 5, 2
METHODS = ("ND", "end to end")
AIMS = {"capture over the bare pass": 1.3, "a step of ND over one end to end": 1.15}


def schedule(steps: int) -> Schedule:
    """Return the optimization of so many steps, in bfloat16."""
    return Schedule(steps, BATCH, lr=1.5e-2, amp=True)


def neighbourhoods_alone(teacher: nn.Module, batches: list[Tensor], steps: int, executor=None) -> nn.Module:
    """Distill every block by itself, and put the students together."""
    recipe = Recipe(schedule(steps), start="random", dtype=torch.bfloat16)
    return distill(teacher, dict.fromkeys(teacher.block_names, 0.5), batches, recipe, executor).recompose(teacher)


def end_to_end(teacher: nn.Module, student: nn.Module, batches: list[Tensor], steps: int) -> None:
    """Distill the same student as a whole."""
    distill_end_to_end(teacher, copy.deepcopy(student), batches, schedule(steps), temperature=2.0)


@torch.no_grad()
def bare_pass(teacher: nn.Module, batches: list[Tensor]) -> None:
    """Run the teacher over all images and keep nothing."""
    for images in batches:
        teacher(images)


def timed(run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of a call that prints nothing."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        start = clock()
        run()
        return clock() - start


def step_macs(student: nn.Module, images: Tensor) -> float:
    """MACs of one training step, counted operator by operator."""
    student = copy.deepcopy(student).train()
    with FlopCounterMode(display=False) as counter:
        student(images).sum().backward()
    return counter.get_total_flops() / 2


def main() -> None:
    """Measure by turns and print medians."""
    torch.set_num_threads(1)
    layout = {"memory_format": torch.channels_last}  # as data sets and kept teachers have it
    teacher = resnet(20, 10, seed=0).eval().to(**layout)
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randn(256 + LONG * BATCH, 3, 32, 32, generator=generator).contiguous(**layout).split(256))
    parts = split(teacher, teacher.block_names, batches[0][:2])
    student = neighbourhoods_alone(teacher, batches, 0)
    contenders = {
        "bare pass": partial(bare_pass, teacher, batches),
        "capture": partial(capture, teacher, parts, batches, dtype=torch.bfloat16),
        **{f"ND, {n}": partial(neighbourhoods_alone, teacher, batches, n) for n in (SHORT, LONG)},
        **{f"end to end, {n}": partial(end_to_end, teacher, student, batches, n) for n in (SHORT, LONG)},
    }
    seconds, ratios = defaultdict(list), defaultdict(list)
    gemm_s = step_macs(student, batches[0][:BATCH]) / peaks("cpu", torch.bfloat16)[0]
    with make_executor("local", CORES) as pool:
        on_processes = partial(neighbourhoods_alone, teacher, batches, LONG, pool)
        timed(on_processes)  # starts the processes
        for turn in range(REPEATS + 1):
            now = {name: timed(run) for name, run in contenders.items()}
            wall = {"ND on processes": timed(on_processes, time.perf_counter)}
            torch.set_num_threads(CORES)
            wall["end to end on threads"] = timed(contenders[f"end to end, {LONG}"], time.perf_counter)
            torch.set_num_threads(1)
            if not turn:  # it warms up
                continue
            step = {name: (now[f"{name}, {LONG}"] - now[f"{name}, {SHORT}"]) / (LONG - SHORT) for name in METHODS}
            ratios["capture over the bare pass"].append(now["capture"] / now["bare pass"])
            ratios["a step of ND over one end to end"].append(step["ND"] / step["end to end"])
            ratios["end to end's share of the GEMM floor"].append(gemm_s / step["end to end"])
            ratios["ND's share of the GEMM floor"].append(gemm_s / step["ND"])
            ratios[f"{CORES} threads over {CORES} processes, wall"].append(
                wall["end to end on threads"] / wall["ND on processes"]
            )
            for name, taken in (now | wall | {f"a step, {name}": value for name, value in step.items()}).items():
                seconds[name].append(taken)
    for found, unit in ((seconds, " s"), (ratios, "")):
        for name, values in found.items():
            aim = f", aim {AIMS[name]}" if name in AIMS else ""
            print(f"{name:40}{statistics.median(values):7.3f}{unit} ({min(values):.3f} to {max(values):.3f}){aim}")
    print(json.dumps({"bench": "distill", "ratios": ratios, "seconds": seconds, "steps": LONG}))


if __name__ == "__main__":
    main()
