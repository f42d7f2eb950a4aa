"""Drawing: colors of the methods, intervals over seeds, figures that several notebooks share.

The look is the style sheet beside this file: `plt.style.use("nkdlib.compendium.figures")`.
"""

import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nkdlib.compendium.criteria import Criterion, Interval, t_interval

PAGE_WIDTH, COLUMN_WIDTH = 7.0, 4.6  # inches; a phone shows a column without making it small
WATERMARK, OWN = "smoke: not a result", "own parameters: not judged"

PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _SKY = PALETTE

# One color per method, the same in every figure. Rivals never met in one figure may share one.
method_colors: dict[str, str] = {
    "ND": _BLUE,
    "ND, solved": _GREEN,
    "ND, copied": _PURPLE,
    "end to end": _ORANGE,
    "end to end, solved": _RED,
    "end to end, copied": _BROWN,
    "teacher": "#333333",
    "chance": _GREY,
    "exact": _BLUE,
    "local": _GREEN,
    "random": _GREY,
    "uniform": _YELLOW,
    "FiGS": _BLUE,
    "original": _GREEN,
    "magnitude": _PINK,
    "authors": _PURPLE,
    "random search": _SKY,
    "hand-made": _BROWN,
    "last layer": _BROWN,
    "MobileNetV3": _ORANGE,
    "MnasNet": _GREEN,
}

_OUTCOMES = {  # outcome of a criterion -> color and marker, so that color is never the only sign
    "holds": (_GREEN, "o"),
    "open": (_ORANGE, "D"),
    "fails": ("#a8123e", "X"),
    "not judged": (_GREY, "s"),
}
_VERDICTS = {"reproduced": "#017a58", "contradicted": "#a8123e", "undecided": "#9a5b00", "in part": "#9a5b00"}


def line_with_interval(
    ax: Axes,
    x: Sequence[float],
    values_by_seed: Mapping[int, Sequence[float]],
    label: str,
    color: str | None = None,
    marker: str | None = None,
    linestyle: str = "-",
) -> None:
    """Draw the mean over seeds as a line, its 95 % t-interval as a band and every seed as a faint line.

    Args:
        ax: the axes.
        x: n positions.
        values_by_seed: n values for each seed.
        label: the method; it chooses the color unless `color` is given.
        color: the name of a method or of a color.
        marker, linestyle: as matplotlib's.

    Raises:
        ValueError: a seed with another number of values than `x`.
    """
    for seed, values in values_by_seed.items():
        if len(values) != len(x):
            raise ValueError(f"values_by_seed[{seed}] has {len(values)} values for {len(x)} points of x")
    spans = [t_interval({seed: values[k] for seed, values in values_by_seed.items()}) for k in range(len(x))]
    color = method_colors.get(color or label, color)
    (line,) = ax.plot(
        x, [span.mean for span in spans], label=label, color=color, marker=marker, linestyle=linestyle, zorder=3
    )
    for values in values_by_seed.values():
        ax.plot(x, values, color=line.get_color(), alpha=0.25, linewidth=0.6, zorder=2)
    if len(values_by_seed) > 1:
        low, high = [span.low for span in spans], [span.high for span in spans]
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0, zorder=1)


