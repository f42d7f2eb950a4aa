"""The judge: observations in, a verdict with its reason out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nkdlib.compendium.claims import Claim, claim_by_id
from nkdlib.compendium.criteria import Criterion, Interval, Outcome, t_interval
from nkdlib.compendium.tiers import PROFILES

Verdict = Literal["reproduced", "partly", "not reproduced", "not attempted"]


@dataclass(frozen=True)
class Observation:
    """One metric of one claim under one seed; `value` None: the seed did not reach what was asked."""

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
        t_interval({self.seed: self.value})  # refuses what is not finite
        if self.profile not in PROFILES:
            raise ValueError(f"profile (={self.profile!r}) must be one of {', '.join(PROFILES)}")


@dataclass(frozen=True)
class Assessment:
    """One criterion, the interval observed for it (None: nothing observed) and what follows."""

    criterion: Criterion
    interval: Interval | None
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim at one profile, with what it rests on."""

    claim: Claim
    profile: str
    verdict: Verdict
    reason: str
    assessments: tuple[Assessment, ...]

    @property
    def evidence(self) -> str:
        """The evidence level, empty where nothing was judged."""
        return "" if self.verdict == "not attempted" else self.claim.evidence.get(self.profile, "")


def judge(claim: Claim | str, observations: Iterable[Observation], profile: str) -> Judgement:
    """Judge one claim on the observations of one profile.

    All deciding criteria in full: reproduced; none holds: not reproduced; otherwise partly. Without enough
    seeds for every deciding criterion, or at a profile that judges nothing, the claim is not attempted and
    the reason says why. `observations` may hold other claims' as well. Raises `ValueError` for a profile that
    does not exist, for two values of one metric and seed, and for observations of another judged profile.
    """
    claim = claim_by_id(claim) if isinstance(claim, str) else claim
    if profile not in PROFILES:
        raise ValueError(f"profile (={profile!r}) must be one of {', '.join(PROFILES)}")
    own = [observation for observation in observations if observation.claim == claim.id]
    values = by_metric(own)
    assessments = tuple(_assess(c, values.get(c.metric)) for c in claim.criteria if c.applies(profile))
    foreign = sorted({observation.profile for observation in own} - {profile})

    def judgement(verdict: Verdict, reason: str) -> Judgement:
        return Judgement(claim, profile, verdict, reason, assessments)

    if unjudged := [name for name in (profile, *foreign) if not PROFILES[name].judged]:
        return judgement("not attempted", f"the profile {unjudged[0]} is a first look and judges nothing")
    if foreign:
        raise ValueError(f"observations of {claim.id} come from profile {', '.join(foreign)}, not {profile}")
    deciding = [assessment for assessment in assessments if assessment.criterion.decides]
    if not deciding:
        scales = sorted({name for c in claim.criteria if c.decides for name in c.profiles or ()})
        return judgement("not attempted", f"only the profile {', '.join(scales)} can decide it")
    if not own:
        return judgement("not attempted", f"no observations at {profile}")
    if lacking := [assessment.why for assessment in deciding if assessment.outcome == "not judged"]:
        return judgement("not attempted", "; ".join(lacking))
    outcomes = [assessment.outcome for assessment in deciding]
    short_of = "; ".join(assessment.why for assessment in deciding if assessment.outcome != "full")
    if all(outcome == "full" for outcome in outcomes):
        return judgement("reproduced", "every criterion holds")
    if all(outcome == "does not hold" for outcome in outcomes):
        return judgement("not reproduced", short_of)
    return judgement("partly", short_of)


def by_metric(observations: Iterable[Observation]) -> dict[str, dict[int, float | None]]:
    """The values of one claim's metrics by seed. Raises `ValueError` for two values of one metric and seed."""
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


def _assess(criterion: Criterion, values: Mapping[int, float | None] | None) -> Assessment:
    if not values:
        return Assessment(criterion, None, "not judged", f"{criterion.metric} was not observed")
    interval = t_interval(values)
    return Assessment(criterion, interval, *criterion.outcome(interval))
