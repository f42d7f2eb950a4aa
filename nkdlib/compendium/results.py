"""A notebook's results: observations for the judge, tables and figures, with their provenance.

They are written into one folder, `figures/<profile>/<notebook>/` under the runner. A notebook that is run in JupyterLab
writes beside the artefact cache instead, so that playing never touches committed results.
"""

import base64
import html
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from nkdlib.compendium import plots, saving
from nkdlib.compendium.criteria import short
from nkdlib.compendium.judge import Observation, Verdicts, by_metric, judge
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.records import OBSERVATIONS, PROVENANCE, markdown, write_json
from nkdlib.compendium.tiers import TIERS
from nkdlib.tasks.places import figures_root, runs_root, write_atomically


class Results:
    """The results of one notebook.

    Args:
        notebook: its stem.
        profile: the budget that it ran with.
        parameters: its parameters by name.
        data_fingerprint: of the images it used.

    Raises:
        ValueError: an unknown profile.
    """

    def __init__(self, notebook: str, profile: str, parameters: Mapping[str, object], data_fingerprint: str = ""):
        if profile not in TIERS:
            raise ValueError(f"profile (={profile!r}) must be one of {', '.join(TIERS)}")
        self.notebook, self.profile = notebook, profile
        self.parameters, self.data_fingerprint = dict(parameters), data_fingerprint
        self.own = TIERS[profile].departures(notebook, parameters)
        self.by_hand = not os.environ.get("NKD_FIGURES")
        self.root = _folder(notebook, profile, self.by_hand)
        self.observations: list[Observation] = []
        self._names: set[str] = set()  # of the files that this run has written
        self._started = time.perf_counter(), time.process_time()

    @classmethod
    def of_notebook(cls, notebook: str, variables: Mapping[str, object], data_fingerprint: str = "") -> "Results":
        """Results of a running notebook, whose figures get the compendium's style.

        Args:
            notebook: its stem.
            variables: its `globals()`; those with a type are its parameters.
            data_fingerprint: of the images it used.
        """
        plt.style.use("nkdlib.compendium.figures")
        plt.ioff()  # a figure is shown once, by `figure`, though a cell ended between
        parameters = {name: variables[name] for name in variables["__annotations__"]}
        results = cls(notebook, profile := parameters["profile"], parameters, data_fingerprint)
        if results.own and TIERS[profile].judged:
            change = TIERS[profile].to_change(notebook, parameters)
            print(
                f"{plots.OWN}, and marked so in every figure. For those of {profile}, put this at the end of the "
                "second cell and run all cells again:",
                *(f"{name} = {value!r}" for name, value in change.items()),
                sep="\n",
            )
        return results

    @property
    def mark(self) -> str:
        """What is written over figures and tables that may not fill a row of the claims table."""
        if not TIERS[self.profile].judged:
            return plots.WATERMARK
        return plots.OWN if self.own else ""

    def observe(self, claim_id: str, metric: str, seed: int, value: float | None, **condition: object) -> None:
        """Note one metric of one claim under one seed.

        Args:
            claim_id: the claim.
            metric: one of its criteria's.
            seed: the seed.
            value: the measurement, None if the seed did not reach its goal.
            condition: the circumstances of the measurement, for the reader.

        Raises:
            ValueError: an unknown claim or metric, a value that is not finite, a second value for a metric and seed.
        """
        value = None if value is None else float(value)
        observation = Observation(claim_id, metric, int(seed), value, condition)
        by_metric(o for o in [*self.observations, observation] if o.claim == claim_id)
        self.observations.append(observation)

    def record(self, name: str, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
        """Write rows of any kind to `<name>.csv`, and return them as a frame."""
        frame = pd.DataFrame(list(rows))
        self._write(f"{name}.csv", frame.to_csv(index=False))
        return frame

    def _write(self, name: str, text: str) -> None:
        self._names.add(write_atomically(self.root / name, text.encode()).name)

    def table(self, frame: pd.DataFrame, name: str, caption: str) -> Styler:
        """Write a table as CSV and Markdown, and return it styled for the notebook."""
        caption = f"{caption} ({self.mark})" if self.mark else caption
        named = not isinstance(frame.index, pd.RangeIndex)
        self._write(f"{name}.csv", frame.to_csv(index=named))
        flat = (frame.reset_index() if named else frame).map(_cell)
        heads = [
            " ".join(filter(None, map(str, head if isinstance(head, tuple) else (head,)))) for head in flat.columns
        ]
        text = f"{caption}\n\n{markdown(heads, flat.to_numpy())}"
        self._write(f"{name}.md", text)
        styled = words_left(frame.style).format(_cell).set_caption(caption).set_uuid(name)
        styled = styled.format_index(_cell).format_index(_cell, axis=1)
        return styled if named else styled.hide(axis="index")

    def figure(self, fig: Figure, name: str, alt: str) -> None:
        """Write a figure as SVG and pixels with its alternative text, marked if it is no result, and display it."""
        svg, pixels, text = saving.save(fig, self.root / name, alt, watermark=self.mark)
        self._names |= {svg.name, pixels.name, text.name}
        plt.close(fig)
        encoded, described = base64.b64encode(pixels.read_bytes()).decode(), html.escape(text.read_text().strip())
        with Image.open(pixels) as picture:  # a browser has 96 pixels an inch
            width, mime = round(96 * picture.width / saving.DPI), picture.get_format_mimetype()
        style = f'id="{name}" class="{saving.kind(svg)}" width="{width}" style="max-width: 100%"'
        display(HTML(f'<img alt="{described}" {style} src="data:{mime};base64,{encoded}">'))

    def slider(
        self, table: pd.DataFrame, name: str, choices: Mapping[str, Sequence[Mapping]], words: Sequence[str]
    ) -> None:
        """Display a table of numbers from 0.01 to 1 with a slider that frames one cell of each row; it needs no kernel.

        Args:
            table: the numbers.
            name: the element's.
            choices: for one or two colors, and each position of the slider, row -> column.
            words: a line for each position.
        """
        marks = pd.DataFrame("", table.index, table.columns)
        rules = [f"#{name}[data-at='{at}'] .at-{at} {{display: block}}" for at in range(len(words))]
        narrow = {":is(th, td)": "padding: 0.2rem 0.35rem", "thead th": "writing-mode: vertical-rl"}  # for a phone
        rules += [f"#{name} {part} {{{look}}}" for part, look in narrow.items()]
        frames = ("outline: 2px solid {}; outline-offset: -2px", "box-shadow: inset 0 0 0 4px {}")
        for (color, chosen), frame in zip(choices.items(), frames, strict=False):
            for at, columns in enumerate(chosen):
                rules.append(f"#{name}[data-at='{at}'] .at-{at}-{color[1:]} {{{frame.format(color)}}}")
                for row, column in columns.items():
                    marks.loc[row, column] += f" at-{at}-{color[1:]}"
        shades = np.log10(table.clip(0.01, 1))
        styled = table.style.format("{:.2f}", na_rep="").set_td_classes(marks).set_uuid(name)
        styled = styled.background_gradient("Greys", axis=None, gmap=shades, vmin=-2, vmax=0)
        styled = styled.highlight_null(props="background: none").set_caption(self.mark)
        said = "".join(f'<p class="at-{at}" hidden>{html.escape(line)}</p>' for at, line in enumerate(words))
        last = len(words) - 1
        move = 'oninput="this.parentNode.dataset.at = this.value" style="width: 100%; max-width: 30rem; margin: 0"'
        control = f'<input type="range" max="{last}" value="{last // 2}" aria-label="{name}" {move}>'
        style = f"<style>{' '.join(rules)}</style>"
        display(HTML(f'<div id="{name}" data-at="{last // 2}">{style}{control}{said}{styled.to_html()}</div>'))

    def verdict(self, *claim_ids: str) -> Verdicts:
        """Judge claims by the observations so far."""
        return Verdicts({claim: judge(claim, self.observations, self.profile, self.own) for claim in claim_ids})

    def write(self) -> Path:
        """Write observations and provenance, remove what earlier runs left here, and return the folder."""
        rows = map(asdict, sorted(self.observations, key=lambda o: (o.claim, o.metric, o.seed)))
        content = {
            "notebook": self.notebook,
            "profile": self.profile,
            "data": self.data_fingerprint,
            "observations": [{k: v for k, v in row.items() if v != {}} for row in rows],
        }
        wall, cpu = self._started
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        write_json(self.root / OBSERVATIONS, content)
        write_json(self.root / PROVENANCE, provenance(self.parameters, self.data_fingerprint, seconds))
        for path in self.root.iterdir():
            if path.is_file() and path.name not in self._names | {OBSERVATIONS, PROVENANCE}:
                path.unlink()
        return self.root


def describe(title: str, values: pd.Series, unit: str = "", digits: int = 1) -> str:
    """Put a series of numbers into words, as the alternative text of a figure.

    Args:
        title: the figure's subject.
        values: numbers, indexed by one or several labels.
        unit: of the numbers.
        digits: after the point.

    >>> print(describe("Accuracy", pd.Series({("ND", 100): 81.25, ("ND", 200): 84.0}), "%"))
    Accuracy: ND, 100: 81.2 %; ND, 200: 84.0 %.
    """
    labels = [", ".join(map(str, label)) if isinstance(label, tuple) else str(label) for label in values.index]
    words = (f"{label}: {value:.{digits}f} {unit}".strip() for label, value in zip(labels, values, strict=True))
    return f"{title}: {'; '.join(words)}."


def words_left(styled: Styler) -> Styler:
    """Align columns of words, and the names of rows, to the left; JupyterLab aligns all to the right."""

    def words(cell: object) -> bool:
        return isinstance(cell, str) and re.search("[A-Za-z]{2}", cell) is not None

    left = {"props": "text-align: left"}
    columns = {name: [left | {"selector": ""}] for name, column in styled.data.items() if column.map(words).any()}
    heads = [left | {"selector": ".row_heading, .index_name"}]
    return styled.set_table_styles(heads).set_table_styles(columns, overwrite=False)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else short(value)
    return "-" if value is None else str(value)


def _folder(notebook: str, profile: str, by_hand: bool) -> Path:
    if not by_hand:
        return figures_root() / profile / notebook
    folder = runs_root() / "by-hand" / profile / notebook
    print(f"run by hand: figures, tables and observations go to {os.path.relpath(folder)}")
    return folder
