"""Fingerprint of the code that makes an artefact: what the task's function can reach, no more.

Functions and classes of a notebook, a script or a test count one by one with the constants that they name;
modules of nkdlib count whole, followed through their imports of nkdlib. Comments, formatting and docstrings
do not count, nor do the modules in NEUTRAL, which carry results and never make them, nor installed packages.
"""

import ast
import contextlib
import dis
import functools
import inspect
import linecache
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from nkdlib.runtime.keys import canonical, qualified_name, sha256

NEUTRAL = ("nkdlib.runtime", "nkdlib.plots", "nkdlib.claims")
SOURCES = Path(__file__).resolve().parents[2]
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LOADED = {path: path.read_bytes() for path in (SOURCES / "nkdlib").rglob("*.py")}  # what this process runs


def reached_code(*roots: object) -> dict[str, str]:
    """Return name -> SHA-256 of everything that the functions and classes `roots` reach.

    Raises TypeError where a function names a global that has no canonical form, RuntimeError where a reached
    module of nkdlib was edited after this process loaded it.
    """
    reach = _Reach()
    for root in roots:
        reach.add(root, getattr(root, "__qualname__", str(root)))
    return dict(sorted(reach.found.items()))


class _Reach:
    """Walk from functions to everything that they name; found: name -> SHA-256."""

    def __init__(self):
        self.found: dict[str, str] = {}

    def add(self, value: object, name: str) -> None:
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, ModuleType | type | FunctionType):
            module = value.__name__ if isinstance(value, ModuleType) else value.__module__
            if _top(module) == "nkdlib":
                self._add_module(module)
            elif not isinstance(value, ModuleType) and _is_local(module):
                self._define(value)
        elif not (hasattr(value, "__name__") or type(value).__module__.startswith(NEUTRAL)):
            code: list = []
            self.found[name] = sha256(canonical(value, f"the global `{name}` that a task names", code))
            for item in code:
                self.add(item, name)

    def _add_module(self, name: str) -> None:
        if name not in self.found and not name.startswith(NEUTRAL) and (path := _path(name)):
            self.found[name] = _module_hash(path)
            self._add_imports(_parse(path.read_bytes()))

    def _add_imports(self, tree: ast.AST) -> None:
        for _, module in _imports(tree):
            self._add_module(module)

    def _define(self, value: type | FunctionType) -> None:
        name = qualified_name(value)
        if name in self.found:
            return
        tree = _definition(value)
        self.found[name] = _hash(tree)
        self._add_imports(tree)
        names = _names_in_scope(value)
        for chain in _global_names(compile(tree, "<task>", "exec")):
            if chain[0] not in names or chain[0].startswith("__"):
                continue
            reached, depth = names[chain[0]], 1
            while _is_local_module(reached) and depth < len(chain) and hasattr(reached, chain[depth]):
                reached, depth = getattr(reached, chain[depth]), depth + 1
            if reached is not value:
                self.add(reached, f"{value.__module__}.{'.'.join(chain[:depth])}")


def _names_in_scope(value: type | FunctionType) -> dict[str, object]:
    if isinstance(value, FunctionType):
        return {**value.__globals__, **inspect.getclosurevars(value).nonlocals}
    names = dict(vars(sys.modules[value.__module__]))
    for member in vars(value).values():
        member = getattr(member, "__func__", getattr(member, "fget", member))  # behind classmethod, property
        if isinstance(member, FunctionType):
            names |= inspect.getclosurevars(inspect.unwrap(member)).nonlocals
    return names


def _global_names(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Yield the names that `code` and what it holds read from outside, with the attributes that follow."""
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if chain:
                yield chain
            chain = (step.argval,)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain += (step.argval,)
        elif chain:
            yield chain
            chain = ()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _top(module: str) -> str:
    return module.split(".")[0]


def _is_local(module: str) -> bool:
    """Tell the user's own code from installed packages."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return module == "__main__" or (file is not None and not file.startswith(_INSTALLED))


def _is_local_module(value: object) -> bool:
    return isinstance(value, ModuleType) and _is_local(value.__name__)


def _definition(value: type | FunctionType) -> ast.Module:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError):
        # Python cannot find a class that a notebook's cell defined; the latest cell that defines it can.
        for _, _, lines, *_ in reversed([entry for entry in linecache.cache.values() if len(entry) > 2]):
            text = "".join(lines)
            if f"class {value.__name__}" in text:
                with contextlib.suppress(SyntaxError):
                    for node in ast.walk(ast.parse(text)):
                        if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                            return ast.Module([node], [])
    raise TypeError(f"the source of {qualified_name(value)} cannot be found; define it in a file or a notebook's cell")


def _hash(tree: ast.AST) -> str:
    """Return the SHA-256 of the code in `tree`, whose docstrings are taken out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.copy_location(ast.Pass(), node.body[0])]
    return sha256(ast.dump(tree))


@functools.cache
def _parse(source: bytes) -> ast.Module:
    return ast.parse(source)


@functools.cache
def _hash_source(source: bytes) -> str:
    return _hash(ast.parse(source))


def _path(module: str) -> Path | None:
    stem = SOURCES / Path(*module.split("."))
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)


def _module_hash(path: Path) -> str:
    loaded, now = _LOADED.setdefault(path, path.read_bytes()), path.read_bytes()
    if now != loaded and _hash_source(now) != _hash_source(loaded):
        raise RuntimeError(
            f"{path.relative_to(SOURCES)} was edited after this process loaded it, so its results "
            "would be kept as the new code's; restart the kernel"
        )
    return _hash_source(loaded)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what the import statements in `tree` take from nkdlib: the name that is bound and its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names if _top(alias.name) == "nkdlib")
        elif isinstance(node, ast.ImportFrom) and _top(node.module or "") == "nkdlib":
            for alias in node.names:
                yield alias.asname or alias.name, _defining_module(node.module, alias.name)


def _defining_module(module: str, name: str) -> str:
    """Return the module that `from module import name` reaches, through the re-exports of packages."""
    if _path(f"{module}.{name}"):
        return f"{module}.{name}"
    path = _path(module)
    if path is None or path.name != "__init__.py":
        return module
    return dict(_imports(_parse(path.read_bytes()))).get(name, module)
