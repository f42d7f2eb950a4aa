"""Where things lie: the checkout, its results and its figures."""

import os
from pathlib import Path


def checkout() -> Path | None:
    """Return the clone that this package is run from, None for a package installed without its clone."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "Makefile").is_file() else None


def runs_root() -> Path:
    """Return where results are kept: NKD_RUNS, else the checkout's `runs/`, else the user's cache."""
    if named := os.environ.get("NKD_RUNS"):
        return Path(named)
    root = checkout()
    return root / "runs" if root else Path.home() / ".cache" / "nkdlib" / "runs"


def figures_root() -> Path:
    """Return where figures and tables are kept: NKD_FIGURES, else `figures/` beside `runs/`."""
    if named := os.environ.get("NKD_FIGURES"):
        return Path(named)
    return (checkout() or runs_root().parent) / "figures"
