"""The judge: intervals worked out by hand, and verdicts that flip when a value gets worse."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nkdlib.compendium.claims import claim_by_id, read_claims
from nkdlib.compendium.criteria import Criterion, difference, over_seeds, t_interval
from nkdlib.compendium.judge import Observation, judge

SPEEDUP = [1.0, 2.0, 3.0, 4.0, 5.0]  # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.7764: 3 ± 1.9632


def observe(claim, metric, values):
    return [Observation(claim, metric, seed, value) for seed, value in enumerate(values)]


def criterion(sense="above", bound=1.0, **others):
    fields = {"name": "m", "metric": "m", "column": "paper", "words": "", "unit": "x", "tolerance": 0.1} | others
    return Criterion(sense=sense, bound=bound, **fields)


TWO = """
[claim.X-0]
paper = "ND"
title = "t"
wording = "w"
published = "no number"
source = "s"
metric = "m"
notebook = "01_x"
code = []
tests = []
criterion.one_drop = { column = "paper", words = "", sense = "below", bound = 1.0, unit = "points", tolerance = 0.5 }
criterion.all_drop = { column = "paper", words = "", sense = "below", bound = 2.0, unit = "points", tolerance = 0.5 }
"""


@pytest.fixture
def two(monkeypatch):
    """A claim with two paper's criteria, judged on values of both."""
    (claim,) = read_claims(TWO)
    monkeypatch.setattr("nkdlib.compendium.claims.CLAIMS", (claim,))

    def judged(one=(0.3, 0.4, 0.5, 0.4, 0.4), all_=(1.0, 1.2, 1.1, 0.9, 1.3)):
        return judge(claim, [*observe("X-0", "one_drop", one), *observe("X-0", "all_drop", all_)], "cpu")

    return judged


def test_interval_by_hand():
    interval = t_interval(dict(enumerate(SPEEDUP)))
    assert interval.mean == 3.0
    assert (interval.low, interval.high) == pytest.approx((1.0368, 4.9632), abs=1e-4)
    assert (interval.low, interval.high) == pytest.approx(stats.ttest_1samp(SPEEDUP, 0).confidence_interval(0.95))
    assert interval.n == 5 and list(t_interval({3: 0.2, 1: 0.7}).values) == [1, 3]


def test_interval_of_one_seed_and_of_a_seed_that_did_not_reach():
    assert t_interval({0: 2.0}).low is None and t_interval({0: 2.0}).mean == 2.0
    missed = t_interval({0: 2.0, 1: None, 2: 2.0})
    assert missed.mean is None and "seed 1" in str(missed) and missed.n == 3


def test_ratios_are_averaged_by_their_logarithms():
    values = {0: 1.0, 1: 2.0, 2: 4.0}
    interval, logs = t_interval(values, "log"), t_interval({s: math.log(v) for s, v in values.items()})
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.0, math.exp(logs.low), math.exp(logs.high)))
    assert t_interval(values).low < 0 < interval.low  # a ratio below zero is impossible
    turned = t_interval({s: 1 / v for s, v in values.items()}, "log")
    assert (turned.mean, turned.low) == pytest.approx((1 / interval.mean, 1 / interval.high))
    with pytest.raises(ValueError, match=r"value of seed 1 \(=0.0\) must be above 0"):
        t_interval({0: 1.0, 1: 0.0}, "log")


def test_differences_are_paired_by_seed():
    runs = pd.DataFrame(
        [("ND", 0, 80.0), ("ND", 1, 82.0), ("ND", 1, 84.0), ("ND", 2, 90.0), ("rival", 0, 79.0), ("rival", 1, 80.0)],
        columns=["method", "seed", "accuracy"],
    )
    assert difference(runs, "accuracy", "method", "ND", "rival").values == {0: 1.0, 1: 3.0}
    assert difference(runs, "accuracy", "method", "ND", "nobody") is None
    assert over_seeds(runs[runs.method == "ND"], "accuracy").values == {0: 80.0, 1: 83.0, 2: 90.0}
    sides = [t_interval({0: 1.0, 1: high}).side for high in (1.1, -1.0)]
    assert [*sides, t_interval({0: -1.0, 1: -1.1}).side, t_interval({0: 1.0}).side] == ["above", "", "below", ""]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_must_be_finite(value):
    with pytest.raises(ValueError, match="finite"):
        t_interval({0: value})
    with pytest.raises(ValueError, match="finite"):
        Observation("ND-1", "speedup_critical_path", 0, value)


def test_a_ratio_that_its_scale_does_not_have_is_refused_where_it_is_observed():
    with pytest.raises(ValueError, match=r"value of seed 0 \(=-1.0\) must be above 0"):
        Observation("ND-1", "speedup_critical_path", 0, -1.0)
    assert Observation("ND-0", "worst_drop_points", 0, -1.0).value == -1.0


