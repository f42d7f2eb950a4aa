"""Fine-grained stochastic architecture search: gates on channels, a penalty on their cost, and the slim network left.

Chaudhuri, Eban, Li, Moroz and Movshovitz-Attias, arXiv 2006.09581.
"""

from nkdlib.figs.budget import keep_best, score_at_random, score_by_magnitude, score_by_scale, score_evenly
from nkdlib.figs.cost_model import CostModel
from nkdlib.figs.gates import Gates, rebuild
from nkdlib.figs.latency_model import measure_latency
from nkdlib.figs.prune import input_moments, mimic, prune
from nkdlib.figs.search import Search, search

__all__ = [
    "CostModel",
    "Gates",
    "Search",
    "input_moments",
    "keep_best",
    "measure_latency",
    "mimic",
    "prune",
    "rebuild",
    "score_at_random",
    "score_by_magnitude",
    "score_by_scale",
    "score_evenly",
    "search",
]
