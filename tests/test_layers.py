"""The house: a library that never imports the compendium, layers below one another, and no module without a name."""

import ast
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LAYERS = [  # from the top; a package may import from itself and from the layers below its own
    {"compendium"},
    {"detection", "figs", "neighbourhoods"},
    {"training"},
    {"networks", "data"},
    {"tasks"},
]
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
FLOORS = 5  # modules in the longest chain of imports inside a folder, its __init__ included
LAZY = {("nkdlib.tasks.executors", "nkdlib.tasks.ray_cluster")}  # imported when a cluster is asked for, so no circle
OPTIONAL = {"cloudpickle", "faster_coco_eval", "ray"}  # of extras; imported when something asks for them
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}  # modules named unlike their packages
MODULES = sorted((ROOT / "nkdlib").rglob("*.py"))
SOURCES = sorted(path for folder in ("nkdlib", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def name(path):
    """Return the part of a path below the checkout."""
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    """Return the name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULE_NAMES = {module_name(path) for path in MODULES}


@cache
def imported(path):
    """Return the modules that a file imports, at the top and in functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} imports relatively; name the module in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULE_NAMES) | ({node.module} if submodules - MODULE_NAMES else set())
    return found


@cache
def import_graph():
    """Return, for every module of nkdlib, the modules of nkdlib that it imports."""
    return {
        module_name(path): {other for other in imported(path) & MODULE_NAMES if (module_name(path), other) not in LAZY}
        for path in MODULES
    }


def folder_of(module):
    """Return the folder of nkdlib that holds a module, or None for nkdlib itself."""
    return module.split(".")[1] if "." in module else None


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_straight_down(path):
    here = folder_of(module_name(path))
    for module in imported(path):
        if module.split(".")[0] == "nkdlib":
            there = folder_of(module)
            assert here and there, f"{name(path)} imports {module}; nkdlib itself imports nothing and holds nothing"
            below = there == here or RANK[there] > RANK[here]
            assert below, f"{name(path)} imports {module}, which is not below {here}"


def test_the_library_never_imports_the_compendium():
    library = [path for path in MODULES if folder_of(module_name(path)) != "compendium"]
    assert len(library) > 30
    for path in library:
        assert not [module for module in imported(path) if module.startswith("nkdlib.compendium")], name(path)


def test_no_import_circle():
    list(TopologicalSorter(import_graph()).static_order())
    for module, other in LAZY:
        assert other in imported(ROOT / f"{module.replace('.', '/')}.py"), f"take {module} out of LAZY"


@pytest.mark.parametrize("folder", sorted(RANK))
def test_a_folder_stands_on_few_floors(folder):
    chains = {}
    for module in TopologicalSorter(import_graph()).static_order():
        if folder_of(module) == folder:
            below = [chains[other] for other in import_graph()[module] if other in chains]
            chains[module] = [module.removeprefix(f"nkdlib.{folder}."), *max(below, key=len, default=[])]
    longest = max(chains.values(), key=len)
    assert len(longest) <= FLOORS, f"{' imports '.join(longest)}: {len(longest)} floors, {FLOORS} are allowed"


def test_every_package_has_its_layer():
    assert {folder_of(module) for module in MODULE_NAMES} - {None} == set(RANK)


def test_the_library_needs_what_it_declares_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {Requirement(line).name for line in project["dependencies"]}
    used = {
        module.split(".")[0]
        for path in MODULES
        if folder_of(module_name(path)) != "compendium"
        for module in imported(path)
    }
    needed = used - set(sys.stdlib_module_names) - {"nkdlib"} - OPTIONAL
    assert {DISTRIBUTIONS.get(module, module) for module in needed} <= declared


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


NOT_A_USERS = {"networks/trace.py", "networks/tail.py", "data/weights.py", "detection/feature_maps.py"}  # torch's own


def test_nothing_relies_on_what_a_users_train_returns():
    for path in MODULES:
        if folder_of(module_name(path)) == "compendium" or name(path).removeprefix("nkdlib/") in NOT_A_USERS:
            continue
        tree = ast.parse(path.read_text())
        alone = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node not in alone]
        for called in (call.func for call in calls):
            if isinstance(called, ast.Attribute) and called.attr in ("eval", "train"):
                raise AssertionError(f"{name(path)}:{called.lineno} uses what {called.attr}() returns: in_evaluation")
