"""What a running notebook shows: its cell, its step, the time left, and how much memory it takes."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
from tqdm import tqdm

from nkdlib.runtime.progress import clock


class Monitor:
    """Show where a notebook is on one line of a terminal, and watch the memory of its processes.

    report: the file that the notebook's kernel writes its latest step to (NKD_PROGRESS).
    """

    def __init__(self, notebook: Path, report: Path):
        cells = nbformat.read(notebook, as_version=4).cells
        self.cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells) + 1
        self.cell, self.peak_mb = 0, 0.0
        self._name, self._report = notebook.stem, report
        self._line = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True, disable=None)  # a terminal's only
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def next_cell(self, **_: object) -> None:
        """Count one more cell."""
        self.cell += 1
        self._report.unlink(missing_ok=True)

    def line(self) -> str:
        """Return where the notebook is: its name, its cell, the step and the time left."""
        text = f"{self._name} [cell {self.cell}/{self.cells}]"
        with suppress(OSError, ValueError):
            step = json.loads(self._report.read_text())
            text += f" {step['title']} {step['done']}" + (f"/{step['total']}" if step["total"] else "")
            if step["left_s"] is not None:
                text += f", {clock(max(0, step['left_s'] - (time.time() - step['time'])))} left"
        return text

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            memory = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    memory += process.memory_info().rss
            self.peak_mb = max(self.peak_mb, memory / 2**20)
            self._line.set_description_str(self.line())

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._line.close()
