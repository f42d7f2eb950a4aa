"""Operators side by side, of which a search may leave some out."""

import functools
import operator
from collections.abc import Iterable, Mapping

from torch import Tensor, nn


class Sum(nn.Module):
    """The sum of what several operators make of one input.

    Args:
        operators: by name, alike in their output's shape.
        optional: all of them may be left out, since something else is added to the sum where it is used; of one that
            is not optional one operator always stays.

    >>> import torch
    >>> Sum({"once": nn.Identity(), "again": nn.Identity()})(torch.ones(1))
    tensor([2.])
    """

    def __init__(self, operators: Mapping[str, nn.Module], optional: bool = False):
        super().__init__()
        self.operators, self.optional = nn.ModuleDict(operators), optional

    def edges(self) -> dict[str, list[str]]:
        """Names of the operators by what they read: here all of them read the same."""
        return {"": list(self.operators)}

    def forward(self, x: Tensor) -> Tensor:
        return add(part(x) for part in self.operators.values())


def add(values: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, 0 where there is none."""
    values = list(values)
    return functools.reduce(operator.add, values) if values else 0
