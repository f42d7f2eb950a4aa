"""Residual networks for small images, with an inner width of its own in a block, and blocks of other forms.

He et al. 2015 (arXiv 1512.03385), sections 4.1 and 4.2. Two things differ: a projection shortcut (1x1 convolution)
where the shape changes, and an inner width that may differ from the outer one, which is what students of a block
differ in.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # blocks, He et al. table 1
FORMS = ("1x1", "3x3", "5x5", "bottleneck", "separable")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))).

    Args:
        inputs: channels of the input, (B, inputs, H, W).
        outputs: channels of the output, (B, outputs, H / stride, W / stride).
        inner: channels between the two convolutions; `outputs` in the original.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, inner: int | None = None, stride: int = 1):
        super().__init__()
        inner = outputs if inner is None else inner
        if inner < 1:
            raise ValueError(f"inner (={inner}) must be at least 1 channel; choose a larger width")
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Nothing, or a projection where the block changes the shape."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(shortcut(x) + body(x)): what a student of a block can be beside narrower.

    The body is that of a basic block of another kernel size, a bottleneck (He et al. 2015, figure 5) or depthwise
    separable convolutions (Howard et al. 2017, arXiv 1704.04861).

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
        self.relu, self.shortcut = nn.ReLU(), _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> Iterator[nn.Module]:
    """A convolution that keeps the size, BatchNorm and ReLU; without `outputs` a depthwise one, without ReLU."""
    groups = 1 if outputs else inputs
    yield nn.Conv2d(inputs, outputs or inputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(outputs or inputs)
    if outputs:
        yield nn.ReLU()


class ResNet(nn.Module):
    """A residual network of basic blocks whose parts are called stem, layer1.0, ..., head.

    It takes images (B, in_channels, H, W) and returns logits (B, num_classes).

    Args:
        blocks: how many blocks each stage has; (n, n, n) is a ResNet of 6n + 2 layers.
        widths: outer channels of each stage; every stage but the first halves height and width.
        stem_stride: 2 halves the resolution at the start.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        blocks: Sequence[int] = (2, 2, 2),
        widths: Sequence[int] = (16, 32, 64),
        stem_stride: int = 1,
    ):
        super().__init__()
        if len(blocks) != len(widths):
            raise ValueError(f"blocks (={tuple(blocks)}) and widths (={tuple(widths)}) must be equally long")
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
                layers.append(BasicBlock(channels, width, stride=stride))
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


def resnet(
    depth: int, num_classes: int, *, seed: int | None = None, width: int | None = None, **options: object
) -> ResNet:
    """A ResNet for small images, its weights drawn from `seed` without touching the global generator.

    Args:
        depth: layers: 6n + 2 in three stages, or 18 or 34 in four; ValueError for any other.
        num_classes: outputs of the last layer.
        seed: of the initial weights; None uses torch's global generator.
        width: channels of the first stage, twice as many in each further one; 16, or 64 with four stages.
        options: what `ResNet` takes.

    >>> network = resnet(8, 10, in_channels=1, seed=0)
    >>> network(torch.zeros(2, 1, 8, 8)).shape, network.block_names
    (torch.Size([2, 10]), ['layer1.0', 'layer2.0', 'layer3.0'])
    """
    if depth not in FOUR_STAGES and (depth < 8 or (depth - 2) % 6):
        raise ValueError(f"depth (={depth}) must be 6n + 2, 18 or 34; choose 8, 14, 18, 20, 32, 34, 44 or 56")
    blocks = FOUR_STAGES.get(depth, ((depth - 2) // 6,) * 3)
    if width is None:
        width = 64 if depth in FOUR_STAGES else 16
    options = {"blocks": blocks, "widths": [width * 2**stage for stage in range(len(blocks))], **options}
    if seed is None:
        return ResNet(num_classes, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(num_classes, **options)
