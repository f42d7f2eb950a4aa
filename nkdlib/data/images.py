"""Images as one uint8 tensor, and batches drawn from it as whole tensors.

A batch is one gather, one normalization and at most one augmentation, on the device, without worker processes or
Python code per image. The order depends on the seed alone.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from nkdlib.tasks.checks import check_number, check_seed, usable_device

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Images:
    """Labeled images of one size; cheap to subset, and cheap to send to another process.

    Args:
        name, split: for messages and the fingerprint, e.g. "cifar10", "train".
        pixels: uint8 (M, C, H, W).
        labels: int64 (M,).
        classes: names by label.
        mean, std: per channel, of the training split, white being 1.
        fingerprint: SHA-256 of everything above; computed by default.
        rows: positions of these images among the M; all by default.
        opener: opens the M images in another process, so that they need not be sent there.

    Raises:
        ValueError: tensors whose shapes or types do not fit.
    """

    def __init__(
        self,
        name: str,
        split: str,
        pixels: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        fingerprint: str | None = None,
        *,
        rows: Tensor | None = None,
        opener: Callable[[], "Images"] | None = None,
    ):
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise ValueError(f"pixels ({pixels.dtype}, {tuple(pixels.shape)}) must be uint8 (N, C, H, W)")
        if labels.shape != pixels.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels ({labels.dtype}, {tuple(labels.shape)}) must be int64 ({len(pixels)},)")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            found = f"{labels.min()} to {labels.max()}"
            raise ValueError(
                f"labels (={found}) must be 0 to {len(classes) - 1}, positions in the {len(classes)} classes"
            )
        if not len(mean) == len(std) == pixels.shape[1]:
            raise ValueError(f"mean (={mean}) and std (={std}) must have {pixels.shape[1]} values, one a channel")
        for value in mean:
            check_number("mean", value)
        for value in std:
            check_number("std", value, 0, above=True)
        self.name, self.split, self.classes = name, split, tuple(classes)
        self.mean, self.std = tuple(mean), tuple(std)
        self._stored, self._stored_labels, self._rows, self._opener = pixels, labels, rows, opener
        self._copies: dict[torch.device, Tensor] = {}  # the stored pixels on other devices, shared by subsets
        self.fingerprint = fingerprint or self._digest()

    def _digest(self) -> str:
        head = (self.name, self.split, tuple(self._stored.shape), self.classes, self.mean, self.std)
        digest = hashlib.sha256(repr(head).encode())
        for part in (self._stored, self._stored_labels):
            digest.update(memoryview(part.contiguous().numpy()).cast("B"))
        return digest.hexdigest()

    @cached_property
    def pixels(self) -> Tensor:
        """uint8 (N, C, H, W); of a subset, gathered when first asked for."""
        return self._stored if self._rows is None else self._stored.index_select(0, self._rows)

    @cached_property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self._stored_labels if self._rows is None else self._stored_labels[self._rows]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        return tuple(self._stored.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self._stored if self._rows is None else self._rows)

    def __repr__(self) -> str:
        what = f"{len(self):,} of {'x'.join(map(str, self.shape))}, {self.num_classes} classes"
        return f"Images({self.name} {self.split}: {what}, {self.fingerprint[:8]})"

    def __reduce__(self):
        if self._opener is not None:
            return _reopen, (self._opener, self._rows, self.fingerprint, self.mean, self.std)
        whole = (self.name, self.split, self.pixels, self.labels, self.classes, self.mean, self.std)
        return Images, (*whole, self.fingerprint)

    def subset(self, indices: int | Tensor | list[int], seed: int | None = None) -> "Images":
        """Some of the images, sharing memory with these.

        Args:
            indices: positions, or a mask, or a number: the first so many, or with `seed` so many drawn at random
                without replacement, in their old order.

        Raises:
            ValueError: a position or number out of range, a mask of another length.
        """
        if isinstance(indices, Integral):
            if not 0 < indices <= len(self):
                raise ValueError(f"indices (={indices}) must be 1 to the number of {self!r}")
            chosen = torch.arange(len(self)) if seed is None else _permutation(len(self), seed)
            indices = chosen[:indices].sort().values
        indices = check_positions(self, indices)
        digest = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        return self._select(indices if self._rows is None else self._rows[indices], digest)

    def _select(self, rows: Tensor | None, fingerprint: str, mean: tuple | None = None, std: tuple | None = None):
        stored = (self._stored, self._stored_labels, self.classes, mean or self.mean, std or self.std, fingerprint)
        selected = Images(self.name, self.split, *stored, rows=rows, opener=self._opener)
        selected._copies = self._copies
        return selected

    def hold_out(self, count: int, seed: int) -> tuple["Images", "Images"]:
        """Divide at random into the rest and `count` held-out images."""
        if not (isinstance(count, Integral) and 0 < count < len(self)):
            raise ValueError(
                f"count (={count}) must be a whole number from 1 to {len(self) - 1:,}, to leave images on both sides"
            )
        order = _permutation(len(self), seed)
        return self.subset(order[count:].sort().values), self.subset(order[:count].sort().values)

    def in_order(
        self, device: str | torch.device = "cpu", count: int | None = None, batch_size: int = 500
    ) -> "Batches":
        """Batches of the first `count` images (all by default), in order, in channels-last layout.

        >>> from nkdlib.data import load
        >>> [len(labels) for _, labels in load("digits").in_order(count=700)]
        [500, 200]
        """
        images = self if count is None else self.subset(min(count, len(self)))
        return images.batches(min(batch_size, len(images)), shuffle=False, device=device, channels_last=True)

    def renormalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Images":
        """The same images with another normalization, as a published network expects it; white is 1."""
        digest = hashlib.sha256(f"{self.fingerprint} {tuple(mean)} {tuple(std)}".encode()).hexdigest()
        return self._select(self._rows, digest, mean, std)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32, by `mean` and `std`: 0 and 1 per channel over the training split."""
        scale = torch.tensor([1 / (255 * std) for std in self.std]).view(-1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(-1, 1, 1)
        return (pixels * _sent(scale, pixels.device)).add_(_sent(shift, pixels.device))

    def batches(
        self,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int | None = None,
        shuffle: bool = True,
        augment: Augmentation | None = None,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
    ) -> "Batches":
        """Batches of normalized images and labels; iterating again gives the same sequence.

        Args:
            steps: number of batches, over as many epochs as it takes; one epoch by default.
            seed: of the order, new in each epoch, and of the augmentation.
            shuffle: if on, an incomplete last batch is left out.
            augment: changes uint8 batches, see `random_shift_flip`.
            channels_last: memory format of x.

        Raises:
            ValueError: a combination that gives no batches or leaves the order undetermined.
        """
        per_epoch = check_batches(self, batch_size, steps, seed, shuffle, augment)
        steps = per_epoch if steps is None else steps
        return Batches(self, batch_size, steps, seed, shuffle, augment, usable_device(device), channels_last)

    def gather(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) and labels (B,) at these positions, on the device."""
        rows = positions if self._rows is None else self._rows[positions]
        labels = _sent(self._stored_labels[rows], device)
        if device.type == "cuda" and device not in self._copies:
            free_bytes, _ = torch.cuda.mem_get_info(device)
            if self._stored.numel() < free_bytes // 2:
                self._copies[device] = self._stored.to(device)
        stored = self._copies.get(device, self._stored)
        return _sent(stored.index_select(0, _sent(rows, stored.device)), device), labels


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of `Images.batches`: pairs of float32 (B, C, H, W) and int64 (B,)."""

    images: Images
    batch_size: int
    steps: int
    seed: int | None
    shuffle: bool
    augment: Augmentation | None
    device: torch.device
    channels_last: bool

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, generator = len(self.images), torch.Generator()
        if self.seed is not None:
            generator.manual_seed(self.seed + 1_000_003)  # augmenting does not change the order
        if self.shuffle:
            order = random_rows(count, self.batch_size, self.steps, self.seed)
        else:
            order = itertools.islice(itertools.cycle(torch.arange(count).split(self.batch_size)), self.steps)
        for chosen in order:
            pixels, labels = self.images.gather(chosen, self.device)  # (B, C, H, W), (B,)
            if self.augment is not None:
                pixels = self.augment(pixels, generator)
            x = self.images.normalize(pixels)
            yield (x.contiguous(memory_format=torch.channels_last) if self.channels_last else x), labels


def check_batches(
    images: Sized, batch_size: int, steps: int | None, seed: int | None, shuffle: bool, augment: object
) -> int:
    """Batches of an epoch; raises ValueError for arguments that give no batches or leave their order undetermined."""
    if seed is not None or shuffle or augment:
        check_seed(seed)
    if steps is not None:
        check_number("steps", steps, 0, whole=True)
    check_number("batch_size", batch_size, 1, whole=True)
    if shuffle and batch_size > len(images):
        raise ValueError(f"batch_size (={batch_size}) must be at most the {len(images):,} images of {images!r}")
    return len(images) // batch_size if shuffle else -(-len(images) // batch_size)


def check_positions(images: Sized, indices: object) -> Tensor:
    """Positions among the images, int64 (n,), given as such or as a mask; raises ValueError for anything else."""
    given = torch.as_tensor(indices)
    mask = given.dtype == torch.bool and given.shape == (len(images),)
    chosen = given.nonzero().flatten() if mask else given
    whole = chosen.dtype != torch.bool and not (chosen.is_floating_point() or chosen.is_complex())
    if not whole or chosen.dim() != 1 or not len(chosen) or chosen.min() < 0 or chosen.max() >= len(images):
        raise ValueError(
            f"indices ({given.dtype}, {tuple(given.shape)}) must be one row of positions from 0 to "
            f"{len(images) - 1:,}, or a mask of {len(images):,}, some of them true, of {images!r}"
        )
    return chosen.long()


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values from the CPU on a device; a copy to a GPU does not wait for what it is at."""
    return values.to(device, non_blocking=True)


def random_rows(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` random batches of positions; every epoch has each of them at most once, in an order drawn from `seed`."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(count, generator=generator)
        yield order[:batch_size]
        order = order[batch_size:]


def _permutation(count: int, seed: int) -> Tensor:
    check_seed(seed)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _reopen(
    opener: Callable[[], Images],
    rows: Tensor | None,
    fingerprint: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Images:
    return opener()._select(rows, fingerprint, mean, std)


@dataclass(frozen=True)
class ShiftFlip:
    """Shift every image by up to `pad` pixels each way, filled with black, and mirror half of the images."""

    pad: int = 4  # pixels; 4 is usual for 32x32 images
    flip: bool = True  # left to right, with probability 1/2

    def __post_init__(self):
        check_number("pad", self.pad, 0, whole=True)

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return a changed copy of `pixels` (B, C, H, W), black being 0; the generator, on the CPU, decides alone."""
        (count, channels, height, width), device = pixels.shape, pixels.device
        shifts = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator)
        down, right = _sent(shifts, device)  # (B, 1) each
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        if self.flip:
            mirrored = _sent(torch.randint(2, (count, 1), generator=generator, dtype=torch.bool), device)
            columns = torch.where(mirrored, columns.flip(0), columns)  # (B, W)
        padded = F.pad(pixels, [self.pad] * 4)
        source = (down + rows)[:, :, None] * padded.shape[-1] + (right + columns)[:, None]  # (B, H, W)
        source = source.view(count, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, source).view_as(pixels)


random_shift_flip = ShiftFlip  # the usual augmentation of small images, for `Images.batches(augment=...)`
