"""Fetch public data sets from the mirrors that torchvision uses, or from Debian's package."""

import os
import shutil
import subprocess
import urllib.request
from http.client import HTTPException
from pathlib import Path

from nkdlib.data.decode import FASHION_MD5, DataDamaged, check_md5, read_fashion_mnist
from nkdlib.runtime.progress import Progress, progress

CONNECT_SECONDS = 20  # and between two pieces of a download
APT_SECONDS = 300
FASHION_MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
DEBIAN_PACKAGE = "dataset-fashion-mnist"


def fashion_mnist_from_mirror(folder: Path, scratch: Path) -> None:
    for name in FASHION_MD5:
        if not (folder / f"{name}.gz").exists():  # else whole, from an earlier attempt
            _download(f"{FASHION_MIRROR}/{name}.gz", scratch / f"{name}.gz")
            read_fashion_mnist(scratch, name)
            os.replace(scratch / f"{name}.gz", folder / f"{name}.gz")


def fashion_mnist_from_debian(folder: Path, scratch: Path) -> None:
    """Through apt-get and dpkg-deb in private folders: nothing is installed and no root is needed."""
    for part in ("lists/partial", "cache/archives/partial"):
        (scratch / part).mkdir(parents=True)
    private = {"Dir::State::Lists": scratch / "lists", "Dir::Cache": scratch / "cache", "Debug::NoLocking": 1}
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in private.items())]
    steps = [[*apt, "update"], [*apt, "download", DEBIAN_PACKAGE], ["dpkg-deb", "-x", "", "unpacked"]]
    for command in progress(steps, f"fetching Debian's {DEBIAN_PACKAGE} (31 MB)", unit="steps"):
        if command[0] == "dpkg-deb":
            command[2] = str(next(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb")))
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=APT_SECONDS)
    unpacked = scratch / "unpacked/usr/share/datasets/fashion-mnist"
    for name in FASHION_MD5:
        read_fashion_mnist(unpacked, name)
        os.replace(unpacked / f"{name}.gz", folder / f"{name}.gz")


def cifar10_from_mirror(folder: Path, scratch: Path) -> None:
    target = scratch / "cifar-10-python.tar.gz"
    _download(CIFAR10_URL, target)
    check_md5(target, target.read_bytes(), CIFAR10_MD5)
    os.replace(target, folder / target.name)


FETCHERS = {
    "fashion-mnist": {
        FASHION_MIRROR: fashion_mnist_from_mirror,
        f"Debian's package {DEBIAN_PACKAGE}": fashion_mnist_from_debian,
    },
    "cifar10": {CIFAR10_URL: cifar10_from_mirror},
}


def fetch(name: str, folder: Path) -> list[str]:
    """Bring a public data set into a locked folder; files are moved there whole and checked, or not at all.

    Returns what failed, one line for each place tried, up to the one that worked.
    """
    failures = []
    for place, fetcher in FETCHERS[name].items():
        scratch = folder / ".part"
        shutil.rmtree(scratch, ignore_errors=True)  # of a fetch that was killed
        scratch.mkdir()
        try:
            fetcher(folder, scratch)
            return failures
        except (OSError, HTTPException, subprocess.SubprocessError, DataDamaged) as error:
            said = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip()
            failures.append(f"{place}: {said.splitlines()[-1]}")
        finally:
            shutil.rmtree(scratch)
    return failures


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer, target.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with Progress(f"fetching {target.name}", size or None, "bytes") as steps:
            while block := answer.read(1 << 20):
                file.write(block)
                steps.advance(len(block))
    if size and target.stat().st_size != size:
        raise DataDamaged(f"{target.stat().st_size:,} of {size:,} bytes came")
