"""Rules that the exact choice is compared with: local, uniform and random.

Shao et al., arXiv 2010.01189, reuse candidates for search by choosing locally. Each rule takes a menu and a budget as
`select` does, returns a `Selection` within the budget, and raises ValueError if it finds none.
"""

import random
from bisect import bisect_right

from nkdlib.neighbourhoods.select import Budget, Menu, Selection, refusal


# DEVIATION D8: the paper's abstract says that candidates are chosen locally, and not how.
def choose_locally(menu: Menu, budget: Budget) -> Selection:
    """The best candidate of each neighbourhood by itself, within the same share of its own largest costs.

    The share is the largest with which the whole network meets the budget; a neighbourhood without a candidate that is
    small enough takes its smallest.

    >>> from nkdlib.neighbourhoods import Option
    >>> options = {"thin": Option(0.5, {"macs": 1}), "wide": Option(0.1, {"macs": 4})}
    >>> choose_locally(Menu({"a": options, "b": options}), {"macs": 5}).labels
    {'a': 'thin', 'b': 'thin'}
    """
    menu.check(budget)
    ladders: dict[str, tuple[list[float], list[str]]] = {}  # the shares at which the choice changes, and the choices
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
        if (selection := menu.selection(chosen)).within(budget):
            return selection
    raise refusal(menu, budget, "the same share of every neighbourhood")


def choose_uniform(menu: Menu, budget: Budget) -> Selection:
    """The same label, such as a width, in every neighbourhood: the one with the least error within the budget."""
    menu.check(budget)
    first, *others = menu.options.values()
    common = [label for label in first if all(label in options for options in others)]
    selections = [menu.selection(dict.fromkeys(menu.options, label)) for label in common]
    if within := [selection for selection in selections if selection.within(budget)]:
        return min(within, key=lambda selection: selection.error)
    raise refusal(menu, budget, "the same label in every neighbourhood")


def choose_at_random(menu: Menu, budget: Budget, seed: int = 0) -> Selection:
    """A random candidate for each neighbourhood, in random order, that leaves enough for the others' cheapest."""
    menu.check(budget)
    draw, names = random.Random(seed), list(menu.options)
    least = {n: {c: min(o.costs[c] for o in menu.options[n].values()) for c in budget} for n in names}
    for _ in range(1000):  # a draw under several budgets may leave a neighbourhood without a candidate
        labels, left = {}, {c: budget[c] - menu.base.get(c, 0) - sum(least[n][c] for n in names) for c in budget}
        for name in draw.sample(names, len(names)):
            room = {c: left[c] + least[name][c] for c in budget}
            fits = [k for k, o in menu.options[name].items() if all(o.costs[c] <= room[c] for c in budget)]
            if not fits:
                break
            labels[name] = draw.choice(fits)
            left = {c: left[c] - menu.options[name][labels[name]].costs[c] + least[name][c] for c in budget}
        if len(labels) == len(names) and (selection := menu.selection(labels)).within(budget):
            return selection
    raise refusal(menu, budget, "none of 1,000 random choices")
