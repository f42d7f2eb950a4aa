"""Rules that the exact choice is compared with: local, uniform, random, and a climb by measured accuracy.

Shao et al., arXiv 2010.01189: candidates are re-used for search by choosing locally. Every rule takes a menu and a
budget as `select` does, returns a `Selection` within the budget, and raises ValueError where it finds none.
"""

import itertools
import random
from bisect import bisect_right
from collections.abc import Callable

from nkdlib.neighbourhoods.select import Budget, Menu, Selection, refusal, select, undominated


# DEVIATION D8: the paper's abstract says that candidates are chosen locally, and not how.
def choose_locally(menu: Menu, budget: Budget) -> Selection:
    """Each neighbourhood by itself takes its best candidate within the same share of its own largest costs.

    The share is the largest with which the whole meets the budget; where no candidate is small enough, the
    neighbourhood takes its smallest.

    >>> from nkdlib.neighbourhoods import Menu, Option
    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> menu = Menu({"a": options, "b": options})
    >>> choose_locally(menu, {"macs": 5}).labels
    {'a': 'thin', 'b': 'thin'}
    """
    menu.check(budget)
    ladders: dict[str, tuple[list[float], list[str]]] = {}  # shares at which the choice changes, and to what
    for name, options in menu.options.items():
        largest = {cost: max(o.costs[cost] for o in options.values()) for cost in budget}
        shares = {k: max(o.costs[c] / (largest[c] or 1) for c in budget) for k, o in options.items()}
        steps, labels = [], []
        for label in sorted(options, key=lambda k: (shares[k], options[k].error)):
            if not labels or options[label].error < options[labels[-1]].error:
                steps.append(shares[label])
                labels.append(label)
        ladders[name] = steps, labels
    for share in sorted({step for steps, _ in ladders.values() for step in steps}, reverse=True):
        chosen = {n: labels[max(bisect_right(steps, share) - 1, 0)] for n, (steps, labels) in ladders.items()}
        if (found := menu.selection(chosen)).within(budget):
            return found
    raise refusal(menu, budget, "the same share of every neighbourhood")


def choose_uniform(menu: Menu, budget: Budget) -> Selection:
    """The same label, such as a width, in every neighbourhood: the one with the least error within the budget.

    >>> from nkdlib.neighbourhoods import Menu, Option
    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> menu = Menu({"a": options, "b": options})
    >>> choose_uniform(menu, {"macs": 8}).labels
    {'a': 'wide', 'b': 'wide'}
    """
    menu.check(budget)
    common = [k for k in next(iter(menu.options.values())) if all(k in options for options in menu.options.values())]
    found = [menu.selection(dict.fromkeys(menu.options, label)) for label in common]
    if within := [selection for selection in found if selection.within(budget)]:
        return min(within, key=lambda selection: selection.error)
    raise refusal(menu, budget, "the same label in every neighbourhood")


def choose_at_random(menu: Menu, budget: Budget, seed: int = 0) -> Selection:
    """Neighbourhoods in random order each take a random candidate that leaves enough for the others' cheapest.

    >>> from nkdlib.neighbourhoods import Menu, Option
    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> menu = Menu({"a": options, "b": options})
    >>> choose_at_random(menu, {"macs": 7}, seed=0).within({"macs": 7})
    True
    """
    menu.check(budget)
    draw, names = random.Random(seed), list(menu.options)
    least = {n: {c: min(o.costs[c] for o in menu.options[n].values()) for c in budget} for n in names}
    for _ in range(1000):  # several budgets at once may end where nothing is left to choose
        labels, left = {}, {c: budget[c] - menu.base.get(c, 0) - sum(least[n][c] for n in names) for c in budget}
        for name in draw.sample(names, len(names)):
            room = {c: left[c] + least[name][c] for c in budget}
            fits = [k for k, o in menu.options[name].items() if all(o.costs[c] <= room[c] for c in budget)]
            if not fits:
                break
            labels[name] = draw.choice(fits)
            left = {c: left[c] - menu.options[name][labels[name]].costs[c] + least[name][c] for c in budget}
        if len(labels) == len(names) and (found := menu.selection(labels)).within(budget):
            return found
    raise refusal(menu, budget, "none of 1,000 random choices")


def local_search(
    menu: Menu, budget: Budget, accuracy: Callable[[dict[str, str]], float], evaluations: int = 50
) -> Selection:
    """Climb by measured accuracy from `select`'s choice, changing one or two neighbourhoods at a time.

    Args:
        menu, budget: as for `select`.
        accuracy: of the network with these labels, measured on images that decide nothing else.
        evaluations: networks to measure at most; those with the least predicted error come first.

    >>> from nkdlib.neighbourhoods import Menu, Option
    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> menu = Menu({"a": options, "b": options})
    >>> local_search(menu, {"macs": 7}, lambda labels: 90.0 if labels["b"] == "wide" else 80.0).labels
    {'a': 'thin', 'b': 'wide'}
    """
    best = select(menu, budget)
    reached, seen, climbing = accuracy(best.labels), [best.labels], True
    while climbing:
        climbing = False
        for other in _swaps(menu, best, budget):
            if len(seen) < evaluations and other.labels not in seen:
                seen.append(other.labels)
                if (found := accuracy(other.labels)) > reached:
                    best, reached, climbing = other, found, True
                    break
    return best


def _swaps(menu: Menu, here: Selection, budget: Budget) -> list[Selection]:
    """The choices within the budget that differ from one in at most two places, the least error first."""
    kept = {
        name: undominated({k: (o.error, *(o.costs[c] for c in budget)) for k, o in options.items()})
        for name, options in menu.options.items()
    }
    found = [
        menu.selection({**here.labels, a: i, b: j})
        for a, b in itertools.combinations_with_replacement(kept, 2)
        for i, j in itertools.product(kept[a], kept[b])
    ]
    return sorted((s for s in found if s.within(budget)), key=lambda s: s.error)
