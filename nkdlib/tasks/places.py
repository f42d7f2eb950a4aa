"""Where things lie: the checkout, its results and its figures; and the lock that keeps other processes out."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def checkout() -> Path | None:
    """Return the clone that this package is run from, None for a package installed without its clone."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "Makefile").is_file() else None


def _root(variable: str, folder: str) -> Path:
    return Path(os.environ.get(variable) or (checkout() or Path.home() / ".cache" / "nkdlib") / folder)


def runs_root() -> Path:
    """Return where results are kept: NKD_RUNS, else `runs/` in the checkout or in the user's cache."""
    return _root("NKD_RUNS", "runs")


def figures_root() -> Path:
    """Return where figures and tables are kept: NKD_FIGURES, else `figures/` beside `runs/`."""
    return _root("NKD_FIGURES", "figures")


def data_root() -> Path:
    """Return where fetched data sets are kept: NKD_CACHE, else `runs/data/`."""
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
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
