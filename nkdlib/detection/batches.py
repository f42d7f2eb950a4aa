"""Batches for detectors: images at one square size, kept decoded, with augmentation as for SSD.

Augmentation follows Liu et al. 2016 (arXiv 1512.02325, section 2.2) with the ranges of torchvision's v2 transforms.
Those take one image at a time, several passes over it and the global generator; here zooming out, cropping, mirroring
and resizing are one resize of a slice, and all changes of color one 3x3 matrix.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nkdlib.detection.coco import CocoImages, Target
from nkdlib.tasks.progress import Progress

Batch = tuple[Tensor, list[Target]]  # uint8 (B, 3, S, S), targets with boxes in its pixels
DetectionAugmentation = Callable[[Tensor, list[Target], np.random.Generator], Batch]


class SquareImages:
    """All images of a data set resized to `size` x `size`, without regard to their aspect, boxes along with them.

    Decoded when first asked for, then kept: `bytes` = 3 * size^2 for each image (COCO's 118,287 at 128: 5.8e9).
    """

    def __init__(self, images: CocoImages, size: int):
        if size < 1:
            raise ValueError(f"size (={size}) must be 1 or more pixels")
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"SquareImages({self.images!r}, {self.size})"

    def __getstate__(self) -> dict[str, object]:
        return {"images": self.images, "size": self.size}  # another process decodes for itself

    @property
    def bytes(self) -> int:
        """Of `pixels`."""
        return 3 * self.size**2 * len(self)

    @property
    def fingerprint(self) -> str:
        return f"{self.images.fingerprint}-{self.size}"

    @cached_property
    def pixels(self) -> Tensor:
        """uint8 (N, 3, size, size); raises DataDamaged for a file that is no image."""
        pixels = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        with Progress(f"decoding {self.images.folder.name}", len(self), "images") as progress:
            for place in range(len(self)):
                pixels[place] = self.images.read(place, self.size)
                progress.advance()
        return pixels

    @cached_property
    def scales(self) -> Tensor:
        """float32 (N, 4): what boxes x1 y1 x2 y2 at this size are multiplied by to lie in the images on disk."""
        return torch.from_numpy(np.tile(self.images.sizes / self.size, 2)).float()

    def target(self, place: int, crowds: bool = False) -> Target:
        """The target of one image, boxes and area in pixels at this size."""
        target, scale = self.images.target(place, crowds), self.scales[place]
        return target | {"boxes": target["boxes"] / scale, "area": target["area"] / (scale[0] * scale[1])}

    def on_disk(self, predictions: Iterable[Mapping]) -> list[dict]:
        """Predictions, with "image_id" and "boxes" (N, 4) at this size, in pixels of the images on disk."""
        places = {image: place for place, image in enumerate(self.images.image_ids)}
        return [{**one, "boxes": one["boxes"] * self.scales[places[one["image_id"]]]} for one in predictions]

    def batches(
        self,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int | None = None,
        shuffle: bool = True,
        augment: DetectionAugmentation | None = None,
        crowds: bool = False,
    ) -> "DetectionBatches":
        """Batches of (uint8 (B, 3, size, size), list of B targets); iterating again gives the same sequence again.

        steps: this many batches, over as many epochs as it takes, one epoch when not given; seed: decides the order,
        anew for each epoch, and the augmentation; shuffle: an incomplete last batch is left out where it is on;
        augment: see SSDAugmentation; crowds: with the boxes of crowds, which nothing should be trained on.
        Raises ValueError for a combination that gives no batches or an undetermined order.
        """
        if seed is None and (shuffle or augment):
            raise ValueError("seed (=None) must be a number where shuffle or augment is on")
        if batch_size < 1 or (shuffle and batch_size > len(self)):
            raise ValueError(f"batch_size (={batch_size}) must be 1 to the {len(self):,} images of {self!r}")
        per_epoch = len(self) // batch_size if shuffle else -(-len(self) // batch_size)
        steps = per_epoch if steps is None else steps
        return DetectionBatches(self, batch_size, steps, per_epoch, seed, shuffle, augment, crowds)


@dataclass(frozen=True, eq=False)
class DetectionBatches:
    """What `SquareImages.batches` returns."""

    squares: SquareImages
    batch_size: int
    steps: int
    steps_per_epoch: int
    seed: int | None
    shuffle: bool
    augment: DetectionAugmentation | None
    crowds: bool

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if place == 0:
                order = np.arange(len(self.squares))
                if self.shuffle:
                    order = np.random.default_rng([self.seed, 0, epoch]).permutation(order)
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
            pixels = self.squares.pixels[torch.from_numpy(chosen)]
            targets = [self.squares.target(int(i), self.crowds) for i in chosen]
            if self.augment is not None:
                pixels, targets = self.augment(pixels, targets, np.random.default_rng([self.seed, 1, step]))
            yield pixels, targets


@dataclass(frozen=True)
class SSDAugmentation:
    """Colors, zooming out, cropping around boxes and mirroring, each at random.

    The hue is turned in YIQ, which is linear, not in HSV as torchvision does. A crop keeps the boxes whose centers lie
    in it; an image without boxes is not cropped. What is left of a box must be `min_side` pixels each way.
    """

    colors: bool = True  # brightness, contrast, saturation, hue and the channels' order, with probability 1/2 each
    zoom_out: float = 4.0  # by up to this factor, with probability 1/2; 1 turns it off
    crop: bool = True
    flip: bool = True  # left to right, with probability 1/2
    min_side: float = 1.0  # pixels
    fill: tuple[int, int, int] = (124, 116, 104)  # around images zoomed out: ImageNet's mean, as SSD has it

    def __post_init__(self):
        if not self.zoom_out >= 1:
            raise ValueError(f"zoom_out (={self.zoom_out}) must be 1 or more; 1 turns it off")

    def __call__(self, pixels: Tensor, targets: list[Target], generator: np.random.Generator) -> Batch:
        """Changed copies of pixels, uint8 (B, 3, S, S), and of their targets; the generator decides alone."""
        changed, moved = torch.empty_like(pixels), []
        fill = torch.tensor(self.fill, dtype=torch.uint8).view(3, 1, 1)
        for image, out, target in zip(pixels, changed, targets, strict=True):
            boxes = target["boxes"].numpy()
            window, kept = self._window(boxes, image.shape[-1], generator)
            boxes = _cut(image, out, window, boxes, fill)
            if self.flip and generator.random() < 0.5:
                out.copy_(out.flip(-1))
                boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [out.shape[-1], 0, out.shape[-1], 0]
            moved.append(_moved(target, boxes, kept, self.min_side, out.shape[-1]))
        if self.colors:
            changed = _recolored(changed, generator)
        return changed, moved

    def _window(self, boxes: np.ndarray, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The part that becomes the new image, x1 y1 x2 y2 in whole pixels of the old one, and which boxes stay."""
        window = np.array([0, 0, size, size])
        if self.zoom_out > 1 and generator.random() < 0.5:
            side = int(size * generator.uniform(1, self.zoom_out))
            left, top = -generator.integers(0, side - size + 1, 2)
            window = np.array([left, top, left + side, top + side])
        if self.crop and len(boxes):
            return _crop(window, boxes, generator)
        return window, np.ones(len(boxes), bool)


OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)  # of a crop with a box at least; None leaves the image whole
TRIES = 40  # crops of one overlap, before another overlap is drawn


