"""Residual blocks of other forms than a basic block: what a student neighbourhood can be beside narrower.

relu(shortcut(x) + body(x)), with the body of a basic block of another kernel size, a bottleneck (He et al. 2015,
arXiv 1512.03385, figure 5) or depthwise separable convolutions (Howard et al. 2017, arXiv 1704.04861).
"""

from collections.abc import Iterator

from torch import Tensor, nn

FORMS = ("1x1", "3x3", "5x5", "bottleneck", "separable")


class Residual(nn.Module):
    """relu(shortcut(x) + body(x)); the shortcut projects where the body changes the shape.

    Args:
        inputs: channels of the input, (B, inputs, H, W).
        outputs: channels of the output, (B, outputs, H / stride, W / stride).
        form: of the body, one of `FORMS`; a kernel size stands for two such convolutions.
        inner: channels within the body, `outputs` where omitted.
        stride: of the body and the shortcut.

    >>> import torch
    >>> Residual(8, 16, "separable", stride=2)(torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 16, 3, 3])
    """

    def __init__(self, inputs: int, outputs: int, form: str, *, inner: int | None = None, stride: int = 1):
        super().__init__()
        inner = inner or outputs
        layers: dict[str, list[tuple[int, int, int, int]]] = {  # (inputs, outputs, kernel, stride) of convolutions
            **{f"{k}x{k}": [(inputs, inner, k, stride), (inner, outputs, k, 1)] for k in (1, 3, 5)},
            "bottleneck": [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)],
            "separable": [(inputs, 0, 3, stride), (inputs, inner, 1, 1), (inner, 0, 3, 1), (inner, outputs, 1, 1)],
        }
        if form not in FORMS:
            raise ValueError(f"form (={form!r}) must be one of {', '.join(FORMS)}")
        self.body = nn.Sequential(*(part for layer in layers[form] for part in _convolution(*layer)))
        del self.body[-1]  # the last activation comes after the sum
        self.relu, self.shortcut = nn.ReLU(), nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> Iterator[nn.Module]:
    """A convolution that keeps the size, BatchNorm and ReLU; without `outputs` a depthwise one, without ReLU."""
    groups = 1 if outputs else inputs
    yield nn.Conv2d(inputs, outputs or inputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(outputs or inputs)
    if outputs:
        yield nn.ReLU()
