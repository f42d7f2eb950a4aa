"""What decides a claim: a bound written down before the results, and a t-interval over paired seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
MOST_SEEDS = 1000  # that are named when more seeds would decide

Scale = Literal["linear", "log"]
Outcome = Literal["holds", "fails", "open", "not judged"]
AIM = {"holds": "reached", "fails": "not reached", "open": "undecided", "not judged": "not judged"}  # an aim's words


@dataclass(frozen=True)
class Interval:
    """Mean and two-sided 95 % t-interval of one metric over seeds.

    `values` holds every seed's value, None for a seed that did not reach its goal. Then `mean`, `low` and `high` are
    None; for a single seed `low` and `high` are. On the log scale `mean` is the geometric mean.
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
        bounds = "" if self.low is None else f"{short(self.low)}, {short(self.high)}; "
        return f"{short(self.mean)} [{bounds}n={self.n}]"


@dataclass(frozen=True)
class Assessment(Interval):
    """The interval that was observed for a criterion, and what it says about it."""

    outcome: Outcome
    words: str

    __str__ = Interval.__str__


def short(value: float | None) -> str:
    """Write a number with three significant digits; None is "not reached"."""
    if value is None:
        return "not reached"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def t_interval(values: Mapping[int, float | None], scale: Scale = "linear") -> Interval:
    """Return Student's t-interval over seeds: mean ± t(0.975, n - 1) * s / sqrt(n).

    Args:
        values: the metric by seed; for two methods their difference or ratio under the same seed.
        scale: "log" for ratios, whose logarithms are averaged, so that no end is below zero.

    Raises:
        ValueError: no seed at all, a value that is not finite, or one that is not positive on the log scale.

    >>> print(t_interval({0: 1.0, 1: 2.0, 2: 3.0}))
    2 [-0.484, 4.48; n=3]
    >>> print(t_interval({0: 1.0, 1: 2.0, 2: 4.0}, "log"))
    2 [0.357, 11.2; n=3]
    """
    if not values:
        raise ValueError("values is empty; a t-interval needs at least one seed")
    for seed, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"value of seed {seed} (={value}) must be finite; use None for 'not reached'")
        if value is not None and scale == "log" and value <= 0:
            raise ValueError(f"value of seed {seed} (={value}) must be above 0 on the log scale")
    ordered = {seed: values[seed] for seed in sorted(values)}
    if None in ordered.values():
        return Interval(None, None, None, ordered)
    there, back = (math.log, math.exp) if scale == "log" else (float, float)
    scaled = list(map(there, ordered.values()))
    mean = fmean(scaled)
    if len(scaled) == 1:
        return Interval(back(mean), None, None, ordered)
    half = _quantile(len(scaled)) * stdev(scaled) / math.sqrt(len(scaled))
    return Interval(back(mean), back(mean - half), back(mean + half), ordered)


