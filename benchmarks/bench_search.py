"""Student Search: how long a choice takes, and what a family of widths costs beside a single one.

Aims: 20 neighbourhoods of 100 candidates in under a second; widths of one neighbourhood share one Gram matrix, so that
eight of them cost little more than one.
"""

import statistics
import tempfile
import time

import numpy as np
import torch

from nkdlib.neighbourhoods import Library, Menu, Option, Recipe, select
from nkdlib.networks import resnet
from nkdlib.tasks.cache import Cache
from nkdlib.training import Schedule

REPEATS = 12
LIMITS = {"params": 6e5, "macs": 6e7, "latency_ms": 6.0}


def random_menu(seed: int, neighbourhoods: int = 20, candidates: int = 100) -> Menu:
    """Candidates whose costs follow their widths, and whose errors fall with them, both with noise."""
    draw, options = np.random.default_rng(seed), {}
    for i in range(neighbourhoods):
        widths = draw.uniform(0.02, 1, candidates)
        options[f"n{i}"] = {
            f"k{k}": Option(
                float(draw.uniform(0.5, 2) * (1 / width - 1) * 0.05),
                {name: limit / 6 * width * draw.uniform(0.7, 1.3) for name, limit in LIMITS.items()},
            )
            for k, width in enumerate(widths)
        }
    return Menu(options)


def choices() -> None:
    """Seconds of an exact choice under one, two and three budgets."""
    menus = [random_menu(seed) for seed in range(REPEATS)]
    for count in (1, 2, 3):
        budget, seconds = dict(list(LIMITS.items())[:count]), []
        for menu in menus:
            start = time.perf_counter()
            select(menu, budget)
            seconds.append(time.perf_counter() - start)
        print(
            f"20 x 100 candidates, {count} budgets: median {statistics.median(seconds):.3f} s, max {max(seconds):.3f} s"
        )


def families() -> None:
    """CPU seconds to solve one width and eight widths of every block of a ResNet-14."""
    teacher = resnet(14, 10, seed=0, in_channels=1, stem_stride=2).eval()
    images, spent = torch.randn(2304, 1, 28, 28), {}
    for widths in ((0.5,), tuple(k / 16 for k in range(1, 9))):
        seconds = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                library = Library(
                    teacher, dict.fromkeys(teacher.block_names, widths), images, Recipe(Schedule(0)), Cache(folder)
                )
                start = time.process_time()
                library.fill()
                seconds.append(time.process_time() - start)
        spent[len(widths)] = statistics.median(seconds)
    print(
        f"widths of six blocks: one {spent[1]:.2f} CPU-s, eight {spent[8]:.2f} CPU-s, {spent[8] / spent[1]:.2f} times"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    choices()
    families()
