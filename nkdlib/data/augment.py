"""Random changes to whole batches of images, drawn on the CPU so that every device sees the same ones."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ShiftFlip:
    """Shift every image by up to `pad` pixels each way, filled with black, and mirror half of them."""

    pad: int = 4  # pixels; 4 is usual for 32x32 images
    flip: bool = True  # left to right, with probability 1/2

    def __post_init__(self):
        if self.pad < 0:
            raise ValueError(f"pad (={self.pad}) must be 0 or more pixels; 0 shifts nothing")

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return a changed copy of `pixels` (B, C, H, W), black being 0; the generator, on the CPU, decides alone."""
        count, channels, height, width = pixels.shape
        down, right = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator)  # (B, 1) each
        rows, columns = torch.arange(height), torch.arange(width)
        if self.flip:
            mirrored = torch.randint(2, (count, 1), generator=generator, dtype=torch.bool)
            columns = torch.where(mirrored, columns.flip(0), columns)  # (B, W)
        padded = F.pad(pixels, [self.pad] * 4)
        places = (down + rows)[:, :, None] * padded.shape[-1] + (right + columns)[:, None]  # (B, H, W)
        places = places.view(count, 1, -1).to(pixels.device).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, places).view_as(pixels)


random_shift_flip = ShiftFlip  # the usual augmentation of small images, for `Images.batches(augment=...)`
