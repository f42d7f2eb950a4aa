"""Cache keys: arguments in canonical form, and digests of the code behind them.

The library's code counts as one, without `nkdlib.tasks`, which carries results and never makes them. A module or
package of the compendium, and a package of the user's own, counts whole when a function names it or another one
imports it. Functions and classes of a notebook or script count one by one, with all that they name there. Comments,
formatting and docstrings are free. Installed packages do not count.
"""

import ast
import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib.util
import json
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

ALLOWED = (
    "numbers, strings, booleans, None, lists, tuples, dicts with string keys, tensors, frozen dataclasses, functions, "
    "classes, torch dtypes, devices and modules, artefacts, and objects with a `fingerprint`"
)
NEUTRAL = {f"nkdlib.compendium.{name}" for name in ("claims", "criteria", "judge", "plots", "results", "sweep")}
PLAIN = (type(None), bool, int, float, str, list, dict)
READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")  # instructions
PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = PACKAGE.parent
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LOADED = {path: path.read_bytes() for path in PACKAGE.rglob("*.py")}  # what this process runs


def sha256(value: object) -> str:
    """Return the SHA-256 of a JSON-able value; the order of a dict counts, since layers are called in it."""
    text = json.dumps(value, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest(parts: Iterable[str | bytes | Tensor]) -> str:
    """Return the SHA-256 of texts and of tensors: their types, shapes and contents."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            whole.update(f"{part.dtype} {tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        whole.update(part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()


def qualified_name(value: object) -> str:
    """Return module and name of a function or class."""
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None) or value.__name__}"


def fingerprint(value: object) -> str:
    """Return the SHA-256 of a value and of the code that is part of it."""
    found = Ingredients()
    return sha256([found.canonical(value, "value"), found.code])


class Ingredients:
    """What determines a result: `canonical` forms of values, and the code met on the way.

    code: SHA-256 of modules by name. variables: of a notebook or script, which functions there read: name -> function.
    """

    def __init__(self) -> None:
        self.code: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        self._met: dict[int, tuple[int, object]] = {}  # id -> number, and the object, so that its id stays its own
        self._members = functools.cache(_members)  # of a class, which most layers of a network share

    def canonical(self, value: object, name: str, inside: bool = False) -> object:
        """Return `value` as plain JSON types.

        name: what the value is called in errors. inside: of a module or function, which may hold whatever can be
        pickled. Raises TypeError for a value without canonical form, RuntimeError if code behind it was edited after
        this process loaded it.
        """
        if inside and type(value) not in PLAIN:
            pass  # a tuple indexes unlike a list, and a subclass may hold more than it shows
        elif value is None or isinstance(value, bool | int | float | str):
            return value
        elif isinstance(value, list | tuple):
            return [self.canonical(item, f"{name}[{index}]", inside) for index, item in enumerate(value)]
        elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: self.canonical(item, f"{name}[{key!r}]", inside) for key, item in value.items()}
        if isinstance(value, torch.dtype | torch.device):
            return {type(value).__name__: str(value)}
        if isinstance(value, ModuleType):
            self._add_module(value.__name__)
            return {"module": value.__name__}
        if isinstance(value, type):
            return {"class": self._class(value)}
        if isinstance(printed := getattr(value, "fingerprint", None), str):
            return {"class": self._class(type(value)), "fingerprint": printed}
        if isinstance(value, Tensor):
            return self._once(value, lambda: self._tensor(value, name))
        if isinstance(value, nn.Module):
            return self._once(value, lambda: self._network(value, name))
        if isinstance(value, FunctionType):
            return self._once(value, lambda: self._function(value, name))
        if _named(value):
            return self._once(value, lambda: self._callable(value, name))
        if dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {"class": self._class(type(value)), "fields": self.canonical(fields, name, inside)}
        if inside:
            return self._once(value, lambda: self._pickled(value, name))
        raise TypeError(
            f"{name} (a {qualified_name(type(value))}) cannot be part of a cache key; allowed are {ALLOWED}"
        )

    def _once(self, value: object, describe: Callable[[], object]) -> object:
        """Describe an object where it is first met, and refer to that where it is met again."""
        if id(value) in self._met:
            return {"met as number": self._met[id(value)][0]}
        self._met[id(value)] = len(self._met), value
        return {qualified_name(type(value)): describe()}

    def _tensor(self, value: Tensor, name: str) -> list:
        """Describe a tensor by its contents, its attributes and its hooks."""
        hooks = list((value._backward_hooks or {}).values())
        try:
            contents = digest([value])
        except (RuntimeError, NotImplementedError) as error:  # a sparse one, a lazy one, one on the device meta
            raise TypeError(
                f"{name} (a {qualified_name(type(value))}) cannot be part of a cache key, since its contents "
                f"cannot be read ({error}); use a plain tensor, and call a lazy layer once"
            ) from error
        held = {key: item for key, item in vars(value).items() if not key.startswith("_dynamo")}  # a compiler's marks
        return [contents, value.requires_grad, self.canonical([held, hooks], name, inside=True)]

    def _network(self, module: nn.Module, name: str) -> str:
        """Return the SHA-256 of all that a module holds: attributes, mode, hooks, parameters, buffers and children."""
        usual, traced = vars(nn.Module()), isinstance(module, fx.GraphModule)
        plain = vars(fx.GraphModule(nn.Module(), fx.Graph())) if traced else usual
        held = {key: value for key, value in sorted(vars(module).items()) if key not in plain}  # a copy's order differs
        held = {} if "_orig_mod" in module._modules else held  # compiled: the rest is the compiler's own
        held.pop("_compiled_call_impl", None)
        held |= {key: list(vars(module)[key].values()) for key in usual if "hooks" in key and "state_dict" not in key}
        held["training"] = module.training
        held |= {**module._parameters, **module._buffers, **module._modules, "graph": module.code if traced else None}
        described = {key: self.canonical(value, f"{name}.{key}", inside=True) for key, value in held.items()}
        return sha256([self._class(type(module)), described])

    def _function(self, function: FunctionType, name: str) -> dict[str, object]:
        """Describe a function by its name, if its module's code counts, else also by its code and all that it holds."""
        self._add_module(function.__module__)
        described: dict[str, object] = {"name": qualified_name(function)}
        if _is_found(function):
            return described
        held = {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__, **vars(function)}
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # one that is still empty
                held[variable] = cell.cell_contents
        described["holds"] = self.canonical(held, f"what {function.__name__} holds in {name}", inside=True)
        steps = list(_instructions(function.__code__))
        described["code"] = sha256([list(map(repr, step)) for step in steps])
        for kind, imported, *_ in steps:
            if kind == "IMPORT_NAME":
                self._add_module(imported)
        if function.__globals__.get("__name__") == "__main__":
            names = {name for kind, name, *_ in steps if kind in READS and not name.startswith("__")}
            reads = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
            defined = {name for name, value in reads.items() if isinstance(value, ModuleType | type) or _named(value)}
            self.variables |= dict.fromkeys(reads.keys() - defined, function.__name__)
            described["reads"] = self.canonical(reads, f"what {function.__name__} reads")
        return described

    def _callable(self, value: Callable, name: str) -> list:
        """Describe bound methods, wrappers and functions of extensions by name and by what they hold."""
        held = {key: held for key, held in getattr(value, "__dict__", {}).items() if key != "__doc__"}
        held |= {key: getattr(value, key, None) for key in ("__func__", "__self__")}
        return [qualified_name(value), self.canonical(held, name, inside=True)]

    def _class(self, kind: type) -> object:
        """Return the name of a class, and the members, its bases' too, that no module shows: all, or replaced ones."""
        described = []
        for base in kind.__mro__:
            self._add_module(base.__module__)
            if members := self._members(base):
                described.append(
                    self._once(base, functools.partial(self.canonical, members, qualified_name(base), True))
                )
        return [qualified_name(kind), *described]

    def _pickled(self, value: object, name: str) -> object:
        """Describe any other object by the parts that it is pickled as."""
        if type(value) is bytes:
            return digest([value])
        if type(value) is tuple:
            return self.canonical(list(value), name, inside=True)
        if isinstance(value, weakref.ref):
            return self.canonical(value(), name, inside=True)
        if type(value) in (set, frozenset):
            return sorted(json.dumps(self.canonical(item, name, inside=True)) for item in value)
        try:
            parts = value.__reduce_ex__(2)
        except Exception as error:
            raise TypeError(
                f"{name} (a {qualified_name(type(value))}) cannot be part of a cache key, since it cannot be pickled; "
                "remove it, use the module that was scripted or exported, or give its owner a `fingerprint`"
            ) from error
        parts = parts if isinstance(parts, str) else [list(p) if isinstance(p, Iterator) else p for p in parts]
        return [self._class(type(value)), self.canonical(parts, name, inside=True)]

    def _add_module(self, name: str) -> None:
        """Add the code that a module counts with, and that of the user's or compendium's modules it imports."""
        unit = _unit(name)
        if unit in self.code or not (files := _files(unit)):
            return
        parts = []
        for path in files:
            now = path.read_bytes()
            code, imports = _parsed(loaded := _LOADED.setdefault(path, now))
            if now != loaded and _parsed(now)[0] != code:
                raise RuntimeError(
                    f"{path} was edited after this process loaded it, so its results would be kept as the new code's; "
                    "restart the kernel"
                )
            parts.append([path.name, code, imports])
        self.code[unit] = sha256(parts)
        for imported in {imported for *_, imports in parts for imported in imports if unit != "nkdlib"}:
            self._add_module(imported)


def _members(kind: type) -> dict[str, object]:
    """Return the members of a class that no module shows: all, or those that were replaced in a module's class."""
    if _is_found(kind):
        return {k: v for k, v in vars(kind).items() if isinstance(v, FunctionType) and _is_foreign(v)}
    if kind.__module__ == parametrize.__name__:
        return {}  # a module's own class, made for the parametrizations that stand among its children
    return {key: _behind(value) for key, value in vars(kind).items() if _is_own(key, value)}


def _behind(member: object) -> object:
    """Return the functions that a member of a class wraps, if any, else the member."""
    wraps = isinstance(member, staticmethod | classmethod | property | functools.cached_property)
    return [getattr(member, part, None) for part in ("__func__", "fget", "fset", "fdel", "func")] if wraps else member


def _is_own(key: str, member: object) -> bool:
    """Tell whether a class' author wrote a member; fields of dataclasses are found in their `__init__`."""
    return isinstance(member, FunctionType) or not (key.startswith("__") or key == "_abc_impl")


def _named(value: object) -> bool:
    """Tell functions, methods and their wrappers from other objects that can be called."""
    return callable(value) and hasattr(value, "__name__")


def _is_found(value: FunctionType | type) -> bool:
    """Tell whether a module, whose code counts, holds a function or class under its name."""
    found = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value and value.__module__ != "__main__"


def _is_foreign(method: FunctionType) -> bool:
    """Tell whether a method was put in its place by others; torch's compiler changes torch's own classes."""
    return not _is_found(method) and not str(method.__module__).startswith("torch.")


def _unit(module: str) -> str:
    """Return what a module counts with: nkdlib, a module or package of its compendium, or a top-level package."""
    top, *below = str(module).split(".")
    return ".".join([top, *below[:2]]) if (top, *below[:1]) == ("nkdlib", "compendium") else top


@functools.cache
def _files(unit: str) -> list[Path]:
    """Return the sources of a unit, none for an installed package and for one that makes no results."""
    if unit == "nkdlib":
        return sorted(
            path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("compendium", "tasks")
        )
    if unit in NEUTRAL or unit in ("__main__", "None") or not (spec := importlib.util.find_spec(unit)):
        return []
    files = [path for folder in spec.submodule_search_locations or () for path in sorted(Path(folder).rglob("*.py"))]
    files = files or [Path(spec.origin or "")]
    installed = not unit.startswith("nkdlib.") and str(files[0]).startswith(_INSTALLED)
    return [] if installed or files[0].suffix != ".py" else files


@functools.cache
def _parsed(source: bytes) -> tuple[str, list[str]]:
    """Return the SHA-256 of a module's code without docstrings, and the modules that it imports or imports from."""
    imports, tree = set(), ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:  # relative ones stay in their package
            imports |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return sha256(ast.dump(tree)), sorted(imports)


def _instructions(code: CodeType) -> Iterator[list]:
    """Yield what the instructions of a function and those in it do, whatever their line."""
    yield [code.co_exceptiontable.hex(), code.co_varnames, code.co_argcount, code.co_kwonlyargcount]
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):
            yield from _instructions(step.argval)
        else:
            yield [step.opname, sorted(step.argval, key=repr) if isinstance(step.argval, frozenset) else step.argval]
