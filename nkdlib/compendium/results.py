"""What a notebook hands over: observations for the judge, tables and figures, with their provenance.

Everything lands in one folder, `figures/<profile>/<notebook>/` under the runner, and a by-hand folder beside
the artefact cache when a notebook is run in JupyterLab, so that playing never touches committed results.
"""

import base64
import html
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from nkdlib.compendium import plots
from nkdlib.compendium.criteria import short
from nkdlib.compendium.judge import Judgement, Observation, by_metric, judge
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.tiers import PROFILES
from nkdlib.neighbourhoods.tables import words_left
from nkdlib.tasks.places import figures_root, runs_root

OBSERVATIONS = "observations.json"
PROVENANCE = "provenance.json"


class Results:
    """Collects what one notebook observed, and writes it beside its figures and tables.

    notebook: its stem; parameters: its own, by name; data_fingerprint: of the images it used.
    """

    def __init__(self, notebook: str, profile: str, parameters: Mapping[str, object], data_fingerprint: str = ""):
        if profile not in PROFILES:
            raise ValueError(f"profile (={profile!r}) must be one of {', '.join(PROFILES)}")
        self.notebook, self.profile = notebook, profile
        self.parameters, self.data_fingerprint = dict(parameters), data_fingerprint
        self.root = _folder(notebook, profile)
        self.observations: list[Observation] = []
        self._started = time.perf_counter(), time.process_time()

    @property
    def judged(self) -> bool:
        """Whether this profile's numbers may fill a row of the claims table."""
        return PROFILES[self.profile].judged

    def observe(self, claim_id: str, metric: str, seed: int, value: float | None, **condition: object) -> None:
        """Note one metric of one claim under one seed; `value` None: the seed did not reach what was asked.

        condition: what held while it was measured, for the reader. Raises `ValueError` for an unknown claim or
        metric, a value that is not finite, and a second value for a metric and seed.
        """
        value = None if value is None else float(value)
        observation = Observation(claim_id, metric, int(seed), value, self.profile, condition)
        by_metric(o for o in [*self.observations, observation] if o.claim == claim_id)
        self.observations.append(observation)

    def record(self, name: str, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
        """Write rows of any kind to `<name>.csv`, and return them as a frame."""
        frame = pd.DataFrame(list(rows))
        plots.write_atomically(self.root / f"{name}.csv", frame.to_csv(index=False).encode())
        return frame

    def table(self, df: pd.DataFrame, name: str, caption: str) -> "pd.io.formats.style.Styler":
        """Write a table as CSV and Markdown, and return it styled for the notebook."""
        caption = caption if self.judged else f"{caption} ({plots.WATERMARK})"
        named = not isinstance(df.index, pd.RangeIndex)
        plots.write_atomically(self.root / f"{name}.csv", df.to_csv(index=named).encode())
        flat = df.reset_index() if named else df
        text = f"{caption}\n\n{markdown(list(map(str, flat.columns)), flat.itertuples(index=False))}"
        plots.write_atomically(self.root / f"{name}.md", text.encode())
        styled = words_left(df.style).format(_cell).format_index(_cell).set_caption(caption).set_uuid(name)
        return styled if named else styled.hide(axis="index")

    def figure(self, fig: Figure, name: str, alt: str) -> None:
        """Write a figure as SVG and PNG with its alternative text, watermarked at smoke, and display it."""
        _, png, text = plots.save(fig, self.root / name, alt, watermark=not self.judged)
        plt.close(fig)
        encoded, described = base64.b64encode(png.read_bytes()).decode(), html.escape(text.read_text().strip())
        source = f'<img alt="{described}" style="max-width: 100%" src="data:image/png;base64,{encoded}">'
        display(HTML(source))

    def verdict(self, *claim_ids: str) -> "Verdicts":
        """Judge the claims from what was observed so far."""
        return Verdicts(judge(claim, self.observations, self.profile) for claim in claim_ids)

    def write(self) -> Path:
        """Write observations and provenance, in an order that depends on their content only; their folder."""
        rows = map(asdict, sorted(self.observations, key=lambda o: (o.claim, o.metric, o.seed)))
        content = {
            "notebook": self.notebook,
            "profile": self.profile,
            "data": self.data_fingerprint,
            "observations": [{k: v for k, v in row.items() if k != "profile" and v != {}} for row in rows],
        }
        wall, cpu = self._started
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        origin = provenance(self.parameters, self.data_fingerprint, seconds)
        plots.write_atomically(self.root / OBSERVATIONS, dumps(content))
        plots.write_atomically(self.root / PROVENANCE, dumps(origin))
        return self.root


class Verdicts(list[Judgement]):
    """Judgements that print themselves: the verdict, then two lines per criterion with every seed."""

    def __repr__(self) -> str:
        text = []
        for judgement in self:
            claim, level = judgement.claim, f", {judgement.evidence}" if judgement.evidence else ""
            text.append(f"{claim.id:6}{claim.title}: {judgement.verdict.upper()}{level}")
            text.append(f"      published: {claim.published}; here: {judgement.reason}")
            for a in judgement.assessments:
                if a.interval is not None:
                    seeds = ", ".join(map(short, a.interval.values.values()))
                    text.append(f"      {a.criterion.metric} = {a.interval} {a.criterion.unit}; seeds {seeds}")
                    text.append(f"          asked: {a.criterion}; {a.outcome}")
        return "\n".join(text)


def read_observations(profile: str) -> list[Observation]:
    """Everything that the notebooks of a profile observed; ValueError for a file that cannot be read."""
    found: list[Observation] = []
    for path in sorted((figures_root() / profile).glob(f"*/{OBSERVATIONS}")):
        try:
            content = json.loads(path.read_text())
            found += [Observation(**row, profile=content["profile"]) for row in content["observations"]]
        except (ValueError, KeyError, TypeError) as error:
            remedy = f"remove it and run make reproduce PROFILE={profile}"
            raise ValueError(f"{path} is not a file of observations ({error}); {remedy}") from error
    return found


def markdown(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; cells are formatted for reading and pipes in them escaped."""

    def line(cells: Iterable[object]) -> str:
        escaped = [_cell(cell).replace("|", "\\|").replace("\n", " ") for cell in cells]
        return f"| {' | '.join(escaped)} |\n"

    return line(columns) + line(["---"] * len(columns)) + "".join(map(line, rows))


def dumps(content: object) -> bytes:
    """JSON with a fixed order and a final newline."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else short(value)
    return "-" if value is None else str(value)


def _folder(notebook: str, profile: str) -> Path:
    if os.environ.get("NKD_FIGURES"):
        return figures_root() / profile / notebook
    folder = runs_root() / "by-hand" / profile / notebook
    print(f"run by hand: figures, tables and observations go to {os.path.relpath(folder)}")
    return folder
