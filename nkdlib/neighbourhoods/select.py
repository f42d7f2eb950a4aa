"""The exact choice of candidates under budgets.

The least sum of local errors with costs that add up and stay within budgets is a multiple-choice knapsack (Sinha and
Zoltners 1979), solved by HiGHS (Huangfu and Hall 2018). Student Search (Shao et al., arXiv 2010.01189) chooses locally.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Budget = Mapping[str, float]  # upper limits by cost, such as params, macs or latency_ms
Labels = Mapping[str, str]  # the chosen candidate by neighbourhood


@dataclass(frozen=True)
class Option:
    """The local error and the costs of one candidate."""

    error: float
    costs: Mapping[str, float]  # by name; whole numbers are added exactly


@dataclass(frozen=True)
class Selection:
    """One candidate for each neighbourhood, the sum of their errors, and the whole network's costs."""

    labels: dict[str, str]  # the candidate by neighbourhood
    error: float
    costs: dict[str, float]  # params and macs, exactly; latency_ms, a sum over the parts

    def within(self, budget: Budget) -> bool:
        """Whether no cost is above its limit."""
        return all(self.costs[cost] <= limit for cost, limit in budget.items())


@dataclass(frozen=True)
class Menu:
    """Options by neighbourhood and label."""

    options: Mapping[str, Mapping[str, Option]]
    base: Mapping[str, float] = field(default_factory=dict)  # costs of the layers outside the neighbourhoods

    def selection(self, labels: Labels) -> Selection:
        """The sums of errors and costs for these labels; ValueError if one is missing or unknown."""
        for name in self.options.keys() | labels.keys():
            if labels.get(name) not in self.options.get(name, ()):
                known = list(self.options.get(name, ()))
                raise ValueError(f"labels[{name!r}] (={labels.get(name)!r}) is no candidate; choose from {known}")
        chosen = {name: options[labels[name]] for name, options in self.options.items()}
        costs = next(iter(chosen.values())).costs
        total = {cost: sum((o.costs[cost] for o in chosen.values()), self.base.get(cost, 0)) for cost in costs}
        error = math.fsum(option.error for option in chosen.values())
        return Selection({name: labels[name] for name in chosen}, error, total)

    def check(self, budget: Budget) -> None:
        """Raise ValueError for a budget that names no cost."""
        known = set.intersection(*(set(o.costs) for options in self.options.values() for o in options.values()))
        if not budget or not set(budget) <= known or any(math.isnan(limit) for limit in budget.values()):
            raise ValueError(f"budget (={dict(budget)}) must give a limit for one or more of {sorted(known)}")


def select(menu: Menu, budget: Budget) -> Selection:
    """The choice with the least sum of errors within all budgets, exactly.

    Raises:
        ValueError: an unknown cost; a budget that cannot be met, with the smallest one that can.
        RuntimeError: HiGHS gave up.

    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> select(Menu({"a": options}, base={"macs": 10}), {"macs": 13})
    Selection(labels={'a': 'thin'}, error=0.5, costs={'macs': 11})
    """
    menu.check(budget)
    labels = _minimize(menu, budget)
    if labels is None:
        raise refusal(menu, budget)
    return menu.selection(labels)


def refusal(menu: Menu, budget: Budget, rule: str = "") -> ValueError:
    """The error for a budget that a rule cannot meet; if no choice can, it names the smallest budget that works."""
    if rule and _minimize(menu, budget) is not None:
        return ValueError(f"{rule} cannot meet the budget (={dict(budget)}), though other choices can; use `select`")
    smallest = []
    for cost, limit in budget.items():
        others = {name: value for name, value in budget.items() if name != cost}
        labels, how = _minimize(menu, others, cost), " with the other limits as given" if others else ""
        if labels is None:
            labels, how = _minimize(menu, {}, cost), " on its own"
        smallest.append(f"{cost} (={limit:,}) can be {menu.selection(labels).costs[cost]:,} at the smallest{how}")
    return ValueError(f"no choice of candidates meets the budget: {'; '.join(smallest)}")


def _minimize(menu: Menu, budget: Budget, cost: str | None = None) -> dict[str, str] | None:
    """Labels with the least error (or `cost`) within a budget; None if nothing is within it."""
    columns: list[tuple[int, str, str]] = []  # (row of the neighbourhood, its name, label) of each binary variable
    values, uses, left = [], {c: [] for c in budget}, {c: budget[c] - menu.base.get(c, 0) for c in budget}
    for row, (name, options) in enumerate(menu.options.items()):
        value = {k: o.error if cost is None else o.costs[cost] for k, o in options.items()}
        kept = undominated({k: (value[k], *(o.costs[c] for c in budget)) for k, o in options.items()})
        columns += [(row, name, label) for label in kept]
        values += [value[label] - value[kept[0]] for label in kept]  # above the neighbourhood's least
        for metric in budget:
            least = min(options[label].costs[metric] for label in kept)
            uses[metric] += [options[label].costs[metric] - least for label in kept]
            left[metric] -= least
    count = len(columns)
    cells = [row for row, _, _ in columns], range(count)
    constraints = [LinearConstraint(csr_array((np.ones(count), cells)), 1, 1)]  # one candidate each
    for metric, use in uses.items():
        scale = max(use) or 1.0  # tolerances of HiGHS are absolute
        constraints.append(LinearConstraint(np.array(use, float)[None] / scale, -np.inf, left[metric] / scale))
    objective = np.array(values, float)
    objective *= 100 / (np.abs(objective).max() or 1.0)  # its gap, 1e-6, is then 1e-8 of the largest error
    binary = {"integrality": np.ones(count), "bounds": Bounds(0, 1)}
    while True:
        result = milp(objective, **binary, constraints=constraints, options={"mip_rel_gap": 0})
        if result.status == 2:
            return None
        if result.status != 0:
            raise RuntimeError(f"HiGHS gave up on the choice: {result.message}")
        chosen = result.x > 0.5
        labels = {columns[i][1]: columns[i][2] for i in np.flatnonzero(chosen)}
        if menu.selection(labels).within(budget):
            return labels
        # Above a limit by less than the solver's tolerance: everything but this choice, again.
        constraints.append(LinearConstraint(chosen[None].astype(float), -np.inf, len(menu.options) - 1))


def undominated(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """The labels of points that no other point equals or beats in every coordinate; the first of equal points."""
    kept: list[tuple[str, np.ndarray]] = []
    for label in sorted(points, key=points.get):  # a point comes after those that beat it
        point = np.array(points[label], float)
        if not any((other <= point).all() for _, other in kept):
            kept.append((label, point))
    return [label for label, _ in kept]
