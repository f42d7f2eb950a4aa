"""The engine against a plain implementation and against the ideal, for 9 neighbourhoods x 4 candidates.

A ResNet-20 on random images of Fashion-MNIST's size, each of its nine blocks distilled into four students. The plain
implementation runs the teacher's front part for each neighbourhood and each candidate at each step; same students,
same steps and batches, same optimizer. The ideal is the teacher's pass once and every student's forward and backward
passes on ready tensors, without loss, optimizer and data. CPU seconds on one thread, by turns.

On a GPU, where there is one, in bfloat16 and wall seconds. What is reported as well is the fraction of the roofline:
the sum, over the operators of that ideal, of the longer of MACs over the device's peak and bytes over its bandwidth,
divided by the engine's seconds; the aim is 0.5.

The engine, a `Library`, pays in addition for its ends (keys, shapes, costs, BatchNorm, held-out errors, files), which
the default's 100 steps make small and the few steps here do not; so ratios are given for the whole call and for its
steps alone, the call with one step subtracted. The aims are 3 and 0.7.
"""

import contextlib
import copy
import io
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from roofline import Roofline, peaks
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from nkdlib.neighbourhoods import Library, Recipe, split
from nkdlib.neighbourhoods.capture import capture
from nkdlib.neighbourhoods.local import squared_error
from nkdlib.networks import BasicBlock, resnet
from nkdlib.tasks.cache import Cache
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training.kernels import autocast
from nkdlib.training.loop import Schedule, Trainer
from nkdlib.training.store import Store

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the teacher's inner channels
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AMP = DEVICE == "cuda"
STEPS, BATCH_SIZE, HOLDOUT, REPEATS = 20, 128, 256, 5
SCHEDULE = Schedule(STEPS, BATCH_SIZE, lr=2e-3, amp=AMP)  # a fifth of the default's steps
RECIPE = Recipe(SCHEDULE, start="given", holdout=HOLDOUT, bn_images=256)  # and a quarter of its images for BatchNorm
AIMS = {"plain": 3, "ideal": 0.7, "roofline": 0.5}  # the engine's speed against each

Students = dict[str, dict[str, nn.Module]]


def students_of(teacher: nn.Module) -> Students:
    """Blocks with fewer inner channels, random weights."""
    torch.manual_seed(0)
    made: Students = {}
    for name in teacher.block_names:
        conv1, conv2 = (teacher.get_submodule(f"{name}.{conv}") for conv in ("conv1", "conv2"))
        made[name] = {
            f"{width:g}": BasicBlock(
                conv1.in_channels, conv2.out_channels, inner=int(conv2.out_channels * width), stride=conv1.stride[0]
            ).to(DEVICE, memory_format=torch.channels_last)
            for width in WIDTHS
        }
    return made


def plain(teacher: nn.Module, students: Students, batches: list[Tensor]) -> None:
    """Each student by itself, from images: the teacher up to and with its neighbourhood, then a step."""
    parts = [teacher.stem, *(teacher.get_submodule(name) for name in teacher.block_names)]
    for place, (name, candidates) in enumerate(students.items(), start=1):
        before = nn.Sequential(*parts[:place]).eval()
        for student in copy.deepcopy(candidates).values():
            trainer = Trainer(student, SCHEDULE, name)
            for images in batches:
                with torch.no_grad():
                    x = before(images)
                    y = parts[place](x)
                trainer.step(lambda x=x, y=y, student=student: mse_loss(student(x), y))


