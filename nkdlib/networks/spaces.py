"""Search spaces: plain networks that hold every choice, so that a search decides which operators and channels stay.

Filters of a ResNet (MorphNet, arXiv 1711.06798), inverted residuals of several kernel sizes (MobileNetV2, arXiv
1801.04381; AtomNAS, arXiv 1912.09640) and the DARTS cell (arXiv 1806.09055). The operators of a `Sum` can vanish.
"""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from nkdlib.networks.resnet import check_stages

# Expansion, channels, blocks and stride of each stage: MobileNetV2's, for images of 224 pixels (table 2).
MOBILE_STAGES = (
    (6, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
DARTS_OPERATORS = (
    *("max_pool_3x3", "avg_pool_3x3", "skip"),
    *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
)

convolution = functools.partial(Conv2dNormActivation, activation_layer=None)  # and its BatchNorm; keeps the size


class Sum(nn.Module):
    """The sum of several operators of one input.

    Args:
        operators: by name, alike in their output's shape.
        optional: all of them may be left out, since the sum is added to something else; of a sum that is not optional
            one operator always stays.

    >>> Sum({"once": nn.Identity(), "again": nn.Identity()})(torch.ones(1))
    tensor([2.])
    """

    def __init__(self, operators: Mapping[str, nn.Module], optional: bool = False):
        super().__init__()
        self.operators, self.optional = nn.ModuleDict(operators), optional

    def paths(self, own: str) -> list[str]:
        """Submodule paths of the operators, by the sum's own path."""
        return [f"{own}.operators.{name}" for name in self.operators]

    def edges(self) -> dict[str, list[str]]:
        """Names of the operators by their input: here all of them have the same."""
        return {"": list(self.operators)}

    def forward(self, x: Tensor) -> Tensor:
        return add(part(x) for part in self.operators.values())


def add(values: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, 0 if there are none."""
    values = list(values)
    return functools.reduce(operator.add, values) if values else 0


class RemovableBlock(nn.Module):
    """A basic residual block, relu(shortcut(x) + body(x)), that may lose its body."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        body = nn.Sequential(convolution(inputs, outputs, 3, stride), nn.ReLU(), convolution(outputs, outputs, 3))
        self.body = Sum({"3x3": body}, optional=True)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else convolution(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))


def residual_space(
    num_classes: int,
    *,
    in_channels: int = 3,
    blocks: Sequence[int] = (2, 2, 2),
    widths: Sequence[int] = (32, 32, 32),
    stem_stride: int = 1,
) -> nn.Sequential:
    """A ResNet for small images to search filters and blocks in; images (B, in_channels, H, W) to logits.

    Args:
        blocks, widths: of each stage; every stage but the first halves height and width.
        stem_stride: 2 halves the resolution at the start, 4 does so twice.
    """
    check_stages(blocks, widths)
    layers, channels = [_stem(in_channels, widths[0], stem_stride), nn.ReLU()], widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(count):
            layers.append(RemovableBlock(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, *_classifier(channels, num_classes))


class MixedBlock(nn.Module):
    """An inverted residual with a path for each kernel size; if it keeps the shape, all paths may vanish.

    Args:
        inputs, outputs: channels.
        inner: channels that a depthwise convolution has in each path.
        kernels: of the depthwise convolutions.
        stride: of the depthwise convolutions.
        squeeze: a squeeze-excite module before the projection of each path (arXiv 1709.01507).
    """

    def __init__(
        self, inputs: int, outputs: int, inner: int, kernels: Sequence[int], stride: int = 1, squeeze: bool = False
    ):
        super().__init__()
        if not kernels or len({*kernels}) < len(kernels) or not all(kernel % 2 == 1 for kernel in kernels):
            raise ValueError(f"kernels (={tuple(kernels)}) must be odd numbers, at least one and none twice")
        self.residual = stride == 1 and inputs == outputs
        self.paths = Sum(
            {
                f"{kernel}x{kernel}": nn.Sequential(
                    convolution(inputs, inner, 1),
                    nn.ReLU(),
                    convolution(inner, inner, kernel, stride, groups=inner),
                    nn.ReLU(),
                    SqueezeExcitation(inner, max(inner // 4, 1)) if squeeze else nn.Identity(),
                    convolution(inner, outputs, 1),
                )
                for kernel in kernels
            },
            optional=self.residual,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.paths(x) if self.residual else self.paths(x)


def mixed_space(
    num_classes: int,
    *,
    in_channels: int = 3,
    stem: int = 32,
    stages: Sequence[tuple[int, int, int, int]] = MOBILE_STAGES,
    head: int = 1280,
    kernels: Sequence[int] = (3, 5, 7),
    stem_stride: int = 2,
    squeeze: bool = False,
) -> nn.Sequential:
    """A mobile network of inverted residuals, the expansion divided among kernel sizes.

    Args:
        stem, head: channels of the first and of the last convolution.
        stages: expansion, channels, blocks and stride of the first block, for each stage.
        kernels: of the depthwise convolutions side by side.
        squeeze: squeeze-excite in every path.
    """
    layers, channels = [_stem(in_channels, stem, stem_stride), nn.ReLU()], stem
    for expansion, width, count, stride in stages:
        for block in range(count):
            inner = max(channels * expansion // max(len(kernels), 1), 1)
            layers.append(MixedBlock(channels, width, inner, kernels, stride if block == 0 else 1, squeeze))
            channels = width
    return nn.Sequential(*layers, convolution(channels, head, 1), nn.ReLU(), *_classifier(head, num_classes))


class Node(Sum):
    """A sum of operators that read different states; an operator's name begins with the number of its state."""

    def edges(self) -> dict[str, list[str]]:
        """Names of the operators by the state that they read."""
        states = dict.fromkeys(name.split("_")[0] for name in self.operators)
        return {state: [name for name in self.operators if name.split("_")[0] == state] for state in states}

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return add(part(states[int(name.split("_")[0])]) for name, part in self.operators.items())


def darts_operator(name: str, channels: int, stride: int) -> nn.Module:
    """One of `DARTS_OPERATORS`; a skip that halves the resolution is a 1x1 convolution (DARTS: two side by side)."""
    kind, _, size = name.rpartition("_")
    if name == "skip":
        return nn.Identity() if stride == 1 else nn.Sequential(nn.ReLU(), convolution(channels, channels, 1, stride))
    kernel = int(size[0])
    if kind.endswith("pool"):
        pool = nn.MaxPool2d if kind.startswith("max") else nn.AvgPool2d
        return nn.Sequential(pool(kernel, stride, kernel // 2), nn.BatchNorm2d(channels, affine=False))
    dilation = 2 if kind == "dil_conv" else 1
    layers: list[nn.Module] = []
    for step in (stride, 1) if kind == "sep_conv" else (stride,):
        padding = dilation * (kernel // 2)
        deep = nn.Conv2d(channels, channels, kernel, step, padding, dilation, groups=channels, bias=False)
        layers += [nn.ReLU(), deep, convolution(channels, channels, 1)]
    return nn.Sequential(*layers)


class Cell(nn.Module):
    """A DARTS cell: the concatenation of nodes, each the sum of operators on two earlier outputs and earlier nodes.

    Args:
        inputs: channels of the two earlier outputs.
        channels: of every node.
        nodes: how many.
        reduction: halves the resolution.
        halved: the earlier of the two outputs has twice the resolution of the later.
        operators: some of `DARTS_OPERATORS`.
    """

    def __init__(
        self,
        inputs: tuple[int, int],
        channels: int,
        nodes: int,
        reduction: bool,
        halved: bool,
        operators: Sequence[str] = DARTS_OPERATORS,
    ):
        super().__init__()
        self.first = nn.Sequential(nn.ReLU(), convolution(inputs[0], channels, 1, 2 if halved else 1))
        self.second = nn.Sequential(nn.ReLU(), convolution(inputs[1], channels, 1))
        self.nodes = nn.ModuleList(
            Node(
                {
                    f"{state}_{name}": darts_operator(name, channels, 2 if reduction and state < 2 else 1)
                    for state in range(2 + node)
                    for name in operators
                }
            )
            for node in range(nodes)
        )

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        states = [self.first(before), self.second(last)]
        for node in self.nodes:
            states.append(node(states))
        return torch.cat(states[2:], 1)


class CellNetwork(nn.Module):
    """A network of DARTS cells; images (B, in_channels, H, W) to logits.

    Args:
        channels: of a node in the first cell; doubled by every reduction.
        cells: "n" for a normal cell and "r" for one that halves the resolution, front to back.
        nodes: of a cell.
        operators: some of `DARTS_OPERATORS`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        channels: int = 16,
        cells: str = "nnrnnrnn",
        nodes: int = 4,
        operators: Sequence[str] = DARTS_OPERATORS,
        stem_stride: int = 1,
    ):
        super().__init__()
        if not cells or {*cells} - {"n", "r"} or nodes < 1:
            raise ValueError(f"cells (={cells!r}) must be letters n and r, and nodes (={nodes}) at least 1")
        if not operators or {*operators} - {*DARTS_OPERATORS}:
            raise ValueError(f"operators (={tuple(operators)}) must be some of {', '.join(DARTS_OPERATORS)}")
        stem = 3 * channels
        self.stem = _stem(in_channels, stem, stem_stride)
        self.cells, sizes, halved = nn.ModuleList(), (stem, stem), False
        for kind in cells:
            channels = 2 * channels if kind == "r" else channels
            self.cells.append(Cell(sizes, channels, nodes, kind == "r", halved, operators))
            sizes, halved = (sizes[1], nodes * channels), kind == "r"
        self.head = nn.Sequential(*_classifier(sizes[1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        before = last = self.stem(images)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.head(last)


def _stem(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The first convolution; it overlaps, whatever the stride."""
    return convolution(inputs, outputs, max(3, stride // 2 * 2 + 1), stride)


def _classifier(channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, num_classes)]
