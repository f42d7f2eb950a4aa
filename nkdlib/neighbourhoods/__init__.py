"""Neighbourhood Distillation: split a teacher, distill its parts apart, put them together.

Shao, Moroz, Eban and Movshovitz-Attias, arXiv 2010.01189.
"""

from nkdlib.neighbourhoods.capture import capture
from nkdlib.neighbourhoods.distill import distill, solve
from nkdlib.neighbourhoods.library import Library
from nkdlib.neighbourhoods.local import Recipe, local_error
from nkdlib.neighbourhoods.perturb import perturb
from nkdlib.neighbourhoods.select import Menu, Option, select
from nkdlib.neighbourhoods.split import recompose, split
from nkdlib.neighbourhoods.students import narrow

__all__ = [
    "Library",
    "Menu",
    "Option",
    "Recipe",
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
