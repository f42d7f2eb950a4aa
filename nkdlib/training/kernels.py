"""Convolutions on a CPU: where bfloat16 makes steps faster, and kernels to go round since they are slow or wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

COMPUTING = ("forward", "_conv_forward")
CONVOLUTIONS = {nn.Conv1d: torch.conv1d, nn.Conv2d: torch.conv2d, nn.Conv3d: torch.conv3d}


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a device is fast in bfloat16; a CPU needs AVX-512, or a step takes 14 to 17 times as long as in float32.

    Without it oneDNN has no kernels in bfloat16, and torch falls back to slow ones. CPUs with ARM instructions count as
    slow, which was not measured.
    """
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Convolutions and products in bfloat16 within the block, where that pays; all else in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and bfloat16_pays(device))


@contextmanager
def better_kernels(model: nn.Module) -> Iterator[None]:
    """Let a model's convolutions on a CPU go round kernels that are wrong or slow, within the block.

    - Gradients of 1x1 convolutions with a stride, channels-last, of fewer inputs than a vector holds (8 with AVX2, 16
      with AVX-512) write past their memory: a crash, or wrong gradients of the weights (uxlfoundation/oneDNN, issue
      6035). These layers read a slice of their input without a stride, which gives the same.
    - oneDNN has no fast bfloat16 kernels for the gradients of depthwise convolutions with a stride, a dilation, several
      outputs a channel or weights larger than 3x3: they take 3 to 18 times as long as in float32, so that a whole step
      of MobileNetV2 takes longer. Under autocast these stay in float32; they output bfloat16.

    Run the backward pass in the block too, because `torch.utils.checkpoint` computes parts of the network again there.
    Convolutions that are no layers (`torch.nn.functional`) stay as they are.
    """
    layers = {layer: way for layer in model.modules() if (way := _other_way(layer))}
    for layer, way in layers.items():
        layer.forward = partial(way, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _other_way(layer: nn.Module) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """How a layer goes round a kernel, if it has to."""
    kind = next((kind for kind in CONVOLUTIONS if isinstance(layer, kind)), None)
    if kind is None or any(getattr(layer, name) != getattr(kind, name).__get__(layer) for name in COMPUTING):
        return None  # one that computes by itself, such as one that standardizes its weight
    strided = max(layer.stride) > 1
    if max(layer.kernel_size) == 1 and strided and layer.padding in ("valid", (0,) * len(layer.stride)):
        return partial(_sliced, CONVOLUTIONS[kind]) if layer.in_channels // layer.groups < 16 else None
    depthwise = kind is nn.Conv2d and 1 < layer.groups == layer.in_channels
    if not depthwise or any(p.dtype != torch.float32 for p in layer.parameters()):
        return None
    large = strided or max(layer.dilation) > 1 or max(layer.kernel_size) > 3
    return _in_float32 if large or layer.out_channels > layer.groups else None


def _sliced(convolve: Callable[..., Tensor], layer: nn.Module, x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return type(layer).forward(layer, x)
    x = x[(..., *(slice(None, None, stride) for stride in layer.stride))]
    return convolve(x, layer.weight, layer.bias, groups=layer.groups)


def _in_float32(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if x.dtype == torch.float64 or not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return type(layer).forward(layer, x)
    with torch.autocast("cpu", enabled=False):
        y = type(layer).forward(layer, x.float())
    return y.to(torch.get_autocast_dtype("cpu"))
