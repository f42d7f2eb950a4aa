"""Seconds, measured the same way everywhere.

Device-seconds say how long a method occupies its device: on a CPU the process' own CPU seconds, which other
processes do not lengthen, on a GPU the wall seconds between two synchronizations.
"""

import platform
import re
import time
from pathlib import Path

import torch


class Stopwatch:
    """Time a `with` block on a device; after it, `wall_s`, `cpu_s` (this process, all threads) and `device_s`."""

    def __init__(self, device: str | torch.device = "cpu"):
        self._device = torch.device(device)

    def _read(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()

    def __enter__(self) -> "Stopwatch":
        self._started = self._read()
        return self

    def __exit__(self, *exc: object) -> None:
        self.wall_s, self.cpu_s = (end - start for end, start in zip(self._read(), self._started, strict=True))
        self.device_s = self.wall_s if self._device.type == "cuda" else self.cpu_s


def cpu_name() -> str:
    """Return the name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux only, and without a model on ARM
    named = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1] if named else platform.processor() or platform.machine()
