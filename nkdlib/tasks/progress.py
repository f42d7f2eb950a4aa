"""Progress that fits where it is read: a widget in JupyterLab, a bar in a terminal, one line in a log.

Under the notebook runner a kernel draws its bar where NKD_PROGRESS says, the runner's terminal.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import ClassVar

import tqdm
import tqdm.auto


class Progress:
    """Count steps of a known or unknown total, as a context manager with `advance`.

    title: what is being done, in a few words. total: number of steps, None when unknown. In a notebook, progress
    within progress stands behind the outer bar: hundreds of bars, one after another, would fill the page.
    """

    _drawn: ClassVar[dict[int, tqdm.tqdm]] = {}  # by the cell that is running

    def __init__(self, title: str, total: int | None = None, unit: str = "it"):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._started, self._bar, self._open, cell = time.monotonic(), None, ExitStack(), _cell()
        self._outer, self._said, self._told = self._drawn.get(cell), "", 0.0
        settings = {"total": total, "desc": title, "unit": unit, "dynamic_ncols": True}
        if where := os.environ.get("NKD_PROGRESS"):
            terminal = os.open(where, os.O_WRONLY | os.O_NOCTTY)  # it stays the runner's
            file = self._open.enter_context(os.fdopen(terminal, "w"))
            self._bar = self._open.enter_context(tqdm.tqdm(file=file, leave=False, **settings))
        elif self._outer is None and (cell is not None or sys.stderr.isatty()):
            self._bar = self._open.enter_context(tqdm.auto.tqdm(leave=None, **settings))
            if cell is not None:
                self._drawn[cell] = self._bar
                self._open.callback(self._drawn.pop, cell)

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
        self.note(self._said)

    def note(self, text: str) -> None:
        """Show how things stand behind the bar; a log has none."""
        self._said = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif self._outer is not None and time.monotonic() - self._told > 0.2:
            self._told = time.monotonic()
            self._outer.set_postfix_str(f"{self.title}: {self._count()} {text}".rstrip())

    def _count(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        self._open.close()
        if self._outer is not None:
            self._outer.set_postfix_str("", refresh=False)
        elif self._bar is None:
            took = tqdm.tqdm.format_interval(time.monotonic() - self._started)
            print(f"{self.title}: {self._count()} {self.unit}, {'stopped' if kind else 'done'} after {took}")


def progress(iterable: Iterable, title: str, total: int | None = None, unit: str = "it") -> Iterator:
    """Yield from `iterable` and show how far it is; total: number of items, where `len(iterable)` is unknown."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with Progress(title, total, unit) as steps:
        for item in iterable:
            yield item
            steps.advance()


def _cell() -> int | None:
    """The number of the notebook's cell that is running, None outside JupyterLab."""
    if "ipykernel.zmqshell" not in sys.modules:
        return None
    from IPython import get_ipython

    return getattr(get_ipython(), "execution_count", None)
