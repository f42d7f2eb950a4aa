"""How long tasks take on any number of workers, computed from what each took."""

import heapq
from collections.abc import Iterable


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return the seconds until the last task is done, where a free worker takes the longest task that is left.

    seconds: of each task. This is at most 4/3 - 1/(3 workers) times the best possible (Graham 1969); it is never
    less than the longest task, the critical path, nor than what one worker takes divided by `workers`.
    Raises ValueError for fewer than one worker.

    >>> makespan([3, 3, 2, 2, 2], workers=2)
    7.0
    """
    if workers < 1:
        raise ValueError(f"workers (={workers}) must be at least 1")
    free = [0.0] * workers  # when each worker is
    for task in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + task)
    return max(free)
