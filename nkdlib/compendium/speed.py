"""Seconds to equal quality, read off a curve of runs, of independent tasks on several workers, and by the clock."""

import math
from collections.abc import Mapping, Sequence

import torch

from nkdlib.compendium.sweep import experiment
from nkdlib.neighbourhoods import Recipe, distill
from nkdlib.tasks.executors import make_executor
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule, accuracy, distill_end_to_end, reestimate_batchnorm


def spent_at(quality: float, spent: Sequence[float], reached: Sequence[float]) -> float | None:
    """Cost at which a curve of separate runs reaches `quality`; None if no run reaches it.

    Between the last run below the quality and the first at it, the cost is interpolated on a logarithmic scale. A
    quality that the first run already reaches costs as much as that run.

    Args:
        quality: to reach.
        spent: cost of each run, positive (seconds, steps or images), in growing order.
        reached: quality of each run.

    >>> spent_at(85.0, [1.0, 4.0], [80.0, 90.0])
    2.0
    """
    for i, (cost, value) in enumerate(zip(spent, reached, strict=True)):
        if value >= quality:
            if i == 0:
                return float(cost)
            share = (quality - reached[i - 1]) / (value - reached[i - 1])
            return math.exp(math.log(spent[i - 1]) * (1 - share) + math.log(cost) * share)
    return None


def lanes(seconds: Mapping[str, float], workers: int) -> list[tuple[int, str, float, float]]:
    """Place independent tasks on workers, the longest first, each on the one that is free first.

    Args:
        seconds: of each task, by name.
        workers: at least 1.

    Returns:
        Worker, name, begin and end in seconds of each task.

    >>> lanes({"a": 1.0, "b": 3.0, "c": 2.0}, workers=2)
    [(0, 'b', 0.0, 3.0), (1, 'c', 0.0, 2.0), (1, 'a', 2.0, 3.0)]
    """
    free, placed = [0.0] * workers, []
    for name, length in sorted(seconds.items(), key=lambda task: -task[1]):
        worker = free.index(min(free))
        placed.append((worker, name, free[worker], free[worker] + length))
        free[worker] += length
    return placed


@experiment
def wall_clock(teacher, train, judge, share, images, steps, tuned, cores, repeats, amp, device):
    """Wall seconds of both methods on so many cores, every repeat, and the accuracies."""
    students, names = dict.fromkeys(teacher.block_names, share), ("ND", "end to end")
    seconds, reached, threads = {name: [] for name in names}, {}, torch.get_num_threads()
    inputs = {n: train.subset(min(images, steps[n] * 128), seed=0).in_order(device, batch_size=256) for n in names}
    schedules = {n: Schedule(steps[n], lr=tuned[n]["lr"], amp=amp) for n in names}
    recipe, begin = Recipe(schedules["ND"], start="random"), Recipe(Schedule(0), start="random")
    with make_executor("local", cores) as pool:
        distill(teacher, students, inputs["ND"], Recipe(Schedule(1, amp=amp), start="random"), pool)  # starts it
        torch.set_num_threads(cores)  # of this process: end to end, and the teacher's pass and BatchNorm of both
        for name in [*names] * repeats:
            with Stopwatch(device) as watch:
                if name == "ND":
                    student = distill(teacher, students, inputs[name], recipe, pool).recompose(teacher)
                    reestimate_batchnorm(student, inputs[name])
                else:
                    student = distill(teacher, students, inputs["ND"], begin).recompose(teacher)
                    temperature = tuned[name]["temperature"]
                    distill_end_to_end(teacher, student, inputs[name], schedules[name], temperature=temperature)
            seconds[name].append(watch.wall_s)
            reached[name] = accuracy(student, judge.in_order(device))
    torch.set_num_threads(threads)
    return {"seconds": seconds, "reached": reached}