def forward_backward(students: Students, ready: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
    """Every student's share of the ideal: forward and backward on inputs and gradients that lie ready."""
    for name, candidates in students.items():
        for student in candidates.values():
            parameters = list(student.train().parameters())
            for x, gradient in ready[name]:
                with autocast(torch.device(DEVICE), AMP):
                    output = student(x)
                torch.autograd.grad(output, parameters, gradient)


@torch.no_grad()
def teacher_pass(teacher: nn.Module, batches: list[Tensor]) -> None:
    for images in batches:
        teacher(images)


def engine(teacher: nn.Module, students: Students, batches: list[Tensor], steps: int) -> None:
    """A library of all students, filled from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(RECIPE, schedule=replace(SCHEDULE, steps=steps))
        Library(teacher, students, batches, recipe, Cache(folder)).fill()


def clock() -> float:
    """Device-seconds so far."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def taken_apart(students: Students, stores: dict[str, Store]) -> dict[str, float]:
    """Device-seconds of all steps by part, timed one after the other as they come in a step of the engine."""
    parts = dict.fromkeys(("drawing", "forward", "loss", "backward", "optimizer"), 0.0)

    def lap(part: str) -> None:
        nonlocal now
        before, now = now, clock()
        parts[part] += now - before

    for name, candidates in students.items():
        for student in copy.deepcopy(candidates).values():
            trainer, now = Trainer(student, SCHEDULE, name), clock()
            for rows in stores[name].batches(BATCH_SIZE, steps=STEPS, seed=0):
                lap("drawing")
                with autocast(torch.device(DEVICE), AMP):
                    output = student(rows["x"])
                lap("forward")
                loss = squared_error(output, rows["y"])
                lap("loss")
                for parameter in trainer.parameters:
                    parameter.grad = None
                loss.backward()
                lap("backward")
                nn.utils.clip_grad_norm_(trainer.parameters, SCHEDULE.max_grad_norm)
                trainer.optimizer.step()
                lap("optimizer")
    return parts


def main() -> None:
    torch.set_num_threads(1)
    teacher = resnet(20, 10, seed=0, in_channels=1, stem_stride=2).eval().to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(HOLDOUT + STEPS * BATCH_SIZE, 1, 28, 28, generator=generator).to(DEVICE)
    batches, students = list(images.split(BATCH_SIZE)), students_of(teacher)
    used = batches[HOLDOUT // BATCH_SIZE :]
    neighbourhoods = split(teacher, teacher.block_names, images[:2])
    boundaries = capture(teacher, neighbourhoods, batches)
    stores = {name: boundaries.of(name)[HOLDOUT:] for name in neighbourhoods.names}
    chunks = {name: list(store.chunks(BATCH_SIZE)) for name, store in stores.items()}
    ready = {name: [(rows["x"], rows["y"]) for rows in mine] for name, mine in chunks.items()}
    contenders: dict[str, Callable[[], object]] = {
        "engine": partial(engine, teacher, students, batches, STEPS),
        "engine, 1 step": partial(engine, teacher, students, batches, 1),
        "plain": partial(plain, teacher, students, used),
        "teacher": partial(teacher_pass, teacher, used),
        "students": partial(forward_backward, students, ready),
        "capture": partial(capture, teacher, neighbourhoods, used),
    }
    reached = peaks(DEVICE, torch.bfloat16 if AMP else torch.float32)
    with Roofline(*reached) as floor:
        contenders["teacher"]()
        contenders["students"]()
    print(
        f"peaks: {reached[0] / 1e9:,.0f} GMACs and {reached[1] / 1e9:,.0f} GB a second; roofline: {floor.seconds:.2f} "
        f"s, {floor.arithmetic_s / floor.seconds:.0%} of it in operators that arithmetic limits"
    )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    parts: dict[str, list[float]] = defaultdict(list)
    for repeat in range(REPEATS + 1):
        for name, run in contenders.items():
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), Stopwatch(DEVICE) as watch:
                run()
            if repeat:  # the first turn warms up
                seconds[name].append(watch.device_s)
        for part, taken in taken_apart(students, stores).items():
            if repeat:
                parts[part].append(taken)
    report(seconds, parts, floor.seconds)


def report(seconds: dict[str, list[float]], parts: dict[str, list[float]], floor: float) -> None:
    """Print seconds, ratios within a turn, and where the engine's seconds beyond the ideal go."""
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        print(f"{name:18}{median[name]:7.2f} s ({min(taken):.2f} to {max(taken):.2f})")
    turns = [dict(zip(seconds, turn, strict=True)) for turn in zip(*seconds.values(), strict=True)]
    ratios: dict[str, list[float]] = {}
    for part, taken in (
        ("whole call", [turn["engine"] for turn in turns]),
        ("steps alone", [(turn["engine"] - turn["engine, 1 step"]) * STEPS / (STEPS - 1) for turn in turns]),
    ):
        pairs = list(zip(turns, taken, strict=True))
        ratios[f"{part}, against plain"] = [turn["plain"] / engine for turn, engine in pairs]
        ratios[f"{part}, of the ideal"] = [(turn["teacher"] + turn["students"]) / engine for turn, engine in pairs]
        ratios[f"{part}, of the roofline"] = [floor / engine for engine in taken]
    ratios["the ideal, of the roofline"] = [floor / (turn["teacher"] + turn["students"]) for turn in turns]
    for name, values in ratios.items():
        aim = AIMS[name.rpartition(" ")[2]]
        print(f"{name:40}{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f}), aim {aim}")
    rest = {
        "capture": median["capture"] - median["teacher"],
        **{part: statistics.median(parts[part]) for part in ("drawing", "loss", "optimizer")},
        "ends": (median["engine, 1 step"] * STEPS - median["engine"]) / (STEPS - 1),
    }
    whole = median["engine"]
    rest["others"] = whole - median["teacher"] - median["students"] - sum(rest.values())
    print("beyond the ideal:", ", ".join(f"{name} {value / whole:.1%}" for name, value in rest.items()))
    print(
        json.dumps(
            {"bench": "engine", "ratios": ratios, "seconds": seconds, "parts": parts, "rest": rest, "steps": STEPS}
        )
    )


if __name__ == "__main__":
    main()