@pytest.mark.parametrize(
    ("sense", "bound", "outcome"),
    [
        ("above", 1.0, "holds"),  # the interval is [1.0368, 4.9632]
        ("above", 1.04, "open"),
        ("above", 4.96, "open"),
        ("above", 4.97, "fails"),
        ("below", 5.0, "holds"),
        ("below", 4.96, "open"),
        ("below", 1.03, "fails"),
    ],
)
def test_the_side_of_the_bound_decides(sense, bound, outcome):
    assert criterion(sense, bound).assess(dict(enumerate(SPEEDUP))).outcome == outcome


def test_a_published_number_is_compared_by_the_mean():
    values = {0: 4.0, 1: 5.0, 2: 6.0}

    def words(**others):
        return criterion(**others).assess(values).words

    assert words(published=5.0).endswith("; the mean reaches the paper's 5")
    assert words(published=5.1).endswith("; the mean does not reach the paper's 5.1")  # though the interval does
    assert words(sense="below", bound=9.0, published=4.9).endswith("does not reach the paper's 4.9")
    assert words(not_comparable="other data").endswith("; the paper's number is not comparable: other data")


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_an_open_criterion_says_how_many_seeds_would_decide(scale):
    values = {0: 0.8, 1: 1.6, 2: 1.4, 3: 0.9}
    found = criterion(scale=scale).assess(values)
    assert found.outcome == "open"
    logs = [math.log(value) if scale == "log" else value - 1 for value in values.values()]
    mean, spread = np.mean(logs), np.std(logs, ddof=1)
    seeds = next(n for n in range(2, 1000) if stats.t.ppf(0.975, n - 1) * spread / n**0.5 < abs(mean))
    assert found.words == f"the interval of m holds 1; about {seeds} seeds would decide" and seeds > 4
    assert criterion().assess({0: 0.0, 1: 2.0, 2: 1.0}).words.endswith("1000 seeds would not decide")


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_chance_is_the_share_of_simulated_runs_that_meet_the_criterion(scale):
    asked = criterion(scale=scale, expected=1.5, spread=0.4)
    draws = np.random.default_rng(0).normal(math.log(1.5) if scale == "log" else 1.5, 0.4, (20_000, 5))
    half = stats.t.ppf(0.975, 4) * draws.std(axis=1, ddof=1) / math.sqrt(5)
    met = draws.mean(axis=1) - half > (0.0 if scale == "log" else 1.0)
    assert asked.chance(5) == pytest.approx(met.mean(), abs=0.01) and 0.3 < asked.chance(5) < 0.6
    assert asked.chance(50) > 0.99
    below = criterion("below", 1.0, expected=0.5, spread=0.4)
    assert below.chance(5) == pytest.approx(criterion(expected=1.5, spread=0.4).chance(5))
    assert criterion(expected=1.0, spread=0.4).chance(5) == pytest.approx(0.025)  # on the bound
    assert criterion().chance(5) is None and asked.chance(1) is None


def test_verdict_of_one_criterion_gets_worse_step_by_step():
    def judged(values):
        return judge("ND-1", observe("ND-1", "speedup_critical_path", values), "cpu")

    assert judged([4.6, 4.7, 4.5, 4.8, 4.6]).verdict == "reproduced"
    assert judged([2.6, 2.7, 2.5, 2.8, 2.6]).verdict == "reproduced"
    assert judged([2.6, 2.7, 2.5, 2.8, 2.6]).reason.endswith("the mean does not reach the paper's 4.6")
    assert judged([1.1, 0.9, 1.0, 1.2, 0.9]).verdict == "undecided"
    assert judged([0.6, 0.7, 0.5, 0.8, 0.6]).verdict == "contradicted"


def test_verdict_of_several_criteria_gets_worse_with_each(two):
    assert two().verdict == "reproduced"
    worse = two(one=(0.3, 0.4, 0.5, 0.4, 1.9))
    assert worse.verdict == "in part" and "the interval of one drop holds 1" in worse.reason
    assert two(one=[3, 4, 3, 4, 3]).verdict == "in part"
    assert two(one=[0.5, 1.5, 1.0, 0.9, 1.2], all_=[1, 3, 2, 2, 3]).verdict == "undecided"
    assert two(one=[3, 4, 3, 4, 3], all_=[1, 3, 2, 2, 3]).verdict == "contradicted"
    assert two(one=[3, 4, 3, 4, 3], all_=[3, 4, 3, 4, 3]).verdict == "contradicted"


