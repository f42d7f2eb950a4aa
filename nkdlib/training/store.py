"""Tensors of many examples that belong together, drawn in batches: images with logits, inputs with outputs."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = Tensor | tuple | list


def images_of(batch: Batch) -> Tensor:
    """The images of a batch that may carry labels: the tensor itself or the first of a tuple."""
    images = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(images, Tensor):
        raise TypeError(f"inputs gives a batch of type {type(images).__name__}; give tensors or (images, labels)")
    return images


def first_images(inputs: Iterable[Batch], images: int) -> Iterator[Tensor]:
    """The first `images` images, batch by batch."""
    left = images
    for batch in inputs:
        x = images_of(batch)[:left]
        left -= len(x)
        if len(x):
            yield x
        if left <= 0:
            return


@dataclass
class Store:
    """Named tensors of the same N examples, feature maps with channels last, as convolutions are fastest.

    >>> store = Store.of({"x": torch.arange(6.0).reshape(3, 2)})
    >>> [batch["x"].shape[0] for batch in store.batches(2, steps=2, seed=0)]
    [2, 2]
    """

    tensors: dict[str, Tensor]  # (N, ...), four-dimensional ones as (N, H, W, C)
    images: frozenset[str]  # names of the four-dimensional ones

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Store":
        """A store of tensors (N, ...); feature maps come as (N, C, H, W)."""
        return cls.collect([tensors])

    @classmethod
    def collect(cls, rows: Iterable[Mapping[str, Tensor]], dtype: torch.dtype | None = None) -> "Store":
        """Put batches of named tensors together, floating-point ones as `dtype`."""
        shelf = Shelf(dtype)
        for row in rows:
            for name, value in row.items():
                shelf.put(name, value)
            shelf.advance()
        return shelf.store()

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __reduce__(self) -> tuple:
        """Travels to another process as bytes, in half the time that tensors take."""
        parts = {
            name: (t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), t.dtype, tuple(t.shape), t.device)
            for name, t in self.tensors.items()
        }
        return _unpacked, (parts, self.images)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return next(iter(self.tensors.values())).device

    @property
    def bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, types, shapes and contents."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def select(self, names: Iterable[str]) -> "Store":
        """The store of some of the tensors."""
        names = list(names)
        return Store({name: self.tensors[name] for name in names}, self.images & set(names))

    def __getitem__(self, rows: slice) -> "Store":
        return Store({name: tensor[rows] for name, tensor in self.tensors.items()}, self.images)

    def take(self, index: Tensor | slice) -> dict[str, Tensor]:
        """The rows `index` as float32, feature maps as (B, C, H, W) in channels-last layout."""
        rows = {}
        for name, tensor in self.tensors.items():
            value = tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)
            if value.is_floating_point():
                value = value.to(torch.float32, copy=isinstance(index, slice))  # never a view: layers work in place
            rows[name] = value.permute(0, 3, 1, 2) if name in self.images else value
        return rows

    def batches(self, batch_size: int, *, steps: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """`steps` random batches; every epoch visits each example at most once, in an order drawn from `seed`."""
        generator, batch_size = torch.Generator().manual_seed(seed), min(batch_size, len(self))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < batch_size:
                order = torch.randperm(len(self), generator=generator)
            index, order = order[:batch_size], order[batch_size:]
            yield self.take(index.to(self.device))

    def chunks(self, size: int = 512) -> Iterator[dict[str, Tensor]]:
        """All examples in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


class Shelf:
    """Room for a store whose rows come batch by batch; each is converted once, straight into its place.

    Memory is taken once where the number of rows is said by `reserve`, and otherwise doubled as they come.

    Args:
        dtype: of floating-point tensors; their own where omitted.

    >>> shelf = Shelf(torch.float16)
    >>> shelf.put("x", torch.ones(2, 3)).dtype
    torch.float16
    >>> shelf.advance()
    >>> len(shelf.store())
    2
    """

    def __init__(self, dtype: torch.dtype | None = None):
        self.dtype = dtype
        self.tensors: dict[str, Tensor] = {}  # as in a store, with room for more rows
        self.images: set[str] = set()
        self.filled = self.coming = 0  # rows that are kept, and those of the batch being put

    def put(self, name: str, value: Tensor) -> Tensor:
        """Copy one tensor of the batch, (B, ...), to where `advance` will keep it; the copy, maps as (B, H, W, C)."""
        value, self.coming = value.detach(), len(value)
        if value.dim() == 4:
            self.images.add(name)
            value = value.permute(0, 2, 3, 1)
        if name not in self.tensors:
            kept = self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype
            self.tensors[name] = torch.empty(self.coming, *value.shape[1:], dtype=kept, device=value.device)
        end = self.filled + self.coming
        if end > len(self.tensors[name]):
            self._resize(name, max(2 * self.filled, end))
        return self.tensors[name][self.filled : end].copy_(value)

    def advance(self) -> None:
        """Keep the batch that was put."""
        self.filled, self.coming = self.filled + self.coming, 0

    def reserve(self, rows: int) -> None:
        """Take memory for as many rows in all."""
        for name, tensor in self.tensors.items():
            if rows > len(tensor):
                self._resize(name, rows)

    def store(self) -> Store:
        """What is kept; ValueError where it is nothing."""
        if not self.filled:
            raise ValueError("inputs holds no batch; give at least one")
        for name, tensor in self.tensors.items():
            if len(tensor) > self.filled:  # a view would hold, and send to other processes, the empty room as well
                self._resize(name, self.filled)
        return Store(self.tensors, frozenset(self.images))

    def _resize(self, name: str, rows: int) -> None:
        old = self.tensors[name][:rows]
        self.tensors[name] = old.new_empty(rows, *old.shape[1:])
        self.tensors[name][: len(old)] = old


def _unpacked(parts: dict[str, tuple], images: frozenset[str]) -> Store:
    return Store(
        {
            name: torch.from_numpy(raw).view(dtype).reshape(shape).to(device)
            for name, (raw, dtype, shape, device) in parts.items()
        },
        images,
    )
