"""The judge: intervals worked out by hand, and verdicts that flip when a value gets worse."""

import math

import pandas as pd
import pytest
from scipy import stats

from nkdlib.compendium.claims import CLAIMS, claim_by_id
from nkdlib.compendium.criteria import Criterion, difference, over_seeds, t_interval
from nkdlib.compendium.judge import Observation, judge

SPEEDUP = [1.0, 2.0, 3.0, 4.0, 5.0]  # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.7764: 3 ± 1.9632


def observe(claim, metric, values, profile="cpu"):
    return [Observation(claim, metric, seed, value, profile) for seed, value in enumerate(values)]


def nd0(one=(0.3, 0.4, 0.5, 0.4, 0.4), all_=(1.0, 1.2, 1.1, 0.9, 1.3), noise=(0.3, 0.31, 0.3, 0.29, 0.3)):
    return [
        *observe("ND-0", "one_drop_points", one),
        *observe("ND-0", "all_drop_points", all_),
        *observe("ND-0", "noise_threshold", noise),
    ]


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
        Observation("ND-1", "speedup_critical_path", 0, value, "cpu")


@pytest.mark.parametrize(
    ("sense", "bound", "reaches", "outcome"),
    [
        ("above", 1.0, None, "full"),  # the interval is [1.0368, 4.9632]
        ("above", 1.04, None, "does not hold"),
        ("above", 1.0, 4.9, "full"),
        ("above", 1.0, 5.0, "partly"),
        ("above", 1.04, 4.0, "does not hold"),
        ("below", 5.0, None, "full"),
        ("below", 4.96, None, "does not hold"),
        ("below", 5.0, 1.1, "full"),
        ("below", 5.0, 1.0, "partly"),
    ],
)
def test_outcome(sense, bound, reaches, outcome):
    criterion = Criterion("m", sense, bound, tolerance=0.1, words="", unit="", reaches=reaches)
    assert criterion.outcome(t_interval(dict(enumerate(SPEEDUP))))[0] == outcome


def test_verdict_of_one_criterion_gets_worse_step_by_step():
    def verdict(values):
        return judge("ND-1", observe("ND-1", "speedup_critical_path", values), "cpu").verdict

    assert verdict([4.6, 4.7, 4.5, 4.8, 4.6]) == "reproduced"
    assert verdict([2.6, 2.7, 2.5, 2.8, 2.6]) == "partly"
    assert verdict([1.1, 0.9, 1.0, 1.2, 0.9]) == "not reproduced"
    assert verdict([0.6, 0.7, 0.5, 0.8, 0.6]) == "not reproduced"


def test_verdict_of_several_criteria_flips_when_one_value_gets_worse():
    assert judge("ND-0", nd0(), "cpu").verdict == "reproduced"
    worse = judge("ND-0", nd0(one=(0.3, 0.4, 0.5, 0.4, 1.9)), "cpu")
    assert worse.verdict == "partly" and "one_drop_points" in worse.reason
    nothing = judge("ND-0", nd0(one=[3, 4, 3, 4, 3], all_=[3, 4, 3, 4, 3], noise=[0.1] * 5), "cpu")
    assert nothing.verdict == "not reproduced"


def test_a_seed_that_did_not_reach_is_never_left_out():
    judgement = judge("ND-1", observe("ND-1", "speedup_critical_path", [5, 5, 5, None, 5, 5]), "cpu")
    assert judgement.verdict == "not reproduced"
    assert "not reached by seed 3" in judgement.reason


def test_too_few_seeds_or_a_missing_criterion_judge_nothing():
    few = judge("ND-1", observe("ND-1", "speedup_critical_path", [5.0] * 4), "cpu")
    assert few.verdict == "not attempted" and "4 of 5 seeds" in few.reason
    half = judge("ND-0", observe("ND-0", "one_drop_points", [0.1] * 5), "cpu")
    assert half.verdict == "not attempted" and "all_drop_points was not observed" in half.reason
    assert judge("ND-2", [], "cpu").reason == "no observations at cpu"


def test_smoke_judges_nothing_wherever_its_numbers_turn_up():
    for asked in ("smoke", "cpu"):
        observed = observe("ND-1", "speedup_critical_path", [5.0] * 5, profile="smoke")
        judgement = judge("ND-1", observed, asked)
        assert judgement.verdict == "not attempted" and "smoke" in judgement.reason
        assert judgement.evidence == ""
    with pytest.raises(ValueError, match="come from profile gpu, not cpu"):
        judge("ND-1", observe("ND-1", "speedup_critical_path", [5.0] * 5, profile="gpu"), "cpu")


def test_a_small_data_set_cannot_decide_a_claim_about_imagenet():
    scaled = judge("FG-1", observe("FG-1", "figs_minus_uniform_points", [3.0, 3.1, 2.9, 3.0, 3.2]), "cpu")
    assert scaled.verdict == "not attempted" and "paper" in scaled.reason
    assert [a.outcome for a in scaled.metrics.values()] == ["full"]  # shown beside
    real = judge("FG-1", observe("FG-1", "imagenet_top1", [75.4, 75.3, 75.5, 75.4, 75.3], "paper"), "paper")
    assert (real.verdict, real.evidence) == ("reproduced", "paper-scale")


def test_the_profile_chooses_the_criteria():
    margins = [
        *observe("FG-2", "figs_minus_mobilenetv3_map", [1.0, 1.1, 1.2]),
        *observe("FG-2", "figs_minus_mnasnet_map", [0.5, -0.6, 0.4]),
    ]
    assert judge("FG-2", margins, "cpu").verdict == "partly"
    assert [c.metric for c in claim_by_id("FG-2").criteria if c.applies("paper")] == ["coco_map"]


def test_errors_name_what_is_wrong_and_what_is_right():
    with pytest.raises(ValueError, match=r"claim_id \(='ND-9'\).*ND-1"):
        judge("ND-9", [], "cpu")
    with pytest.raises(ValueError, match=r"metric \(='speed'\).*speedup_critical_path"):
        Observation("ND-1", "speed", 0, 1.0, "cpu")
    with pytest.raises(ValueError, match=r"profile \(='cpus'\).*smoke"):
        judge("ND-1", [], "cpus")
    twice = observe("ND-1", "speedup_critical_path", [1.0]) * 2
    with pytest.raises(ValueError, match="observed twice under seed 0"):
        judge("ND-1", twice, "cpu")
    with pytest.raises(ValueError, match="at least 2"):
        Criterion("m", "above", 0.0, 0.1, "", "", seeds=1)


def test_tolerances():
    absolute = Criterion("m", "above", 0.0, tolerance=0.5, words="", unit="")
    assert absolute.within(1.5, 1.0) and not absolute.within(1.51, 1.0)
    relative = Criterion("m", "above", 0.0, tolerance=0.5, words="", unit="", relative=True)
    assert relative.within(140.0, 100.0) and not relative.within(151.0, 100.0)
    assert absolute.within(None, None) and not absolute.within(None, 1.0) and not absolute.within(1.0, None)


def test_extensions_never_fill_a_claims_row():
    def metrics(extension):
        return {c.metric for claim in CLAIMS if claim.extension is extension for c in claim.criteria}

    assert not metrics(True) & metrics(False)
    observed = observe("ND-1c", "closed_form_ratio", [12.0, 13.0, 12.5, 11.9, 12.2])
    assert judge("ND-1c", observed, "cpu").verdict == "reproduced"
    assert judge("ND-1", observed, "cpu").verdict == "not attempted"
