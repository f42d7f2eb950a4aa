"""Read the formats that image data sets come in; what was published is checked against its checksums.

Torchvision is imported where it is used: it takes seconds, in every worker.
"""

import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nkdlib.data.images import Images
from nkdlib.tasks.progress import Progress

Decoded = tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]  # by split uint8 (N, C, H, W), (N,); classes

FASHION_MD5 = {  # of the unpacked files, which are the same from every mirror; their .gz files are not
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


class DataDamaged(ValueError):
    """A file of a data set that cannot be read, or is not what was published."""


def decode(
    read: Callable[..., Decoded], path: str, files: str, name: str, **options: object
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Decode a data set; a task for the cache.

    read: called as `read(path, **options)`; files: which files these are, a digest.
    """
    arrays, classes = read(Path(path), **options)
    splits = {split: tuple(map(torch.from_numpy, of_split)) for split, of_split in arrays.items()}
    mean, std = channel_statistics(next(iter(splits.values()))[0])  # of the training split, or of all images
    fingerprints, tensors = {}, {}
    for split, (pixels, labels) in splits.items():
        labels = labels.long()
        fingerprints[split] = Images(name, split, pixels, labels, classes, mean, std).fingerprint
        tensors |= {f"{split}-pixels": pixels, f"{split}-labels": labels}
    return tensors, {"name": name, "classes": classes, "mean": mean, "std": std, "fingerprints": fingerprints}


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (N, C, H, W), white being 1; exact, in one pass."""
    counts = np.stack([torch.bincount(pixels[:, c].flatten(), minlength=256).numpy() for c in range(pixels.shape[1])])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    std = np.where(std > 0, std, 1.0)  # a channel of one value becomes all zeros
    return tuple(mean.tolist()), tuple(std.tolist())


def read_fashion_mnist(folder: Path) -> Decoded:
    """Fashion-MNIST's four idx files, each packed or not."""
    from torchvision.datasets import FashionMNIST

    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        splits[split] = (
            _read_idx(folder, f"{prefix}-images-idx3-ubyte")[:, None],
            _read_idx(folder, f"{prefix}-labels-idx1-ubyte"),
        )
    return splits, FashionMNIST.classes


def _read_idx(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.gz" if (folder / f"{name}.gz").exists() else folder / name
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, f"its {path.stat().st_size:,} bytes do not unpack ({error})") from error
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != FASHION_MD5[name]:
        raise _damaged(path, f"{len(content):,} bytes with MD5 {md5}, published was {FASHION_MD5[name]}")
    dimensions = content[3]  # an idx file starts 0, 0, 8 (uint8), number of dimensions, then each as 4 bytes
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_cifar10(folder: Path) -> Decoded:
    """CIFAR-10 as published, the folder `cifar-10-batches-py`."""
    from torchvision.datasets import CIFAR10

    try:
        parts = {split: CIFAR10(folder.parent, train=split == "train") for split in ("train", "test")}
    except RuntimeError as error:
        raise _damaged(folder, "not CIFAR-10 as published, by its MD5 sums") from error
    splits = {split: (part.data.transpose(0, 3, 1, 2), np.array(part.targets)) for split, part in parts.items()}
    return splits, parts["train"].classes


def read_cifar10_images(path: Path) -> Decoded:
    """CIFAR-10 as plain images, which must be all 60,000 of them."""
    splits, classes = read_images(path)
    counts = {split: np.bincount(labels).tolist() for split, (_, labels) in splits.items()}
    if len(classes) != 10 or counts != {"train": [5000] * 10, "test": [1000] * 10}:
        found = f"{sum(counts['train']):,} + {sum(counts['test']):,} of {len(classes)} classes"
        raise _damaged(path, f"CIFAR-10 has 50,000 + 10,000 images of 10 classes, this has {found}")
    return splits, classes


def read_images(path: Path, image_size: int | None = None, resize: int | None = None) -> Decoded:
    """Images in `train/<class>/<file>` and `test/<class>/<file>` (or `val`), a folder or its tar archive, as RGB.

    Images in `<class>/<file>` alone make one split, "all".

    image_size: pixels, the shorter side is resized to it and the center cut out, so that all become squares
    of one size; resize: pixels, what the shorter side is resized to instead, before a center of image_size is cut
    out. Raises ValueError when images differ in size and no image_size is given, DataDamaged for bad ones.
    """
    files = _files(path)
    chosen = _splits_of(path, files)
    classes = sorted({name.parent.name for names in chosen.values() for name in names})
    splits, first = {}, None
    with Progress(f"decoding {path.name}", sum(map(len, chosen.values())), "images") as progress:
        for split, names in chosen.items():
            pixels = None
            for row, name in enumerate(names):
                image = _read_image(path / name, files[name], image_size, resize)  # (H, W, 3)
                first = first or (name, image.shape)
                if image.shape != first[1]:
                    sizes = " and ".join(f"{n} ({h}x{w})" for n, (h, w, _) in (first, (name, image.shape)))
                    raise ValueError(f"images of {path} differ in size: {sizes}; give image_size= to make them one")
                if pixels is None:
                    pixels = np.empty((len(names), 3, *image.shape[:2]), np.uint8)
                pixels[row] = image.transpose(2, 0, 1)
                progress.advance()
            splits[split] = pixels, np.array([classes.index(name.parent.name) for name in names])
    return splits, classes


def _files(path: Path) -> dict[PurePosixPath, Path | io.BytesIO]:
    """What lies in a folder of images or in its tar archive, packed or not, by name."""
    if path.is_dir():
        found = (file for depth in ("*/*", "*/*/*") for file in path.glob(depth))
        return {PurePosixPath(file.relative_to(path)): file for file in found if file.is_file()}
    try:
        with tarfile.open(path) as archive:
            members = (member for member in archive if member.isfile())
            files = {PurePosixPath(member.name): io.BytesIO(archive.extractfile(member).read()) for member in members}
            if len(archive.fileobj.read()) < tarfile.BLOCKSIZE:  # tarfile takes a cut between files for the end
                raise EOFError("the end-of-archive mark is missing")
            return files
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, f"not a whole tar archive ({error})") from error


def _splits_of(path: Path, files: Iterable[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """The images of each split, sorted by class and name."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    folders: dict[PurePosixPath, list[PurePosixPath]] = {}  # by what holds the folders of the classes
    for name in sorted(files):
        image = name.suffix.lower() in IMG_EXTENSIONS and not name.name.startswith(".")
        if image and len(name.parts) > 1:
            folders.setdefault(name.parents[1], []).append(name)
    accepted = {"train": ("train",), "test": ("test", "val")}
    if len(folders) == 1 and not any(next(iter(folders)).name in names for names in accepted.values()):
        return {"all": next(iter(folders.values()))}
    chosen = {}
    for split, names in accepted.items():
        holders = [folder for folder in folders if folder.name in names]
        if len(holders) != 1:
            wanted, found = " or ".join(names), ", ".join(map(str, holders)) or "none"
            raise ValueError(f"{path} must have images in one folder {wanted}/<class>/, found {found}")
        chosen[split] = folders[holders[0]]
    return chosen


def _read_image(path: Path, file: Path | io.BytesIO, image_size: int | None, resize: int | None) -> np.ndarray:
    try:
        image = Image.open(file).convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
        raise _damaged(path, f"no readable image ({error})") from error
    if resize is not None:
        scale = resize / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = ((side - image_size) // 2 for side in image.size)
        image = image.crop((left, top, left + image_size, top + image_size))
    elif image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _damaged(path: Path, found: str) -> DataDamaged:
    return DataDamaged(f"{path} is damaged or another file: {found}; remove it and fetch it again")
