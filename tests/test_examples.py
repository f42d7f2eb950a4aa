"""Exported names are few and documented, and the examples in docstrings and in CONTRIBUTING.md are true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ("data", "detection", "figs", "neighbourhoods", "networks", "tasks", "training")
MOST_NAMES = 70
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.glob("nkdlib/**/[a-z]*.py"))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_library_exports_few_names():
    names = [
        f"{package}.{name}" for package in LIBRARY for name in importlib.import_module(f"nkdlib.{package}").__all__
    ]
    assert len(names) <= MOST_NAMES, f"{len(names)} names are exported, at most {MOST_NAMES} are wanted: {names}"


@pytest.mark.parametrize("package", LIBRARY)
def test_every_exported_name_exists_and_is_documented(package):
    module = importlib.import_module(f"nkdlib.{package}")
    for name in module.__all__:
        written = getattr(module, name).__doc__ or ""
        generated = written.startswith(f"{name}(")  # a dataclass lists its fields if nobody wrote anything
        assert written.strip() and not generated, f"nkdlib.{package}.{name} has no docstring"


def test_examples_of_contributing_are_true():
    assert doctest.testfile(str(ROOT / "CONTRIBUTING.md"), module_relative=False).failed == 0
