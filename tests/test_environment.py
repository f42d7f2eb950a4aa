"""One list of pins: pyproject.toml, requirements.txt, environment.yml and this environment agree."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
]
LINES = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = [Requirement(line) for line in LINES]
HERE = {pin.name: pin for pin in PINS if pin.marker is None or pin.marker.evaluate()}


def test_every_line_is_one_exact_pin():
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in PINS)


@pytest.mark.parametrize("needed", DECLARED, ids=lambda needed: needed.name)
def test_every_dependency_is_pinned_within_its_range(needed):
    pins = [pin for pin in PINS if pin.name == needed.name]
    assert pins
    for pin in pins:
        assert needed.specifier.contains(str(pin.specifier).removeprefix("=="))


def test_what_is_installed_is_what_is_pinned():
    found = {name: metadata.version(name) for name in HERE}
    assert found == {name: str(pin.specifier).removeprefix("==") for name, pin in HERE.items()}


def test_no_pin_depends_on_a_machine_and_the_header_names_the_command():
    text = (ROOT / "requirements.txt").read_text()
    assert "make lock" in text.splitlines()[1]
    assert not re.search(r"file:|https?:|(^|\s)/|--find-links|--index-url", text, re.MULTILINE)


def test_every_python_that_is_allowed_gets_a_torch():
    python = PROJECT["requires-python"]
    assert python == ">=3.11"
    for name in ("torch", "torchvision", "numpy"):
        for version in ("3.11", "3.12", "3.13"):
            at = {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux"}
            pins = [pin for pin in PINS if pin.name == name]
            chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(at)]
            assert len(chosen) == 1


def test_conda_gets_the_same_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert conda == [f"python {PROJECT['requires-python']}", "pip"]
    assert pip == ["-r requirements.txt", "--editable ."]


def test_torch_and_torchvision_fit_each_other():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)


def test_the_package_is_this_checkout():
    import nkdlib

    assert Path(nkdlib.__file__).parents[1] == ROOT.resolve()
    assert metadata.version("nkdlib") == nkdlib.__version__
