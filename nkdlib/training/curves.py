"""Budget against quality: what a method has to spend to get somewhere."""

import math
from collections.abc import Sequence


def spent_at(quality: float, spent: Sequence[float], reached: Sequence[float]) -> float | None:
    """What has to be spent to reach a quality, read off a curve of separate runs, None where none gets there.

    Between the last run below the quality and the first run at it, the budget is interpolated on a logarithmic
    scale; a quality that the smallest run already reaches costs what that run cost.

    Args:
        quality: to reach.
        spent: of each run, positive (seconds, steps or images), in growing order.
        reached: quality of each run.

    >>> spent_at(85.0, [1.0, 4.0], [80.0, 90.0])
    2.0
    """
    for i, value in enumerate(reached):
        if value >= quality:
            if i == 0:
                return float(spent[0])
            share = (quality - reached[i - 1]) / (value - reached[i - 1])
            return math.exp(math.log(spent[i - 1]) * (1 - share) + math.log(spent[i]) * share)
    return None
