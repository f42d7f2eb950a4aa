"""Progress that fits where it is read: a widget in JupyterLab, a bar in a terminal, one line in a log.

Under the notebook runner a kernel has no terminal of its own. It writes its latest step to the file named
by NKD_PROGRESS, and the runner shows it.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

REPORT_EVERY_S = 0.2


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class Progress:
    """Count steps of a known or unknown total, as a context manager with `advance`.

    title: what is being done, in a few words. total: number of steps, None when unknown.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "it"):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._started, self._reported = time.monotonic(), 0.0
        self._quiet = "NKD_WORKER" in os.environ  # a worker's steps are not the user's
        self._file = os.environ.get("NKD_PROGRESS")
        self._bar = None
        seen = sys.stderr.isatty() or "ipykernel.zmqshell" in sys.modules  # a terminal or a notebook
        if seen and not (self._quiet or self._file):
            self._bar = tqdm(total=total, desc=title, unit=unit, leave=None, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        self.advance(0)
        return self

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more."""
        self.done += steps
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(steps)
        elif self._file and not self._quiet and now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            left = (now - self._started) / self.done * (self.total - self.done) if self.total and self.done else None
            step = {"title": self.title, "done": self.done, "total": self.total, "left_s": left, "time": time.time()}
            Path(self._file).write_text(json.dumps(step) + "\n")

    def __exit__(self, kind: type | None, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not (self._file or self._quiet):
            of = f"/{self.total}" if self.total is not None else ""
            end = f"{'done' if kind is None else 'stopped'} after {clock(time.monotonic() - self._started)}"
            print(f"{self.title}: {self.done}{of} {self.unit}, {end}")


def progress(iterable: Iterable, title: str, total: int | None = None, unit: str = "it") -> Iterator:
    """Yield from `iterable` and show how far it is.

    total: number of items, taken from `len(iterable)` where that is known.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with Progress(title, total, unit) as steps:
        for item in iterable:
            yield item
            steps.advance()
