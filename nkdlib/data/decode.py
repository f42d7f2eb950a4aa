"""Read the formats that image data sets come in, checked against the published checksums."""

import gzip
import hashlib
import io
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from nkdlib.runtime.progress import progress

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]  # split and shape to a uint8 array that is kept
Decoded = tuple[dict[str, np.ndarray], tuple[str, ...]]  # labels by split, names of the classes

FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
FASHION_CLASSES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_MD5 = {  # of the unpacked files, which are the same from every mirror; their .gz files are not
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR10_BATCH = 10_000
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class DataDamaged(ValueError):
    """A file of a data set that cannot be read, or is not what was published."""


def read_fashion_mnist(folder: Path, name: str) -> np.ndarray:
    """One of Fashion-MNIST's idx files, packed or not, as a uint8 array of its published shape.

    Raises DataDamaged when its content is not the published one.
    """
    path = folder / f"{name}.gz" if (folder / f"{name}.gz").exists() else folder / name
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, f"{path.stat().st_size:,} bytes that do not unpack ({error})") from error
    check_md5(path, content, FASHION_MD5[name])
    dimensions = content[3]  # an idx file starts 0, 0, 8 (uint8), number of dimensions, then each as 4 bytes
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def decode_fashion_mnist(folder: Path, allocate: Allocate) -> Decoded:
    labels = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = read_fashion_mnist(folder, f"{prefix}-images-idx3-ubyte")  # (N, H, W)
        allocate(split, (len(pixels), 1, *pixels.shape[1:]))[:, 0] = pixels
        labels[split] = read_fashion_mnist(folder, f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    return labels, FASHION_CLASSES


def decode_cifar10(path: Path, allocate: Allocate) -> Decoded:
    """CIFAR-10 as published: the folder `cifar-10-batches-py`, or the archive that contains it."""
    labels, contents = {}, _cifar10_contents(path)
    for split, names in (("train", list(CIFAR10_MD5)[:5]), ("test", ["test_batch"])):
        pixels = allocate(split, (CIFAR10_BATCH * len(names), 3, 32, 32))
        split_labels = []
        for place, name in enumerate(names):
            batch = pickle.loads(contents[name], encoding="latin1")  # safe: its checksum is the published one
            start = place * CIFAR10_BATCH
            pixels[start : start + CIFAR10_BATCH] = batch["data"].reshape(-1, 3, 32, 32)
            split_labels += batch["labels"]
        labels[split] = np.array(split_labels, np.int64)
    return labels, CIFAR10_CLASSES


def _cifar10_contents(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        contents = {name: (path / name).read_bytes() for name in CIFAR10_MD5 if (path / name).exists()}
    else:
        with _opened(path) as archive:
            files = (member for member in archive if member.isfile())
            contents = {PurePosixPath(file.name).name: archive.extractfile(file).read() for file in files}
    for name, expected in CIFAR10_MD5.items():
        if name not in contents:
            raise _damaged(path, f"no {name} in it")
        check_md5(path / name, contents[name], expected)
    return contents


def decode_image_tree(path: Path, allocate: Allocate, image_size: int | None = None) -> Decoded:
    """Images in `train/<class>/<file>` and `test/<class>/<file>` (or `val`), a folder or its tar archive.

    image_size: pixels, the shorter side is resized to it and the center cut out, so that all become squares
    of one size. Everything is read as RGB, like torchvision's ImageFolder, and sorted by name, so that a
    folder and its archive give the same.
    Raises ValueError when images differ in size and no image_size is given, DataDamaged for bad ones.
    """
    rows, labels, classes = _tree_index(path)
    pixels: dict[str, np.ndarray] = {}
    first = None
    for name, content in progress(_tree_contents(path, rows), f"decoding {path.name}", total=len(rows)):
        image = _read_image(path, name, content, image_size)  # (H, W, 3)
        first = first or (name, image.shape)
        if image.shape != first[1]:
            sizes = " and ".join(f"{n} ({h}x{w})" for n, (h, w, _) in (first, (name, image.shape)))
            raise ValueError(f"images of {path} differ in size: {sizes}; give image_size= to make them one")
        split, row = rows[name]
        if split not in pixels:
            pixels[split] = allocate(split, (len(labels[split]), 3, *image.shape[:2]))
        pixels[split][row] = image.transpose(2, 0, 1)
    return labels, classes


def _tree_index(path: Path) -> tuple[dict[str, tuple[str, int]], dict[str, np.ndarray], tuple[str, ...]]:
    """The split and row of every image's name, the labels by split, and the classes."""
    folders: dict[str, list[PurePosixPath]] = {}
    for place in sorted(PurePosixPath(name) for name in _tree_names(path)):
        if place.suffix.lower() in IMAGE_SUFFIXES and not place.name.startswith(".") and len(place.parts) > 2:
            folders.setdefault(place.parent.parent.as_posix(), []).append(place)
    chosen = {}
    for split, accepted in (("train", ("train",)), ("test", ("test", "val"))):
        found = [folder for folder in folders if PurePosixPath(folder).name in accepted]
        if len(found) != 1:
            wanted = " or ".join(accepted)
            raise ValueError(f"{path} must have images in one folder {wanted}/<class>/, found {found or 'none'}")
        chosen[split] = folders[found[0]]
    classes = tuple(sorted({place.parent.name for places in chosen.values() for place in places}))
    numbers = {name: number for number, name in enumerate(classes)}
    rows = {str(p): (split, row) for split, places in chosen.items() for row, p in enumerate(places)}
    labels = {split: np.array([numbers[p.parent.name] for p in places]) for split, places in chosen.items()}
    return rows, labels, classes


def _tree_names(path: Path) -> list[str]:
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in path.glob("*/*/*")]
    with _opened(path) as archive:
        return [member.name.removeprefix("./") for member in archive if member.isfile()]


def _tree_contents(path: Path, wanted: dict[str, tuple[str, int]]) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        yield from ((name, (path / name).read_bytes()) for name in wanted)
        return
    with _opened(path) as archive:
        for member in archive:
            if member.name.removeprefix("./") in wanted:
                yield member.name.removeprefix("./"), archive.extractfile(member).read()


def _read_image(path: Path, name: str, content: bytes, image_size: int | None) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
        raise _damaged(path / name, f"no readable image ({error})") from error
    if image_size is not None:
        size = [round(side * image_size / min(image.size)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - image_size) // 2 for side in image.size)
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)  # (H, W, 3)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, packed or not, to be read to its end; a cut is an error, where tarfile may just stop."""
    try:
        with tarfile.open(path) as archive:
            yield archive
            if len(archive.fileobj.read()) < tarfile.BLOCKSIZE:  # tarfile read one block of the mark; the rest here
                raise EOFError("the end-of-archive mark is missing")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        found = f"{path.stat().st_size:,} bytes, not a whole tar archive ({error})"
        raise _damaged(path, found) from error


def check_md5(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise _damaged(path, f"{len(content):,} bytes with MD5 {found}, expected {expected} as published")


def _damaged(path: Path, found: str) -> DataDamaged:
    return DataDamaged(f"{path} is damaged or another file: found {found}; remove it and fetch it again")
