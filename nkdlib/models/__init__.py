"""Networks in plain torch, and what they cost."""

from nkdlib.models.cost import Cost, cost, count_params
from nkdlib.models.efficientnet_lite import EfficientNetLite, efficientnet_lite, load_efficientnet_lite
from nkdlib.models.resnet import FORMS, BasicBlock, Residual, ResNet, resnet
from nkdlib.models.spaces import CellNetwork, Sum, mixed_space, residual_space

__all__ = [
    "FORMS",
    "BasicBlock",
    "CellNetwork",
    "Cost",
    "EfficientNetLite",
    "ResNet",
    "Residual",
    "Sum",
    "cost",
    "count_params",
    "efficientnet_lite",
    "load_efficientnet_lite",
    "mixed_space",
    "residual_space",
    "resnet",
]
