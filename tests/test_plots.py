"""Figures: the same bytes for the same figure, intervals as scipy's, words for those who do not see them."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from nkdlib.compendium import plots, saving
from nkdlib.compendium.claims import CLAIMS
from nkdlib.compendium.criteria import t_interval
from nkdlib.compendium.judge import Observation, Record, Verdicts, judge
from nkdlib.compendium.readme import pictured, strongest


@pytest.fixture(autouse=True)
def closed():
    plt.style.use("nkdlib.compendium.figures")
    yield
    plt.close("all")


def drawn():
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], label="ND")
    ax.legend()
    return fig


def test_a_figure_is_saved_with_its_words(tmp_path):
    svg, png, alt = saving.save(drawn(), tmp_path / "v1.5 line", "A line\n  that rises <fast>.")
    assert [path.name for path in (svg, png, alt)] == ["v1.5 line.svg", "v1.5 line.png", "v1.5 line.alt.txt"]
    assert alt.read_text() == "A line that rises <fast>.\n"
    assert "A line that rises &lt;fast&gt;." in svg.read_text()
    with Image.open(png) as image:
        assert image.info["Description"] == "A line that rises <fast>."
        assert 900 < image.width < 1300
    with pytest.raises(ValueError, match="alt is empty"):
        saving.save(drawn(), tmp_path / "line", " ")


def test_a_figure_with_pixels_is_a_picture(tmp_path):
    fig, (ax, other) = plt.subplots(1, 2)
    ax.plot([0, 1], [0, 1])
    assert saving.kind(saving.save(fig, tmp_path / "line", "A line")[0]) == "drawing"
    other.imshow([[0, 1]])
    assert saving.kind(saving.save(fig, tmp_path / "both", "A line and pixels")[0]) == "picture"


def test_photographs_become_jpeg_and_other_pixels_stay(tmp_path):
    noise = np.random.default_rng(0).random((24, 24, 3))  # smooth once it is enlarged
    for name, pixels in {"photograph": noise, "cells": np.eye(2)}.items():
        fig, ax = plt.subplots()
        ax.imshow(pixels, interpolation="bicubic" if name == "photograph" else "nearest")
        svg, packed, _ = saving.save(fig, tmp_path / name, "Some pixels")
        with Image.open(packed) as image:
            found = image.format, image.info.get("comment", image.info.get("Description"))
        assert found == (("JPEG", b"Some pixels") if name == "photograph" else ("PNG", "Some pixels"))
        assert re.findall("data:image/([a-z]+)", svg.read_text()) == ["jpeg" if name == "photograph" else "png"]


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    first, second = (saving.save(drawn(), tmp_path / name / "line", "A line.") for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_smoke_is_marked(tmp_path):
    plain, marked = drawn(), drawn()
    saving.save(plain, tmp_path / "plain", "A line.")
    saving.save(marked, tmp_path / "marked", "A line.", watermark=plots.WATERMARK)
    assert not plain.texts and [text.get_text() for text in marked.texts] == ["smoke: not a result"]


def test_the_band_is_the_t_interval():
    _, ax = plt.subplots()
    values = {0: [1.0, 5.0], 1: [2.0, 5.5], 2: [4.0, 6.5]}
    plots.line_with_interval(ax, [10, 20], values, "ND")
    low, high = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    corners = ax.collections[0].get_paths()[0].vertices
    at_ten = corners[corners[:, 0] == 10][:, 1]
    assert (at_ten.min(), at_ten.max()) == pytest.approx((low, high))
    assert ax.lines[0].get_ydata()[0] == pytest.approx(7 / 3)
    assert ax.lines[0].get_color() == plots.method_colors["ND"]
    assert len(ax.lines) == 4 and ax.get_legend_handles_labels()[1] == ["ND"]


def test_one_seed_has_no_band_and_unequal_seeds_are_refused():
    _, ax = plt.subplots()
    plots.line_with_interval(ax, [1, 2], {0: [1.0, 2.0]}, "anything")
    assert not ax.collections
    with pytest.raises(ValueError, match=r"values_by_seed\[1\] has 1 values for 2 points"):
        plots.line_with_interval(ax, [1, 2], {0: [1.0, 2.0], 1: [1.0]}, "ND")


def test_a_table_is_drawn_by_method():
    runs = pd.DataFrame(
        [("ND", seed, step, 10 * step + seed + draw) for seed in range(2) for step in (1, 2) for draw in (0, 2)],
        columns=["method", "seed", "steps", "accuracy"],
    )
    _, (left, right) = plt.subplots(1, 2)
    plots.lines(left, runs, "steps", "accuracy", "method", {"ND": {"marker": "s"}, "nobody": {}})
    assert left.lines[0].get_ydata().tolist() == [11.5, 21.5] and left.lines[0].get_marker() == "s"
    plots.dots(right, runs, "steps", "accuracy", "method")
    assert right.lines[0].get_ydata().tolist() == list(runs.accuracy)
    assert right.lines[0].get_color() == plots.method_colors["ND"]
    plots.level(right, "teacher", 30.0)
    plots.legend_below(left.figure)
    assert [text.get_text() for text in left.figure.legends[0].get_texts()] == ["ND", "teacher"]


def test_losses_are_averaged_over_a_tenth_of_the_steps():
    _, ax = plt.subplots()
    assert plots.losses(ax, {0: range(20), 1: [0.0] * 20}, "ND") == 18.5 / 2
    assert ax.lines[1].get_ydata().tolist()[:3] == [0, 0.5, 1.5] and ax.lines[1].get_xdata()[0] == 1


def test_cells_without_a_number_stay_empty_in_a_heat_map():
    _, ax = plt.subplots()
    plots.heat_map(ax, pd.DataFrame({"thin": [0.25, 1.0], "wide": [0.5, None]}, ["block 1", "block 2"]), ".1f")
    assert [text.get_text() for text in ax.texts] == ["0.2", "0.5", "1.0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["block 1", "block 2"]


def test_intervals_stand_in_rows_from_top_to_bottom():
    _, ax = plt.subplots()
    plots.intervals(ax, {"ND": t_interval({0: 1.0, 1: 3.0}), "end to end": t_interval({0: None, 1: 2.0})})
    seeds, span, mean = ax.lines
    assert seeds.get_xdata().tolist() == [1.0, 3.0] and mean.get_xdata()[0] == 2.0
    assert span.get_xdata().tolist() == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ND", "end to end"] and ax.get_ylim() == (1.5, -0.5)
    assert ax.texts[0].get_text() == "not reached by seed 0, n=2"


@pytest.mark.parametrize(
    ("lost", "limits"), [([4, 50], (2, 60)), ([0.3, 1], (-0.5, 2.4)), ([-9, 10], (-2, 12)), ([-1, 10], (-1, 12))]
)
def test_points_lost_are_drawn_from_a_little_below_the_least(lost, limits):
    _, ax = plt.subplots()
    ax.plot([1, 2], lost)
    plots.points_axis(ax, "points")
    assert ax.get_ylim() == pytest.approx(limits)


def test_forest_draws_what_was_observed_and_says_when_nothing_was():
    values = {
        "speedup_critical_path": [2, 3, 4, 3, 2],
        "closed_form_ratio": [4, 5, 4],
        "speedup_one_worker": [None, 2, 3],
    }
    observed = [Observation("ND-1", name, s, v) for name, seeds in values.items() for s, v in enumerate(seeds)]
    record = Record("cpu", Verdicts({claim.id: judge(claim, observed, "cpu") for claim in CLAIMS}), {})
    fig = plots.forest(pictured(strongest([record])))
    (ax,) = fig.axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows[:2] == ["ND-0: not attempted", "ND-1: reproduced (cpu)"] and rows[-1] == "FG-3: not attempted"
    assert rows[2:4] == ["speed-up with a worker for each block", "speed-up of the closed form"]  # one is not reached
    means = [line for line in ax.lines if line.get_marker() in "oX"]
    assert [line.get_markerfacecolor() == "white" for line in means] == [False, True]  # our aim is hollow
    (ahead,), (behind,) = (line.get_xdata() for line in means)
    assert ahead > 1 and behind < -1  # more than a half-width beyond the bound, and short of it
    assert plots.forest(pictured(strongest([]))).axes[0].texts


def test_architectures_show_channels_and_operators():
    whole = {"stem.0": 8, "cells.0.nodes.1.2_skip.operators.conv.0": 4, "cells.0.nodes.1.2_skip.operators.skip": 1}
    found = dict(zip(whole, (3, 2, 1), strict=True))
    fig = plots.architectures({"DARTS cells": {"supernet": whole, "FiGS": found}})
    (ax,) = fig.axes
    assert [bar.get_width() for bar in ax.patches] == [8, 4, 3, 2]
    assert len(ax.lines[0].get_xdata()) == 1  # the skip connection has no channels
    assert ax.get_yticklabels()[0].get_text() == "stem"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["FiGS"]


def test_colors_of_rivals_differ():
    starts = [f"{method}{start}" for method in ("ND", "end to end") for start in ("", ", solved", ", copied")]
    families = [
        (*starts, "teacher"),
        ("exact", "local", "random", "uniform", "teacher"),
        ("FiGS", "uniform", "random", "original", "magnitude"),
        ("FiGS", "MobileNetV3", "MnasNet"),
    ]
    for family in families:
        colors = [plots.method_colors[name] for name in family]
        assert len(set(colors)) == len(colors)
