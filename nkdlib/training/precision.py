"""Convolutions that bfloat16 makes slower on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


@contextmanager
def slow_in_float32(model: nn.Module) -> Iterator[None]:
    """Let autocast on a CPU leave some depthwise convolutions in float32 within the block; they output bfloat16.

    oneDNN has no fast bfloat16 kernels for the gradients of depthwise convolutions with a stride, a dilation, several
    outputs a channel or weights larger than 3x3: they take 3 to 18 times as long as in float32, so that a whole step of
    MobileNetV2 takes longer. Run the backward pass in the block too, because `torch.utils.checkpoint` computes parts of
    the network again there.
    """
    layers = [layer for layer in model.modules() if _is_slow(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_slow(layer: nn.Module) -> bool:
    if getattr(type(layer), "forward", None) is not nn.Conv2d.forward or "forward" in vars(layer):
        return False
    if not 1 < layer.groups == layer.in_channels or any(p.dtype != torch.float32 for p in layer.parameters()):
        return False
    return layer.out_channels > layer.groups or max(*layer.kernel_size, 3 * max(*layer.stride, *layer.dilation)) > 3


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if x.dtype == torch.float64 or not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return type(layer).forward(layer, x)
    with torch.autocast("cpu", enabled=False):
        y = type(layer).forward(layer, x.float())
    return y.to(torch.get_autocast_dtype("cpu"))
