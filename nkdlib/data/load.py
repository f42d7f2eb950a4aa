"""Load a data set by name or from one's own folder: from NKD_DATA, else what was fetched, else the net.

A data set that is not found is an error, never replaced by another.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from nkdlib.data.decode import (
    FASHION_MD5,
    Decoded,
    channel_statistics,
    decode,
    read_cifar10,
    read_cifar10_images,
    read_fashion_mnist,
    read_images,
)
from nkdlib.data.download import fetch
from nkdlib.data.images import Images
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.keys import sha256
from nkdlib.tasks.places import data_root, locked

NAMES = ("digits", "fashion-mnist", "cifar10")
DIGITS_TEST, DIGITS_SEED = 360, 0  # a fifth of the 1,797, stratified by class
BRING = {
    "fashion-mnist": "its four files, train-images-idx3-ubyte.gz and so on",
    "cifar10": "the folder cifar-10-batches-py, unpacked from cifar-10-python.tar.gz, or images as "
    "cifar10/{train,test}/<class>/*.png (or .jpg; also packed as cifar10*.tar, .tar.gz or .tar.xz)",
}


class DataNotFound(FileNotFoundError):
    """A data set that is neither here nor to be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Source:
    """Files of a data set that were found, and what reads them."""

    path: Path
    read: Callable[..., Decoded]
    files: tuple[Path, ...] = ()  # where not all of `path` matters

    def digest(self) -> str:
        """Which files these are, by their names, sizes and times."""
        stats = [(file, file.stat()) for file in self.files or sorted(self.path.rglob("*")) or [self.path]]
        return sha256([(str(file.relative_to(self.path)), stat.st_size, stat.st_mtime_ns) for file, stat in stats])


def load(
    name: str | Path,
    split: str = "train",
    root: str | Path | None = None,
    image_size: int | None = None,
    resize: int | None = None,
) -> Images:
    """Load one split of a data set, decoding it once and fetching it if need be.

    name: "digits" (scikit-learn's, 1,437 + 360 of 8x8), "fashion-mnist", "cifar10", or a folder or archive of
    images as `train/<class>/*` and `test/<class>/*` (or `val`), by its path or by its name in NKD_DATA;
    split: "train" or "test", or "all" for images as `<class>/*` alone, which `Images.split` divides; root: the
    folder to search in place of NKD_DATA; image_size: pixels, for images that differ in size: resize the shorter
    side and cut out the center; resize: pixels, the shorter side's size before the cut, where not image_size.
    Returns images whose pixels are memory-mapped. Raises DataNotFound, or DataDamaged for a file that is not
    what was published.

    >>> load("digits", "test").shape, len(load("digits"))
    ((1, 8, 8), 1437)
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split (={split!r}) must be 'train' or 'test', or 'all' for images without splits")
    if name in NAMES and image_size is not None:
        raise ValueError(f"image_size (={image_size}) is for folders of images; {name} has its own size")
    if resize is not None and not 0 < (image_size or 0) <= resize:
        raise ValueError(f"resize (={resize}) must come with an image_size (={image_size}) of at most as much")
    if name in NAMES and split == "all":
        raise ValueError(f"split (='all') is for images without splits; {name} has 'train' and 'test'")
    if name == "digits":
        return _digits(split)
    source = _find_or_fetch(str(name), _search_root(root))
    title = str(name) if name in NAMES else source.path.name.split(".")[0]
    given = {"read": source.read, "path": str(source.path.resolve()), "files": source.digest(), "name": title}
    sizes = {key: value for key, value in (("image_size", image_size), ("resize", resize)) if value}
    task, kept = Task(decode, given | sizes, f"decoding {title}"), Cache()
    decoded = kept.find(task) or kept.run([task])[0]
    if split not in (splits := decoded.info["fingerprints"]):
        remedy = "load split='all' and divide it by Images.split" if "all" in splits else "load one of these"
        raise ValueError(f"split (={split!r}) is not in {source.path}, which has {', '.join(splits)}; {remedy}")
    return open_split(decoded, split)


def open_split(decoded: Artefact, split: str) -> Images:
    """One split of a decoded data set, memory-mapped."""
    info, tensors = decoded.info, decoded.state(f"{split}-")
    about = info["classes"], info["mean"], info["std"], info["fingerprints"][split]
    opener = partial(open_split, decoded, split)
    return Images(info["name"], split, tensors["pixels"], tensors["labels"], *about, opener=opener)


def _search_root(root: str | Path | None) -> Path | None:
    named = root if root is not None else os.environ.get("NKD_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{'NKD_DATA' if root is None else 'root'} (={named}) must be a folder that exists")
    return Path(named)


def _find_or_fetch(name: str, search: Path | None) -> Source:
    if name not in NAMES:
        packed = sorted(search.glob(f"{name}*.tar*")) if search and Path(name).name == name else []
        for path in [Path(name), *([search / name] if search else []), *packed]:
            if path.exists():
                return Source(path, read_images)
        raise DataNotFound(
            f"data set {name!r} is neither one of {', '.join(NAMES)} nor a folder or archive of images"
            + (f", here or in {search}" if search else "; NKD_DATA can name the folder that contains it")
        )
    fetched = data_root() / name
    tried = []
    with locked(fetched):  # whoever waits here finds what the other one fetched
        for place in [search, fetched] if search else [fetched]:
            if source := FINDERS[name](place):
                return source
            lacking = _lacking_fashion_mnist(place) if name == "fashion-mnist" else ()
            tried.append(f"{place}: {' and '.join(lacking) or 'not there'}")
        tried += fetch(name, fetched)
        if source := FINDERS[name](fetched):
            return source
    raise DataNotFound(
        "\n  ".join([f"{name} was not found. Tried:", *tried])
        + f"\nTo bring it yourself, put {BRING[name]} into a folder and set NKD_DATA to that folder."
    )


def _fashion_mnist(root: Path) -> Iterator[tuple[Path, tuple[Path, ...], set[str]]]:
    """Folders that may hold Fashion-MNIST, with the files of it that each has and the names that it lacks."""
    for folder in (root, root / "fashion-mnist", root / "FashionMNIST/raw"):
        files = tuple(sorted(folder.glob("*-ubyte*")))
        yield folder, files, FASHION_MD5.keys() - {file.name.removesuffix(".gz") for file in files}


def _find_fashion_mnist(root: Path) -> Source | None:
    whole = (
        Source(folder, read_fashion_mnist, files) for folder, files, lacking in _fashion_mnist(root) if not lacking
    )
    return next(whole, None)


def _lacking_fashion_mnist(root: Path) -> list[str]:
    """What is missing where some of its files are."""
    return [
        f"{folder.name} has no {', '.join(sorted(lacking))}"
        for folder, _, lacking in _fashion_mnist(root)
        if lacking < FASHION_MD5.keys()
    ]


def _find_cifar10(root: Path) -> Source | None:
    for folder in (root, root / "cifar10"):
        if (folder / "cifar-10-batches-py").is_dir():
            return Source(folder / "cifar-10-batches-py", read_cifar10)
        if (folder / "train" / "airplane").is_dir():
            return Source(folder, read_cifar10_images)
    archives = sorted(root.glob("cifar10*.tar*"))
    return Source(archives[0], read_cifar10_images) if archives else None


FINDERS = {"fashion-mnist": _find_fashion_mnist, "cifar10": _find_cifar10}


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
