"""`setup.sh`, with an installer that installs nothing: finished after a failure, done once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = """#!/bin/bash
# Stands for uv: makes an environment whose Python does nothing, and notes each call.
echo "$*" >> calls
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  printf '#!/bin/sh\\n' > .venv/bin/python
  chmod +x .venv/bin/python
fi
[ ! -e fail ]
"""


@pytest.fixture
def clone(tmp_path):
    """A clone in a folder with a space in its name, without its environment."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "setup.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def make(clone, tmp_path):
    """Return a function that starts the set-up from another folder; uv: whether it is installed."""

    def start(uv=True):
        tools = tmp_path / ("with uv" if uv else "without Python")
        tools.mkdir(exist_ok=True)
        for tool in ("bash", "env", "sh", "make", "dirname", "flock", "touch", "rm", "mkdir", "chmod", "sed"):
            if (found := shutil.which(tool)) and not (tools / tool).exists():
                (tools / tool).symlink_to(found)
        if uv:
            (tools / "uv").write_text(UV)
            (tools / "uv").chmod(0o755)
        return subprocess.Popen(
            ["make", "-C", clone, ".venv/.ready"],
            env={**os.environ, "PATH": str(tools)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_a_set_up_that_failed_begins_anew_at_the_next_call_and_is_done_once(clone, make):
    (clone / "fail").touch()
    failed = make()
    assert failed.communicate()[0] and failed.returncode != 0
    assert not (clone / ".venv" / ".ready").exists()
    half = clone / ".venv" / "half-1.0.dist-info"
    half.mkdir(parents=True)

    (clone / "fail").unlink()
    (clone / "calls").unlink()
    both = [make(), make()]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("setting up" in text for text in said) == 1
    assert (clone / ".venv" / ".ready").exists() and not half.exists()
    created, *installed = (clone / "calls").read_text().splitlines()
    assert created == "venv --quiet --python >=3.11 .venv"
    assert [call.split("--python .venv/bin/python ")[1] for call in installed] == [
        "-r requirements.txt",
        "--no-deps --no-build-isolation --editable .",
    ]


def test_changed_pins_are_installed(clone, make):
    make().communicate()
    (clone / "calls").unlink()
    make().communicate()
    assert not (clone / "calls").exists()
    os.utime(clone / "requirements.txt")
    (clone / "fail").touch()
    make().communicate()
    assert not (clone / ".venv" / ".ready").exists()
    assert len((clone / "calls").read_text().splitlines()) == 1  # into the environment that was there


def test_a_missing_python_is_named(make):
    process = make(uv=False)
    assert "error: Python 3.11 or newer is needed" in process.communicate()[0]
    assert process.returncode != 0
