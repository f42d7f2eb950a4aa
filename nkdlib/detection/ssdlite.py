"""SSDLite detection on top of any classification network (SSD, arXiv 1512.02325; its light head, arXiv 1801.04381).

torchvision's anchors, matching, losses and head, with its values for MobileNetV3-Large (arXiv 1905.02244), of whose
detector this one has the parameters and the outputs. What differs: it takes uint8 images of one size and resizes none.
"""

import copy
import difflib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.ops import StochasticDepth, box_iou

from nkdlib.networks.cost import Cost
from nkdlib.networks.cost import cost as cost_of
from nkdlib.networks.module import device_of, evaluating, seeded

Tap = int | str  # a stride, or the name of a submodule or of a node of the traced network


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, StochasticDepth) or super().is_leaf_module(module, name)  # keeps asking for its mode


def feature_maps(network: nn.Module, example: Tensor, taps: Sequence[Tap]) -> fx.GraphModule:
    """A copy of a network that returns some of its feature maps and is without what they do not need.

    Dropout called as a function is left out; modules such as `nn.Dropout` and `StochasticDepth` stay as they are. A
    map that the next layer changes in place is returned changed.

    Args:
        network: any module that takes one tensor and that torch.fx can trace; not changed.
        example: (B, C, H, W), of which only shape and device matter.
        taps: each a stride, meaning the last map of that stride, before the global pooling, through which everything
            passes; or a submodule, meaning its output ("features.13.block.0"); or a node of the traced graph.

    Returns:
        A module from images to a tuple of maps (B, channels, height, width), one for each tap.

    Raises:
        ValueError: a network that cannot be traced or does not take the example, a tap that is no feature map.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> [maps] = feature_maps(network, images := torch.zeros(1, 3, 32, 32), taps=[2])(images)
    >>> maps.shape
    torch.Size([1, 8, 16, 16])
    """
    name, network = type(network).__name__, copy.deepcopy(network)
    with evaluating(network), torch.no_grad():
        try:
            module = fx.GraphModule(network, _Tracer().trace(network), name)
        except Exception as error:
            raise ValueError(
                f"network (={name}) cannot be traced by torch.fx ({error}); "
                "rewrite its forward without branches on the values of tensors"
            ) from error
        try:
            ShapeProp(module.eval()).propagate(example.clone())  # the network may begin by working in place
        except Exception as error:
            raise ValueError(f"network (={name}) does not take images {tuple(example.shape)}: {error}") from error
    nodes = tuple(_find(module.graph, tap, example.shape[-1]) for tap in taps)
    module.graph.output_node().args = (nodes,)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def _find(graph: fx.Graph, tap: Tap, size: int) -> fx.Node:
    """The node that makes the map that a tap names."""
    if isinstance(tap, int):
        strides = _strides(graph, size)
        if tap not in strides:
            raise ValueError(
                f"tap (={tap}) is no stride of a map through which everything passes; choose from {list(strides)} "
                f"for images of {size} pixels, or name a submodule"
            )
        return strides[tap]
    found = {}  # the last node of each name
    for node in list(graph.nodes)[:-1]:  # the last is the output
        paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        found.update(dict.fromkeys((node.name, *paths), node))
    if tap not in found:
        close = difflib.get_close_matches(tap, found, 5, 0.3)
        raise ValueError(f"tap (={tap!r}) is no submodule or node that the network calls; close to it are {close}")
    if len(_shape(found[tap])) != 4:
        raise ValueError(f"tap (={tap!r}) gives {_shape(found[tap])}; name one that gives (B, channels, height, width)")
    return found[tap]


