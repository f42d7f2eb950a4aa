"""What is watched while a notebook runs: how far it is, and the memory of all its processes."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def reporting(line: Callable[[], str], every_s: float = 60) -> Iterator[None]:
    """Print a line now and then while the block runs, unless a terminal shows bars."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(every_s):
            print(line(), flush=True)

    if not sys.stderr.isatty():
        threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class MemoryWatch:
    """The most memory that this process and all it started had at once while a `with` block ran: `peak_mb`, in MiB.

    It looks every few seconds, so that a short peak may pass unseen. What processes share counts once on Linux (the
    proportional set size); elsewhere it does not count.
    """

    def __init__(self, every_s: float = 5.0):
        self.every_s, self.peak_mb, self._ended = every_s, 0.0, threading.Event()

    def __enter__(self) -> "MemoryWatch":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, memory_mb())
            if self._ended.wait(self.every_s):
                return


def memory_mb() -> float:
    """Return the memory that this process and all it started have now, in MiB."""
    this, found = psutil.Process(), 0
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended
            memory = process.memory_full_info()
            found += getattr(memory, "pss", memory.uss)
    return found / 2**20
