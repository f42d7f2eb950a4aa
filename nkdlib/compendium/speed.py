"""Seconds to equal quality, read off a curve of runs, and of independent tasks on several workers."""

import math
from collections.abc import Mapping, Sequence


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
