"""The house: who may import whom, and no room without a name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # from the top; a package may import from itself and from the layers below its own
    {"compendium"},
    {"detection", "figs", "neighbourhoods"},
    {"training"},
    {"networks", "data"},
    {"tasks"},
]
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
MODULES = sorted((ROOT / "nkdlib").rglob("*.py"))
SOURCES = sorted(path for folder in ("nkdlib", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def name(path):
    """Return the part of a path below the checkout."""
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Return the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} imports relatively; name the module in full"
            inside = node.module == "nkdlib"
            yield from (f"nkdlib.{alias.name}" for alias in node.names) if inside else (node.module,)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_straight_down(path):
    parts = path.relative_to(ROOT / "nkdlib").with_suffix("").parts
    if parts == ("__init__",):
        assert not list(imported(path))
        return
    here = parts[0]
    for module in imported(path):
        if module.split(".")[0] != "nkdlib":
            continue
        there = module.split(".")[1]
        below = there == here or RANK[there] > RANK[here]
        assert below, f"{name(path)} imports {module}, which is not below {here}"


def test_every_package_has_its_layer():
    packages = {path.relative_to(ROOT / "nkdlib").with_suffix("").parts[0] for path in MODULES}
    assert packages - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_small_and_named_by_what_it_holds(path):
    assert path.stem not in ("utils", "helpers", "common", "misc")
    assert len(path.read_text().splitlines()) <= 350
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_imported_by_chance(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.path.insert", "sys.path.append"), name(path)
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = ast.unparse(node.type)
            assert "ImportError" not in caught, f"{name(path)}:{node.lineno} falls back in silence"
