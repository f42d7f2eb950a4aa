"""Every figure's look, in one place: theme, colors per method, intervals, saving with alternative text."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from nkdlib.tasks.places import write_atomically

PAGE_WIDTH = 7.0  # inches
PNG_DPI = 160
WATERMARK = "smoke: not a result"

_PALETTE = sns.color_palette("colorblind").as_hex()
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _SKY = _PALETTE

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
    "in context": _PURPLE,
    "local": _GREEN,
    "random": _GREY,
    "uniform": _YELLOW,
    "local search": _PINK,
    "FiGS": _BLUE,
    "original": _GREEN,
    "magnitude": _PINK,
    "random search": _SKY,
    "hand-made": _BROWN,
    "MobileNetV3": _ORANGE,
    "MnasNet": _GREEN,
}

_STATES = {  # outcome of a criterion -> color and marker, so that color is never the only sign
    "full": (_GREEN, "o", "holds"),
    "partly": (_ORANGE, "D", "holds in part"),
    "does not hold": ("#a8123e", "X", "does not hold"),
    "not judged": (_GREY, "s", "not judged"),
}


def theme() -> None:
    """Set the look of all figures: seaborn's white grid, color-blind palette, sizes for a 7 inch page."""
    sns.set_theme(
        context="paper",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.figsize": (PAGE_WIDTH, 3.2),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "legend.handlelength": 3,  # tells dashed from solid
            "axes.edgecolor": "0.4",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "0.9",
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "svg.hashsalt": "nkdlib",  # the same figure gives the same bytes
        },
    )


