"""Choosing candidates: the exact choice against brute force, its rivals, budgets that nobody can meet.

Behind claim ND-2.
"""

import itertools
import time

import numpy as np
import pytest

from nkdlib.compendium.rivals.student_search import choose_at_random, choose_locally, choose_uniform
from nkdlib.neighbourhoods.select import Menu, Option, select, undominated

COSTS = ("params", "macs", "latency_ms")
RULES = (select, choose_locally, choose_uniform, choose_at_random)


def random_menu(seed, neighbourhoods=4, candidates=5, correlated=True):
    """Options whose errors fall as costs grow, or have nothing to do with them; some costs and errors are equal."""
    draw, options = np.random.default_rng(seed), {}
    for i in range(neighbourhoods):
        options[f"n{i}"] = {}
        for k in range(candidates):
            width = draw.integers(1, 12)
            error = (1 / width if correlated else draw.random()) + 0.05 * draw.integers(0, 3)
            costs = int(width * draw.integers(8, 12)), int(width * draw.integers(90, 110)), width * draw.random()
            options[f"n{i}"][f"k{k}"] = Option(float(error), dict(zip(COSTS, costs, strict=True)))
    base = {"params": 17, "macs": 1234, "latency_ms": -0.5}  # what is measured apart may add up to too much
    return Menu(options, base)


def every(menu):
    """All selections there are."""
    return [
        menu.selection(dict(zip(menu.options, labels, strict=True)))
        for labels in itertools.product(*menu.options.values())
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_exact_choice_is_that_of_brute_force(seed):
    menu = random_menu(seed, 2 + seed % 4, 3 + seed % 3, correlated=seed % 2 == 0)
    selections = every(menu)
    for count in (1, 2, 3):
        for names in itertools.combinations(COSTS, count):
            here = selections[np.random.default_rng(seed).integers(len(selections))]
            budget = {cost: here.costs[cost] for cost in names}  # met with nothing to spare by one choice at least
            found = select(menu, budget)
            assert found.within(budget) and found == menu.selection(found.labels)
            assert found.error == pytest.approx(min(s.error for s in selections if s.within(budget)), abs=1e-9)


@pytest.mark.parametrize("cost", COSTS[:2])
def test_one_below_what_is_needed_is_not_met_however_large_the_numbers(cost):
    """HiGHS forgives a millionth; a budget does not."""
    options = {
        f"n{i}": {"thin": Option(1.0, {cost: 10**9 + i}), "wide": Option(0.0, {cost: 2 * 10**9 + i})} for i in range(3)
    }
    menu = Menu(options, {cost: 5})
    all_wide = menu.selection(dict.fromkeys(options, "wide")).costs[cost]
    assert select(menu, {cost: all_wide}).error == 0.0
    found = select(menu, {cost: all_wide - 1})
    assert found.error == 1.0 and found.costs[cost] <= all_wide - 1


@pytest.mark.parametrize(("errors", "costs"), [(2.0**-40, 1.0), (2.0**40, 1.0), (1.0, 2.0**-30), (2.0**-40, 2.0**30)])
def test_the_choice_does_not_depend_on_units(errors, costs):
    for seed in range(4):
        menu = random_menu(seed)
        scaled = {
            name: {
                k: Option(o.error * errors, {cost: value * costs for cost, value in o.costs.items()})
                for k, o in options.items()
            }
            for name, options in menu.options.items()
        }
        base = {cost: value * costs for cost, value in menu.base.items()}
        budget = menu.selection(dict.fromkeys(menu.options, "k1")).costs
        found = select(Menu(scaled, base), {cost: limit * costs for cost, limit in budget.items()})
        assert found.error == select(menu, budget).error * errors


@pytest.mark.parametrize("names", [COSTS[:1], COSTS[:2]])
def test_twenty_neighbourhoods_of_a_hundred_candidates_take_less_than_a_second(names):
    draw, options = np.random.default_rng(0), {}
    for i in range(20):
        scale, widths = draw.integers(10_000, 200_000), np.sort(draw.random(100))
        errors = np.exp(-4 * widths) * draw.uniform(0.1, 2) + 0.001 * draw.random(100)
        options[f"n{i}"] = {
            str(k): Option(float(errors[k]), {"params": int(w * scale), "macs": int(w * scale * draw.uniform(80, 120))})
            for k, w in enumerate(widths)
        }
    menu = Menu(options)
    whole = menu.selection(dict.fromkeys(options, "99")).costs
    for share in (0.2, 0.5):
        budget = {cost: share * whole[cost] for cost in names}
        before = time.process_time()
        found = select(menu, budget)
        assert time.process_time() - before < 1.0
        assert found.error <= choose_locally(menu, budget).error and found.within(budget)


@pytest.mark.parametrize("rule", RULES)
def test_an_infeasible_budget_names_the_smallest_feasible_one(rule):
    options = {"x": Option(0.1, {"params": 1_000, "macs": 10}), "y": Option(0.2, {"params": 3_000, "macs": 4})}
    menu = Menu({"a": options, "b": options}, {"params": 500})
    with pytest.raises(ValueError, match=r"budget: params \(=2,499\) can be 2,500 at the smallest$"):
        rule(menu, {"params": 2_499})
    given = "at the smallest with the other limits as given"
    with pytest.raises(ValueError, match=rf"params \(=4,499\) can be 4,500 {given}; macs \(=14\) can be 20 {given}$"):
        rule(menu, {"params": 4_499, "macs": 14})
    alone = "at the smallest on its own"
    with pytest.raises(ValueError, match=rf"params \(=2,499\) can be 2,500 {alone}; macs \(=7\) can be 8 {alone}$"):
        rule(menu, {"params": 2_499, "macs": 7})
    assert select(menu, {"params": 4_500, "macs": 14}).costs == {"params": 4_500, "macs": 14}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [{}, {"flops": 3}, {"params": float("nan")}])
