"""Labeled images read one by one, for data sets that do not fit into memory, and batches of them for a process group.

DistributedSampler decides the order, so a batch holds the same images for any number of processes. Random crops depend
on the seed, the step and the image alone, so a resumed training gets the same ones.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from nkdlib.compendium.teachers import IMAGENET
from nkdlib.data import DataNotFound, load
from nkdlib.data.load import NAMES
from nkdlib.networks.module import seeded
from nkdlib.training.distributed import rank_and_size


@dataclass(frozen=True)
class Pictures(Dataset):
    """Labeled images of one size; item k is (uint8 (C, H, W), label)."""

    images: Sequence  # of (image, label)
    change: Callable[[object], Tensor]  # an image to uint8 (C, H, W); may draw from torch's generator
    shape: tuple[int, int, int]  # of one image, (C, H, W)
    num_classes: int
    mean: Sequence[float]  # by channel, white being 1
    std: Sequence[float]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image, label = self.images[row]
        return self.change(image), label

    def normalized(self, batches: Iterable, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images, labels) on the device: float32 (B, C, H, W), channels last, and int64 (B,)."""
        for images, labels in batches:
            images = images.to(device, torch.float32, non_blocking=True, memory_format=torch.channels_last).div_(255)
            yield v2.functional.normalize(images, self.mean, self.std), labels.to(device, non_blocking=True)


def open_pictures(data: str, pixels: int = 224, augment: bool = True) -> tuple[Pictures, Pictures]:
    """Images for training and for validation: a data set named in `nkdlib.data`, or a folder as ImageNet's.

    A folder holds `train/<class>/*` and `val/<class>/*`. For validation its images are resized to 8/7 of `pixels` and
    cropped in the middle (256 and 224), for training cropped at random (Szegedy et al., arXiv 1409.4842) and mirrored.
    Images of a named data set are shifted by up to an eighth and mirrored.

    Raises:
        DataNotFound: no such data set, and no folder with both parts.
        ValueError: the two parts have different classes.
    """
    if data in NAMES:
        parts = [load(data, "train"), load(data, "test")]
        shift = v2.RandomCrop(parts[0].shape[1:], padding=max(parts[0].shape[-1] // 8, 1))
        view, change = v2.Identity(), v2.Compose([shift, v2.RandomHorizontalFlip()])
        about = parts[0].shape, parts[0].num_classes, parts[0].mean, parts[0].std
        train, val = (TensorDataset(part.pixels, part.labels) for part in parts)
    else:
        folders = [Path(data) / part for part in ("train", "val")]
        if missing := [str(folder) for folder in folders if not folder.is_dir()]:
            raise DataNotFound(
                f"data (={data}) must be one of {', '.join(NAMES)}, or a folder with train/<class>/* and "
                f"val/<class>/*; {' and '.join(missing)} is not there"
            )
        train, val = map(ImageFolder, folders)
        if wrong := sorted({*train.classes} ^ {*val.classes}):
            raise ValueError(f"train and val of data (={data}) must have the same classes; they differ in {wrong[:9]}")
        view = v2.Compose([v2.Resize(pixels * 8 // 7), v2.CenterCrop(pixels), v2.PILToTensor()])
        change = v2.Compose([v2.RandomResizedCrop(pixels), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        about = (3, pixels, pixels), len(train.classes), *IMAGENET
    return Pictures(train, change if augment else view, *about), Pictures(val, view, *about)


@dataclass(frozen=True)
class _Seeded(Dataset):
    """Items of a data set by (step, row), with torch's generator seeded by both."""

    dataset: Dataset
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> object:
        draws = np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)
        with seeded(torch.device("cpu"), int(draws[0])):
            return self.dataset[place[1]]


def training_batches(
    dataset: Dataset,
    batch_size: int,
    steps: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    collate: Callable[[list], object] | None = None,
) -> DataLoader:
    """This process's share of each batch from step `start` to `steps`, reshuffled every epoch; to be iterated once.

    Args:
        batch_size: over all processes.
        workers: processes that read ahead.
        collate: joins a list of items, see `DataLoader`.

    Raises:
        ValueError: a batch that the processes cannot share evenly, or that is larger than the data set.

    >>> train, val = open_pictures("digits")
    >>> [tuple(images.shape) for images, labels in training_batches(train, 16, steps=2, seed=0)]
    [(16, 1, 8, 8), (16, 1, 8, 8)]
    """
    rank, size = rank_and_size()
    if batch_size % size or not 0 < batch_size <= len(dataset):
        raise ValueError(
            f"batch_size (={batch_size}) must be a multiple of the {size} processes, and no more than {len(dataset):,} "
            "images"
        )
    order = DistributedSampler(dataset, size, rank, seed=seed, drop_last=True)
    batches = BatchSampler(order, batch_size // size, drop_last=True)

    def places() -> Iterator[list[tuple[int, int]]]:
        step, (epoch, done) = start, divmod(start, len(batches))
        while True:
            order.set_epoch(epoch)
            for rows in itertools.islice(batches, done, None):
                yield [(step, row) for row in rows]
                step += 1
            epoch, done = epoch + 1, 0

    options = {"num_workers": workers, "collate_fn": collate, "pin_memory": torch.cuda.is_available()}
    return DataLoader(_Seeded(dataset, seed), batch_sampler=itertools.islice(places(), steps - start), **options)


def validation_batches(
    dataset: Dataset, batch_size: int = 250, workers: int = 0, collate: Callable[[list], object] | None = None
) -> DataLoader:
    """This process's share of a data set, each item once, in order."""
    rank, size = rank_and_size()
    own = range(rank, len(dataset), size)
    options = {"num_workers": workers, "collate_fn": collate, "pin_memory": torch.cuda.is_available()}
    return DataLoader(dataset, batch_size, sampler=own, **options)
