"""What the papers say, as data, and the judge: criterion, statistics, verdict."""

from nkdlib.claims.catalogue import CLAIMS, Claim, claim_by_id
from nkdlib.claims.criteria import Criterion, t_interval
from nkdlib.claims.judge import Observation, judge
from nkdlib.claims.observations import Results, read_observations

__all__ = ["CLAIMS", "Claim", "Criterion", "Observation", "Results", "claim_by_id", "judge", "read_observations"]
__all__ += ["t_interval"]
