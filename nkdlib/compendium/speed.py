"""Reading costs off a curve of runs: the seconds to equal quality."""

import math
from collections.abc import Sequence


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
