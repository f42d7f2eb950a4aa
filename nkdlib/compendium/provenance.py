"""Where a number comes from: code, parameters, data, packages, hardware and time. Never who or which host."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata

import torch
from joblib import cpu_count

from nkdlib.compendium.tiers import portable
from nkdlib.tasks.measure import cpu_name
from nkdlib.tasks.places import checkout

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "safetensors")


def provenance(
    parameters: Mapping[str, object],
    data_digest: str = "",
    seconds: Mapping[str, float] | None = None,
    made: str = "figures",
) -> dict[str, object]:
    """Return the provenance of a notebook's results, ready for JSON.

    Args:
        parameters: those of the notebook; see `portable`.
        data_digest: fingerprint of the data.
        seconds: wall and CPU seconds by name.
        made: the folder that results are written to, whose changes do not make the tree dirty.
    """
    changes = git("status", "--porcelain", "--", ".", f":!{made}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(changes) if changes is not None else None,
        "parameters": portable(parameters),
        "seeds": parameters.get("seeds"),
        "data": data_digest,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {platform.libc_ver()[0]}".strip(),
        "cuda": torch.version.cuda if gpu else None,
        "hardware": {
            "cpu": cpu_name(),
            "cores": cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpu": gpu,
        },
        "seconds": {name: round(value, 3) for name, value in (seconds or {}).items()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git(*command: str) -> str | None:
    """Return git's answer about the checkout, None without git or a repository."""
    try:
        git = ["git", "-C", str(checkout() or os.devnull), *command]
        return subprocess.check_output(git, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
