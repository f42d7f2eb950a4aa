"""Networks in plain torch, and what they cost."""

from nkdlib.networks.cost import Cost, cost, count_params
from nkdlib.networks.efficientnet_lite import EfficientNetLite, efficientnet_lite, load_efficientnet_lite
from nkdlib.networks.module import reset
from nkdlib.networks.resnet import FORMS, BasicBlock, Residual, resnet
from nkdlib.networks.spaces import CellNetwork, Sum, mixed_space, residual_space

__all__ = [
    "FORMS",
    "BasicBlock",
    "CellNetwork",
    "Cost",
    "EfficientNetLite",
    "Residual",
    "Sum",
    "cost",
    "count_params",
    "efficientnet_lite",
    "load_efficientnet_lite",
    "mixed_space",
    "reset",
    "residual_space",
    "resnet",
]
