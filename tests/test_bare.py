"""`bare.sh`: packages that Python lacks come from a folder of wheels; those that it has stay."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from importlib import metadata

import lacking
import torch

print(lacking.__file__, metadata.version("torch"), *sys.argv[1:], sep="\\n")
"""


def write_wheel(folder, name, code):
    """Write the wheel of a package with one module, version 0."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\nRequires-Dist: nowhere\n"}
    about["WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{name}-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        for file, text in {**about, "RECORD": ""}.items():
            wheel.writestr(f"{name}-0.dist-info/{file}", text)


@pytest.fixture
def clone(tmp_path):
    """A clone in a folder with a space in its name, whose runner says what it sees."""
    folder = tmp_path / "a clone"
    package = folder / "nkdlib" / "compendium"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "bare.sh", folder)
    (package / "run.py").write_text(RUN)
    write_wheel(folder / "runs" / "wheels", "lacking", "")
    write_wheel(folder / "runs" / "wheels", "torch", "raise AssertionError('it was there')")
    return folder


def test_only_missing_packages_are_installed_and_a_second_call_goes_on(clone, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    for number in range(2):
        command = [clone / "bare.sh", "results", "--profile", "gpu"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lacking, torch, *rest = done.stdout.splitlines()
        assert Path(lacking).is_relative_to(clone / "runs" / "bare") and torch != "0"
        assert rest == ["--out", str(tmp_path / "results"), "--profile", "gpu"]
        kept = tmp_path / "results" / "runs" / "cache" / "kept"
        assert kept.exists() == (number == 1) and kept.resolve().parent == clone / "runs" / "cache"
        kept.touch()


def test_without_a_folder_for_results_it_says_how_it_is_called(clone):
    done = subprocess.run([clone / "bare.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ./bare.sh OUT")
