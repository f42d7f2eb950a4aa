"""Tiers: budgets of data, device, repeats and parameters for the same notebooks, read from the files in `tiers/`."""

import ast
import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from joblib import cpu_count

from nkdlib.tasks.places import checkout

INDIFFERENT = {"jobs", "executor"}  # parameters that must not change a result
TYPES = {"bool": bool, "int": int, "float": (int, float), "str": str, "list": list, "dict": dict}


@dataclass(frozen=True)
class Tier:
    """One budget."""

    name: str
    judged: bool  # False: its numbers are watermarked and judge nothing
    common: Mapping[str, object]  # data, device and seeds of every notebook that names no others
    notebooks: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # stem -> parameters

    def for_notebook(self, stem: str, **overrides: object) -> dict[str, object]:
        """Return the parameters of the notebook `stem`; `overrides` that are not None win."""
        common = {"profile": self.name, "jobs": cpu_count(), "executor": "local", **self.common}
        given = {name: value for name, value in overrides.items() if value is not None}
        return {**common, **self.notebooks.get(stem, {}), **given}

    def protocol(self, stem: str) -> dict[str, object]:
        """Return every parameter that a judged run of the notebook `stem` has, its own defaults among them."""
        asked = portable({**defaults(stem), **self.for_notebook(stem)})
        return {name: value for name, value in asked.items() if name not in INDIFFERENT}

    def to_change(self, stem: str, parameters: Mapping[str, object]) -> dict[str, object]:
        """Return the parameters that a run of the notebook `stem` has to change to be this tier's."""
        had, asked = (json.loads(json.dumps(values)) for values in (portable(parameters), self.protocol(stem)))
        return {name: value for name, value in asked.items() if name not in had or had[name] != value}

    def departures(self, stem: str, parameters: Mapping[str, object]) -> str:
        """Say in which parameters a run of the notebook `stem` differs from this tier; nothing if it may be judged."""
        had = json.loads(json.dumps(portable(parameters)))
        other = [
            f"{name}={had[name]!r} in place of {value!r}" if name in had else f"without {name}"
            for name, value in self.to_change(stem, parameters).items()
        ]
        return "; ".join([*other[:3], f"{len(other) - 3} more"] if len(other) > 3 else other)


def read_tier(path: Path) -> Tier:
    """Read a tier from its YAML file; the entry `shared` only holds values that others repeat."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values.pop("shared", None)
    return Tier(path.stem, **values)


def portable(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return parameters without folders: of an absolute path only the last part is kept, behind dots.

    The dots tell a folder from the data set of that name.

    >>> portable({"data": "/somewhere/cifar10", "steps": 3})
    {'data': '.../cifar10', 'steps': 3}
    """
    return {
        name: f".../{Path(value).name}" if isinstance(value, str) and os.path.isabs(value) else value
        for name, value in parameters.items()
    }


def defaults(stem: str) -> dict[str, object]:
    """Return what the notebook `stem` of the checkout gives its parameters; nothing without that notebook."""
    path = (checkout() or Path()) / "notebooks" / f"{stem}.ipynb"
    if not path.is_file():
        return {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(source).body if hasattr(line, "target")}


def check_parameters(parameters: Mapping[str, object], declared: Mapping[str, Mapping[str, str]]) -> None:
    """Check names and types of parameters against those that a notebook declares.

    declared: as `papermill.inspect_notebook` returns them. Raises ValueError for a name or a type that differs.
    """
    for name, value in parameters.items():
        if name not in declared:
            near = ", ".join(difflib.get_close_matches(name, declared, n=3, cutoff=0) or ["none"])
            raise ValueError(f"declares no parameter `{name}`; the nearest it has: {near}")
        kind = declared[name]["inferred_type_name"]
        if not isinstance(value, TYPES.get(kind, object)) or (isinstance(value, bool) and kind in ("int", "float")):
            raise ValueError(f"declares {name} as {kind}, which {value!r} is not")


FOLDER = Path(__file__).with_suffix("")
TIERS = {path.stem: read_tier(path) for path in sorted(FOLDER.glob("*.yaml"))}
