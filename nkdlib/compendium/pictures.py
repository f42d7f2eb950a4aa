"""Labeled images read one by one, for data sets that fit into no memory, and the share of them that one process reads.

What is drawn for an image depends on the seed, the step and the image alone: not on which process reads it, nor on
whether the training was cut off before.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from nkdlib.data import DataNotFound, load
from nkdlib.data.images import random_rows
from nkdlib.data.load import NAMES
from nkdlib.networks.module import seeded
from nkdlib.training.loop import Schedule
from nkdlib.training.parallel import Parallel

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of its channels, white being 1
Place = tuple[int, int]  # step, position in the data set


@dataclass(frozen=True)
class Order:
    """What a process reads for every part of its own, from the step on where the training goes on.

    `random_rows` divided among the parts: iterating gives lists of (step, position).

    >>> list(Order(8, Schedule(steps=2, batch_size=4), 0, Parallel(parts=2)))
    [[(0, 4), (0, 0)], [(0, 7), (0, 3)], [(1, 2), (1, 5)], [(1, 1), (1, 6)]]
    """

    count: int  # images in all
    schedule: Schedule
    seed: int
    parallel: Parallel

    def __post_init__(self):
        size, parts = self.schedule.batch_size, self.parallel.parts
        if size % parts or size > self.count:
            raise ValueError(
                f"batch_size (={size}) must be a multiple of the {parts} parts, and no more than {self.count:,} images"
            )

    def __iter__(self) -> Iterator[list[Place]]:
        rows = random_rows(self.count, self.schedule.batch_size, self.schedule.steps, self.seed)
        for step, chosen in itertools.islice(enumerate(rows), self.parallel.start, None):
            parts = chosen.view(self.parallel.parts, -1)
            for part in self.parallel.own:
                yield [(step, place) for place in parts[part].tolist()]


def once(count: int, batch_size: int, parallel: Parallel) -> list[list[Place]]:
    """What a process reads for one pass over all of `count` images with the others, in order.

    >>> once(5, 2, Parallel())
    [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]
    """
    own = [(0, place) for place in range(parallel.rank, count, parallel.size)]
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]


@dataclass(frozen=True)
class Reader(Dataset):
    """Reads an example when asked for it by (step, position)."""

    read: Callable[[int, int], object]

    def __getitem__(self, place: Place) -> object:
        return self.read(*place)


def loader(
    read: Callable[[int, int], object],
    places: Iterable[list[Place]],
    workers: int = 0,
    collate: Callable[[list], object] | None = None,
) -> DataLoader:
    """Batches of what `read(step, position)` returns for each list of places, read ahead by worker processes."""
    options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    pinned = torch.cuda.is_available()
    return DataLoader(Reader(read), batch_sampler=places, collate_fn=collate, pin_memory=pinned, **options)


@dataclass(frozen=True)
class Pictures:
    """Labeled images of one size for training and for validation; made by `open`."""

    train: Sequence  # of (image, label)
    held_out: Sequence
    shape: tuple[int, int, int]  # of one image, (C, H, W)
    num_classes: int
    mean: Sequence[float]  # by channel, white being 1
    std: Sequence[float]
    change: Callable[[object], Tensor]  # a training image to uint8 (C, H, W), drawing from torch's generator
    view: Callable[[object], Tensor]  # an image for validation

    @classmethod
    def open(cls, data: str, pixels: int = 224, augment: bool = True) -> "Pictures":
        """A data set by its name in `nkdlib.data`, or a folder `train/<class>/*` and `val/<class>/*` as ImageNet's.

        Images of a folder are resized to 8/7 of `pixels` and cut in the middle for validation (256 and 224), cut at
        random (Szegedy et al., arXiv 1409.4842) and mirrored for training; those of a name are shifted by up to an
        eighth, and mirrored.

        Raises:
            DataNotFound: a folder without one of the two.
            ValueError: two with different classes.

        >>> Pictures.open("digits").shape
        (1, 8, 8)
        """
        if data in NAMES:
            train, held_out = load(data, "train"), load(data, "test")
            shift = v2.RandomCrop(train.shape[1:], padding=max(train.shape[-1] // 8, 1))
            change, view = v2.Compose([shift, v2.RandomHorizontalFlip()]), v2.Identity()
            parts = (TensorDataset(images.pixels, images.labels) for images in (train, held_out))
            about = train.shape, train.num_classes, train.mean, train.std
            return cls(*parts, *about, change if augment else view, view)
        folders = [Path(data) / part for part in ("train", "val")]
        if missing := [str(folder) for folder in folders if not folder.is_dir()]:
            raise DataNotFound(
                f"data (={data}) must be one of {', '.join(NAMES)}, or a folder with train/<class>/* and "
                f"val/<class>/*; {' and '.join(missing)} is not there"
            )
        train, held_out = map(ImageFolder, folders)
        if wrong := sorted({*train.classes} ^ {*held_out.classes}):
            raise ValueError(f"train and val of data (={data}) must have the same classes; they differ in {wrong[:9]}")
        view = v2.Compose([v2.Resize(pixels * 8 // 7), v2.CenterCrop(pixels), v2.PILToTensor()])
        change = v2.Compose([v2.RandomResizedCrop(pixels), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        about = (3, pixels, pixels), len(train.classes), *IMAGENET
        return cls(train, held_out, *about, change if augment else view, view)

    def batches(self, schedule: Schedule, parallel: Parallel, seed: int, device: torch.device, workers: int = 0):
        """Batches to train on, (images, labels): normalized (B, C, H, W), channels last, and (B,) on the device.

        >>> batches = Pictures.open("digits").batches(Schedule(3, 16), Parallel(), 0, torch.device("cpu"))
        >>> [tuple(images.shape) for images, _ in batches]
        [(16, 1, 8, 8), (16, 1, 8, 8), (16, 1, 8, 8)]
        """

        def read(step: int, place: int) -> tuple[Tensor, int]:
            image, label = self.train[place]
            draws = np.random.SeedSequence([seed, step, place]).generate_state(1, np.uint64)
            with seeded(torch.device("cpu"), int(draws[0])):
                return self.change(image), label

        return self._ready(loader(read, Order(len(self.train), schedule, seed, parallel), workers), device)

    def validation(self, parallel: Parallel, device: torch.device, workers: int = 0, batch_size: int = 250):
        """Batches of this process' share of the images for validation, as in `batches`."""

        def read(_: int, place: int) -> tuple[Tensor, int]:
            image, label = self.held_out[place]
            return self.view(image), label

        return self._ready(loader(read, once(len(self.held_out), batch_size, parallel), workers), device)

    def _ready(self, batches: Iterable, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            images = images.to(device, torch.float32, non_blocking=True, memory_format=torch.channels_last).div_(255)
            yield v2.functional.normalize(images, self.mean, self.std), labels.to(device, non_blocking=True)
