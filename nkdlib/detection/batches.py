"""Batches for detectors: images at one square size, kept decoded, with random changes that follow from a seed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from nkdlib.data.images import check_batches
from nkdlib.detection.coco import CocoImages, Target
from nkdlib.networks.module import seeded
from nkdlib.tasks.checks import check_number
from nkdlib.tasks.progress import Progress

Augmentation = Callable[[Tensor, Target], tuple[Tensor, Target]]  # any of torchvision.transforms.v2


class SquareImages:
    """All images of a data set resized to `size` x `size`, without regard to their aspect, boxes along with them.

    Decoded when first asked for, then kept: 3 * size^2 bytes for each image (COCO's 118,287 at 128: 5.8e9).
    """

    def __init__(self, images: CocoImages, size: int):
        check_number("size", size, 1, whole=True)
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"SquareImages({self.images!r}, {self.size})"

    def __getstate__(self) -> dict[str, object]:
        return {"images": self.images, "size": self.size}  # another process decodes for itself

    @property
    def fingerprint(self) -> str:
        """Digest of the data set and the size, for the keys of the cache."""
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
        """float32 (N, 4): factors from boxes x1 y1 x2 y2 at this size to boxes in the images on disk."""
        return torch.from_numpy(np.tile(self.images.sizes / self.size, 2)).float()

    def target(self, place: int) -> Target:
        """The boxes at this size, "labels" and "image_id" of one image, without crowds, which nothing should learn."""
        target = self.images.target(place, crowds=False)
        boxes = target["boxes"] / self.scales[place]
        return {"boxes": boxes, "labels": target["labels"], "image_id": target["image_id"]}

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
        augment: Augmentation | None = None,
    ) -> "DetectionBatches":
        """Batches of (uint8 (B, 3, size, size), list of B targets).

        steps: batches, over as many epochs as it takes; one epoch by default. seed: of the order, anew for each epoch,
        and of the augmentation. shuffle: an incomplete last batch is left out if it is on. augment: see `augmented`.
        Raises ValueError for a combination that gives no batches or an undetermined order.
        """
        per_epoch = check_batches(self, batch_size, steps, seed, shuffle, augment)
        steps = per_epoch if steps is None else steps
        return DetectionBatches(self, batch_size, steps, per_epoch, seed, shuffle, augment)


@dataclass(frozen=True, eq=False)
class DetectionBatches:
    """Batches of square images; iterating again gives the same sequence again."""

    squares: SquareImages
    batch_size: int
    steps: int
    steps_per_epoch: int
    seed: int | None
    shuffle: bool
    augment: Augmentation | None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target]]]:
        count = len(self.squares)
        for step in range(self.steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0:
                order = (
                    np.random.default_rng([self.seed, 0, epoch]).permutation(count) if self.shuffle else range(count)
                )
            chosen = [int(place) for place in order[batch * self.batch_size :][: self.batch_size]]
            examples = [(self.squares.pixels[place], self.squares.target(place)) for place in chosen]
            if self.augment is not None:
                examples = [self._augmented(*one, (step, place)) for one, place in zip(examples, chosen, strict=True)]
            pixels, targets = zip(*examples, strict=True)
            yield torch.stack(pixels), list(targets)

    def _augmented(self, pixels: Tensor, target: Target, key: tuple[int, int]) -> tuple[Tensor, Target]:
        draws = np.random.SeedSequence([self.seed, 1, *key]).generate_state(1, np.uint64)
        with seeded(torch.device("cpu"), int(draws[0])):
            return augmented(pixels, target, self.augment)


def augmented(pixels: Tensor, target: Target, augment: Augmentation) -> tuple[Tensor, Target]:
    """Change an image and its target by a transform of torchvision's v2, which draws from torch's generator.

    pixels: uint8 (3, H, W); target: with "boxes" (N, 4) as x1 y1 x2 y2 in pixels and "labels" (N,).
    """
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=pixels.shape[-2:])
    image, changed = augment(tv_tensors.Image(pixels), {**target, "boxes": boxes})
    return image.as_subclass(Tensor), {**changed, "boxes": changed["boxes"].as_subclass(Tensor)}


def ssd_augmentation(size: int, zoom_and_crop: bool = True) -> v2.Transform:
    """SSD's random changes (Liu et al. 2016, arXiv 1512.02325, section 2.2) with torchvision's values.

    Colors, zooming out up to four times, crops that overlap with a box, and mirroring. size: of images, H = W.

    >>> pixels, target = torch.zeros(3, 64, 64, dtype=torch.uint8), {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]])}
    >>> target["labels"] = torch.tensor([1])
    >>> changed, moved = augmented(pixels, target, ssd_augmentation(64))
    >>> changed.shape, sorted(moved)
    (torch.Size([3, 64, 64]), ['boxes', 'labels'])
    """
    moves = [v2.RandomZoomOut(fill=(124, 116, 104)), v2.RandomIoUCrop(), v2.Resize((size, size))]  # ImageNet's mean
    moves = moves if zoom_and_crop else []
    return v2.Compose([v2.RandomPhotometricDistort(), *moves, v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()])
