"""The judge: observations in, a verdict with its reason out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nkdlib.compendium.claims import Claim, claim_by_id
from nkdlib.compendium.criteria import Assessment, short, t_interval
from nkdlib.compendium.tiers import TIERS

Verdict = Literal["reproduced", "partly", "not reproduced", "not attempted"]


@dataclass(frozen=True)
class Observation:
    """One metric of one claim under one seed; `value` is None if the seed did not reach its goal."""

    claim: str
    metric: str
    seed: int
    value: float | None
    profile: str
    condition: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        claim_by_id(self.claim).criterion(self.metric)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed (={self.seed!r}) of {self.claim} {self.metric} must be an int")
        t_interval({self.seed: self.value})  # refuses a value that is not finite
        _check(self.profile)


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim at one profile, with the assessment of every observed metric."""

    verdict: Verdict
    reason: str
    evidence: str  # its level, empty for a claim that was not attempted
    metrics: Mapping[str, Assessment]


class Verdicts(dict[str, Judgement]):
    """Judgements by claim id that print themselves: the verdict, then two lines for each criterion with every seed."""

    def __repr__(self) -> str:
        text = []
        for name, judgement in self.items():
            claim, level = claim_by_id(name), f", {judgement.evidence}" if judgement.evidence else ""
            text.append(f"{name:6}{claim.title}: {judgement.verdict.upper()}{level}")
            text.append(f"      published: {claim.published}; here: {judgement.reason}")
            for metric, assessment in judgement.metrics.items():
                criterion, seeds = claim.criterion(metric), ", ".join(map(short, assessment.values.values()))
                text.append(f"      {metric} = {assessment} {criterion.unit}; seeds {seeds}")
                text.append(f"          asked: {criterion}; {assessment.outcome}")
        return "\n".join(text)


def judge(claim: Claim | str, observations: Iterable[Observation], profile: str) -> Judgement:
    """Judge one claim on the observations of one profile.

    If all deciding criteria hold in full, the claim is reproduced; if none holds, it is not reproduced; otherwise it
    is partly reproduced. Without enough seeds for every deciding criterion, or at a profile that judges nothing, it is
    not attempted and the reason says why.

    Args:
        claim: the claim, or its id.
        observations: those of this claim; others are passed over.
        profile: the profile they come from.

    Raises:
        ValueError: an unknown profile, two values of one metric and seed, or observations of another judged profile.
    """
    claim = claim_by_id(claim) if isinstance(claim, str) else claim
    _check(profile)
    own = [observation for observation in observations if observation.claim == claim.id]
    criteria = [criterion for criterion in claim.criteria if criterion.applies(profile)]
    found, whys, values = {}, {}, by_metric(own)
    for criterion in criteria:
        whys[criterion.metric] = f"{criterion.metric} was not observed"
        if criterion.metric in values:
            span = t_interval(values[criterion.metric])
            outcome, whys[criterion.metric] = criterion.outcome(span)
            found[criterion.metric] = Assessment(span.mean, span.low, span.high, span.values, outcome)

    def judgement(verdict: Verdict, reason: str) -> Judgement:
        level = "paper-scale" if profile == "paper" else "scaled"
        return Judgement(verdict, reason, "" if verdict == "not attempted" else level, found)

    foreign = sorted({observation.profile for observation in own} - {profile})
    if unjudged := [name for name in (profile, *foreign) if not TIERS[name].judged]:
        return judgement("not attempted", f"the profile {unjudged[0]} is a first look and judges nothing")
    if foreign:
        raise ValueError(f"observations of {claim.id} come from profile {', '.join(foreign)}, not {profile}")
    deciding = [criterion.metric for criterion in criteria if criterion.decides]
    if not deciding:
        scales = sorted({name for c in claim.criteria if c.decides for name in c.profiles or ()})
        return judgement("not attempted", f"only the profile {', '.join(scales)} can decide it")
    if not own:
        return judgement("not attempted", f"no observations at {profile}")
    outcomes = {metric: found[metric].outcome if metric in found else "not judged" for metric in deciding}
    if lacking := [whys[metric] for metric, outcome in outcomes.items() if outcome == "not judged"]:
        return judgement("not attempted", "; ".join(lacking))
    if set(outcomes.values()) == {"full"}:
        return judgement("reproduced", "every criterion holds")
    reason = "; ".join(whys[metric] for metric, outcome in outcomes.items() if outcome != "full")
    return judgement("not reproduced" if set(outcomes.values()) == {"does not hold"} else "partly", reason)


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


def _check(profile: str) -> None:
    if profile not in TIERS:
        raise ValueError(f"profile (={profile!r}) must be one of {', '.join(TIERS)}")
