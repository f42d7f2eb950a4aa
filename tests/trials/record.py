"""What the trials share: clones to try things in, and the table of what happened, docs/robustness.md."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from nkdlib.compendium.provenance import provenance

ROOT = Path(__file__).parents[2]
TRIALS = ROOT / "runs" / "trials"
PAGE = ROOT / "docs" / "robustness.md"


@dataclass
class Row:
    """One trial: what was done, expected and seen."""

    done: str
    expected: str
    happened: str = ""
    well: bool = False
    seconds: float = 0.0
    cpu_seconds: float | None = None

    def end(self, well: bool, happened: str) -> None:
        """Say what happened, and whether it is what was expected."""
        self.well, self.happened = bool(well), happened


class Record:
    """Rows of one script, kept in runs/trials/<name>.json and written into the page."""

    def __init__(self, name: str, title: str):
        self.name, self.title, self.rows, self.origin = name, title, [], provenance({})

    @contextmanager
    def __call__(self, done: str, expected: str) -> Iterator[Row]:
        """Time a trial; an exception is what happened, and the next trial goes on."""
        row, started, cpu = Row(done, expected), time.monotonic(), cpu_seconds(os.getpid())
        try:
            yield row
        except Exception as error:
            row.end(False, f"the trial itself failed: {type(error).__name__}: {error}")
        row.seconds = round(row.seconds or time.monotonic() - started, 1)
        row.cpu_seconds = round(cpu_seconds(os.getpid()) - cpu if row.cpu_seconds is None else row.cpu_seconds, 1)
        self.rows.append(row)
        print(f"{'ok' if row.well else 'NOT AS EXPECTED'}: {row.done}: {row.happened} ({row.seconds} s)", flush=True)

    def write(self) -> bool:
        """Keep the rows and write the page from all that is kept; whether all went as expected."""
        TRIALS.mkdir(parents=True, exist_ok=True)
        kept = {"title": self.title, "rows": list(map(asdict, self.rows)), "origin": self.origin}
        (TRIALS / f"{self.name}.json").write_text(json.dumps(kept, indent=1))
        write_page()
        return all(row.well for row in self.rows)


def write_page() -> None:
    """Write docs/robustness.md from what the scripts kept."""
    text = [
        "# Tried",
        "",
        "What was done to this compendium on purpose, and what happened. `make trials` does it all again and writes",
        "this page; it asks for Linux, root and Chromium. Python versions beside the one in use come from the `PATH`.",
    ]
    for path in sorted(TRIALS.glob("*.json")):
        kept = json.loads(path.read_text())
        origin, rows = kept["origin"], kept["rows"]
        packages = ", ".join(f"{name} {origin['packages'][name]}" for name in ("torch", "torchvision"))
        commit = f"commit {origin['commit'][:12]}"  # clones have no other changes
        machine = f"{origin['hardware']['cores']} cores shared with other work"
        well = sum(row["well"] for row in rows)
        text += ["", f"## {kept['title']}", ""]
        text += [f"{origin['time'][:10]}, {commit}, Python {origin['python']}, {packages}, {machine}."]
        minutes = sum(row["seconds"] for row in rows) / 60
        text += [f"{well} of {len(rows)} as expected, {minutes:.0f} minutes.", ""]
        text += ["| what was done | expected | what happened | as expected | seconds | CPU seconds |"]
        text += ["| --- | --- | --- | --- | --- | --- |"]
        for row in rows:
            cells = row["done"], row["expected"], row["happened"], "yes" if row["well"] else "**no**"
            cells += f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}"
            text += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"]
    PAGE.write_text("\n".join(text) + "\n")


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, its descendants and those of them that have ended."""
    seconds, process = 0.0, psutil.Process(pid)
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            seconds += sum(member.cpu_times()[:4])
    return seconds


@contextmanager
def clone(name: str = "clone", environment: bool = True) -> Iterator[Path]:
    """A clone of the last commit in a new folder, with this checkout's environment or none."""
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        place = Path(folder) / name
        subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
        if environment:
            (place / ".venv").symlink_to((ROOT / ".venv").resolve())
        with (place / ".git" / "info" / "exclude").open("a") as exclude:
            exclude.write(".venv\n")
        yield place


def left(checkout: Path) -> list[str]:
    """What lies in a clone and was not committed, or was changed; Python's own compiled files are left out."""
    command = ["git", "-C", checkout, "status", "--short", "--ignored"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line[3:] for line in found if line[3:] != ".venv" and "__pycache__" not in line]


def make(checkout: Path, *arguments: str, **settings: object) -> subprocess.Popen:
    """Start make in a clone whose environment is ready; its output is one text."""
    environment = os.environ | {"PYTHONPATH": str(checkout)} | settings.pop("env", {})
    ready = ["-o", ".venv/.ready"] if (checkout / ".venv").exists() else []
    command = [*settings.pop("before", []), "make", *ready, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=environment, **pipes | settings)


def same_observations(checkout: Path, names: list[str]) -> tuple[bool, str]:
    """Reproduce notebooks that JupyterLab ran in a clone, and compare what both observed."""
    process = make(checkout, "reproduce", "PROFILE=smoke", f"NOTEBOOKS={' '.join(names)}")
    said, different = process.communicate()[0], []
    for name in names:
        by_hand, made = (
            checkout / folder / "smoke" / name / "observations.json" for folder in ("runs/by-hand", "figures")
        )
        if not made.exists() or by_hand.read_bytes() != made.read_bytes():
            different.append(name)
    happened = f"different: {', '.join(different)}" if different else "the same, byte by byte"
    return process.returncode == 0 and not different, f"{happened}; {said.splitlines()[-1]}"
