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
        """Change a batch.

        pixels: (B, C, H, W), integers or floats with black at 0; generator: on the CPU, it alone decides.
        Returns a new tensor of the same shape and type.
        """
        count, _, height, width = pixels.shape
        shifts = torch.randint(2 * self.pad + 1, (2, count), generator=generator).to(pixels.device)
        mirrored = torch.randint(2, (count, 1, 1, 1), generator=generator, dtype=torch.bool).to(pixels.device)
        if self.pad:
            padded = F.pad(pixels, [self.pad] * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
            pixels = windows[torch.arange(count, device=pixels.device), :, shifts[0], shifts[1]]
        return torch.where(mirrored, pixels.flip(-1), pixels) if self.flip else pixels


def random_shift_flip(pad: int = 4, flip: bool = True) -> ShiftFlip:
    """The usual augmentation of small images, for `Images.batches(augment=...)`; see ShiftFlip."""
    return ShiftFlip(pad, flip)