def _crop(window: np.ndarray, boxes: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random part of a window that overlaps enough with a box, and which boxes have their centers in it."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    side = window[2] - window[0]
    while (overlap := OVERLAPS[generator.integers(len(OVERLAPS))]) is not None:
        extents = (side * generator.uniform(0.3, 1, (TRIES, 2))).astype(int).clip(1)
        starts = (generator.random((TRIES, 2)) * (side - extents + 1)).astype(int) + window[:2]
        parts = np.concatenate([starts, starts + extents], 1)[:, None]  # (TRIES, 1, 4)
        inside = ((centers > parts[..., :2]) & (centers < parts[..., 2:])).all(2)  # (TRIES, n)
        shared = (np.minimum(boxes[:, 2:], parts[..., 2:]) - np.maximum(boxes[:, :2], parts[..., :2])).clip(0).prod(2)
        iou = np.where(inside, shared / (areas + extents.prod(1)[:, None] - shared), -1).max(1)
        aspect = extents[:, 0] / extents[:, 1]
        good = (iou >= overlap) & (aspect >= 0.5) & (aspect <= 2)
        if good.any():
            return parts[good.argmax(), 0], inside[good.argmax()]
    return window, np.ones(len(boxes), bool)


def _cut(image: Tensor, out: Tensor, window: np.ndarray, boxes: np.ndarray, fill: Tensor) -> np.ndarray:
    """Write the window of an image, (3, S, S), into `out`, as large; return the boxes there."""
    size = image.shape[-1]
    seen = np.array([*np.maximum(window[:2], 0), *np.minimum(window[2:], size)])  # the window's part with pixels
    scale = size / (window[2:] - window[:2])
    place = np.rint((seen.reshape(2, 2) - window[:2]) * scale).astype(int)  # where they go: corners (2, 2)
    place[1] = np.maximum(place[1], place[0] + 1).clip(max=size)
    place[0] = np.minimum(place[0], place[1] - 1)
    (x1, y1, x2, y2), ((left, top), (right, bottom)) = seen, place.tolist()
    part = image[:, y1:y2, x1:x2]
    if part.shape[1:] != (bottom - top, right - left):
        shape = (bottom - top, right - left)
        part = F.interpolate(part[None], size=shape, mode="bilinear", align_corners=False, antialias=True)[0]
    if part.shape != out.shape:
        out.copy_(fill.expand_as(out))
    out[:, top:bottom, left:right] = part
    zoom = (place[1] - place[0]) / (seen[2:] - seen[:2])  # exactly what was done, rounding included
    return (boxes - np.tile(seen[:2], 2)) * np.tile(zoom, 2) + np.tile(place[0], 2)


def _moved(target: Target, boxes: np.ndarray, kept: np.ndarray, min_side: float, size: int) -> Target:
    """The target with what is left of its boxes, given where they went."""
    boxes = torch.from_numpy(boxes.clip(0, size)).float()
    extents = boxes[:, 2:] - boxes[:, :2]
    kept = torch.from_numpy(kept) & (extents >= min_side).all(1)
    before = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
    area = target["area"] * extents.prod(1) / before  # a mask fills its box as it did before
    moved = {"boxes": boxes, "labels": target["labels"], "iscrowd": target["iscrowd"], "area": area}
    return target | {name: value[kept] for name, value in moved.items()}


GRAY = np.array([0.299, 0.587, 0.114])
YIQ = np.array([GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _recolored(pixels: Tensor, generator: np.random.Generator) -> Tensor:
    """Colors of every image, uint8 (B, 3, S, S), through a matrix of its own."""
    means = pixels[:, :, ::2, ::2].float().mean((2, 3)).double().numpy()  # a quarter of the pixels is enough
    matrices, shifts = zip(*(color_matrix(mean, generator) for mean in means), strict=True)
    matrices = torch.from_numpy(np.stack(matrices)).float()
    shifts = torch.from_numpy(np.stack(shifts)).float()[..., None]
    colors = torch.baddbmm(shifts + 0.5, matrices, pixels.flatten(2).float())  # a half: truncating then rounds
    return colors.clamp_(0, 255).to(torch.uint8).view_as(pixels)


def color_matrix(mean: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and shift (3,) of random brightness, contrast, saturation, hue and order of channels.

    mean: of the image's channels, which contrast leaves alone. Ranges are those of v2.RandomPhotometricDistort.
    """
    on = generator.random(5) < 0.5
    brightness = generator.uniform(0.875, 1.125) if on[0] else 1.0
    contrast = generator.uniform(0.5, 1.5) if on[1] else 1.0
    saturation = generator.uniform(0.5, 1.5) if on[2] else 1.0
    turn = 2 * np.pi * generator.uniform(-0.05, 0.05) if on[3] else 0.0
    order = generator.permutation(3) if on[4] else np.arange(3)
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.linalg.inv(YIQ) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ YIQ
    matrix = brightness * (turned @ (saturation * np.eye(3) + (1 - saturation) * GRAY))
    shift = (1 - contrast) * brightness * (GRAY @ mean)
    return (contrast * matrix)[order], np.full(3, shift)
