"""Folders of the checkout, its results and figures; locks, and files written whole or not at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def checkout() -> Path | None:
    """Return the clone that this package runs from, None if it was installed without one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "Makefile").is_file() else None


def _root(variable: str, folder: str) -> Path:
    return Path(os.environ.get(variable) or (checkout() or Path.home() / ".cache" / "nkdlib") / folder)


def runs_root() -> Path:
    """Return the folder of results: NKD_RUNS, else `runs/` in the checkout or in the user's cache."""
    return _root("NKD_RUNS", "runs")


def figures_root() -> Path:
    """Return the folder of figures and tables: NKD_FIGURES, else `figures/` beside `runs/`."""
    return _root("NKD_FIGURES", "figures")


def data_root() -> Path:
    """Return the folder of fetched data sets: NKD_CACHE, else `runs/data/`."""
    return _root("NKD_CACHE", "runs/data")


@contextmanager
def locked(folder: Path, notice: str = "") -> Iterator[None]:
    """Keep other processes out of a folder; the lock ends with the process, however it ends.

    notice: printed when another process is in and this one has to wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if notice:
                print(notice, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a whole file or nothing: readers and a kill in the middle see the old content or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
