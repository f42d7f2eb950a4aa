"""Networks in plain torch, and what they cost."""

from nkdlib.models.blocks import FORMS, Residual
from nkdlib.models.cost import Cost, cost, count_params
from nkdlib.models.operators import Sum
from nkdlib.models.resnet import BasicBlock, ResNet, resnet
from nkdlib.models.spaces import CellNetwork, mixed_space, residual_space

__all__ = [
    "FORMS",
    "BasicBlock",
    "CellNetwork",
    "Cost",
    "ResNet",
    "Residual",
    "Sum",
    "cost",
    "count_params",
    "mixed_space",
    "residual_space",
    "resnet",
]