def save(fig: Figure, path_stem: str | Path, alt: str, watermark: bool = False) -> list[Path]:
    """Write `fig` as SVG and PNG with its alternative text, and return the three paths.

    Arguments: `path_stem`, the path without a suffix; `alt`, what the figure shows, for those who do not see
    it (kept in the files' metadata and in `<stem>.alt.txt`); `watermark`, whether to draw that the numbers
    are no result. The same figure gives the same bytes. Raises `ValueError` for an empty `alt`.
    """
    alt = " ".join(alt.split())
    if not alt:
        raise ValueError(f"alt is empty; say in words what {Path(path_stem).name} shows")
    if watermark:
        style = {"color": "0.5", "alpha": 0.3, "fontsize": 26, "rotation": 20, "ha": "center", "va": "center"}
        fig.text(0.5, 0.5, WATERMARK, zorder=9, **style)
    title = Path(path_stem).name
    described = {
        "svg": {"Title": title, "Description": alt, "Date": None},
        "png": {"Title": title, "Description": alt},
    }
    paths = []
    for kind, metadata in described.items():
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "nkdlib"}):
            fig.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata, bbox_inches="tight")
        paths.append(write_atomically(f"{path_stem}.{kind}", buffer.getvalue()))
    return [*paths, write_atomically(f"{path_stem}.alt.txt", f"{alt}\n".encode())]


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

    Arguments: `x`, (n,); `values_by_seed`, seed -> (n,); `label`, the method, which also chooses the color
    unless `color` is given. Raises `ValueError` when a seed has another number of values than `x`.
    """
    for seed, values in values_by_seed.items():
        if len(values) != len(x):
            raise ValueError(f"values_by_seed[{seed}] has {len(values)} values for {len(x)} points of x")
    rows = np.asarray([list(values) for values in values_by_seed.values()], dtype=float)  # (seeds, n)
    color = color or method_colors.get(label)
    mean = rows.mean(axis=0)
    (line,) = ax.plot(x, mean, label=label, color=color, marker=marker, linestyle=linestyle, zorder=3)
    for row in rows:
        ax.plot(x, row, color=line.get_color(), alpha=0.25, linewidth=0.6, zorder=2)
    if len(rows) > 1:
        half = stats.t.ppf(0.975, len(rows) - 1) * rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
        ax.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.18, linewidth=0, zorder=1)


def plain_ticks(axis: mpl.axis.Axis) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2 and 5 of each decade, or 1 alone where there are many."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5) if high <= 500 * low else (1,)))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(mpl.ticker.NullLocator())


def short_ticks(axis: mpl.axis.Axis) -> None:
    """Label a logarithmic axis with numbers such as 5k and 2M at 1, 2 and 5 of each decade."""
    plain_ticks(axis)
    axis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))


def points_axis(ax: Axes, label: str) -> None:
    """A vertical axis for points lost: linear up to one point, logarithmic beyond, plain numbers."""
    ax.set_yscale("symlog", linthresh=1)
    ax.yaxis.set_major_locator(mpl.ticker.FixedLocator([-1, 0, 1, 2, 5, 10, 20, 50]))
    ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    limits = [other.dataLim for other in ax.get_shared_y_axes().get_siblings(ax)]
    ax.set_ylim(min(-0.5, *(limit.y0 for limit in limits)), 1.2 * max(2, *(limit.y1 for limit in limits)))
    ax.set_ylabel(label)


def forest(judgements: Sequence) -> Figure:
    """One row per observed criterion: its seeds, mean and interval against the bound and the published value.

    Arguments: `judgements`, as `nkdlib.compendium.judge` returns them. Metrics differ in unit, so every row has
    an axis of its own; the shaded side of the bound is the one that the claim asks for; ticks are seeds.
    """
    rows = [(j.claim, a) for j in judgements for a in j.assessments if a.interval and a.interval.mean is not None]
    if not rows:
        fig, ax = plt.subplots(figsize=(PAGE_WIDTH, 1.0))
        ax.text(0.5, 0.5, "no claim has been observed at this profile yet", ha="center", va="center")
        ax.set_axis_off()
        return fig
    fig, axes = plt.subplots(len(rows), 1, figsize=(PAGE_WIDTH, 0.72 * len(rows) + 0.5), squeeze=False)
    for ax, (claim, assessment) in zip(axes[:, 0], rows, strict=True):
        _forest_row(ax, claim.id, assessment)
    shown = dict.fromkeys(assessment.outcome for _, assessment in rows)
    handles = [
        mpl.lines.Line2D([], [], color=_STATES[s][0], marker=_STATES[s][1], linestyle="-", label=_STATES[s][2])
        for s in shown
    ]
    handles.append(mpl.lines.Line2D([], [], color="0.2", linestyle="-", label="bound (asked: gray side)"))
    if any(assessment.criterion.reaches is not None for _, assessment in rows):
        handles.append(mpl.lines.Line2D([], [], color="0.2", linestyle=":", label="in full from here"))
    fig.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return fig


def _forest_row(ax: Axes, claim_id: str, assessment) -> None:
    criterion, interval = assessment.criterion, assessment.interval
    color, marker, _ = _STATES[assessment.outcome]
    marks = [criterion.bound] + ([] if criterion.reaches is None else [criterion.reaches])
    ends = [value for value in (interval.low, interval.high, *interval.values.values(), *marks) if value is not None]
    margin = 0.08 * (max(ends) - min(ends) or 1.0)
    left, right = min(ends) - margin, max(ends) + margin
    ax.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
    ax.axvspan(*((criterion.bound, right) if criterion.sense == "above" else (left, criterion.bound)), color="0.94")
    ax.axvline(criterion.bound, color="0.2", linewidth=1.2)
    if criterion.reaches is not None:
        ax.axvline(criterion.reaches, color="0.2", linewidth=1.2, linestyle=":")
    ax.plot(list(interval.values.values()), [-0.45] * interval.n, "|", color="0.35", markersize=5)
    if interval.low is not None:
        ax.plot([interval.low, interval.high], [0.15, 0.15], color=color, linewidth=2.4, solid_capstyle="butt")
    ax.plot(interval.mean, 0.15, marker, color=color, markersize=7, markeredgecolor="white")
    metric = criterion.metric.removesuffix(f"_{criterion.unit}").replace("_", " ")
    name = f"{claim_id}  {metric} ({criterion.unit})"
    ax.set_title(name, fontsize=8, pad=2)
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="x", labelsize=7, pad=1)


def architectures(spaces: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Figure:
    """Channels of every layer and operators that stay, one panel for each search space, layers from top to bottom.

    Arguments: `spaces`, title -> label -> counts, as a FiGS search gives them: channels by layer, 0 or 1 by operator;
    the first label is the supernet, drawn in gray behind the others. An operator without channels of its own has a
    mark in each network that keeps it.
    """
    fig, axes = plt.subplots(1, len(spaces), figsize=(PAGE_WIDTH, 4.6), squeeze=False)
    for ax, (title, networks) in zip(axes[0], spaces.items(), strict=True):
        (_, whole), *others = networks.items()
        operators = [name for name in whole if ".operators." in name and name.count(".", name.rindex("operators")) == 1]
        layers = [name for name in whole if name not in operators]
        bare = [name for name in operators if not any(layer.startswith(f"{name}.") for layer in layers)]
        rows = layers + bare
        places = np.arange(len(rows))
        ax.barh(places[: len(layers)], [whole[name] for name in layers], color="0.9", height=0.9)
        height = 0.8 / max(len(others), 1)
        for turn, (label, counts) in enumerate(others):
            kept = [counts[name] for name in layers]
            y = places - 0.4 + (turn + 0.5) * height
            color = method_colors.get(label)
            ax.barh(y[: len(layers)], kept, height=height, color=color, label=label)
            stays = [place for place, name in zip(y[len(layers) :], bare, strict=True) if counts[name]]
            ax.plot([0.02] * len(stays), stays, "s", color=color, markersize=2.5, transform=ax.get_yaxis_transform())
        ax.set_yticks(places, [_layer_name(name) for name in rows], fontsize=4.5)
        ax.set(title=title, xlabel="channels", ylim=(len(rows) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(spaces))
    return fig


def _layer_name(path: str) -> str:
    """A submodule path without the parts that say nothing."""
    short = re.sub(r"\.(operators|body|paths)\b", "", path)
    short = re.sub(r"^cells\.(\d+)\.nodes\.(\d+)\.(\d+)_", r"cell \1, \3 to \2: ", short)
    return re.sub(r"(\.\d+)+$", "", short) or path
