"""Decoded data sets on disk: each split one uint8 array, memory-mapped when opened, checked by its digest."""

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from nkdlib.data.decode import Allocate, Decoded
from nkdlib.data.images import Images
from nkdlib.runtime.cache import ArtefactDamaged
from nkdlib.runtime.places import checkout, locked

CHECKED_BYTES = 4 << 30  # larger arrays are opened without reading them all once, which would take minutes
_checked: set[tuple[Path, str]] = set()  # what this process has checked already


def cache_root() -> Path:
    """NKD_CACHE, or runs/data in the checkout, or the user's cache folder when installed elsewhere."""
    if os.environ.get("NKD_CACHE"):
        return Path(os.environ["NKD_CACHE"]).resolve()
    root = checkout()
    return root / "runs" / "data" if root else Path.home() / ".cache" / "nkdlib" / "data"


def open_or_decode(home: Path, split: str, name: str, decode: Callable[[Allocate], Decoded]) -> Images:
    """A split from its folder in the store; when that is missing or damaged, decoded again first."""
    with locked(home.parent):
        if home.exists():
            try:
                return open_split(home, split)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"{home} is damaged ({error}) and is made again", ArtefactDamaged, stacklevel=3)
                shutil.rmtree(home)
        scratch = home.with_name(home.name + ".part")  # left over only if a process was ended while it decoded
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            _write(scratch, name, decode)
            scratch.rename(home)
        except BaseException:
            shutil.rmtree(scratch)
            raise
        return open_split(home, split)


def open_split(home: Path, split: str, check: bool = True) -> Images:
    """Images of a decoded split, memory-mapped.

    check: compare with the digest, once per process. Raises OSError, ValueError or KeyError when damaged.
    """
    about = json.loads((home / "about.json").read_text())
    pixels = torch.from_numpy(np.load(home / f"{split}-pixels.npy", mmap_mode="c"))  # (N, C, H, W)
    labels = torch.from_numpy(np.load(home / f"{split}-labels.npy"))
    described = (about["name"], split, pixels, labels, about["classes"], about["mean"], about["std"])
    expected = about["fingerprints"][split]
    if check and (home, split) not in _checked and pixels.numel() < CHECKED_BYTES:
        found = Images(*described).fingerprint
        if found != expected:
            raise ValueError(f"{split} has digest {found[:16]}, expected {expected[:16]}")
        _checked.add((home, split))
    return Images(*described, expected, opener=partial(open_split, home, split, check=False))


def _write(folder: Path, name: str, decode: Callable[[Allocate], Decoded]) -> None:
    arrays: dict[str, np.memmap] = {}

    def allocate(split: str, shape: tuple[int, ...]) -> np.ndarray:
        file, needed, free = folder / f"{split}-pixels.npy", math.prod(shape), shutil.disk_usage(folder).free
        if needed > free:  # writing to a memory map on a full disk would end the process
            raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free", str(file))
        arrays[split] = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        return arrays[split]

    labels, classes = decode(allocate)
    mean, std = channel_statistics(arrays["train"])
    fingerprints = {}
    for split, pixels in arrays.items():
        pixels.flush()
        np.save(folder / f"{split}-labels.npy", labels[split].astype(np.int64))
        tensors = torch.from_numpy(pixels), torch.from_numpy(labels[split].astype(np.int64))
        fingerprints[split] = Images(name, split, *tensors, classes, mean, std).fingerprint
    about = {"name": name, "classes": classes, "mean": mean, "std": std, "fingerprints": fingerprints}
    (folder / "about.json").write_text(json.dumps(about, indent=1))


def channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (N, C, H, W), white being 1; exact, in one pass."""
    channels = pixels.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels), 4096):
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[start : start + 4096, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    std = np.where(std > 0, std, 1.0)  # a channel of one value becomes all zeros
    return tuple(mean.tolist()), tuple(std.tolist())
