"""Values as canonical JSON, so that equal arguments give equal keys in every process and on every day."""

import dataclasses
import hashlib
import inspect
import json
from types import BuiltinFunctionType, FunctionType

import torch

ALLOWED = (
    "numbers, strings, booleans, None, lists, tuples, dicts with string keys, frozen dataclasses, functions, "
    "classes, torch dtypes and devices, artefacts, and objects with a `fingerprint`"
)


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
    if dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:
        code.append(type(value))
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {qualified_name(type(value)): {key: canonical(v, f"{name}.{key}", code) for key, v in fields.items()}}
    raise TypeError(f"{name} (a {qualified_name(type(value))}) cannot be part of a cache key; allowed are {ALLOWED}")