def _quantile(seeds: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))


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
    """A bound, and the side of it where the whole interval of a metric must lie.

    Column "paper" states what the paper says and gives the claim's verdict. Column "aim" is ours and gives none.
    """

    name: str
    metric: str  # what notebooks observe; several criteria may read one metric
    column: Literal["paper", "aim"]
    words: str  # the whole recipe: data, networks, start, source, steps, tolerance
    sense: Literal["above", "below"]
    bound: float
    unit: str
    tolerance: float  # distance from the reference's mean at which `make verify` fails; a fraction of it on "log"
    scale: Scale = "linear"  # "log" for ratios
    seeds: int = 3  # the fewest that judge
    tiers: tuple[str, ...] | None = None  # those that can measure it; None: all
    published: float | None = None  # the paper's number, compared with the mean
    not_comparable: str = ""  # why the paper's number cannot be compared
    known: str = ""  # what prototypes had shown before this was written
    expected: float | None = None  # the value if the claim were exactly true
    spread: float | None = None  # standard deviation over a rehearsal's seeds, of the logarithm on "log"
    label: str = field(default="", compare=False)  # the metric in a few words; by default its name

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name.removesuffix("_points").replace("_", " "))
        for name, allowed in {
            "column": ("paper", "aim"),
            "sense": ("above", "below"),
            "scale": ("linear", "log"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} (={getattr(self, name)!r}) must be {allowed[0]!r} or {allowed[1]!r}")
        if self.seeds < 2:
            raise ValueError(f"seeds (={self.seeds}) must be at least 2; one seed has no interval")
        if (self.expected is None) != (self.spread is None):
            raise ValueError(f"{self.name} must have both `expected` and `spread`, or neither")
        if self.spread is not None and self.spread <= 0:
            raise ValueError(f"spread (={self.spread}) must be above 0; take it from a rehearsal on other seeds")
        if self.scale == "log" and (self.bound <= 0 or (self.expected or 1) <= 0):
            raise ValueError(f"bound (={self.bound}) and expected (={self.expected}) must be above 0 on the log scale")

    def applies(self, tier: str) -> bool:
        """Tell whether this criterion is measured at `tier`."""
        return self.tiers is None or tier in self.tiers

    def chance(self, seeds: int) -> float | None:
        """Return how probably this criterion is met by `seeds` seeds if the claim is exactly true.

        It is the power of the t-test: seeds are drawn around `expected` with the rehearsal's `spread`. None without
        these two, or with one seed.
        """
        if self.expected is None or seeds < 2:
            return None
        away = self.beyond(self.expected) / self.spread * math.sqrt(seeds)
        return float(stats.nct.sf(_quantile(seeds), seeds - 1, away))

    def assess(self, values: Mapping[int, float | None], unjudged: str = "") -> Assessment:
        """Say what the values by seed mean for this criterion.

        It holds if the interval lies wholly on the asked side of the bound, fails if wholly on the other, and is open
        otherwise.

        unjudged: why nothing may be judged, if so.
        """
        span = t_interval(values, self.scale)
        few = f"{self.label} has {span.n} of {self.seeds} seeds" if span.n < self.seeds else ""
        if unjudged or few:
            outcome, words = "not judged", unjudged or few
        elif span.mean is None:
            outcome, words = "open", f"{self.label} was not reached by seed {span.missed}; more seeds cannot decide it"
        else:
            near, far = sorted(map(self.beyond, (span.low, span.high)))
            outcome = "holds" if near > 0 else "fails" if far < 0 else "open"
            words = f"{self.label} is {'' if outcome == 'holds' else 'not '}{self.sense} {self.bound:g}"
            if outcome == "open":
                words = f"the interval of {self.label} holds {self.bound:g}; {self._decided_by(values)}"
            words += self._beside_the_paper(span.mean)
        return Assessment(span.mean, span.low, span.high, span.values, outcome, words)

    def beyond(self, value: float) -> float:
        """Distance of a value from the bound on the criterion's scale, positive on the asked side."""
        distance = math.log(value / self.bound) if self.scale == "log" else value - self.bound
        return distance if self.sense == "above" else -distance

    def _decided_by(self, values: Mapping[int, float]) -> str:
        """Say how many seeds would put the interval on one side, with mean and spread as observed."""
        found = list(map(self.beyond, values.values()))
        n = np.arange(2, MOST_SEEDS + 1)
        halves = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) / np.sqrt(n) * stdev(found)
        enough = n[halves < abs(fmean(found))]
        return f"about {enough[0]} seeds would decide" if len(enough) else f"{MOST_SEEDS} seeds would not decide"

    def _beside_the_paper(self, mean: float) -> str:
        if self.not_comparable:
            return f"; the paper's number is not comparable: {self.not_comparable}"
        if self.published is None:
            return ""
        reaches = mean >= self.published if self.sense == "above" else mean <= self.published
        return f"; the mean {'reaches' if reaches else 'does not reach'} the paper's {self.published:g}"

    def within(self, here: float | None, reference: float | None) -> bool:
        """Tell whether two means agree within the tolerance; "not reached" agrees with itself only."""
        if here is None or reference is None:
            return here is reference
        return abs(here - reference) <= self.allowance(reference)

    def allowance(self, reference: float) -> float:
        """Return the tolerance in the metric's own unit."""
        return self.tolerance * abs(reference) if self.scale == "log" else self.tolerance

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"
