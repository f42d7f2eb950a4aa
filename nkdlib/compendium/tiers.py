"""Tiers: budgets of data, device, repeats and parameters for the same notebooks, read from the files in `tiers/`."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from joblib import cpu_count

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


def read_tier(path: Path) -> Tier:
    """Read a tier from its YAML file; the entry `shared` only holds values that others repeat."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values.pop("shared", None)
    return Tier(path.stem, **values)


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
TIERS = {name: read_tier(FOLDER / f"{name}.yaml") for name in ("smoke", "cpu", "gpu", "paper")}
