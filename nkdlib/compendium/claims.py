"""The papers' claims, read from `claims.toml` beside this file."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal, TypeVar

from nkdlib.compendium.criteria import Criterion

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper with a number or an order in it."""

    id: str
    paper: Literal["ND", "FiGS"]
    title: str
    wording: str  # our own words
    published: str
    source: str  # of the published value
    metric: str  # the measurement here, in words
    criteria: tuple[Criterion, ...]
    notebook: str
    cost: Mapping[str, str]  # profile -> time that the notebook takes on two cores
    code: tuple[str, ...]  # functions and classes that it stands on, under their public names
    tests: tuple[str, ...]  # files of tests of these
    extension: bool = False  # ours, beyond the paper

    def criterion(self, metric: str) -> Criterion:
        """Return the criterion on `metric`. Raises `ValueError` naming the claim's metrics for any other name."""
        for criterion in self.criteria:
            if criterion.metric == metric:
                return criterion
        names = ", ".join(c.metric for c in self.criteria)
        raise ValueError(f"metric (={metric!r}) is not one of {self.id}'s: {names}")


def claim_by_id(claim_id: str) -> Claim:
    """Return the claim called `claim_id`. Raises `ValueError` naming the known ids for any other."""
    for claim in CLAIMS:
        if claim.id == claim_id:
            return claim
    raise ValueError(f"claim_id (={claim_id!r}) must be one of {', '.join(c.id for c in CLAIMS)}")


def read_claims(text: str) -> tuple[Claim, ...]:
    """Read the claims.

    Args:
        text: TOML with a table `notebooks`, stem -> cost by profile, and a table `claim.ID` for each claim, which
            holds the fields of `Claim` and a table `criterion.METRIC` for each criterion, with those of `Criterion`.

    Raises:
        ValueError: text that is no TOML, such as an id that stands twice; an unknown or missing field; a claim without
            a criterion; a notebook that is not listed. It names the claim and the field.
    """
    content = tomllib.loads(text)
    if unknown := content.keys() - {"notebooks", "claim"}:
        raise ValueError(f"table `{min(unknown)}` is unknown; the tables are `notebooks` and `claim`")
    notebooks, claims = content.get("notebooks", {}), []
    for name, fields in content.get("claim", {}).items():
        criteria = tuple(
            _built(Criterion, f"{name}, {metric}", {"metric": metric} | asked.pop("asked", {}) | asked)
            for metric, asked in fields.pop("criterion", {}).items()
        )
        if not criteria:
            raise ValueError(f"claim {name} has no `criterion`; it could not be judged")
        notebook = fields.get("notebook")
        if notebook is not None and notebook not in notebooks:
            raise ValueError(f"claim {name}: `notebook` (={notebook!r}) is not one of: {', '.join(notebooks)}")
        found = fields | {"id": name, "criteria": criteria, "cost": notebooks.get(notebook)}
        claims.append(_built(Claim, name, found))
    return tuple(claims)


def _built(kind: type[Kind], name: str, values: Mapping[str, object]) -> Kind:
    """Make a dataclass from a table of TOML, whose arrays become tuples."""
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    if unknown := values.keys() - fields:
        raise ValueError(f"claim {name}: field `{min(unknown)}` is unknown; the fields are: {', '.join(fields)}")
    if missing := [field for field, needed in fields.items() if needed and field not in values]:
        raise ValueError(f"claim {name}: field `{missing[0]}` is missing")
    return kind(**{field: tuple(value) if isinstance(value, list) else value for field, value in values.items()})


CLAIMS = read_claims(resources.files("nkdlib.compendium").joinpath("claims.toml").read_text())
