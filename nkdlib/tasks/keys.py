"""What stands for a task in the cache: its arguments in canonical form, and the code that its function reaches.

Functions and classes of a notebook or a script count one by one with the constants that they name; modules, of
nkdlib or the user's own, count whole and are followed through their imports. Comments, formatting and docstrings
do not count, nor do the modules in NEUTRAL, which carry results and never make them, nor installed packages.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import linecache
import symtable
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType

import torch
from torch import Tensor, nn

ALLOWED = (
    "numbers, strings, booleans, None, lists, tuples, dicts with string keys, frozen dataclasses, functions, "
    "classes, torch dtypes, devices and modules, artefacts, and objects with a `fingerprint`"
)
NEUTRAL = (
    "nkdlib.tasks",
    *(f"nkdlib.compendium.{name}" for name in ("plots", "claims", "criteria", "judge", "results")),
)
PLAIN = (bool, int, float, str, tuple, type(None))
SOURCES = Path(__file__).resolve().parents[2]
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LOADED = {path: path.read_bytes() for path in (SOURCES / "nkdlib").rglob("*.py")}  # what this process runs


def sha256(value: object) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def qualified_name(value: object) -> str:
    """Return module and name of a function or class."""
    return f"{value.__module__}.{value.__qualname__}"


def canonical(value: object, name: str, code: list) -> object:
    """Return `value` as plain JSON types.

    name: what the value is called, for the error. code: functions and classes met on the way are appended to
    it, because what they do is part of the value. Raises TypeError for a value that has no canonical form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{name}[{index}]", code) for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: canonical(item, f"{name}[{key!r}]", code) for key, item in value.items()}
    if isinstance(value, torch.dtype | torch.device):
        return {type(value).__name__: str(value)}
    if isinstance(value, type | FunctionType | BuiltinFunctionType) or hasattr(value, "__wrapped__"):
        if "<lambda>" in value.__qualname__:
            raise TypeError(f"{name} is a lambda, which has no name of its own; define it with `def`")
        code.append(inspect.unwrap(value))
        return {"code": qualified_name(value)}
    if isinstance(fingerprint := getattr(value, "fingerprint", None), str):
        code.append(type(value))
        return {qualified_name(type(value)): fingerprint}
    if isinstance(value, nn.Module):
        code.extend({type(part) for part in value.modules()})
        return {qualified_name(type(value)): digest(_describe(value))}
    if dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:
        code.append(type(value))
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {qualified_name(type(value)): {key: canonical(v, f"{name}.{key}", code) for key, v in fields.items()}}
    raise TypeError(f"{name} (a {qualified_name(type(value))}) cannot be part of a cache key; allowed are {ALLOWED}")


def fingerprint(value: object) -> str:
    """Return the SHA-256 of a value and of the code that is part of it."""
    code: list = []
    return sha256([canonical(value, "value", code), reached_code(*code)])


def digest(parts: Iterable[str | Tensor]) -> str:
    """Return the SHA-256 of texts and of tensors: their types, shapes and contents."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            whole.update(f"{part.dtype} {tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        whole.update(part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()


def _describe(module: nn.Module) -> Iterator[str | Tensor]:
    """Yield a module's structure, settings, which may not be in its `repr`, and weights."""
    yield repr(module)
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if isinstance(value, PLAIN) and key != "training"}
        yield repr((name, sorted(plain.items())))
    yield repr([name for name, value in module.named_parameters() if value.requires_grad])
    for item in module.state_dict().items():
        yield from item


def reached_code(*roots: object) -> dict[str, str]:
    """Return name -> SHA-256 of everything that the functions and classes `roots` reach.

    Raises TypeError where a function names a global that has no canonical form, RuntimeError where a reached
    module was edited after this process loaded it.
    """
    found: dict[str, str] = {}
    for root in roots:
        _reach(root, getattr(root, "__qualname__", str(root)), found)
    return dict(sorted(found.items()))


