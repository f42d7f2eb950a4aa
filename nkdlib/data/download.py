"""Fetch public data sets from the mirrors that torchvision knows, or from Debian's package."""

import shutil
import socket
import subprocess
from http.client import HTTPException
from pathlib import Path

from nkdlib.tasks.progress import Progress

CONNECT_SECONDS = 20  # and between two pieces of a download
APT_SECONDS = 300
DEBIAN_PACKAGE = "dataset-fashion-mnist"


def fashion_mnist_from_mirror(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(scratch, download=True)
    return scratch / "FashionMNIST"


def fashion_mnist_from_debian(scratch: Path) -> Path:
    """Through apt-get and dpkg-deb in private folders: nothing is installed and no root is needed."""
    for part in ("lists/partial", "cache/archives/partial"):
        (scratch / part).mkdir(parents=True)
    private = {"Dir::State::Lists": scratch / "lists", "Dir::Cache": scratch / "cache", "Debug::NoLocking": 1}
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in private.items())]
    unpack = ["sh", "-c", f"dpkg-deb -x {DEBIAN_PACKAGE}_*.deb unpacked"]
    for command in ([*apt, "update"], [*apt, "download", DEBIAN_PACKAGE], unpack):
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=APT_SECONDS)
    return scratch / "unpacked/usr/share/datasets/fashion-mnist"


def cifar10_from_mirror(scratch: Path) -> Path:
    from torchvision.datasets import CIFAR10

    CIFAR10(scratch, download=True)
    return scratch / CIFAR10.base_folder


FETCHERS = {  # name -> place -> what fetches a folder into an empty one and returns it
    "fashion-mnist": {
        "torchvision's mirror": fashion_mnist_from_mirror,
        f"Debian's package {DEBIAN_PACKAGE}": fashion_mnist_from_debian,
    },
    "cifar10": {"torchvision's mirror": cifar10_from_mirror},
}


def fetch(name: str, folder: Path) -> list[str]:
    """Bring a public data set into a locked folder, whole or not at all.

    Returns what failed, one line for each place tried, up to the one that worked.
    """
    failures = []
    scratch, timeout = folder / ".part", socket.getdefaulttimeout()
    for place, fetcher in FETCHERS[name].items():
        shutil.rmtree(scratch, ignore_errors=True)  # of a fetch that was killed
        scratch.mkdir()
        socket.setdefaulttimeout(CONNECT_SECONDS)  # torchvision sets none
        try:
            with Progress(f"fetching {name} from {place}", 1, "data set") as progress:
                fetched = fetcher(scratch)
                progress.advance()
            shutil.rmtree(folder / fetched.name, ignore_errors=True)  # incomplete, or it would have been found
            fetched.rename(folder / fetched.name)
            return failures
        except (OSError, HTTPException, RuntimeError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip()
            failures.append(f"{place}: {said.splitlines()[-1]}")
        finally:
            socket.setdefaulttimeout(timeout)
            shutil.rmtree(scratch)
    return failures
