"""Named tensors of the same examples, kept in memory and drawn in batches: images with logits, inputs with outputs."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nkdlib.data.images import random_rows
from nkdlib.tasks.executors import shared_empty
from nkdlib.tasks.keys import digest

Batch = Tensor | tuple | list


def images_of(batch: Batch, number: int | str = "") -> Tensor:
    """The images of a batch with or without labels: the tensor itself, or the first of a tuple.

    number: of the batch, for errors. Raises TypeError for no tensor, ValueError for NaN or infinite values.
    """
    images = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(images, Tensor):
        raise TypeError(f"inputs gives a batch of type {type(images).__name__}; give tensors or (images, labels)")
    check_finite(images, f"batch {number}".rstrip() + " of inputs")
    return images


def labeled(batch: tuple | list, called: str = "batches") -> tuple[Tensor, Any]:
    """The images and labels of a batch; ValueError unless it is a pair with one tensor of images."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        kinds = ", ".join(type(part).__name__ for part in batch) if isinstance(batch, tuple | list) else ""
        said = type(batch).__name__ + f" ({kinds})" * bool(kinds)
        raise ValueError(f"{called} gives a batch of type {said}; give pairs (images, labels), the images one tensor")
    return batch[0], batch[1]


@contextmanager
def naming_batch(number: int, images: Tensor) -> Iterator[None]:
    """Name the batch in torch's error for a BatchNorm that gets one value for each channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch {number} of batches, images {tuple(images.shape)}, is too small for BatchNorm in training "
            f"({error}); leave it out (drop_last=True in a DataLoader), or give larger ones"
        ) from error


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError if one of the examples (B, ...) holds NaN or infinite values, or if they hold none at all."""
    if values.is_meta:
        raise ValueError(f"{what} is on the device meta and holds no values; put network and inputs on a real device")
    if not values.isfinite().all():
        bad = (~values.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        kind = "NaN" if values.isnan().any() else "infinite values"
        raise ValueError(f"{what} must be finite; {len(bad)} of {len(values)} examples hold {kind}, first {bad[0]}")


def first_images(inputs: Iterable[Batch], images: int = sys.maxsize) -> Iterator[Tensor]:
    """The first `images` images, batch by batch; TypeError for one tensor, which would be read row by row."""
    if isinstance(inputs, Tensor):
        raise TypeError(f"inputs (a tensor {tuple(inputs.shape)}) must be batches; give [inputs] or inputs.split(256)")
    left = images
    for number, batch in enumerate(inputs):
        x = images_of(batch, number)[:left]
        left -= len(x)
        if len(x):
            yield x
        if left <= 0:
            return


@torch.no_grad()
def layout_for(module: nn.Module, example: Tensor) -> torch.memory_format:
    """Channels last, the fastest for convolutions, if a module takes feature maps so, which `x.view` may not."""
    try:
        if example.dim() == 4:
            module(torch.cat([example, example]).contiguous(memory_format=torch.channels_last))
    except Exception:  # of any layer that asks for channels first
        return torch.contiguous_format
    return torch.channels_last


@dataclass
class Store:
    """Named tensors of the same N examples; feature maps are kept with channels last, fastest for convolutions.

    >>> store = Store.of({"x": torch.arange(6.0).reshape(3, 2)})
    >>> [batch["x"].shape[0] for batch in store.batches(2, steps=2, seed=0)]
    [2, 2]
    """

    tensors: dict[str, Tensor]  # (N, ...); feature maps are (N, H, W, C)
    layout: torch.memory_format = torch.channels_last  # of the feature maps that it gives

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Store":
        """A store of whole tensors (N, ...), feature maps as (N, C, H, W)."""
        return cls.collect([tensors])

    @classmethod
    def collect(
        cls, rows: Iterable[Mapping[str, Tensor]], count: int | None = None, *, shared: bool = False
    ) -> "Store":
        """Concatenate batches of named tensors, feature maps as (B, C, H, W); nobody may change them meanwhile.

        count: of all examples, or more; their memory is then taken once, where it is taken twice otherwise.
        shared: whether worker processes shall read it without a copy, see `shared_empty`; needs `count`.
        """
        parts: dict[str, list[Tensor]] = {}
        shapes: dict[str, torch.Size] = {}
        whole: dict[str, Tensor] = {}
        end = 0
        for row in rows:
            start = end
            for name, value in row.items():
                if (shape := value.shape[1:]) != (first := shapes.setdefault(name, shape)):  # it might broadcast
                    raise ValueError(
                        f"{name!r} is of shape {tuple(first)} in one batch and of shape {tuple(shape)} in another; "
                        "give inputs of one shape"
                    )
                value = value.detach().permute(0, 2, 3, 1) if value.dim() == 4 else value.detach()
                end = start + len(value)
                if count is None:
                    parts.setdefault(name, []).append(value.contiguous())
                else:
                    if start == 0:
                        empty = shared_empty if shared and value.device.type == "cpu" else value.new_empty
                        whole[name] = empty((count, *value.shape[1:]), dtype=value.dtype)
                    whole[name][start:end] = value
        if not end:
            raise ValueError("inputs holds no batch; give at least one")
        whole |= {name: torch.cat(parts.pop(name)) for name in list(parts)}
        return cls({name: value if len(value) == end else value[:end].clone() for name, value in whole.items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next(iter(self.tensors.values())).device

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, types, shapes and contents."""
        return digest(itertools.chain(*sorted(self.tensors.items())))

    def select(self, names: Iterable[str]) -> "Store":
        """A store of some of the tensors."""
        return Store({name: self.tensors[name] for name in names}, self.layout)

    def __getitem__(self, rows: slice) -> "Store":
        return Store({name: tensor[rows] for name, tensor in self.tensors.items()}, self.layout)

    def take(self, index: Tensor | slice, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The rows `index` as float32 or `dtype`, feature maps as (B, C, H, W) in the store's layout."""
        rows = {}
        for name, tensor in self.tensors.items():
            value = tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)
            if value.is_floating_point():
                value = value.to(dtype, copy=isinstance(index, slice))  # no view: layers may work in place
            maps = value.dim() == 4
            rows[name] = value.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) if maps else value
        return rows

    def batches(
        self, batch_size: int, *, steps: int, seed: int, dtype: torch.dtype = torch.float32
    ) -> Iterator[dict[str, Tensor]]:
        """`steps` random batches; an epoch draws each example at most once, in an order that `seed` decides."""
        for rows in random_rows(len(self), min(batch_size, len(self)), steps, seed):
            yield self.take(rows.to(self.device, non_blocking=True), dtype)

    def chunks(self, size: int = 512) -> Iterator[dict[str, Tensor]]:
        """All examples in order, at most `size` or 32 MB at a time, since a network needs several times as much."""
        each = sum(tensor[:1].numel() for tensor in self.tensors.values())
        size = max(min(size, 8_000_000 // max(each, 1)), 1)
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))
