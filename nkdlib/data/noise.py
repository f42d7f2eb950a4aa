"""Images of pure noise: what a student can learn from when no data are at hand."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

BLOCK = 64  # images drawn at once, so that the images do not depend on the batch size


@dataclass(frozen=True)
class GaussianImages:
    """Batches of white Gaussian noise, float32 (B, C, H, W), in normalized units; touches no real data.

    Iterating again gives the same images again, whatever the batch size and the device.
    """

    shape: tuple[int, int, int]  # of one image: (C, H, W)
    count: int  # images in all; the last batch may be smaller
    seed: int
    batch_size: int = 128
    device: str = "cpu"  # where batches are put; they are drawn on the CPU
    channels_last: bool = False

    def __post_init__(self):
        if self.count < 1 or self.batch_size < 1 or len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"{self} must have a shape (C, H, W), a count and a batch_size of 1 or more")

    def batches(self, batch_size: int, *, steps: int | None = None, **where: object) -> "GaussianImages":
        """The same noise in other batches; steps: this many batches, all of them new images.

        where: device, channels_last, as in `Images.batches`.
        """
        count = self.count if steps is None else steps * batch_size
        return replace(self, batch_size=batch_size, count=count, **where)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.empty(0, *self.shape)
        for start in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - start)
            while len(drawn) < size:
                drawn = torch.cat([drawn, torch.randn(BLOCK, *self.shape, generator=generator)])
            batch, drawn = drawn[:size], drawn[size:]
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            yield batch.to(self.device).contiguous(memory_format=layout)
