"""Neighbourhood Distillation: split a teacher, distill its parts apart, put them together.

Shao, Moroz, Eban and Movshovitz-Attias, arXiv 2010.01189.
"""

from nkdlib.neighbourhoods.capture import Boundaries, capture
from nkdlib.neighbourhoods.distill import distill, solve
from nkdlib.neighbourhoods.distillation import Distillation, Distilled
from nkdlib.neighbourhoods.local import Recipe, local_error
from nkdlib.neighbourhoods.recompose import perturb, recompose
from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods, split
from nkdlib.neighbourhoods.students import narrow, reset

__all__ = [
    "Boundaries",
    "Distillation",
    "Distilled",
    "Neighbourhood",
    "Neighbourhoods",
    "Recipe",
    "capture",
    "distill",
    "local_error",
    "narrow",
    "perturb",
    "recompose",
    "reset",
    "solve",
    "split",
]