def _strides(graph: fx.Graph, size: int) -> dict[int, fx.Node]:
    """By stride, the last map that no connection passes by, so that all of the network up to it takes part in it."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    found, furthest, reached = {}, 0, set()
    for node in list(graph.nodes)[:-1]:  # the last is the output
        if node.op != "placeholder" and reached.isdisjoint(node.all_input_nodes):
            continue  # a constant
        shape = _shape(node)
        if shape:
            reached.add(node)
        if len(shape) == 4 and node.op != "placeholder" and furthest <= place[node] and shape[-1] > 1:
            halvings = [2**k for k in range(12) if -(-size // 2**k) == shape[-1]]
            found[halvings[0] if halvings else round(size / shape[-1])] = node
        if shape:
            furthest = max([furthest, *(place[user] for user in node.users)])
    return found


class Backbone(nn.Module):
    """Images (B, C, S, S) to maps by name: those that a network makes, then those of the extra blocks."""

    def __init__(self, body: nn.Module, extra: nn.ModuleList):
        super().__init__()
        self.body, self.extra = body, extra

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = list(self.body(images))
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(index), features) for index, features in enumerate(maps))


class Detector(SSD):
    """torchvision's SSD for uint8 images (B, C, S, S) of one size; made by `ssdlite`.

    In training mode `detector(images, targets)` returns the losses {"bbox_regression", "classification"}, scalars; in
    evaluation mode `detector(images)` returns for each image {"boxes": (N, 4) as x1 y1 x2 y2 in pixels, "scores": (N,),
    "labels": (N,) from 1}, best first. `targets` are B of {"boxes": float32 (N, 4), "labels": int64 (N,) from 1}.

    Raises:
        ValueError: images of another size or type, a box without area, a label that is no class.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, anchors: DefaultBoxGenerator, shape: Sequence[int], **options
    ):
        self.shape = tuple(shape)  # of one image
        super().__init__(backbone, anchors, self.shape[1:], 0, head=head, **options)  # the head knows the classes
        images = torch.zeros(1, *self.shape, device=device_of(backbone))
        with evaluating(backbone), torch.no_grad():
            features = list(backbone(images).values())
        boxes = anchors(ImageList(images, [self.shape[1:]]), features)[0]
        self.register_buffer("anchors", boxes, persistent=False)  # (A, 4): the same for every image
        for name in ("mean", "std"):
            value = torch.tensor(getattr(self.transform, f"image_{name}"), device=images.device)
            self.register_buffer(name, value.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, targets: Sequence[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(f"images (={images.dtype} {tuple(images.shape)}) must be torch.uint8 (B, *{self.shape})")
        if self.training:
            self._check(targets, len(images))
        features = list(self.backbone(images.float().div_(255).sub_(self.mean).div_(self.std)).values())
        outputs, anchors = self.head(features), [self.anchors] * len(images)
        if not self.training:
            return self.postprocess_detections(outputs, anchors, [self.shape[1:]] * len(images))
        nothing = torch.full_like(self.anchors[:, 0], -1, dtype=torch.int64)
        matches = [
            self.proposal_matcher(box_iou(target["boxes"], self.anchors)) if len(target["boxes"]) else nothing
            for target in targets
        ]
        return self.compute_loss(targets, outputs, anchors, matches)

    def _check(self, targets: Sequence[dict] | None, count: int) -> None:
        if targets is None or len(targets) != count:
            given = None if targets is None else len(targets)
            raise ValueError(f"targets (={given}) must be given in training mode, one for each of {count} images")
        boxes, labels = (torch.cat([target[key] for target in targets]) for key in ("boxes", "labels"))
        classes = self.head.classification_head.num_columns - 1
        if (boxes[:, 2:] <= boxes[:, :2]).any() or (labels < 1).any() or (labels > classes).any():
            raise ValueError(f"targets must hold boxes with x1 < x2 and y1 < y2 and labels from 1 to {classes}")

    def cost(self) -> Cost:
        """Parameters, and MACs of one image."""
        return cost_of(self, torch.zeros(1, *self.shape, dtype=torch.uint8, device=self.anchors.device))


def ssdlite(
    network: nn.Module,
    num_classes: int,
    size: int = 320,
    taps: Sequence[Tap] = (16, 32),
    *,
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
        network: images (B, C, size, size) to anything; copied with its weights. C is what its first convolution takes.
        num_classes: of objects, without the background (torchvision counts it).
        size: height and width of the images in pixels.
        taps: maps of the network to detect on, fine to coarse (`feature_maps`); what lies behind the last is left out.
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
        widths = [features.shape[1] for features in body(example)]
    anchors = DefaultBoxGenerator([list(ratios)] * (len(taps) + len(extra)), *scales)
    with seeded(torch.device("cpu"), seed):
        blocks = nn.ModuleList()
        for width in extra:
            blocks.append(_extra_block(widths[-1], width, norm))
            widths.append(width)
        _normal_init(blocks)
        head = SSDLiteHead(widths, anchors.num_anchors_per_location(), num_classes + 1, norm)
    mean, std = ([value] * channels if isinstance(value, int | float) else list(value) for value in (mean, std))
    defaults = {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 300}
    options = {**defaults, "image_mean": mean, "image_std": std, **options}
    return Detector(Backbone(body, blocks.to(device)), head.to(device), anchors, example.shape[1:], **options)
