"""Examples are true: in the docstrings of nkdlib, and in CONTRIBUTING.md."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.glob("nkdlib/*/[a-z]*.py"))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("package", ["neighbourhoods", "figs", "detection", "training", "networks", "data"])
def test_every_function_that_users_call_has_an_example(package):
    module = importlib.import_module(f"nkdlib.{package}")
    assert not [name for name in module.__all__ if not hasattr(module, name)]
    functions = dict(inspect.getmembers(module, inspect.isfunction))
    assert functions and not [name for name, function in functions.items() if ">>>" not in function.__doc__]


def test_examples_of_contributing_are_true():
    assert doctest.testfile(str(ROOT / "CONTRIBUTING.md"), module_relative=False).failed == 0
