"""Neighbourhood Distillation: split a teacher, distill its parts apart, put them together.

Shao, Moroz, Eban and Movshovitz-Attias, arXiv 2010.01189.
"""

from nkdlib.neighbourhoods.capture import Boundaries, capture
from nkdlib.neighbourhoods.distill import Distillation, Distilled, distill, solve
from nkdlib.neighbourhoods.library import Composition, Library
from nkdlib.neighbourhoods.local import Recipe, local_error
from nkdlib.neighbourhoods.select import Menu, Option, Selection, select
from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods, perturb, recompose, split
from nkdlib.neighbourhoods.students import narrow

__all__ = [
    "Boundaries",
    "Composition",
    "Distillation",
    "Distilled",
    "Library",
    "Menu",
    "Neighbourhood",
    "Neighbourhoods",
    "Option",
    "Recipe",
    "Selection",
    "capture",
    "distill",
    "local_error",
    "narrow",
    "perturb",
    "recompose",
    "select",
    "solve",
    "split",
]
