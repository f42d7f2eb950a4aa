"""Progress that fits where it is read: a widget in JupyterLab, a bar in a terminal, a line a minute in a log.

NKD_PROGRESS names a file, terminal or log, to show it in; the notebook runner sets it for its kernels.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import ClassVar
from weakref import WeakSet

import tqdm
import tqdm.auto

MINUTE = 60.0  # seconds between two lines of a log


class Progress:
    """Count steps of a known or unknown total, as a context manager with `advance`.

    title: what is being done, in a few words. total: number of steps, None when unknown. The time left follows from
    the steps done, or from `work`, the done and the whole work in a unit of the caller's.
    """

    _open: ClassVar[WeakSet["Progress"]] = WeakSet()

    def __init__(self, title: str, total: int | None = None, unit: str = "it"):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self.work: tuple[float, float] | None = None
        self._said = ""

    def __enter__(self) -> "Progress":
        self._started = self._told = time.monotonic()
        self._inner = bool(self._open)
        self._open.add(self)
        where = os.environ.get("NKD_PROGRESS")
        self._log = open(where, "a", opener=_not_controlling) if where else None
        kind = tqdm.tqdm if where else tqdm.auto.tqdm
        drawn = self._log.isatty() if where else "ipykernel.zmqshell" in sys.modules or sys.stderr.isatty()
        look = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]" if self.total else None
        settings = {"desc": self.title, "unit": self.unit, "leave": None, "dynamic_ncols": True, "bar_format": look}
        self._bar = kind(total=self.total, file=self._log, **settings) if drawn else None
        return self

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more."""
        self.done += steps
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._told >= MINUTE:
            self._told = time.monotonic()
            print(f"{self._count()}, {self._state()}", file=self._log, flush=True)

    def note(self, text: str) -> None:
        """Say how things stand, from the next step on."""
        self._said = text

    def _count(self) -> str:
        return f"{self.title}: {self.done}{'' if self.total is None else f'/{self.total}'} {self.unit}"

    def _state(self) -> str:
        done, whole = self.work or (self.done, self.total or 0)
        left = (time.monotonic() - self._started) * (whole - done) / done if done and whole else None
        known = [] if left is None else [f"{tqdm.tqdm.format_interval(left)} left"]
        return ", ".join(known + [self._said] * bool(self._said))

    def __exit__(self, kind: type | None, *exc: object) -> None:
        self._open.discard(self)
        if self._bar is not None:
            self._bar.close()
        elif not self._inner or self._told > self._started:  # short steps of something longer are not worth a line
            took = tqdm.tqdm.format_interval(time.monotonic() - self._started)
            print(f"{self._count()}, {'stopped' if kind else 'done'} after {took}", file=self._log)
        if self._log is not None:
            self._log.close()


def _not_controlling(path: str, flags: int) -> int:
    """Open a file; a terminal stays the runner's, so that Ctrl-C goes there."""
    return os.open(path, flags | os.O_NOCTTY)


def progress(iterable: Iterable, title: str, unit: str = "it") -> Iterator:
    """Yield from `iterable` and show how far it is, with the time left if it has a length."""
    with Progress(title, len(iterable) if hasattr(iterable, "__len__") else None, unit) as steps:
        for item in iterable:
            yield item
            steps.advance()
