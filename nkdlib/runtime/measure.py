"""Seconds and bytes, measured the same way everywhere.

Device-seconds are what a method occupies its device for: on a CPU the process' own CPU seconds, which a
busy neighbour on the machine does not lengthen, on a GPU the wall seconds between two synchronizations.
"""

import resource
import sys
import time
from pathlib import Path

import torch


class Stopwatch:
    """Time a `with` block; the readings are running values inside it and final ones after it.

    device: "cpu" or a CUDA device, synchronized at both ends.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        self._cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        self._start = self._end = None

    def _read(self) -> tuple[float, float]:
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter(), time.process_time()

    def __enter__(self) -> "Stopwatch":
        self._start, self._end = self._read(), None
        return self

    def __exit__(self, *exc: object) -> None:
        self._end = self._read()

    def _elapsed(self, which: int) -> float:
        if self._start is None:
            raise RuntimeError("this Stopwatch was never started; read it in or after its `with` block")
        return (self._end or self._read())[which] - self._start[which]

    @property
    def wall_s(self) -> float:
        """Wall seconds."""
        return self._elapsed(0)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of this process, all threads, without its children."""
        return self._elapsed(1)

    @property
    def device_s(self) -> float:
        """Device-seconds: CPU seconds on a CPU, synchronized wall seconds on a GPU."""
        return self.wall_s if self._cuda else self.cpu_s


def peak_memory_mb(device: str | torch.device = "cpu") -> float:
    """Return the largest memory so far in MiB: resident memory of this process, or allocated on the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # getrusage would count what the parent held before this program began
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux
