"""SSDLite detection on top of any classification network (SSD, arXiv 1512.02325; its light head, arXiv 1801.04381).

torchvision's anchors, matching, losses and head, with its values for MobileNetV3-Large (arXiv 1905.02244): the same
parameters and outputs as its detector, but for uint8 images of one size, which are not resized.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation, box_iou

from nkdlib.detection.feature_maps import Tap, feature_maps
from nkdlib.networks.cost import Cost
from nkdlib.networks.cost import cost as cost_of
from nkdlib.networks.module import device_of, evaluating, seeded
from nkdlib.tasks.checks import check_number, check_seed


class Detector(SSD):
    """torchvision's SSD for uint8 images (B, C, S, S) of one size; made by `ssdlite`.

    In training mode `detector(images, targets)` returns the losses {"bbox_regression", "classification"}, scalars; in
    evaluation mode `detector(images)` returns for each image {"boxes": (N, 4) as x1 y1 x2 y2 in pixels, "scores": (N,),
    "labels": (N,) from 1}, best first. `targets` are B of {"boxes": float32 (N, 4), "labels": integers (N,) from 1}.

    Raises:
        ValueError: images of another size or type, a box without area, a label that is no class.
    """

    def __init__(
        self, backbone: nn.ModuleDict, head: nn.Module, anchors: DefaultBoxGenerator, shape: Sequence[int], **options
    ):
        self.shape = tuple(shape)  # of one image
        super().__init__(backbone, anchors, self.shape[1:], 0, head=head, **options)  # the head knows the classes
        images = torch.zeros(1, *self.shape, device=device_of(backbone))
        with evaluating(backbone), torch.no_grad():
            boxes = anchors(ImageList(images, [self.shape[1:]]), self.feature_maps(images))[0]
        self.register_buffer("anchors", boxes, persistent=False)  # (A, 4): the same for every image
        for name in ("mean", "std"):
            value = torch.tensor(getattr(self.transform, f"image_{name}"), device=images.device)
            self.register_buffer(name, value.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, targets: Sequence[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(f"images (={images.dtype} {tuple(images.shape)}) must be torch.uint8 (B, *{self.shape})")
        if self.training:
            self._check(targets, len(images))
        features = self.feature_maps(images.float().div_(255).sub_(self.mean).div_(self.std))
        outputs, anchors = self.head(features), [self.anchors] * len(images)
        if not self.training:
            return self.postprocess_detections(outputs, anchors, [self.shape[1:]] * len(images))
        nothing = torch.full_like(self.anchors[:, 0], -1, dtype=torch.int64)
        matches = [
            self.proposal_matcher(box_iou(target["boxes"], self.anchors)) if len(target["boxes"]) else nothing
            for target in targets
        ]
        targets = [{**target, "labels": target["labels"].long()} for target in targets]
        return self.compute_loss(targets, outputs, anchors, matches)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Maps of normalized images: those that the network makes, then those of the extra blocks."""
        maps = list(self.backbone["body"](images).values())
        for block in self.backbone["extra"]:
            maps.append(block(maps[-1]))
        return maps

    def _check(self, targets: Sequence[dict] | None, count: int) -> None:
        if targets is None or len(targets) != count:
            given = None if targets is None else len(targets)
            raise ValueError(f"targets (={given}) must be given in training mode, one for each of {count} images")
        for number, target in enumerate(targets):
            shapes = tuple(tuple(target[key].shape) for key in ("boxes", "labels"))
            if shapes != ((len(target["labels"]), 4), (len(target["labels"]),)):
                raise ValueError(f"targets[{number}] must hold boxes (N, 4) and labels (N,), it holds {shapes}")
        boxes, labels = (torch.cat([target[key] for target in targets]) for key in ("boxes", "labels"))
        classes = self.head.classification_head.num_columns - 1
        right = boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all() and not labels.is_floating_point()
        if not right or (labels < 1).any() or (labels > classes).any():
            raise ValueError(f"targets must hold finite boxes with x1 < x2 and y1 < y2 and labels from 1 to {classes}")

    def cost(self) -> Cost:
        """Parameters, and MACs of one image."""
        return cost_of(self, torch.zeros(1, *self.shape, dtype=torch.uint8, device=self.anchors.device))


