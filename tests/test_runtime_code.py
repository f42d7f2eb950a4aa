"""The code fingerprint: what a function reaches counts, nothing else does."""

import linecache
import sys
import types
from pathlib import Path

import pytest

from nkdlib.tasks import keys
from nkdlib.tasks.keys import reached_code

LIBRARY = {
    "__init__.py": '"""Top."""\n',
    "shapes/__init__.py": "from house.shapes.round import circle as disc\nfrom .square import side\n",
    "shapes/round.py": "from ..numbers import PI\n\ndef circle(r):\n    return PI * r * r\n",
    "shapes/square.py": "def side(a):\n    return a * a\n",
    "numbers.py": "import math\nimport house.cache\nPI = 3\n",
    "cache.py": "import house.secret\n",
    "secret.py": "",
}
AREA = "def area(r):\n    from house.shapes import disc\n\n    return disc(r)\n"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small library, whose `cache` is neutral; returns a function that writes one of its files."""

    def write(name, text):
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        monkeypatch.setattr(keys, "_LOADED", {})

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keys, "NEUTRAL", ("house.cache",))
    for name, text in LIBRARY.items():
        write(name, text)
    return write


@pytest.fixture
def cell(monkeypatch):
    """Return a function that runs source as a notebook's cell would be, and returns its names."""

    def run(source):
        filename = f"<cell-{len(linecache.cache)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        module = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(compile(source, filename, "exec"), vars(module))
        return module

    return run


def test_imports_are_followed_through_re_exports_to_the_modules_that_define(library, cell):
    assert set(reached_code(cell(AREA).area)) == {"__main__.area", "house.shapes.round", "house.numbers"}


@pytest.mark.parametrize(
    ("name", "old", "new", "counts"),
    [
        ("numbers.py", "PI = 3", "PI = 4", True),
        ("numbers.py", "PI = 3", "\nPI = (3)  # why", False),
        ("shapes/round.py", "    return", '    """Area."""\n    return', False),
        ("shapes/round.py", "r * r", "r**2", True),
        ("shapes/square.py", "a * a", "a", False),
        ("secret.py", "", "changed = True\n", False),
    ],
)
def test_only_reached_code_counts(library, cell, name, old, new, counts):
    area = cell(AREA).area
    before = reached_code(area)
    library(name, LIBRARY[name].replace(old, new))
    assert (reached_code(area) != before) == counts


def test_code_edited_after_it_was_loaded_is_an_error(library, cell, tmp_path):
    area = cell(AREA).area
    reached_code(area)
    (tmp_path / "house" / "numbers.py").write_text("PI = 5\n")
    with pytest.raises(RuntimeError, match=r"numbers.py was edited .* restart"):
        reached_code(area)


CELL = """
import math
import torch
from dataclasses import dataclass
FACTOR = 2
UNUSED = 3

class Base(torch.nn.Module):
    def forward(self, x):
        return x * FACTOR

class Net(Base):
    pass

@dataclass(frozen=True)
class Recipe:
    steps: int = 1

def scale(x):
    return Net()(x) * math.pi * torch.ones(1)

def task(x, recipe=Recipe()):
    # a comment
    return scale(x), math.inf
"""


def test_functions_classes_and_constants_of_a_notebook_count_where_they_are_named(cell):
    names = {f"__main__.{name}" for name in ("FACTOR", "Base", "Net", "Recipe", "scale", "task")}
    assert set(reached_code(cell(CELL).task)) == names


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("FACTOR = 2", "FACTOR = 4", True),
        ("UNUSED = 3", "UNUSED = 4", False),
        ("x * FACTOR", "FACTOR * x", True),
        ("steps: int = 1", "steps: int = 2", True),
        ("# a comment", '"""A docstring."""', False),
        ("Net()(x)", "Base()(x)", True),
    ],
)
def test_a_change_in_a_notebook_counts_where_it_is_reached(cell, old, new, counts):
    before = reached_code(cell(CELL).task)
    assert (reached_code(cell(CELL.replace(old, new)).task) != before) == counts


def test_a_hidden_input_is_named(cell):
    source = "import torch\nteacher = torch.zeros(1)\n\ndef task(x):\n    return teacher * x\n"
    with pytest.raises(TypeError, match=r"the global `__main__.teacher` that a task names \(a torch.Tensor\)"):
        reached_code(cell(source).task)


def test_a_closure_counts():
    def make(factor):
        def task(x):
            return x * factor

        return task

    assert reached_code(make(1)) == reached_code(make(1)) != reached_code(make(2))


def test_nkdlib_as_this_process_loaded_it_counts():
    from nkdlib.data import Images

    assert {"nkdlib.data.images"} <= set(reached_code(Images)) and Path(keys.__file__) in keys._LOADED
