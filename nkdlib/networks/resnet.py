"""Residual networks for small images, whose blocks may have an inner width of their own.

He et al. 2015 (arXiv 1512.03385), sections 4.1 and 4.2. Students of a block differ in its inner width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORTCUTS = ("projection", "padding")  # He et al., options B and A


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))).

    Args:
        inputs: channels of the input, (B, inputs, H, W).
        outputs: channels of the output, (B, outputs, H / stride, W / stride).
        inner: channels between the two convolutions; `outputs` in the original.
        stride: of the first convolution and of the shortcut.
        shortcut: if the block changes the shape, a "projection" (1x1 convolution and BatchNorm), or "padding".
    """

    def __init__(
        self, inputs: int, outputs: int, *, inner: int | None = None, stride: int = 1, shortcut: str = "projection"
    ):
        super().__init__()
        inner = outputs if inner is None else inner
        if not inner >= 1 or inner % 1:
            raise ValueError(f"inner (={inner}) must be at least 1 channel, and whole; choose another width")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut (={shortcut!r}) must be one of {', '.join(SHORTCUTS)}")
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif shortcut == "padding":
            self.shortcut = Padding(outputs - inputs, stride)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class Padding(nn.Module):
    """A shortcut without parameters: every `stride`-th pixel, and `more` channels of zeros around those of the input.

    As in the published CIFAR-10 weights of akamaster/pytorch_resnet_cifar10, half of them before and half behind.
    """

    def __init__(self, more: int, stride: int):
        super().__init__()
        if more < 0:
            raise ValueError(f"more (={more}) channels cannot be padded; use shortcut='projection'")
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.more // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))


def check_stages(blocks: Sequence[int], widths: Sequence[int]) -> None:
    """Raise ValueError unless every stage has its numbers of blocks and of channels."""
    if len(blocks) != len(widths) or any(number < 1 or number % 1 for number in (*blocks, *widths)):
        raise ValueError(
            f"blocks (={tuple(blocks)}) and widths (={tuple(widths)}) must be equally long, whole, and at least 1"
        )


class ResNet(nn.Module):
    """A residual network of basic blocks whose parts are called stem, layer1.0, ..., head.

    It takes images (B, in_channels, H, W) and returns logits (B, num_classes).

    Args:
        blocks: how many blocks each stage has; (n, n, n) is a ResNet of 6n + 2 layers.
        widths: outer channels of each stage; every stage but the first halves height and width.
        stem_stride: 2 halves the resolution at the start.
        shortcut: of blocks that change the shape, see `BasicBlock`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        blocks: Sequence[int] = (2, 2, 2),
        widths: Sequence[int] = (16, 32, 64),
        stem_stride: int = 1,
        shortcut: str = "projection",
    ):
        super().__init__()
        check_stages(blocks, widths)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        channels = widths[0]
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        for name, count, width in zip(self.stages, blocks, widths, strict=True):
            layers = nn.Sequential()
            for block in range(count):
                stride = 2 if name != "layer1" and block == 0 else 1
                layers.append(BasicBlock(channels, width, stride=stride, shortcut=shortcut))
                channels = width
            self.add_module(name, layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.head(x)

    @property
    def block_names(self) -> list[str]:
        """Submodule paths of the residual blocks, front to back: the natural neighbourhoods."""
        return [f"{stage}.{i}" for stage in self.stages for i in range(len(self.get_submodule(stage)))]


def resnet(depth: int, num_classes: int, *, seed: int | None = None, width: int = 16, **options: object) -> ResNet:
    """A ResNet of three stages for small images, its weights drawn without touching the global generator.

    Args:
        depth: layers, 6n + 2; ValueError for any other.
        num_classes: outputs of the last layer.
        seed: of the initial weights; None uses torch's global generator.
        width: channels of the first stage, twice as many in each further one.
        options: further arguments of `ResNet`.

    >>> network = resnet(8, 10, in_channels=1, seed=0)
    >>> network(torch.zeros(2, 1, 8, 8)).shape, network.block_names
    (torch.Size([2, 10]), ['layer1.0', 'layer2.0', 'layer3.0'])
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth (={depth}) must be 6n + 2; choose 8, 14, 20, 32, 44 or 56")
    options = {"blocks": ((depth - 2) // 6,) * 3, "widths": (width, 2 * width, 4 * width), **options}
    if seed is None:
        return ResNet(num_classes, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(num_classes, **options)
