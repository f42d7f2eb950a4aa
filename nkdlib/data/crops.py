"""Crops of larger images, several of each: what few photographs have to give."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nkdlib.data.images import Images


@dataclass(frozen=True)
class Crops:
    """Batches of square crops, (x, y) as from `Images.batches`, one view of all images after another.

    The first view is the center, the second the center mirrored, the others lie at random places, every second one
    mirrored. Iterating again gives the same crops again.

    >>> images = Images("gray", "all", torch.zeros(5, 1, 8, 8).byte(), torch.zeros(5).long(), ("none",), (0.5,), (0.5,))
    >>> [tuple(x.shape) for x, _ in Crops(images, 6, views=2, batch_size=4)]
    [(4, 1, 6, 6), (1, 1, 6, 6), (4, 1, 6, 6), (1, 1, 6, 6)]
    """

    images: Images
    size: int  # pixels of a side
    views: int = 1  # crops of every image
    seed: int = 0  # of the random places
    batch_size: int = 64
    device: str = "cpu"

    def __post_init__(self):
        if not 0 < self.size <= min(self.images.shape[1:]) or self.views < 1 or self.batch_size < 1:
            raise ValueError(
                f"size (={self.size}) must fit into images of {self.images.shape}, and views (={self.views}) and "
                f"batch_size (={self.batch_size}) must be 1 or more"
            )

    def __len__(self) -> int:
        return self.views * -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        room = [side - self.size for side in self.images.shape[1:]]
        for view in range(self.views):
            for x, y in self.images.batches(self.batch_size, shuffle=False, device=self.device):
                places = torch.tensor([side // 2 for side in room]).expand(len(x), 2)
                if view > 1:
                    places = torch.stack([torch.randint(side + 1, (len(x),), generator=generator) for side in room], 1)
                rows = zip(x, places.tolist(), strict=True)
                cut = torch.stack([one[:, t : t + self.size, left : left + self.size] for one, (t, left) in rows])
                yield (cut.flip(-1) if view % 2 else cut).contiguous(memory_format=torch.channels_last), y
