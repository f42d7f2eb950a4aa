"""Detectors on several backbones under one recipe: networks by description, pictures, crops, detections to keep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.models import MNASNet, mobilenet_v3_large

from nkdlib.compendium.scenes import write_scenes
from nkdlib.data import Images, load
from nkdlib.detection import (
    CocoImages,
    SquareImages,
    coco_root,
    detect,
    evaluate,
    ssd_augmentation,
    ssdlite,
    train_detector,
)
from nkdlib.detection.ssdlite import Detector
from nkdlib.figs import rebuild
from nkdlib.networks import cost, mixed_space, reset
from nkdlib.networks.cost import Cost
from nkdlib.tasks.places import runs_root
from nkdlib.training import Schedule

PARTS = ("boxes", "scores", "labels")


@dataclass(frozen=True)
class Backbone:
    """A classification network for detectors.

    kind: "FiGS", "MobileNetV3" (Large) or "MnasNet"; width: multiplier of the last two; stages: of FiGS' supernet, see
    `mixed_space`; counts: channels that a search left of it, None for the supernet.
    """

    kind: str
    width: float = 1.0
    stages: Sequence[Sequence[int]] = ()
    counts: Mapping | None = None

    def build(self, classes: int, seed: int) -> nn.Module:
        """The network with weights from a seed; every BatchNorm has torch's momentum.

        MnasNet's own averages over 3,333 steps, MobileNetV3's over 100.
        """
        if self.kind == "MobileNetV3":
            network = mobilenet_v3_large(width_mult=self.width, num_classes=classes)
        elif self.kind == "MnasNet":
            network = MNASNet(self.width, num_classes=classes, dropout=0.0)
        else:
            network = mixed_space(classes, stem=self.stages[0][1], stages=self.stages, head=self.stages[-1][1])
            network = network if self.counts is None else rebuild(network, torch.zeros(1, 3, 32, 32), self.counts)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
        return reset(network, seed)

    def detector(self, network: nn.Module, classes: int, size: int, extra: Sequence[int], seed: int) -> Detector:
        """SSDLite on a built network; on MnasNet without its last convolution, which has 1,280 channels."""
        last = "layers.13" if self.kind == "MnasNet" else 32
        return ssdlite(network, classes, size, taps=(16, last), extra=extra, seed=seed)

    def spent(self, classes: int, size: int, extra: Sequence[int]) -> tuple[Cost, Cost]:
        """Parameters and MACs of the detector and, of these, of the backbone."""
        detector = self.detector(self.build(classes, 0), classes, size, extra, 0)
        return detector.cost(), cost(detector.backbone["body"], torch.zeros(1, 3, size, size))


def pictures_of(
    data: str, split: str, count: int, size: int, articles: Sequence[int], sides: Sequence[float]
) -> CocoImages:
    """Pictures with boxes: those of a folder in COCO's layout, or scenes of the images called `data`."""
    if coco_root(data):
        return CocoImages.load(data, split, drop=True)
    images = load(data, {"train": "train", "val": "test"}[split])
    name = "-".join(map(str, (data, count, size, *articles, *sides)))
    folder = runs_root() / "scenes" / name
    return write_scenes(images, folder, count, size, split=split, articles=articles, sides=sides)


def crops_of(squares: SquareImages, side: int) -> Images:
    """Contents of all boxes, with a pixel more on each side, as labeled images of `side` x `side` pixels."""
    pixels, labels = [], []
    for image, target in ((squares.pixels[place], squares.target(place)) for place in range(len(squares))):
        for box, label in zip(target["boxes"].round().long(), target["labels"], strict=True):
            (x1, y1), (x2, y2) = (box[:2] - 1).clamp_min(0), (box[2:] + 1).clamp_max(squares.size)
            part = image[None, :, y1:y2, x1:x2].float()
            resized = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
            pixels.append(resized[0].round().to(torch.uint8))
            labels.append(int(label) - 1)
    half = (0.5,) * 3
    return Images("crops", "train", torch.stack(pixels), torch.tensor(labels), squares.images.classes, half, half)


def train_with_curve(
    detector: Detector, squares: SquareImages, schedule: Schedule, checkpoints: int, seed: int
) -> tuple[list[float], list[tuple[int, float]]]:
    """Train on pictures with changes of colors and mirroring.

    Returns the losses, and the average precision on 200 of the training pictures after steps, `checkpoints` times.
    """
    watched = SquareImages(squares.images.subset(min(len(squares), 200)), squares.size)
    curve, truth = [], watched.images.to_coco()

    def look(step: int) -> None:
        found = watched.on_disk(detect(detector, watched.batches(50, shuffle=False)))
        curve.append((step, evaluate(found, truth).ap))
        detector.train()

    def batches() -> Iterator:
        augment = ssd_augmentation(squares.size, zoom_and_crop=False)
        drawn = squares.batches(schedule.batch_size, steps=schedule.steps, seed=seed, augment=augment)
        for step, batch in enumerate(drawn):
            if step and step % max(schedule.steps // checkpoints, 1) == 0:
                look(step)
            yield batch

    losses = train_detector(detector, batches(), schedule, seed=seed)
    look(schedule.steps)
    return losses, curve


def stored(detections: Sequence[Mapping]) -> dict[str, Tensor]:
    """Detections as tensors, to keep in an artefact."""
    tensors = {part: torch.cat([one[part] for one in detections]) for part in PARTS}
    images = [torch.full_like(one["labels"], one["image_id"]) for one in detections]
    return {**tensors, "image": torch.cat(images)}


def restored(tensors: Mapping[str, Tensor], image_ids: Sequence[int]) -> list[dict]:
    """Detections picture by picture, as `evaluate` takes them."""
    owners = tensors["image"]
    return [{"image_id": image} | {part: tensors[part][owners == image] for part in PARTS} for image in image_ids]


def draw_boxes(
    ax: Axes,
    image: Tensor,
    target: Mapping,
    classes: Sequence[str],
    scores: Sequence[float] | None = None,
    color: str = "white",
    style: str = "-",
) -> None:
    """Draw a picture, uint8 (3, S, S), with boxes and the names of their classes."""
    ax.imshow(image.permute(1, 2, 0))
    ax.set_axis_off()
    for number, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
        x1, y1, x2, y2 = box
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=0.9, linestyle=style))
        name = classes[label - 1] + ("" if scores is None else f" {100 * scores[number]:.0f}")
        above = y1 > image.shape[-1] / 12  # else at the upper edge, in the box
        at = {"y": y1 - 1} if above else {"y": y1 + 1, "va": "top"}
        ax.text(x1, s=name, fontsize=4.5, color=color, clip_on=True, **at)
