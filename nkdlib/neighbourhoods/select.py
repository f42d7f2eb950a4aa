"""Which candidate for which neighbourhood: the best choice under budgets, exactly.

The least sum of local errors, costs that add up and stay within budgets: a multiple-choice knapsack (Sinha and Zoltners
1979), solved by HiGHS (Huangfu and Hall 2018). An extension of Student Search (Shao et al., arXiv 2010.01189), which
chooses locally, see `rivals`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Budget = Mapping[str, float]  # limits by cost, such as params, macs or latency_ms, each met exactly or undercut
Labels = Mapping[str, str]  # the chosen candidate by neighbourhood


@dataclass(frozen=True)
class Option:
    """One candidate as a choice sees it: its local error and what it costs."""

    error: float
    costs: Mapping[str, float]  # by name; whole numbers are added exactly


@dataclass(frozen=True)
class Selection:
    """One candidate for each neighbourhood, the sum of their errors, and the whole network's costs."""

    labels: dict[str, str]  # the candidate by neighbourhood
    error: float
    costs: dict[str, float]  # params and macs, exactly; latency_ms, a sum over the parts

    def within(self, budget: Budget) -> bool:
        """No cost is above its limit."""
        return all(self.costs[cost] <= limit for cost, limit in budget.items())


@dataclass(frozen=True)
class Menu:
    """What can be chosen: options by neighbourhood and label.

    >>> menu = Menu({"a": {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}}, base={"macs": 10})
    >>> select(menu, {"macs": 13})
    Selection(labels={'a': 'thin'}, error=0.5, costs={'macs': 11})
    """

    options: Mapping[str, Mapping[str, Option]]
    base: Mapping[str, float] = field(default_factory=dict)  # costs of what lies around the neighbourhoods

    def selection(self, labels: Labels) -> Selection:
        """What these labels add up to; ValueError where one is missing or unknown."""
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
    """The choice with the least sum of errors within all budgets: exact, not a heuristic.

    Raises:
        ValueError: an unknown cost; a budget that cannot be met, with the smallest one that can.
        RuntimeError: HiGHS gave up.

    >>> from nkdlib.neighbourhoods import Menu, Option
    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> menu = Menu({"a": options, "b": options})
    >>> select(menu, {"macs": 5}).error
    0.6
    """
    menu.check(budget)
    labels = _minimize(menu, budget)
    if labels is None:
        raise refusal(menu, budget)
    return menu.selection(labels)


def refusal(menu: Menu, budget: Budget, rule: str = "") -> ValueError:
    """The error where a rule finds no choice within a budget; where there is none, it names the smallest budget."""
    if rule and _minimize(menu, budget) is not None:
        return ValueError(f"{rule} cannot meet the budget (={dict(budget)}), though other choices can; use `select`")
    said = []
    for cost, limit in budget.items():
        others = {name: value for name, value in budget.items() if name != cost}
        given, found = " with the other limits as given" if others else "", _minimize(menu, others, cost)
        if found is None:
            given, found = " on its own", _minimize(menu, {}, cost)
        said.append(f"{cost} (={limit:,}) can be {menu.selection(found).costs[cost]:,} at the smallest{given}")
    return ValueError(f"no choice of candidates meets the budget: {'; '.join(said)}")


def _minimize(menu: Menu, budget: Budget, cost: str | None = None) -> dict[str, str] | None:
    """Labels with the least error (or `cost`) within a budget, None where there are none."""
    places: list[tuple[str, str]] = []
    values, uses, left = [], {c: [] for c in budget}, {c: budget[c] - menu.base.get(c, 0) for c in budget}
    for name, options in menu.options.items():
        value = {k: o.error if cost is None else o.costs[cost] for k, o in options.items()}
        kept = undominated({k: (value[k], *(o.costs[c] for c in budget)) for k, o in options.items()})
        places += [(name, label) for label in kept]
        values += [value[label] - value[kept[0]] for label in kept]  # above the neighbourhood's least
        for metric in budget:
            least = min(options[label].costs[metric] for label in kept)
            uses[metric] += [options[label].costs[metric] - least for label in kept]
            left[metric] -= least
    names = list(menu.options)
    rows = [names.index(name) for name, _ in places]
    one_each = csr_array((np.ones(len(places)), (rows, range(len(places)))), (len(names), len(places)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for metric, use in uses.items():
        scale = max(use) or 1.0  # tolerances of HiGHS are absolute
        constraints.append(LinearConstraint(np.array(use, float)[None] / scale, -np.inf, left[metric] / scale))
    objective = np.array(values, float)
    objective *= 100 / (np.abs(objective).max() or 1.0)  # its gap, 1e-6, is then 1e-8 of the largest error
    while True:
        binary = {"integrality": np.ones(len(places)), "bounds": Bounds(0, 1)}
        result = milp(objective, **binary, constraints=constraints, options={"mip_rel_gap": 0})
        if result.status == 2:
            return None
        if result.status != 0:
            raise RuntimeError(f"HiGHS gave up on the choice: {result.message}")
        labels = dict(places[i] for i in np.flatnonzero(result.x > 0.5))
        if menu.selection(labels).within(budget):
            return labels
        # Above a limit by less than the solver's tolerance: everything but this choice, again.
        constraints.append(LinearConstraint((result.x > 0.5)[None].astype(float), -np.inf, len(names) - 1))


def undominated(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """The labels of points that no other one equals or beats in every coordinate; of equal ones the first."""
    kept: list[tuple[str, np.ndarray]] = []
    for label in sorted(points, key=points.get):  # one that beats another comes before it
        point = np.array(points[label], float)
        if not any((other <= point).all() for _, other in kept):
            kept.append((label, point))
    return [label for label, _ in kept]