AIMS = """
[claim.X-1]
paper = "ND"
title = "t"
wording = "w"
published = "no number"
source = "s"
metric = "m"
notebook = "01_x"
code = []
tests = []
criterion.ahead = { column = "paper", words = "", sense = "above", bound = 1.0, unit = "x", tolerance = 0.3 }
criterion.far = { column = "aim", metric = "ahead", words = "", sense = "above", bound = 9.0, unit = "", tolerance = 1 }
"""


def test_an_aim_colors_no_verdict(monkeypatch):
    (claim,) = read_claims(AIMS)
    monkeypatch.setattr("nkdlib.compendium.claims.CLAIMS", (claim,))
    for values, outcome in {(2.0, 2.1, 2.2): "fails", (8.0, 9.0, 10.0): "open", (12.0, 13.0, 12.5): "holds"}.items():
        judgement = judge(claim, observe("X-1", "ahead", values), "cpu")
        assert (judgement.verdict, judgement.found["far"].outcome) == ("reproduced", outcome)
        assert "far" not in judgement.reason


def test_a_seed_that_did_not_reach_is_never_left_out():
    judgement = judge("ND-1", observe("ND-1", "speedup_critical_path", [5, 5, 5, None, 5, 5]), "cpu")
    assert judgement.verdict == "undecided"
    assert judgement.reason.endswith("worker for each block was not reached by seed 3; more seeds cannot decide it")


def test_too_few_seeds_or_a_missing_criterion_judge_nothing(two):
    few = two(one=[0.1] * 2)
    assert few.verdict == "not attempted" and few.reason == "one drop has 2 of 3 seeds"
    half = two(all_=())
    assert half.verdict == "not attempted" and half.reason == "all drop was not observed"
    assert two((), ()).reason == "no observations at cpu"


def test_smoke_and_own_parameters_judge_nothing():
    observed = observe("ND-1", "speedup_critical_path", [5.0] * 5)
    for found, why in (
        (judge("ND-1", observed, "smoke"), "the tier smoke is a first look"),
        (judge("ND-1", observed, "cpu", own="steps=2 in place of 800"), "own parameters: not judged (steps=2 in"),
    ):
        assert found.verdict == "not attempted" and found.reason.startswith(why)
        assert {one.outcome for one in found.found.values()} == {"not judged"}
        assert found.found["speedup_critical_path"].mean == pytest.approx(5.0)  # shown all the same


def test_a_small_data_set_cannot_decide_a_claim_about_imagenet():
    scaled = judge("FG-1", observe("FG-1", "figs_minus_best_at_2_0m", [3.0, 3.1, 2.9, 3.0, 3.2]), "cpu")
    assert scaled.verdict == "not attempted" and scaled.reason == "only the tier paper can decide it"
    assert [a.outcome for a in scaled.found.values()] == ["holds"]  # shown beside
    real = judge("FG-1", observe("FG-1", "imagenet_top1", [75.4, 75.3, 75.5, 75.4, 75.3]), "paper")
    assert real.verdict == "reproduced" and "does not reach the paper's 75.4" in real.reason


def test_the_tier_chooses_the_criteria():
    margins = [
        *observe("FG-2", "figs_minus_mobilenetv3_map", [1.0, 1.1, 1.2]),
        *observe("FG-2", "figs_minus_mnasnet_map", [0.5, -0.6, 0.4]),
    ]
    assert judge("FG-2", margins, "night").verdict == "in part"
    assert judge("FG-2", margins, "cpu").verdict == "not attempted"
    assert [c.name for c in claim_by_id("FG-2").criteria if c.applies("paper")] == ["coco_map"]


def test_errors_name_what_is_wrong_and_what_is_right():
    with pytest.raises(ValueError, match=r"claim_id \(='ND-9'\).*ND-1"):
        judge("ND-9", [], "cpu")
    with pytest.raises(ValueError, match=r"metric \(='speed'\).*speedup_critical_path"):
        Observation("ND-1", "speed", 0, 1.0)
    with pytest.raises(ValueError, match=r"profile \(='cpus'\).*smoke"):
        judge("ND-1", [], "cpus")
    twice = observe("ND-1", "speedup_critical_path", [1.0]) * 2
    with pytest.raises(ValueError, match="observed twice under seed 0"):
        judge("ND-1", twice, "cpu")


def test_tolerances():
    absolute = criterion(tolerance=0.5)
    assert absolute.within(1.5, 1.0) and not absolute.within(1.51, 1.0)
    relative = criterion(tolerance=0.5, scale="log")
    assert relative.within(140.0, 100.0) and not relative.within(151.0, 100.0)
    assert absolute.within(None, None) and not absolute.within(None, 1.0) and not absolute.within(1.0, None)