def _reach(value: object, name: str, found: dict[str, str]) -> None:
    """Add to `found` what `value`, called `name`, is made of."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, ModuleType):
        _reach_module(value.__name__, found)
    elif isinstance(value, type | FunctionType):
        if _in_notebook(value):
            _reach_definition(value, found)
        else:
            _reach_module(value.__module__, found)
    elif not (hasattr(value, "__name__") or type(value).__module__.startswith(NEUTRAL)):
        code: list = []
        found[name] = sha256(canonical(value, f"the global `{name}` that a task names", code))
        for item in code:
            _reach(item, name, found)


def _reach_module(name: str, found: dict[str, str]) -> None:
    if name in found or name.startswith(NEUTRAL) or (path := _path(name)) is None:
        return
    loaded, now = _LOADED.setdefault(path, path.read_bytes()), path.read_bytes()
    found[name], imports = _module(name, path, loaded)
    if now != loaded and _module(name, path, now)[0] != found[name]:
        raise RuntimeError(
            f"{path} was edited after this process loaded it, so its results would be kept as the new code's; "
            "restart the kernel"
        )
    for module in imports:
        _reach_module(module, found)


def _reach_definition(value: type | FunctionType, found: dict[str, str]) -> None:
    name = qualified_name(value)
    if name in found:
        return
    tree = _definition(value)
    found[name] = _hash(tree)
    for _, module in _imports(tree, ""):
        _reach_module(module, found)
    scope = _scope(value)
    for used in sorted(_outer_names(symtable.symtable(ast.unparse(tree), name, "exec"))):
        if used in scope and scope[used] is not value and not used.startswith("__"):
            _reach(scope[used], f"{value.__module__}.{used}", found)


def refuse_globals(function: FunctionType) -> None:
    """Raise TypeError if a function of a notebook or script, or one that it names there, reads a variable from outside.

    Modules, functions and classes are no variables.
    """
    seen, left = [], [function]
    while left:
        value = inspect.unwrap(left.pop())
        if value in seen or not _in_notebook(value):
            continue
        seen.append(value)
        scope = _scope(value)
        for name in sorted(_outer_names(symtable.symtable(ast.unparse(_definition(value)), "", "exec"))):
            found = scope.get(name, ast)  # builtins and names that are nowhere are not looked at
            if isinstance(found, type | FunctionType):
                left.append(found)
            elif not (hasattr(found, "__name__") or name.startswith("__")):
                raise TypeError(
                    f"{value.__name__} reads `{name}`, a variable of {value.__module__} that its key would not "
                    "contain; make it an argument"
                )


def _in_notebook(value: object) -> bool:
    """Tell whether a function or class is defined in a notebook, a script or another function."""
    return isinstance(value, type | FunctionType) and (
        value.__module__ == "__main__" or "<locals>" in value.__qualname__
    )


def _scope(value: type | FunctionType) -> dict[str, object]:
    """What the names in a definition may refer to."""
    names = dict(vars(sys.modules[value.__module__]))
    for member in vars(value).values() if isinstance(value, type) else [value]:
        member = getattr(member, "__func__", getattr(member, "fget", member))  # behind classmethod, property
        if isinstance(member, FunctionType):
            names |= inspect.getclosurevars(inspect.unwrap(member)).nonlocals
    return names


def _outer_names(table: symtable.SymbolTable) -> set[str]:
    """The names that a piece of code and the functions in it read from outside."""
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return names.union(*map(_outer_names, table.get_children()))


def _definition(value: type | FunctionType) -> ast.Module:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError):
        # Python cannot find a class that a notebook's cell defined; the latest cell that defines it can.
        for _, _, lines, *_ in reversed([entry for entry in linecache.cache.values() if len(entry) > 2]):
            with contextlib.suppress(SyntaxError):
                for node in ast.walk(ast.parse("".join(lines))):
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


def _path(module: str) -> Path | None:
    """Return the source of a module of nkdlib or of the user's own, None for any other name."""
    top, *below = module.split(".")
    if (spec := importlib.util.find_spec(top)) is None:
        return None
    stems = [Path(folder, *below) for folder in spec.submodule_search_locations or ()]
    if not (stems or below):
        stems = [Path(spec.origin).with_suffix("")]
    files = [file for stem in stems for file in (stem / "__init__.py", stem.with_suffix(".py"))]
    own = (file for file in files if top == "nkdlib" or not str(file).startswith(_INSTALLED))
    return next((file for file in own if file.is_file()), None)


@functools.cache
def _module(name: str, path: Path, source: bytes) -> tuple[str, frozenset[str]]:
    """Return the SHA-256 of a module's code, and the modules that it imports from."""
    tree, package = ast.parse(source), name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _hash(tree), frozenset(module for _, module in _imports(tree, package))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Yield the names that the import statements in `tree` bind, each with the module that defines it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((alias.asname or alias.name, _defining_module(source, alias.name)) for alias in node.names)


def _defining_module(module: str, name: str) -> str:
    """Return the module that `from module import name` reaches, through the re-exports of packages."""
    if _path(f"{module}.{name}"):
        return f"{module}.{name}"
    path = _path(module)
    if path is None or path.name != "__init__.py":
        return module
    return _exports(module, path.read_bytes()).get(name, module)


@functools.cache
def _exports(package: str, source: bytes) -> dict[str, str]:
    return dict(_imports(ast.parse(source), package))
