"""Networks in plain torch, and what they cost."""

from nkdlib.models.cost import Cost, cost, count_params
from nkdlib.models.resnet import BasicBlock, ResNet, resnet

__all__ = ["BasicBlock", "Cost", "ResNet", "cost", "count_params", "resnet"]