def lines(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, by: str, looks: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Draw a line with its interval for each group of a table, in the order of `looks`.

    Args:
        ax: the axes.
        frame: one row a run, with a column `seed`; several runs of a seed at one `x` count by their mean.
        x, y: columns for the two axes.
        by: column of the groups, which become labels.
        looks: label -> color, marker and linestyle as for `line_with_interval`; by default every group has its own.
    """
    for label, look in (looks or {label: {} for label in frame[by].unique()}).items():
        curves = frame[frame[by] == label].pivot_table(index=x, columns="seed", values=y).dropna()
        if len(curves):
            line_with_interval(ax, list(curves.index), curves.to_dict("list"), label, **look)


def dots(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, by: str, looks: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Draw a dot for each row of a table, so every seed by itself; the arguments are those of `lines`."""
    for label, look in (looks or {label: {} for label in frame[by].unique()}).items():
        part, color = frame[frame[by] == label], look.get("color")
        style = {"marker": "o", **look, "color": method_colors.get(color or label, color)}
        ax.plot(part[x], part[y], linestyle="", alpha=0.6, markeredgewidth=0, label=label, **style)


def intervals(ax: Axes, spans: Mapping[str, Interval], methods: Mapping[str, str] | None = None) -> None:
    """Draw one row for each label, from top to bottom: the seeds as ticks, the mean as a dot, its interval as a line.

    Args:
        ax: the axes; its horizontal axis is the metric.
        spans: label -> interval; an interval that a seed did not reach is written in words.
        methods: label -> method, which gives the color; by default the label is the method.
    """
    for row, (label, span) in enumerate(spans.items()):
        if span.mean is None:
            ax.text(0.02, row, str(span), va="center", fontsize=8, transform=ax.get_yaxis_transform())
        else:
            color = method_colors.get((methods or {}).get(label, label), _BLUE)
            _interval(ax, row, span, color, "o", seeds_at=row + 0.25)
    ax.set(yticks=range(len(spans)), yticklabels=spans, ylim=(len(spans) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)


def level(ax: Axes, name: str, value: float, linestyle: str = "-", upright: bool = False) -> None:
    """Draw a line that frames the others, such as the teacher's accuracy or chance; an upright one beside intervals."""
    look = {"color": method_colors.get(name, "0.4"), "linewidth": 1, "linestyle": linestyle, "label": name, "zorder": 1}
    (ax.axvline if upright else ax.axhline)(value, **look)


def heat_map(ax: Axes, table: pd.DataFrame, numbers: str = ".2g", **look: object) -> None:
    """Draw a table of numbers as colored cells with the numbers in them, its index downwards; the larger the darker.

    look: as seaborn's `heatmap`.
    """
    look = {"cmap": "Blues", "vmin": 0, "cbar": False, "annot_kws": {"fontsize": 8}} | look
    sns.heatmap(table, ax=ax, annot=True, fmt=numbers, **look)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(visible=False)


def losses(ax: Axes, values_by_seed: Mapping[int, Sequence[float]], label: str, color: str | None = None) -> float:
    """Draw the loss of every step, averaged over the tenth of the steps that ends there: the mean and every seed.

    label, color: as for `line_with_interval`; with few seeds its band would hide the curves.

    Returns:
        The loss at the end, the mean over seeds.
    """
    every = pd.DataFrame(values_by_seed)
    smooth = every.rolling(max(len(every) // 10, 1), min_periods=1).mean()
    steps, mean = range(1, 1 + len(every)), smooth.mean(axis=1)
    (line,) = ax.plot(steps, mean, label=label, color=method_colors.get(color or label, color), zorder=3)
    ax.plot(steps, smooth, color=line.get_color(), alpha=0.35, linewidth=0.6, zorder=2)
    ax.set(xlabel="step", ylabel="loss")
    return mean.iloc[-1]


def legend_below(fig: Figure, columns: int = 3) -> None:
    """Put one legend below all axes, each label once."""
    found = [ax.get_legend_handles_labels() for ax in fig.axes]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def plain_ticks(axis: Axis, prefixes: bool = False) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2 and 5 of each decade, or 1 alone if there are many.

    prefixes: write 5k and 2M.
    """
    low, high = axis.get_view_interval()
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5) if high <= 500 * low else (1,)))
    plain = mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(mpl.ticker.EngFormatter(sep="") if prefixes else plain)
    axis.set_minor_locator(mpl.ticker.NullLocator())


def points_axis(ax: Axes, label: str) -> None:
    """Make the vertical axis one of points lost: linear up to one point, logarithmic beyond, plain numbers."""
    ax.set_yscale("symlog", linthresh=1, linscale=0.5)
    ax.yaxis.set_major_locator(mpl.ticker.FixedLocator([-1, 0, 1, 2, 5, 10, 20, 50]))
    ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    limits = [other.dataLim for other in ax.get_shared_y_axes().get_siblings(ax)]
    least, most = min(limit.y0 for limit in limits), max(limit.y1 for limit in limits)
    ax.set_ylim(least / 2 if least > 2 else max(-2, min(-0.5, least)), 1.2 * max(2, most))
    ax.set_ylabel(label)


def forest(claims: Sequence[tuple[str, str, Sequence[tuple[Criterion, Interval]]]]) -> Figure:
    """Draw every criterion's interval against its bound, one row each, below its claim's verdict.

    Metrics differ in unit, so the axis is the distance from the bound in half-widths of the interval: a criterion holds
    right of 1 and fails left of -1. The paper's criteria have filled markers, our aims hollow ones.

    Args:
        claims: a heading, the verdict and the criteria with their intervals of each.
    """
    rows = []
    for heading, verdict, found in claims:
        rows.append((heading, _VERDICTS.get(verdict, "0.4")))
        rows += sorted(found, key=lambda pair: pair[0].column == "aim")
    drawn = [(y, *row) for y, row in enumerate(rows) if isinstance(row[1], Interval)]
    names = [row[0] if isinstance(row[0], str) else row[0].label for row in rows]
    left_of_axis = max(178, 4.8 * max(map(len, names), default=0))  # points that the longest name takes
    fig, ax = plt.subplots(figsize=(COLUMN_WIDTH + (left_of_axis - 178) / 72, 0.2 * len(rows) + 1.3))
    if not drawn:
        ax.text(0.5, 0.5, "no claim has been observed at this tier yet", ha="center", va="center")
        ax.set_axis_off()
        return fig
    for y, criterion, found in drawn:
        color, marker = _OUTCOMES[found.outcome]
        _interval(ax, y, _in_half_widths(criterion, found), color, marker, y, hollow=criterion.column == "aim")
    ax.axvline(0, color="0.2", linewidth=1.2)
    ax.axvspan(-1, 1, color="0.92", zorder=0)
    ax.set_xscale("symlog", linthresh=2)
    left, right = ax.get_xlim()
    ax.set_xticks([tick for tick in (-30, -10, -3, -1, 0, 1, 3, 10, 30) if left <= tick <= right])
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.set_xlabel("half-widths beyond the bound")
    ax.set_yticks(range(len(rows)), names)
    ax.tick_params(axis="y", pad=left_of_axis, labelsize=8.5)
    for tick, (head, look) in zip(ax.get_yticklabels(), rows, strict=True):
        ours = not isinstance(head, str) and head.column == "aim"
        tick.set(ha="left", color="0.4" if ours else "0.15")
        if isinstance(head, str):
            tick.set(weight="bold", color=look)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    looks = [Line2D([], [], color=color, marker=marker, label=one) for one, (color, marker) in _OUTCOMES.items()]
    looks = [look for look in looks if look.get_label() in {found.outcome for *_, found in drawn}]
    looks.append(Line2D([], [], color="0.4", marker="o", markeredgecolor="white", label="the paper's"))
    looks.append(Line2D([], [], color="0.4", marker="o", markerfacecolor="white", label="our aim"))
    fig.legend(handles=looks, loc="outside lower center", ncols=3)
    return fig


def _in_half_widths(criterion: Criterion, found: Interval) -> Interval:
    low, high = sorted(map(criterion.beyond, (found.low, found.high)))
    mean = criterion.beyond(found.mean)
    half = (high - low) / 2 or abs(mean) / 10 or 1.0  # equal seeds have no width
    values = {seed: criterion.beyond(value) / half for seed, value in found.values.items()}
    return Interval(mean / half, low / half, high / half, values)


def _interval(
    ax: Axes, y: float, span: Interval, color: str, marker: str, seeds_at: float, hollow: bool = False
) -> None:
    """Draw the seeds of an interval as ticks at one height, its mean and its ends at another."""
    face = {"markerfacecolor": "white", "markeredgecolor": color} if hollow else {"markeredgecolor": "white"}
    ax.plot(list(span.values.values()), [seeds_at] * span.n, "|", color="0.35", markersize=5)
    if span.low is not None:
        ax.plot([span.low, span.high], [y, y], color=color, linewidth=2.4, solid_capstyle="butt")
    ax.plot(span.mean, y, marker, color=color, markersize=7, **face)


def architectures(spaces: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Figure:
    """Draw the channels of every layer and the operators that stay, a panel for each search space, one below the other.

    Args:
        spaces: title -> label -> counts, as a FiGS search gives them: channels by layer, 0 or 1 by operator. The first
            label is the supernet, drawn in gray behind the others. An operator without channels of its own gets a
            mark for each network that keeps it.
    """
    heights = [1 + len(next(iter(networks.values()))) for networks in spaces.values()]
    size = (COLUMN_WIDTH, 1 + 0.15 * sum(heights))
    fig, axes = plt.subplots(len(spaces), 1, figsize=size, height_ratios=heights, squeeze=False)
    for ax, (title, networks) in zip(axes[:, 0], spaces.items(), strict=True):
        (_, whole), *others = networks.items()
        operators = [name for name in whole if re.search(r"\.operators\.[^.]+$", name)]
        layers = [name for name in whole if name not in operators]
        bare = [name for name in operators if not any(layer.startswith(f"{name}.") for layer in layers)]
        rows, height = np.arange(len(layers) + len(bare)), 0.8 / max(len(others), 1)
        ax.barh(rows[: len(layers)], [whole[name] for name in layers], color="0.9", height=0.9)
        for turn, (label, counts) in enumerate(others):
            y, color = rows - 0.4 + (turn + 0.5) * height, method_colors.get(label)
            ax.barh(y[: len(layers)], [counts[name] for name in layers], height=height, color=color, label=label)
            stays = [at for at, name in zip(y[len(layers) :], bare, strict=True) if counts[name]]
            ax.plot([0.02] * len(stays), stays, "s", color=color, markersize=2.5, transform=ax.get_yaxis_transform())
        ax.set_yticks(rows, list(map(_layer_name, layers + bare)), fontsize=6)
        ax.set(title=title, ylim=(len(rows) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)
    ax.set_xlabel("channels")
    legend_below(fig, len(spaces))
    return fig


def _layer_name(path: str) -> str:
    """Say in words which layer of a search space a path is; the states of a cell are counted as in its graph."""
    if cell := re.match(r"cells\.(\d+)\.nodes\.(\d+)\.operators\.(\d+)_(\w+)", path):
        number, node, state, operator = cell.groups()
        return f"cell {number}, {state} to {2 + int(node)}: {operator}"
    part, *rest = path.split(".")
    place = "stem" if part in ("0", "stem") else f"block {part}"
    kernel = next((name for name in rest if re.fullmatch(r"\d+x\d+", name)), "")
    if kernel and not path.endswith(".5.0"):
        return f"{place}: {kernel}, inside"
    if kernel or "shortcut" in rest:
        return f"{place}: handed on"
    return f"cell {rest[0]}: input" if part == "cells" else place
