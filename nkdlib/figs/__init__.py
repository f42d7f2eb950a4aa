"""Fine-grained stochastic architecture search: gates on channels, a cost to pay for them, and the slim network left.

Chaudhuri, Eban, Li, Moroz and Movshovitz-Attias, arXiv 2006.09581.
"""

from nkdlib.figs.cost import CostModel
from nkdlib.figs.gates import Gates, rebuild
from nkdlib.figs.latency import measure_latency
from nkdlib.figs.rivals import score_at_random, score_by_magnitude, score_by_scale, score_evenly
from nkdlib.figs.search import Search, SearchResult, search

__all__ = [
    "CostModel",
    "Gates",
    "Search",
    "SearchResult",
    "measure_latency",
    "rebuild",
    "score_at_random",
    "score_by_magnitude",
    "score_by_scale",
    "score_evenly",
    "search",
]
