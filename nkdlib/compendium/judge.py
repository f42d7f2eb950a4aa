"""The judge: observations in, a verdict with its reason out; a tier's verdicts as a record, read from its reference."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from nkdlib.compendium.claims import Claim, claim_by_id
from nkdlib.compendium.criteria import AIM, Assessment, short, t_interval
from nkdlib.compendium.records import REFERENCE, write_json
from nkdlib.compendium.tiers import TIERS
from nkdlib.tasks.places import figures_root

Verdict = Literal["reproduced", "contradicted", "undecided", "in part", "not attempted"]


@dataclass(frozen=True)
class Observation:
    """One metric of one claim under one seed; `value` is None if the seed did not reach its goal."""

    claim: str
    metric: str
    seed: int
    value: float | None
    condition: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        criteria = claim_by_id(self.claim).on(self.metric)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed (={self.seed!r}) of {self.claim} {self.metric} must be an int")
        for criterion in criteria:
            t_interval({self.seed: self.value}, criterion.scale)  # refuses a value that the scale does not have


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim at one tier, with the assessment of every criterion that was observed, by its name."""

    verdict: Verdict
    reason: str
    found: Mapping[str, Assessment]


class Verdicts(dict[str, Judgement]):
    """Judgements by claim id that print themselves: the verdict, then every criterion with every seed."""

    def __repr__(self) -> str:
        text = []
        for name, judgement in self.items():
            claim = claim_by_id(name)
            text.append(f"{name:6}{claim.title}: {judgement.verdict.upper()}")
            text.append(f"      published: {claim.published}; here: {judgement.reason}")
            for criterion in claim.criteria:
                ours, found = criterion.column == "aim", judgement.found.get(criterion.name)
                seeds = found.n if found else criterion.seeds
                if found:
                    every, outcome = ", ".join(map(short, found.values.values())), found.outcome
                    text.append(f"      {'our aim: ' * ours}{criterion.label} {found} {criterion.unit}; seeds {every}")
                    text.append(f"          asked: {criterion}; {AIM[outcome] if ours else outcome}")
                if (chance := criterion.chance(seeds)) is not None:
                    text.append(
                        f"          chance that {criterion.label} is met by {seeds} seeds if exactly true: {chance:.0%}"
                    )
        return "\n".join(text)


NOTHING = Judgement("not attempted", "no reference is committed yet", {})


@dataclass(frozen=True)
class Record:
    """The verdicts of one tier, every seed, and the provenance of the notebooks behind them."""

    profile: str
    claims: Verdicts
    provenance: Mapping[str, Mapping[str, object]]  # notebook -> as it wrote it

    def write(self, path: Path) -> Path:
        """Write the record as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read what `write` wrote; `ValueError` for any other file."""
        try:
            content = json.loads(path.read_text())
            for judged in content["claims"].values():
                for name, found in judged["found"].items():
                    values = {int(seed): value for seed, value in found["values"].items()}
                    judged["found"][name] = Assessment(**found | {"values": values})
            claims = {name: Judgement(**judged) for name, judged in content["claims"].items()}
            return cls(content["profile"], Verdicts(claims), content["provenance"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a reference ({error!r}); restore it, or write it anew") from error


def read_reference(profile: str, figures: Path | None = None) -> Record | None:
    """Read the committed reference of a tier, None if there is none."""
    path = (figures or figures_root()) / profile / REFERENCE
    return Record.read(path) if path.exists() else None


def judge(claim: Claim | str, observations: Iterable[Observation], profile: str, own: str = "") -> Judgement:
    """Judge one claim on the observations of one tier, by its criteria of the column "paper".

    *Reproduced*: all hold. *In part*: some hold. *Contradicted*: none holds and one fails. *Undecided*: all are open.
    *Not attempted*: one cannot be judged; the reason says why.

    Args:
        claim: the claim, or its id.
        observations: those of this claim; others are passed over.
        profile: the tier they come from.
        own: how the run's parameters differ from the tier's; such a run is not judged.

    Raises:
        ValueError: an unknown tier, or two values of one metric and seed.
    """
    claim = claim_by_id(claim) if isinstance(claim, str) else claim
    if profile not in TIERS:
        raise ValueError(f"profile (={profile!r}) must be one of {', '.join(TIERS)}")
    values = by_metric(observation for observation in observations if observation.claim == claim.id)
    criteria = [criterion for criterion in claim.criteria if criterion.applies(profile)]
    unjudged = f"own parameters: not judged ({own})" if own else ""
    if not TIERS[profile].judged:
        unjudged = f"the tier {profile} is a first look and judges nothing"
    found = {c.name: c.assess(values[c.metric], unjudged) for c in criteria if c.metric in values}
    deciding = [criterion for criterion in criteria if criterion.column == "paper"]
    lacking = [
        found[c.name].words if c.name in found else f"{c.label} was not observed"
        for c in deciding
        if c.name not in found or found[c.name].outcome == "not judged"
    ]
    outcomes = {found[c.name].outcome for c in deciding if c.name in found}
    reason = "; ".join(found[c.name].words for c in deciding if c.name in found)
    if unjudged:
        verdict, reason = "not attempted", unjudged
    elif not deciding:
        others = sorted({name for c in claim.criteria if c.column == "paper" for name in c.tiers or ()})
        listed = " or ".join(filter(None, (", ".join(others[:-1]), *others[-1:])))
        verdict, reason = "not attempted", f"only the tier{'s' * (len(others) > 1)} {listed} can decide it"
    elif lacking:
        verdict, reason = "not attempted", "; ".join(lacking) if values else f"no observations at {profile}"
    elif "holds" in outcomes:
        verdict = "reproduced" if outcomes == {"holds"} else "in part"
    else:
        verdict = "contradicted" if "fails" in outcomes else "undecided"
    return Judgement(verdict, reason, found)


def by_metric(observations: Iterable[Observation]) -> dict[str, dict[int, float | None]]:
    """Return the values of one claim's metrics by seed. Raises `ValueError` for two values of one metric and seed."""
    values: dict[str, dict[int, float | None]] = {}
    for observation in observations:
        seeds = values.setdefault(observation.metric, {})
        if observation.seed in seeds:
            raise ValueError(
                f"{observation.claim} {observation.metric} was observed twice under seed {observation.seed}; "
                "observe it once per seed and put conditions into a table"
            )
        seeds[observation.seed] = observation.value
    return values
