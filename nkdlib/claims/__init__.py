"""What the papers say, as data, and the judge: criterion, statistics, verdict."""

from nkdlib.claims.catalogue import CLAIMS, Claim, claim_by_id
from nkdlib.claims.criteria import Criterion, Interval, t_interval
from nkdlib.claims.judge import Assessment, Judgement, Observation, judge
from nkdlib.claims.observations import Results, Verdicts, read_observations

__all__ = [
    "CLAIMS",
    "Assessment",
    "Claim",
    "Criterion",
    "Interval",
    "Judgement",
    "Observation",
    "Results",
    "Verdicts",
    "claim_by_id",
    "judge",
    "read_observations",
    "t_interval",
]
