"""Networks in plain torch, and what they cost."""

from nkdlib.models.blocks import FORMS, Residual
from nkdlib.models.cost import Cost, cost, count_params
from nkdlib.models.resnet import BasicBlock, ResNet, resnet

__all__ = ["FORMS", "BasicBlock", "Cost", "ResNet", "Residual", "cost", "count_params", "resnet"]
