"""One whole run of either way to distill a narrower network, which claims ND-0 and ND-1 both look at."""

from collections.abc import Iterable, Mapping
from statistics import fmean

import pandas as pd

from nkdlib.compendium.sweep import experiment, sweep
from nkdlib.data.images import Images
from nkdlib.neighbourhoods import Recipe, distill, narrow, recompose, split
from nkdlib.networks.resnet import ResNet
from nkdlib.tasks.cache import Artefact
from nkdlib.tasks.executors import InProcess, Processes
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule, accuracy, distill_end_to_end, reestimate_batchnorm


@experiment
def distilled(
    teacher: ResNet,
    method: str,
    start: str,
    steps: int,
    lr: float,
    temperature: float,
    train: Images,
    judge: Images,
    share: float,
    images: int,
    solve_images: int,
    amp: bool,
    seed: int,
    device: str,
) -> dict[str, object]:
    """Distill a student with a share of every block's inner channels, and judge it.

    Both methods begin with the same blocks between the teacher's stem and head. ND trains every block alone, puts the
    network together and measures BatchNorm again on 1,024 images; no end-to-end step. End to end trains all of it.

    Returns:
        accuracy; the loss of every step, of ND the mean over the blocks; device-seconds of the teacher's passes, the
        start, putting together, end-to-end steps, and of each block's steps; local errors; and the blocks as training
        alone left them, which `alone` reads.
    """
    schedule, apart, names = Schedule(steps, lr=lr, amp=amp), method == "ND", teacher.block_names
    recipe = Recipe(schedule if apart else Schedule(0), start=start, seed=seed, solve_images=solve_images)
    wanted = recipe.holdout + max(steps * 128 if apart else 0, solve_images)
    inputs = train.subset(min(images, wanted), seed=seed).in_order(device, batch_size=256)
    parts = distill(teacher, dict.fromkeys(names, share), inputs, recipe)
    states = {name: part.module.state_dict() for name, part in parts.items()}
    blocks = {f"{name}.{key}": value.clone() for name, state in states.items() for key, value in state.items()}
    student, free = parts.recompose(teacher), start == "random" and not apart
    found = {"start_s": 0.0 if free else sum(part.start_s for part in parts.values())}
    found |= {"teacher_s": 0.0 if free else parts.teacher_s, "join_s": 0.0, "whole_s": 0.0}
    found["parts"] = {name: part.device_s for name, part in parts.items()} if apart else {}
    found["losses"] = [fmean(step) for step in zip(*(part.losses for part in parts.values()), strict=True)]
    if apart or not steps:
        with Stopwatch(device) as joining:
            reestimate_batchnorm(student, inputs)
        found["join_s"] = joining.device_s
    else:
        own = train.subset(min(images, steps * 128), seed=seed).in_order(device, batch_size=256)
        run = distill_end_to_end(teacher, student, own, schedule, temperature=temperature, seed=seed)
        found |= {"teacher_s": found["teacher_s"] + run.teacher_s, "whole_s": run.train_s, "losses": run.losses}
    found["errors"] = {name: part.local_error for name, part in parts.items()}
    return {**found, "accuracy": accuracy(student, judge.in_order(device)), **(blocks if apart else {})}


@experiment
def alone(teacher: ResNet, students: Artefact, share: float, probe: Images, device: str) -> dict[str, object]:
    """Put each block of a run of `distilled` into the teacher by itself; return the points of accuracy lost by name."""
    example = next(iter(probe.in_order(device, 2)))[0]
    whole, lost = accuracy(teacher, probe.in_order(device)), {}
    for part in split(teacher, teacher.block_names, example):
        block = narrow(part.module, part.example, share)
        block.load_state_dict(students.state(f"{part.name}."))
        lost[part.name] = whole - accuracy(recompose(teacher, {part.name: block}), probe.in_order(device))
    return {"lost": lost}


def tuned(
    teacher: ResNet,
    judge: Images,
    steps: int,
    rates: Iterable[float],
    temperatures: Iterable[float],
    fixed: Mapping[str, object],
    executor: InProcess | Processes | None = None,
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Tune both methods alike: every rate, of end to end with every temperature, from an order no result uses.

    Args:
        teacher, judge, steps: one teacher, held-out images, and the budget of every trial.
        rates, temperatures: the grid; ND has no temperature, and keeps 1.
        fixed: the other arguments of `distilled`.
        executor: see `sweep`.

    Returns:
        The trials, a row each (method, lr, temperature, accuracy), and lr and temperature of each method's best.
    """
    case = {"teacher": teacher, "judge": judge, "seed": 1000, "start": "random", "steps": steps}
    grids = {"ND": [1.0], "end to end": temperatures}
    how = {"fixed": fixed, "executor": executor, "title": "tuning"}
    tables = [
        sweep(distilled, [case | {"method": method}], **how, lr=rates, temperature=grid)
        for method, grid in grids.items()
    ]
    trials = pd.concat(tables, ignore_index=True)[["method", "lr", "temperature", "accuracy"]]
    best = trials.loc[trials.groupby("method").accuracy.idxmax()].set_index("method")
    return trials, best[["lr", "temperature"]].to_dict("index")
