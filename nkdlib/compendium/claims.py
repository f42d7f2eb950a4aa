"""The papers' claims and our findings, read from `claims.toml` beside this file."""

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
    code: tuple[str, ...]  # functions and classes that it stands on, under their public names
    tests: tuple[str, ...]  # files of tests of these
    why: str = ""  # a sentence on what lies behind the verdict

    def criterion(self, name: str) -> Criterion:
        """Return the criterion called `name`. Raises `KeyError` for an unknown one."""
        return {criterion.name: criterion for criterion in self.criteria}[name]

    def on(self, metric: str) -> tuple[Criterion, ...]:
        """Return the criteria that read `metric`. Raises `ValueError` naming the claim's metrics if none does."""
        if found := tuple(criterion for criterion in self.criteria if criterion.metric == metric):
            return found
        names = dict.fromkeys(criterion.metric for criterion in self.criteria)
        raise ValueError(f"metric (={metric!r}) is not one of {self.id}'s: {', '.join(names)}")


@dataclass(frozen=True)
class Finding:
    """A sentence that results fill in."""

    id: str
    title: str
    words: str  # with {CLAIM.criterion} for a mean with its interval


def claim_by_id(claim_id: str) -> Claim:
    """Return the claim called `claim_id`. Raises `ValueError` naming the known ids for any other."""
    for claim in CLAIMS:
        if claim.id == claim_id:
            return claim
    raise ValueError(f"claim_id (={claim_id!r}) must be one of {', '.join(c.id for c in CLAIMS)}")


def read_claims(text: str) -> tuple[Claim, ...]:
    """Read the claims.

    Args:
        text: TOML with a table `claim.ID` for each claim, which holds the fields of `Claim`, and a table
            `claim.ID.criterion.NAME` for each criterion, with those of `Criterion`, some of them in a table `asked`;
            `metric` is the name if not given.

    Raises:
        ValueError: text that is no TOML, such as an id that stands twice; an unknown or missing field; a claim without
            a criterion. It names the claim and the field.
    """
    content = tomllib.loads(text)
    if unknown := content.keys() - {"claim", "finding"}:
        raise ValueError(f"table `{min(unknown)}` is unknown; claims stand in `claim`, findings in `finding`")
    claims = []
    for name, fields in content.get("claim", {}).items():
        criteria = tuple(
            _built(Criterion, f"{name}, {key}", {"name": key, "metric": key} | asked.pop("asked", {}) | asked)
            for key, asked in fields.pop("criterion", {}).items()
        )
        if not criteria:
            raise ValueError(f"claim {name} has no `criterion`; it could not be judged")
        claims.append(_built(Claim, name, fields | {"id": name, "criteria": criteria}))
    return tuple(claims)


def read_findings(text: str) -> tuple[Finding, ...]:
    """Read the findings: a table `finding.ID` for each, with the fields of `Finding`."""
    tables = tomllib.loads(text).get("finding", {})
    return tuple(_built(Finding, name, fields | {"id": name}) for name, fields in tables.items())


def _built(kind: type[Kind], name: str, values: Mapping[str, object]) -> Kind:
    """Make a dataclass from a table of TOML, whose arrays become tuples."""
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    if unknown := values.keys() - fields:
        raise ValueError(f"claim {name}: field `{min(unknown)}` is unknown; the fields are: {', '.join(fields)}")
    if missing := [field for field, needed in fields.items() if needed and field not in values]:
        raise ValueError(f"claim {name}: field `{missing[0]}` is missing")
    return kind(**{field: tuple(value) if isinstance(value, list) else value for field, value in values.items()})


_TEXT = resources.files("nkdlib.compendium").joinpath("claims.toml").read_text()
CLAIMS, FINDINGS = read_claims(_TEXT), read_findings(_TEXT)
