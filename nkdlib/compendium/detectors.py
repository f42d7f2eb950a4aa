"""Detectors on several backbones under one recipe: pictures, networks, detections to keep and to draw."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.models import MNASNet, mobilenet_v3_large
from torchvision.ops import box_iou

from nkdlib.compendium.photographs import PIXEL_MEAN, PIXEL_STD
from nkdlib.compendium.scenes import write_scenes
from nkdlib.compendium.sweep import experiment
from nkdlib.data import load
from nkdlib.detection import CocoImages, SquareImages, coco_root, detect, ssd_augmentation, ssdlite, train_detector
from nkdlib.figs import CostModel, rebuild
from nkdlib.networks import count_params
from nkdlib.networks.channels import channel_groups
from nkdlib.tasks.cache import Artefact
from nkdlib.tasks.measure import Stopwatch
from nkdlib.tasks.places import runs_root

PARTS = ("boxes", "scores", "labels")
FEW = 50  # boxes; fewer do not give an average precision of their own
RIVALS = {  # of the paper, by width
    "MobileNetV3": lambda width: mobilenet_v3_large(width_mult=width),
    "MnasNet": lambda width: MNASNet(width, dropout=0.0),
}


def pictures_of(
    data: str, split: str, count: int, size: int, articles: Sequence[int], sides: Sequence[float]
) -> CocoImages:
    """Pictures with boxes: those of a folder in COCO's layout, or scenes of the images called `data`."""
    if coco_root(data):
        return CocoImages.load(data, split, drop=True)
    images = load(data, {"train": "train", "val": "test"}[split])
    name = "-".join(map(str, (images.name, count, size, *articles, *sides)))
    folder = runs_root() / "scenes" / name
    return write_scenes(images, folder, count, size, split=split, articles=articles, sides=sides)


def slim(network: nn.Module, model: CostModel, narrowed: Artefact) -> nn.Module:
    """The network that `narrowing.narrowed` left of another, with its weights."""
    groups = {group.name for group in channel_groups(network, model.example)}
    slim = rebuild(network, model.example, narrowed.info["counts"], groups - model.groups.keys())
    slim.load_state_dict(narrowed.tensors)
    return slim


def rival(name: str, params: float) -> nn.Module:
    """MobileNetV3-Large or MnasNet for ImageNet's classes, as wide as so many parameters allow.

    Every BatchNorm has torch's momentum; MnasNet's own averages over 3,333 steps, MobileNetV3's over 100.
    """
    widths = [step / 20 for step in range(2, 41)]
    with torch.device("meta"):
        place = bisect_right(widths, params, key=lambda width: count_params(RIVALS[name](width)))
    network = RIVALS[name](widths[max(place - 1, 0)])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network


def fitting_head(pictures: SquareImages) -> dict[str, object]:
    """Feature maps and anchors of SSDLite for pictures: anchors as large as their boxes, a finer map for small ones.

    Raises:
        ValueError: pictures without a box.
    """
    boxes = torch.cat([pictures.target(place)["boxes"] for place in range(len(pictures))])  # (N, 4)
    if not len(boxes):
        raise ValueError(f"the {len(pictures)} pictures to learn from hold no box; name a folder with annotations")
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    least, most = sides.quantile(torch.tensor([0.01, 0.99], dtype=sides.dtype)).tolist()
    return {"taps": (8, 16, 32) if least < 32 else (16, 32), "scales": (least / pictures.size, most / pictures.size)}


@experiment
def detected(network, learn, judged, taps, scales, extra, frozen, schedule, seed, device):
    """Train SSDLite on a network, whose first `frozen` layers stay as they are, and detect in other pictures."""
    pixels = {"mean": PIXEL_MEAN, "std": PIXEL_STD}
    head = {"taps": taps, "scales": scales, "extra": extra, "seed": seed}
    detector = ssdlite(network, len(learn.images.classes), learn.size, **head, **pixels)
    for layer in range(frozen):
        detector.backbone["body"].get_submodule(f"features.{layer}").requires_grad_(False)
    cost, detector = detector.cost(), detector.to(device, memory_format=torch.channels_last)
    augment = ssd_augmentation(learn.size, zoom_and_crop=False)
    batches = learn.batches(schedule.batch_size, steps=schedule.steps, seed=seed, augment=augment)
    with Stopwatch(device) as watch:
        losses = train_detector(detector, batches, schedule, seed=seed)
    found = judged.on_disk(detect(detector, judged.batches(50, shuffle=False)))
    spent = {"parameters": cost.params, "MACs": cost.macs, "train_s": watch.device_s}
    return {**spent, "losses": losses, **stored(found)}


def stored(detections: Sequence[Mapping]) -> dict[str, Tensor]:
    """Detections as tensors, to keep in an artefact."""
    tensors = {part: torch.cat([one[part] for one in detections]) for part in PARTS}
    images = [torch.full_like(one["labels"], one["image_id"]) for one in detections]
    return {**tensors, "image": torch.cat(images)}


def restored(tensors: Mapping[str, Tensor], image_ids: Sequence[int]) -> list[dict]:
    """Detections picture by picture, as `evaluate` takes them."""
    owners = tensors["image"]
    return [{"image_id": image} | {part: tensors[part][owners == image] for part in PARTS} for image in image_ids]


def draw_boxes(ax: Axes, image: Tensor, target: Mapping, classes: Sequence[str], true: Tensor | None = None) -> float:
    """Draw a picture, uint8 (3, S, S), with boxes and the names of their classes.

    With true boxes (N, 4), these are dashed, only the first N of the target are drawn, and the title has the mean
    over the true boxes of the largest IoU with one of those, which is returned.
    """
    ax.imshow(image.permute(1, 2, 0).numpy())
    ax.set_axis_off()
    count, overlap = len(target["boxes"]) if true is None else len(true), float("nan")
    boxes, labels = target["boxes"][:count], target["labels"][:count]
    if true is not None:
        overlap = box_iou(true, boxes).amax(1).mean().item() if len(boxes) else 0.0
        ax.set_title(f"IoU {overlap:.2f}", fontsize=8)
        for box in true.tolist():
            _outline(ax, box, "white", "--")
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        _outline(ax, box, "#de8f05", "-")
        look = {"fontsize": 7, "va": "top", "clip_on": True, "bbox": {"fc": "white", "ec": "none", "pad": 0.6}}
        ax.text(max(box[0], 0) + 1, max(box[1], 0) + 1, classes[label - 1], **look)
    return overlap


def _outline(ax: Axes, box: Sequence[float], color: str, style: str) -> None:
    x1, y1, x2, y2 = box
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=1.2, linestyle=style))
