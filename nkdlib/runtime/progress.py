"""Progress that fits where it is read: a widget in JupyterLab, a bar in a terminal, one line in a log.

Under the notebook runner a kernel draws its bar where NKD_PROGRESS says, the runner's terminal.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import tqdm
import tqdm.auto


class Progress:
    """Count steps of a known or unknown total, as a context manager with `advance`.

    title: what is being done, in a few words. total: number of steps, None when unknown.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "it"):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._started, self._bar, self._open = time.monotonic(), None, ExitStack()
        settings = {"total": total, "desc": title, "unit": unit, "dynamic_ncols": True}
        if where := os.environ.get("NKD_PROGRESS"):
            terminal = os.open(where, os.O_WRONLY | os.O_NOCTTY)  # it stays the runner's
            file = self._open.enter_context(os.fdopen(terminal, "w"))
            self._bar = self._open.enter_context(tqdm.tqdm(file=file, leave=False, **settings))
        elif sys.stderr.isatty() or "ipykernel.zmqshell" in sys.modules:  # a terminal or a notebook
            self._bar = self._open.enter_context(tqdm.auto.tqdm(leave=None, **settings))

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)

    def note(self, text: str) -> None:
        """Show how things stand behind the bar; a log has none."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        self._open.close()
        if self._bar is None:
            of = f"/{self.total}" if self.total is not None else ""
            took = tqdm.tqdm.format_interval(time.monotonic() - self._started)
            print(f"{self.title}: {self.done}{of} {self.unit}, {'stopped' if kind else 'done'} after {took}")


def progress(iterable: Iterable, title: str, total: int | None = None, unit: str = "it") -> Iterator:
    """Yield from `iterable` and show how far it is; total: number of items, where `len(iterable)` is unknown."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with Progress(title, total, unit) as steps:
        for item in iterable:
            yield item
            steps.advance()
