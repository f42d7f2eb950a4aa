"""Neighbourhood Distillation against end-to-end distillation of the same student, step for step.

A ResNet-20 at 32 pixels, all nine blocks at half the inner width, random weights, bfloat16 in training steps
where it pays.

- The capture pass: float32 in the teacher, bfloat16 in memory, against the teacher's bare forward pass. Aim: 1.3.
- One step of all neighbourhoods on one worker, against one end-to-end step, the teacher's passes left out. Aim: 1.15.
  A step's cost is the difference of two lengths, so that what a training costs once does not count.
- The share of the GEMM floor: a step's MACs, forward and backward, over the fastest matrix product in their type.
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
from nkdlib.neighbourhoods.distill import Distillation
from nkdlib.networks import resnet
from nkdlib.tasks.executors import make_executor
from nkdlib.training import Schedule, distill_end_to_end
from nkdlib.training.end_to_end import EndToEnd
from nkdlib.training.kernels import bfloat16_pays

BATCH, SHORT, LONG, WALL, REPEATS, CORES = 128, 4, 16, 48, 3, 2
AIMS = {"capture over the bare pass": 1.3, "a step of ND over one end to end": 1.15}


def schedule(steps: int) -> Schedule:
    """Return the optimization of so many steps, in bfloat16."""
    return Schedule(steps, BATCH, lr=1.5e-2, amp=True)


def neighbourhoods_alone(teacher: nn.Module, batches: list[Tensor], steps: int, executor=None) -> Distillation:
    """Distill every block by itself."""
    recipe = Recipe(schedule(steps), start="random", dtype=torch.bfloat16)
    return distill(teacher, dict.fromkeys(teacher.block_names, 0.5), batches, recipe, executor)


def end_to_end(teacher: nn.Module, student: nn.Module, batches: list[Tensor], steps: int) -> EndToEnd:
    """Distill the same student as a whole."""
    return distill_end_to_end(teacher, copy.deepcopy(student), batches, schedule(steps), temperature=2.0)


def train_s(run: Distillation | EndToEnd) -> float:
    """Device-seconds of gradient steps and what goes with them."""
    return run.train_s if isinstance(run, EndToEnd) else sum(part.device_s for part in run.values())


@torch.no_grad()
def bare_pass(teacher: nn.Module, batches: list[Tensor]) -> None:
    """Run the teacher over all images and keep nothing."""
    for images in batches:
        teacher(images)


def timed(run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> tuple[float, object]:
    """Seconds and result of a call that prints nothing."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        start = clock()
        result = run()
        return clock() - start, result


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
    batches = list(torch.randn(256 + WALL * BATCH, 3, 32, 32, generator=generator).contiguous(**layout).split(256))
    few = batches[: 1 + LONG * BATCH // 256]
    parts = split(teacher, teacher.block_names, batches[0][:2])
    student = neighbourhoods_alone(teacher, batches, 0).recompose(teacher)
    methods = {
        "ND": partial(neighbourhoods_alone, teacher, batches),
        "end to end": partial(end_to_end, teacher, student, batches),
    }
    passes = {"bare pass": partial(bare_pass, teacher, few)}
    passes["capture"] = partial(capture, teacher, parts, few, dtype=torch.bfloat16)
    seconds, ratios = defaultdict(list), defaultdict(list)
    kind = torch.bfloat16 if bfloat16_pays(torch.device("cpu")) else torch.float32
    gemm_s = step_macs(student, batches[0][:BATCH]) / peaks("cpu", kind)[0]
    with make_executor("local", CORES) as pool:
        on_processes = partial(methods["ND"], WALL, executor=pool)
        timed(on_processes)  # starts the processes
        for turn in range(REPEATS + 1):
            now = {name: timed(run)[0] for name, run in passes.items()}
            for name, run in methods.items():
                short, long = (train_s(timed(partial(run, steps))[1]) for steps in (SHORT, LONG))
                now[f"a step, {name}"] = (long - short) / (LONG - SHORT)
            torch.set_num_threads(CORES)  # for the teacher's pass too
            now["ND on processes, wall"] = timed(on_processes, time.perf_counter)[0]
            now["end to end on threads, wall"] = timed(partial(methods["end to end"], WALL), time.perf_counter)[0]
            torch.set_num_threads(1)
            if not turn:  # it warms up
                continue
            ratios["capture over the bare pass"].append(now["capture"] / now["bare pass"])
            ratios["a step of ND over one end to end"].append(now["a step, ND"] / now["a step, end to end"])
            for name in methods:
                ratios[f"{name}'s share of the GEMM floor"].append(gemm_s / now[f"a step, {name}"])
            walls = now["end to end on threads, wall"] / now["ND on processes, wall"]
            ratios[f"end to end on {CORES} threads over ND on {CORES} processes"].append(walls)
            for name, taken in now.items():
                seconds[name].append(taken)
    for found, unit in ((seconds, " s"), (ratios, "")):
        for name, values in found.items():
            aim = f", aim {AIMS[name]}" if name in AIMS else ""
            print(f"{name:52}{statistics.median(values):7.3f}{unit} ({min(values):.3f} to {max(values):.3f}){aim}")
    print(json.dumps({"bench": "distill", "ratios": ratios, "seconds": seconds, "steps": WALL}))


if __name__ == "__main__":
    main()
