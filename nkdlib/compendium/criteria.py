"""How a claim is judged: a bound written down before the results, and a t-interval over paired seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Literal

import pandas as pd
from scipy import stats

CONFIDENCE = 0.95

Outcome = Literal["full", "partly", "does not hold", "not judged"]


@dataclass(frozen=True)
class Interval:
    """Mean and two-sided 95 % t-interval of one metric over seeds.

    `values` holds every seed's value, None for a seed that did not reach its goal. Then `mean`, `low` and `high` are
    None; for a single seed `low` and `high` are.
    """

    mean: float | None
    low: float | None
    high: float | None
    values: Mapping[int, float | None]

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def missed(self) -> str:
        """The seeds that did not reach their goal."""
        return ", ".join(str(seed) for seed, value in self.values.items() if value is None)

    @property
    def side(self) -> str:
        """The side of zero that it lies on: "above", "below", or empty if it holds zero or has no ends."""
        if self.low is None:
            return ""
        return "above" if self.low > 0 else "below" if self.high < 0 else ""

    def __str__(self) -> str:
        if self.mean is None:
            return f"not reached by seed {self.missed}, n={self.n}"
        bounds = "" if self.low is None else f" [{short(self.low)}, {short(self.high)}]"
        return f"{short(self.mean)}{bounds}, n={self.n}"


@dataclass(frozen=True)
class Assessment(Interval):
    """The interval that was observed for a criterion, and what it says about it."""

    outcome: Outcome

    __str__ = Interval.__str__


def short(value: float | None) -> str:
    """Write a number with three significant digits; None is "not reached"."""
    if value is None:
        return "not reached"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def t_interval(values: Mapping[int, float | None]) -> Interval:
    """Return Student's t-interval over seeds: mean ± t(0.975, n - 1) * s / sqrt(n).

    Args:
        values: the metric by seed; for two methods their difference or ratio under the same seed.

    Raises:
        ValueError: no seed at all, or a value that is not finite.

    >>> print(t_interval({0: 1.0, 1: 2.0, 2: 3.0}))
    2 [-0.484, 4.48], n=3
    """
    if not values:
        raise ValueError("values is empty; a t-interval needs at least one seed")
    for seed, value in values.items():
        if value is not None and not isfinite(value):
            raise ValueError(f"value of seed {seed} (={value}) must be finite; use None for 'not reached'")
    ordered = {seed: values[seed] for seed in sorted(values)}
    reached = [value for value in ordered.values() if value is not None]
    if len(reached) < len(ordered):
        return Interval(None, None, None, ordered)
    mean = fmean(reached)
    if len(reached) == 1:
        return Interval(mean, None, None, ordered)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(reached) - 1)) * stdev(reached) / sqrt(len(reached))
    return Interval(mean, mean - half, mean + half, ordered)


def over_seeds(frame: pd.DataFrame, column: str) -> Interval:
    """Return the interval of a column of a table with a column `seed`; several rows of a seed count by their mean."""
    return t_interval(frame.groupby("seed")[column].mean().to_dict())


def difference(frame: pd.DataFrame, column: str, by: str, one: str, other: str) -> Interval | None:
    """Return the interval over seeds of one method's value minus another's.

    Args:
        frame: one row a run, with a column `seed`; several runs of a seed count by their mean.
        column: the values.
        by: column of the methods.
        one, other: two of the methods.

    Returns:
        The interval over the seeds that have both, None if there are none.
    """
    values = frame.pivot_table(index="seed", columns=by, values=column).reindex(columns=[one, other])
    paired = (values[one] - values[other]).dropna()
    return t_interval(paired.to_dict()) if len(paired) else None


@dataclass(frozen=True)
class Criterion:
    """A bound that the whole interval of a metric must lie beyond.

    With sense "above" the direction holds if the interval's lower end is above `bound`; if the paper gives a value,
    `reaches`, the criterion holds in full only if the interval's upper end gets there. "below" mirrors this.
    """

    metric: str
    sense: Literal["above", "below"]
    bound: float
    tolerance: float  # distance from the committed reference's mean at which `make verify` fails
    words: str
    unit: str
    reaches: float | None = None
    seeds: int = 5
    relative: bool = False  # the tolerance is a fraction of the reference's mean: right for ratios of seconds
    profiles: tuple[str, ...] | None = None  # the profiles that can measure it; None: all
    decides: bool = True  # False: evidence shown beside a claim that only another scale can decide

    def __post_init__(self) -> None:
        if self.sense not in ("above", "below"):
            raise ValueError(f"sense (={self.sense!r}) must be 'above' or 'below'")
        if self.seeds < 2:
            raise ValueError(f"seeds (={self.seeds}) must be at least 2; one seed has no interval")

    def applies(self, profile: str) -> bool:
        """Tell whether this criterion is measured at `profile`."""
        return self.profiles is None or profile in self.profiles

    def outcome(self, interval: Interval) -> tuple[Outcome, str]:
        """Return what the interval says about this criterion, and why in a few words."""
        if interval.n < self.seeds:
            return "not judged", f"{self.metric} has {interval.n} of {self.seeds} seeds"
        if interval.mean is None:
            return "does not hold", f"{self.metric} was not reached by seed {interval.missed}"
        sign = 1 if self.sense == "above" else -1
        near, far = sorted((sign * interval.low, sign * interval.high))
        if near <= sign * self.bound:
            return "does not hold", f"the interval of {self.metric} is not {self.sense} {self.bound:g}"
        if self.reaches is not None and far < sign * self.reaches:
            return "partly", f"{self.metric} is {self.sense} {self.bound:g} but does not reach {self.reaches:g}"
        return "full", f"{self.metric} holds"

    def within(self, here: float | None, reference: float | None) -> bool:
        """Tell whether two means agree within the tolerance; "not reached" agrees with itself only."""
        if here is None or reference is None:
            return here is reference
        return abs(here - reference) <= self.allowance(reference)

    def allowance(self, reference: float) -> float:
        """Return the tolerance in the metric's own unit."""
        return self.tolerance * abs(reference) if self.relative else self.tolerance

    def __str__(self) -> str:
        reaches = "" if self.reaches is None else f", in full at {self.reaches:g}"
        return f"{self.sense} {self.bound:g}{reaches}"
