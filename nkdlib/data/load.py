"""Load a data set by name or from one's own folder: from NKD_DATA, else what was fetched, else the net.

A data set that is not found is an error, never replaced by another.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from nkdlib.data.decode import (
    CIFAR10_CLASSES,
    FASHION_MD5,
    Allocate,
    DataDamaged,
    Decoded,
    decode_cifar10,
    decode_fashion_mnist,
    decode_image_tree,
)
from nkdlib.data.download import fetch
from nkdlib.data.images import Images
from nkdlib.data.store import cache_root, channel_statistics, open_or_decode
from nkdlib.runtime.places import locked

NAMES = ("digits", "fashion-mnist", "cifar10")
DIGITS_TEST, DIGITS_SEED = 360, 0  # a fifth of the 1,797, stratified by class
BRING = {
    "fashion-mnist": "its four files, train-images-idx3-ubyte.gz and so on",
    "cifar10": "cifar-10-python.tar.gz, the folder cifar-10-batches-py from it, or images as "
    "cifar10/{train,test}/<class>/*.png (or .jpg; also packed as cifar10*.tar, .tar.gz or .tar.xz)",
}


class DataNotFound(FileNotFoundError):
    """A data set that is neither here nor to be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Source:
    """Files of a data set that were found, and what decodes them."""

    path: Path
    decode: Callable[[Path, Allocate], Decoded]
    files: tuple[str, ...] | None = None  # in `path`, where not all of that folder matters

    def identity(self) -> str:
        """Which files these are: a digest of their names, sizes and times."""
        files = [self.path / name for name in self.files or ()] or sorted(self.path.rglob("*")) or [self.path]
        stats = [(file.relative_to(self.path).as_posix(), file.stat()) for file in files]
        listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.sha256(repr((self.decode.__name__, listing)).encode()).hexdigest()[:16]


def load(
    name: str | Path, split: str = "train", root: str | Path | None = None, image_size: int | None = None
) -> Images:
    """Load one split of a data set, decoding it once and fetching it if need be.

    name: "digits" (scikit-learn's, 1,437 + 360 of 8x8), "fashion-mnist", "cifar10", or a folder or archive of
    images as `train/<class>/*` and `test/<class>/*` (or `val`), by its path or by its name in NKD_DATA;
    split: "train" or "test"; root: the folder to search in place of NKD_DATA; image_size: pixels, for
    images that differ in size: resize the shorter side and cut out the center.
    Returns images whose pixels are memory-mapped. Raises DataNotFound, or DataDamaged for a file that is not
    what was published.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split (={split!r}) must be 'train' or 'test'")
    if name in NAMES and image_size is not None:
        raise ValueError(f"image_size (={image_size}) is for folders of images; {name} has its own size")
    if name == "digits":
        return _digits(split)
    search = _search_root(root)
    if name in NAMES:
        title, source = str(name), _find_or_fetch(str(name), search)
    else:
        path = _own_images(Path(name), search)
        title = path.name.split(".")[0]
        source = Source(path, decode_image_tree)
    decode = source.decode if image_size is None else partial(source.decode, image_size=image_size)
    size = f"-{image_size}" if image_size else ""
    home = cache_root() / title / f"decoded-{source.identity()}{size}"
    return open_or_decode(home, split, title, partial(decode, source.path))


def _search_root(root: str | Path | None) -> Path | None:
    named = root if root is not None else os.environ.get("NKD_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{'NKD_DATA' if root is None else 'root'} (={named}) must be a folder that exists")
    return Path(named)


def _own_images(path: Path, search: Path | None) -> Path:
    for candidate in [path] + ([search / path] if search else []):
        if candidate.exists():
            return candidate
    raise DataNotFound(
        f"data set {str(path)!r} is neither one of {', '.join(NAMES)} nor a folder or archive of images"
        + (f", here or in {search}" if search else "; NKD_DATA can name the folder that contains it")
    )


def _find_or_fetch(name: str, search: Path | None) -> Source:
    fetched = cache_root() / name
    tried = []
    with locked(fetched):  # whoever waits here finds what the other one fetched
        for place in [search, fetched] if search else [fetched]:
            if source := FINDERS[name](place):
                return source
            tried.append(f"{place}: not there")
        tried += fetch(name, fetched)
        if source := FINDERS[name](fetched):
            return source
    raise DataNotFound(
        "\n  ".join([f"{name} was not found. Tried:", *tried])
        + f"\nTo bring it yourself, put {BRING[name]} into a folder and set NKD_DATA to that folder."
    )


def _find_fashion_mnist(root: Path) -> Source | None:
    for folder in (root, root / "fashion-mnist", root / "FashionMNIST/raw"):
        files = [f for name in FASHION_MD5 for f in (f"{name}.gz", name) if (folder / f).is_file()]
        if len({file.removesuffix(".gz") for file in files}) == len(FASHION_MD5):
            return Source(folder, decode_fashion_mnist, tuple(files))
    return None


def _find_cifar10(root: Path) -> Source | None:
    for folder in (root, root / "cifar10"):
        for original in (folder / "cifar-10-batches-py", folder / "cifar-10-python.tar.gz"):
            if original.exists():
                return Source(original, decode_cifar10)
    for folder in (root, root / "cifar10"):
        if (folder / "train" / CIFAR10_CLASSES[0]).is_dir():
            return Source(folder, decode_cifar10_images)
    archives = sorted(root.glob("cifar10*.tar*"))
    return Source(archives[0], decode_cifar10_images) if archives else None


FINDERS = {"fashion-mnist": _find_fashion_mnist, "cifar10": _find_cifar10}


def decode_cifar10_images(path: Path, allocate: Allocate) -> Decoded:
    """CIFAR-10 as plain images, which must be all 60,000 of them."""
    labels, classes = decode_image_tree(path, allocate)
    counts = {split: np.bincount(of_split).tolist() for split, of_split in labels.items()}
    if classes != CIFAR10_CLASSES or counts != {"train": [5000] * 10, "test": [1000] * 10}:
        found = f"{len(labels['train']):,} + {len(labels['test']):,} of {len(classes)} classes"
        raise DataDamaged(f"{path} must have CIFAR-10's 50,000 + 10,000 images of 10 classes, found {found}")
    return labels, classes


@cache
def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8), from 0 to 16
    parts = train_test_split(
        pixels, digits.target, test_size=DIGITS_TEST, stratify=digits.target, random_state=DIGITS_SEED
    )
    mean, std = channel_statistics(parts[0])
    chosen = parts[:1] + parts[2:3] if split == "train" else parts[1:2] + parts[3:]
    chosen_pixels, labels = (torch.from_numpy(np.ascontiguousarray(part)) for part in chosen)
    return Images("digits", split, chosen_pixels, labels.long(), tuple(map(str, range(10))), mean, std)
