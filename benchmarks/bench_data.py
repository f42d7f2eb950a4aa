"""Our batches against torchvision's transforms in a DataLoader with 2 workers, on CIFAR-10-sized images.

Both shift, flip and normalize 20,000 random 32x32 RGB images, in batches of 128, by turns, an epoch each.
The DataLoader keeps its workers from epoch to epoch, and its start is not counted. The aim is a ratio of 5.
"""

import json
import statistics
import time
from collections.abc import Iterable

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from nkdlib.data import Images, random_shift_flip

COUNT, BATCH_SIZE, WORKERS, REPEATS = 20_000, 128, 2, 7
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class OneByOne(Dataset):
    """Like torchvision's CIFAR10: an array whose images are made PIL images and transformed one by one."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor):
        self.pixels = pixels.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)
        self.labels = labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[place])), self.labels[place]


def epoch_seconds(batches: Iterable) -> float:
    """Wall seconds to draw every batch once, each looked at by the main process."""
    start = time.perf_counter()
    for x, _ in batches:
        x[0, 0, 0, 0].item()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (COUNT,), generator=generator)
    images = Images("random", "train", pixels, labels, tuple(map(str, range(10))), MEAN, STD)
    contenders = {
        "ours": images.batches(BATCH_SIZE, seed=0, augment=random_shift_flip(4)),
        "loader": DataLoader(
            OneByOne(pixels, labels),
            BATCH_SIZE,
            shuffle=True,
            drop_last=True,
            num_workers=WORKERS,
            persistent_workers=True,
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(REPEATS + 1):
        for name, batches in contenders.items():
            taken = epoch_seconds(batches)
            if repeat:  # the first epoch warms up
                seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratios = [loader / ours for ours, loader in zip(*seconds.values(), strict=True)]
    drawn = len(contenders["ours"]) * BATCH_SIZE
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        print(f"{name:7}{median:7.3f} s an epoch ({spread}), {drawn / median:10,.0f} images/s")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}), aim 5")
    result = {"bench": "data", "ratio": statistics.median(ratios), "ratios": ratios, "seconds": seconds}
    print(json.dumps(result | {"batch_size": BATCH_SIZE, "images": drawn, "workers": WORKERS}))


if __name__ == "__main__":
    main()
