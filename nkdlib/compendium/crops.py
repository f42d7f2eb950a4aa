"""Several crops of each photograph, so that few photographs go further."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nkdlib.data.images import Images


@dataclass(frozen=True)
class Crops:
    """Batches of square crops, (x, y) as from `Images.batches`, one view of all images after another.

    The first view is the center, the second the center mirrored, the others lie at random places, every second one
    mirrored; with `scale` these are parts of random size and shape, resized (as in Szegedy et al. 2014, arXiv
    1409.4842). With `mix` the mirrored ones of these are mixtures of two images of a batch, in random shares (Zhang et
    al. 2017, arXiv 1710.09412), for training without labels: y is that of the first. Iterating again gives the same
    crops again.

    >>> images = Images("gray", "all", torch.zeros(5, 1, 8, 8).byte(), torch.zeros(5).long(), ("none",), (0.5,), (0.5,))
    >>> [tuple(x.shape) for x, _ in Crops(images, 6, views=2, batch_size=4)]
    [(4, 1, 6, 6), (1, 1, 6, 6), (4, 1, 6, 6), (1, 1, 6, 6)]
    """

    images: Images
    size: int  # pixels of a side
    views: int = 1  # crops of every image
    scale: float | None = None  # least share of an image's area in a random view; None: always `size` pixels
    mix: bool = False  # every second random view is one of mixtures
    seed: int = 0  # of the random places and shares
    batch_size: int = 64
    device: str = "cpu"

    def __post_init__(self):
        if not 0 < self.size <= min(self.images.shape[1:]) or self.views < 1 or self.batch_size < 1:
            raise ValueError(
                f"size (={self.size}) must fit into images of {self.images.shape}, and views (={self.views}) and "
                f"batch_size (={self.batch_size}) must be 1 or more"
            )
        if self.scale is not None and not 0 < self.scale <= 1:
            raise ValueError(f"scale (={self.scale}) is a share of an image's area; choose above 0 to 1, or None")

    def __len__(self) -> int:
        return self.views * -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        room = [side - self.size for side in self.images.shape[1:]]
        for view in range(self.views):
            for x, y in self.images.batches(self.batch_size, shuffle=False, device=self.device):
                if view > 1 and self.scale is not None:
                    cut = self._resized(x, generator)
                else:
                    places = torch.tensor([side // 2 for side in room]).expand(len(x), 2)
                    if view > 1:
                        places = [torch.randint(side + 1, (len(x),), generator=generator) for side in room]
                        places = torch.stack(places, 1)
                    rows = zip(x, places.tolist(), strict=True)
                    cut = torch.stack([one[:, t : t + self.size, left : left + self.size] for one, (t, left) in rows])
                cut = cut.flip(-1) if view % 2 else cut
                if self.mix and view > 1 and view % 2:
                    share = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device)
                    cut = torch.lerp(cut[torch.randperm(len(x), generator=generator)], cut, share)
                yield cut.contiguous(memory_format=torch.channels_last), y

    def _resized(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Parts of random size, shape and place of images (B, C, H, W), as (B, C, size, size)."""
        area, shape, *place = torch.rand(4, len(x), generator=generator)
        area, shape = self.scale + (1 - self.scale) * area, (3 / 4) ** (1 - 2 * shape)  # width over height
        sides = ((area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1))  # shares of W and H
        where = torch.zeros(len(x), 2, 3)
        for axis, (side, at) in enumerate(zip(sides, place, strict=True)):
            where[:, axis, axis], where[:, axis, 2] = side, (2 * at - 1) * (1 - side)
        grid = F.affine_grid(where, [*x.shape[:2], self.size, self.size], align_corners=False).to(x.device)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
