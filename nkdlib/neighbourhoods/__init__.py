"""Neighbourhood Distillation: split a teacher, distill its parts apart, put them together.

Shao, Moroz, Eban and Movshovitz-Attias, arXiv 2010.01189.
"""

from nkdlib.neighbourhoods.boundary_noise import BoundaryNoise
from nkdlib.neighbourhoods.capture import Boundaries, capture
from nkdlib.neighbourhoods.distill import Distillation, Distilled, distill, solve
from nkdlib.neighbourhoods.library import Library
from nkdlib.neighbourhoods.local import Recipe, local_error
from nkdlib.neighbourhoods.prediction import Composition, Forecast
from nkdlib.neighbourhoods.rivals import choose_at_random, choose_locally, choose_uniform, local_search
from nkdlib.neighbourhoods.select import Menu, Option, Selection, select
from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods, perturb, recompose, split
from nkdlib.neighbourhoods.students import narrow, reset

__all__ = [
    "Boundaries",
    "BoundaryNoise",
    "Composition",
    "Distillation",
    "Distilled",
    "Forecast",
    "Library",
    "Menu",
    "Neighbourhood",
    "Neighbourhoods",
    "Option",
    "Recipe",
    "Selection",
    "capture",
    "choose_at_random",
    "choose_locally",
    "choose_uniform",
    "distill",
    "local_error",
    "local_search",
    "narrow",
    "perturb",
    "recompose",
    "reset",
    "select",
    "solve",
    "split",
]
