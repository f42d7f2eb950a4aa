"""Networks in plain torch, and their costs."""

from nkdlib.networks.cost import Cost, cost, count_params
from nkdlib.networks.module import reset
from nkdlib.networks.resnet import BasicBlock, resnet
from nkdlib.networks.spaces import CellNetwork, Sum, mixed_space, residual_space

__all__ = [
    "BasicBlock",
    "CellNetwork",
    "Cost",
    "Sum",
    "cost",
    "count_params",
    "mixed_space",
    "reset",
    "residual_space",
    "resnet",
]
