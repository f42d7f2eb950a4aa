"""Costs read off a curve of runs.

Behind claims ND-1 and ND-2.
"""

import pytest

from nkdlib.compendium.speed import spent_at


@pytest.mark.parametrize(
    ("quality", "cost"), [(50.0, 1.0), (60.0, 1.0), (70.0, 10.0), (80.0, 100.0), (85.0, 200.0), (91.0, None)]
)
def test_costs_are_interpolated_on_a_logarithmic_scale(quality, cost):
    assert spent_at(quality, [1.0, 100.0, 400.0], [60.0, 80.0, 90.0]) == pytest.approx(cost)


def test_a_dip_behind_the_quality_does_not_count():
    assert spent_at(70.0, [1.0, 2.0, 4.0], [60.0, 70.0, 65.0]) == 2.0


def test_each_run_has_a_cost_and_a_quality():
    with pytest.raises(ValueError, match="shorter"):
        spent_at(90.0, [1.0, 2.0, 3.0], [60.0, 70.0])