def test_a_budget_that_says_nothing_is_refused(rule, budget):
    with pytest.raises(ValueError, match=r"must give a limit for one or more of \['latency_ms', 'macs', 'params'\]"):
        rule(random_menu(0), budget)


def test_unknown_labels_are_refused():
    menu = random_menu(0, 2)
    with pytest.raises(ValueError, match=r"labels\['n1'\] \(=None\) is no candidate; choose from \['k0', 'k1'"):
        menu.selection({"n0": "k0"})
    with pytest.raises(ValueError, match=r"labels\['other'\]"):
        menu.selection({"n0": "k0", "n1": "k0", "other": "k0"})


def test_dominated_candidates_are_left_out_and_of_equal_ones_the_first_stays():
    points = {"a": (2, 2), "b": (1, 3), "c": (2, 3), "d": (2, 2), "e": (3, 1)}
    assert sorted(undominated(points)) == ["a", "b", "e"]


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("seed", range(8))
def test_rivals_meet_the_budget_and_never_beat_the_exact_choice(rule, seed):
    menu = random_menu(seed)
    selections = every(menu)
    here = menu.selection(dict.fromkeys(menu.options, "k1"))
    for budget in ({"params": here.costs["params"]}, here.costs):
        best = min(s.error for s in selections if s.within(budget))
        try:
            found = rule(menu, budget)
        except ValueError as error:
            assert rule is not choose_uniform and "other choices can; use `select`" in str(error)
        else:
            assert found.within(budget) and found.error >= best - 1e-12 and found in selections


def test_the_local_rule_by_hand():
    a = {"thin": Option(0.5, {"macs": 2}), "half": Option(0.2, {"macs": 5}), "wide": Option(0.0, {"macs": 10})}
    b = {"half": Option(0.9, {"macs": 50}), "wide": Option(0.0, {"macs": 100})}
    menu = Menu({"a": a, "b": b}, {"macs": 1})
    assert choose_locally(menu, {"macs": 111}).labels == {"a": "wide", "b": "wide"}
    # a share of 0.5 leaves 5 for a and 50 for b; `select` sees that all of a costs less than it gains
    assert choose_locally(menu, {"macs": 110}).labels == {"a": "half", "b": "half"}
    assert select(menu, {"macs": 110}).labels == {"a": "half", "b": "wide"}
    assert choose_locally(menu, {"macs": 55}).labels == {"a": "thin", "b": "half"}  # b takes its smallest


def test_random_choices_follow_their_seed_and_reach_every_network():
    menu = random_menu(2, 2, 3)
    budget = {"macs": sorted(s.costs["macs"] for s in every(menu))[5]}
    drawn = [choose_at_random(menu, budget, seed=seed).labels for seed in range(200)]
    assert drawn[:5] == [choose_at_random(menu, budget, seed=seed).labels for seed in range(5)]
    assert all(s.labels in drawn for s in every(menu) if s.within(budget))