def _extra_blocks(width_before: int, widths: Sequence[int], norm: Callable[[int], nn.Module]) -> nn.ModuleList:
    """Each halves height and width, as those of torchvision's SSDLite; none of their convolutions has a bias."""
    blocks, layer = nn.ModuleList(), partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)
    for channels, width in pairwise([width_before, *widths]):
        half = width // 2
        depthwise = layer(half, half, kernel_size=3, stride=2, groups=half)
        blocks.append(nn.Sequential(layer(channels, half, kernel_size=1), depthwise, layer(half, width, kernel_size=1)))
    for block in blocks:
        for convolution, *_ in block:
            nn.init.normal_(convolution.weight, std=0.03)
    return blocks


def ssdlite(
    network: nn.Module,
    num_classes: int,
    size: int = 320,
    taps: Sequence[Tap] = (16, 32),
    *,
    channels: int | None = None,
    extra: Sequence[int] = (512, 256, 256, 128),
    scales: tuple[float, float] = (0.2, 0.95),
    ratios: Sequence[int] = (2, 3),
    mean: Sequence[float] | float = 0.5,
    std: Sequence[float] | float = 0.5,
    seed: int = 0,
    **options: float,
) -> Detector:
    """A detector whose features are those of a classification network; torchvision's SSDLite but for the arguments.

    `detector.to(memory_format=torch.channels_last)` makes a step on a CPU about a quarter shorter; not the default
    because torch 2.14 then writes beyond its memory in the gradient of 1x1 convolutions of stride 2 with few channels.

    Args:
        network: images (B, channels, size, size) to anything; copied with its weights.
        num_classes: of objects, without the background (torchvision counts it).
        size: height and width of the images in pixels.
        taps: maps of the network to detect on (see `feature_maps`); layers behind the last are left out.
        channels: of the images; by default those that the convolution takes which the network holds first.
        extra: output channels of the blocks behind the last tap, each of which halves height and width.
        scales: side of the anchors on the first and on the last map, as a share of `size`.
        ratios: of the longer to the shorter side of the anchors that are no squares.
        mean, std: of the pixels in [0, 1], for all channels or for each: the network sees (x / 255 - mean) / std.
        seed: of the weights of the extra blocks and the head.
        options: of torchvision's SSD: score_thresh, nms_thresh, detections_per_img, iou_thresh, topk_candidates,
            positive_fraction.

    Raises:
        ValueError: see `feature_maps`; a network without a convolution, no taps.

    >>> from nkdlib.networks import residual_space
    >>> detector = ssdlite(residual_space(10, blocks=(1, 1), widths=(8, 8)), 2, 32, taps=[1, 2], extra=[16])
    >>> len(detector.eval()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    1
    """
    given = ("channels", 1 if channels is None else channels), *(("extra", width) for width in extra)
    for name, value in (("num_classes", num_classes), ("size", size), *given):
        check_number(name, value, 1, whole=True)
    check_seed(seed)
    if channels is None:
        channels = next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), None)
    if channels is None or not taps:
        raise ValueError(
            f"network (={type(network).__name__}) must hold a convolution, and taps (={taps}) name its maps"
        )
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # torchvision's
    device = device_of(network)
    example = torch.zeros(1, channels, size, size, device=device)
    body = feature_maps(network, example, taps)
    with evaluating(body), torch.no_grad():
        widths = [features.shape[1] for features in body(example).values()]
    anchors = DefaultBoxGenerator([list(ratios)] * (len(taps) + len(extra)), *scales)
    with seeded(torch.device("cpu"), seed):
        blocks = _extra_blocks(widths[-1], extra, norm)
        head = SSDLiteHead([*widths, *extra], anchors.num_anchors_per_location(), num_classes + 1, norm)
    mean, std = ([value] * channels if isinstance(value, int | float) else list(value) for value in (mean, std))
    if not len(mean) == len(std) == channels or not all(value > 0 for value in std):
        raise ValueError(f"mean (={mean}) and std (={std}) must have {channels} values, one a channel, std above 0")
    defaults = {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 300}
    options = {**defaults, "image_mean": mean, "image_std": std, **options}
    backbone = nn.ModuleDict({"body": body, "extra": blocks.to(device)})
    return Detector(backbone, head.to(device), anchors, example.shape[1:], **options)
