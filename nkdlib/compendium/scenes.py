"""Generated scenes: small gray articles, tinted and scaled, on textured backgrounds; a data set in COCO's layout.

For detection where no photographs are at hand, and where what is in a picture has to be known exactly.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nkdlib.data import DeadLeaves, Images, NoiseImages, SmoothImages
from nkdlib.detection.coco import CocoImages
from nkdlib.tasks.places import locked
from nkdlib.tasks.progress import Progress

VERSION = 1  # raise it with every change of what is drawn
FAINT = 0.08  # of white; what is darker in an article is transparent
CROWDING = 0.15  # of the smaller of two boxes may lie in the other
TRIES = 30  # places for one article, before it is left out


def write_scenes(
    images: Images,
    folder: str | Path,
    count: int,
    size: int = 128,
    seed: int = 0,
    split: str | None = None,
    articles: tuple[int, int] = (1, 6),
    sides: tuple[float, float] = (0.11, 0.9),
) -> CocoImages:
    """Write `count` pictures as `folder/<split>/*.png` with COCO's annotations, and open them.

    A picture has one to six articles of `images`, gray on black, each with a box tight around its visible pixels; they
    cover little of each other. Boxes' sides (the root of their area) are log-uniform in `sides`. COCO calls boxes below
    32^2 pixels small and those from 96^2 large, whatever the picture: of 128 pixels, sides are 14 to 115, and about
    half of the boxes that find room are small, few large. The annotated area is the box's, so that truths and
    detections are told apart by the same measure.

    Articles of several splits must come from different images: give `images` of their own, such as the parts of
    `images.hold_out(...)`. Equal arguments give equal bytes, and scenes that are there already are not drawn again.

    Args:
        images: uint8 (N, 1, h, w), of which articles are drawn with replacement.
        folder: made if need be; it may hold other splits.
        count: pictures.
        size: pixels of their sides.
        seed: of everything drawn; another split gets other draws.
        split: what it is called; `images.split` where it is left out.
        articles: fewest and most in a picture; there are fewer where there is no room, but never none.
        sides: shortest and longest, of the picture's side.

    Raises:
        ValueError: arguments out of range, other scenes in this place, or articles that another split has.

    >>> from nkdlib.data import load
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     scenes = write_scenes(load("digits"), folder, count=2, size=64)
    ...     pixels, target = scenes[0]
    drawing scenes: 2/2 pictures, done after ...
    >>> len(scenes), tuple(pixels.shape), sorted(target)
    (2, (3, 64, 64), ['area', 'boxes', 'image_id', 'iscrowd', 'labels'])
    """
    split = split or images.split
    if images.shape[0] != 1 or not split.isidentifier():
        raise ValueError(f"images (={images!r}) must be gray, and split (={split!r}) a plain word")
    if count < 1 or size < 16 or not 1 <= articles[0] <= articles[1] or not 4 / size <= sides[0] <= sides[1] <= 1:
        raise ValueError(
            f"count (={count}) must be 1 or more, size (={size}) 16 or more, articles (={articles}) two numbers from "
            f"1 up, sides (={sides}) two shares of the picture's side from {4 / size:.3f} (4 pixels) to 1"
        )
    folder = Path(folder).resolve()
    pictures, path = folder / split, folder / "annotations" / f"instances_{split}.json"
    recipe = {"articles of": images.fingerprint, "count": count, "size": size, "seed": seed, "version": VERSION}
    recipe |= {"articles": list(articles), "sides": list(sides)}
    with locked(folder, f"another run draws scenes in {folder}; waiting for it"):
        ours = path.exists() and json.loads(path.read_bytes()).get("info", {}).get("recipe") == recipe
        if not ours and (path.exists() or pictures.exists()):
            raise ValueError(f"{pictures} or {path} holds other pictures; remove both, or take another folder")
        if not (ours and pictures.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as temporary:
                part = Path(temporary) / split
                part.mkdir()
                content = _write(images, part, count, size, _seed(seed, split), articles, sides)
                _check_apart(content, path)
                content["info"] = {"description": f"generated scenes of {images.name}", "recipe": recipe}
                (Path(temporary) / path.name).write_text(json.dumps(content))
                (Path(temporary) / path.name).rename(path)
                part.rename(pictures)  # last: a folder of pictures is complete
    return CocoImages.open(pictures, path)


def _seed(seed: int, split: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {split}".encode()).digest()[:6], "big")


def _write(images: Images, part: Path, count: int, size: int, seed: int, articles: tuple, sides: tuple) -> dict:
    """Draw and write the pictures; return their annotations."""
    generator, annotations = np.random.default_rng(seed), []
    names = [f"{number:06d}.png" for number in range(1, count + 1)]
    with Progress("drawing scenes", count, "pictures") as progress:
        for number, (name, picture) in enumerate(zip(names, backgrounds(count, size, seed), strict=True), 1):
            for row, (x1, y1, x2, y2) in draw(picture, images, generator, articles, sides):
                digest = hashlib.sha256(images.pixels[row].numpy().tobytes()).hexdigest()[:16]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(images.labels[row]) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "article": digest,
                    }
                )
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(part / name, compress_level=1)
            progress.advance()
    return {
        "images": [{"id": i, "file_name": name, "width": size, "height": size} for i, name in enumerate(names, 1)],
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in enumerate(images.classes, 1)],
    }


def _check_apart(content: dict, path: Path) -> None:
    """Raise ValueError where another split beside `path` has one of these articles."""
    used = {annotation["article"] for annotation in content["annotations"]}
    for other in path.parent.glob("instances_*.json"):
        shared = used & {annotation.get("article") for annotation in json.loads(other.read_bytes())["annotations"]}
        if shared and other != path:
            raise ValueError(
                f"{len(shared):,} articles are in {other} as well; give each split images of its own, such as the "
                "parts of images.hold_out(...)"
            )


def backgrounds(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Textures in colors, uint8 (3, size, size): dead leaves and smooth noise in turn.

    Leaves are drawn at half the size, which takes an eighth of the time and makes their edges soft.

    >>> [tuple(picture.shape) for picture in backgrounds(2, 32, seed=0)]
    [(3, 32, 32), (3, 32, 32)]
    """
    half, each = (3, -(-size // 2), -(-size // 2)), -(-count // 2)
    about = {"mean": (0.45,) * 3, "std": (0.22,) * 3, "batch_size": 1}
    leaves = DeadLeaves(half, each, seed, leaves=(3, 20), gray=0.6, **about)
    smooth = SmoothImages((3, size, size), each, seed + 1, cells=6, **about)
    sources = [_pictures(leaves, size), _pictures(smooth, size)]
    for number in range(count):
        yield next(sources[number % 2])


def _pictures(source: NoiseImages, size: int) -> Iterator[Tensor]:
    for image in source:  # (1, 3, h, w), normalized
        if image.shape[-1] != size:
            image = F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
        image = (image + image.mean(1, keepdim=True)) / 2  # paler, so that tints stand out
        yield ((image[0] * source.std[0] + source.mean[0]) * 255).clamp(0, 255).to(torch.uint8)


Box = tuple[int, int, int, int]  # x1 y1 x2 y2, the last row and column not included


def draw(
    picture: Tensor,
    images: Images,
    generator: np.random.Generator,
    articles: tuple[int, int] = (1, 6),
    sides: tuple[float, float] = (0.11, 0.9),
) -> list[tuple[int, Box]]:
    """Put articles onto a picture, uint8 (3, S, S), in place; return of each its row of images and its box.

    The large ones are put first, each where it covers at most CROWDING of another's box or is covered by it.
    """
    size, drawn = picture.shape[-1], []
    wanted = generator.integers(articles[0], articles[1] + 1)
    low, high = np.log(sides)
    for side in -np.sort(-np.exp(generator.uniform(low, high, wanted))) * size:
        row = int(generator.integers(len(images)))
        alpha = _scaled(images.pixels[row, 0], float(side), size, generator)
        height, width = alpha.shape
        for x, y in zip(
            generator.integers(0, size - width + 1, TRIES).tolist(),
            generator.integers(0, size - height + 1, TRIES).tolist(),
            strict=True,
        ):
            box = (x, y, x + width, y + height)
            if all(_crowding(box, other) <= CROWDING for _, other in drawn):
                _blend(picture[:, y : y + height, x : x + width], alpha, generator)
                drawn.append((row, box))
                break
    return drawn


def _scaled(article: Tensor, side: float, size: int, generator: np.random.Generator) -> Tensor:
    """The visible part of an article, (h, w) in 0 to 1, with h * w about side^2 and something in each border."""
    seen = article.float() / 255
    seen = _tight(seen / seen.max().clamp_min(FAINT))
    height, width = seen.shape
    scale = min(side / (height * width) ** 0.5, size / max(height, width))
    shape = max(round(height * scale), 2), max(round(width * scale), 2)
    seen = F.interpolate(seen[None, None], size=shape, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    seen = _tight(seen)
    return torch.where(seen > FAINT, seen ** float(generator.uniform(0.3, 0.6)), 0)


def _tight(seen: Tensor) -> Tensor:
    """Cut off borders without anything visible."""
    rows, columns = (seen > FAINT).any(1).nonzero(), (seen > FAINT).any(0).nonzero()
    if not len(rows):
        raise ValueError("an article is black all over; leave it out of images")
    return seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _crowding(box: Box, other: Box) -> float:
    """Share of the smaller box that lies in the other."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / smaller


def _blend(under: Tensor, alpha: Tensor, generator: np.random.Generator) -> None:
    """Paint an article (h, w) over a part of the picture, uint8 (3, h, w), in a tint that stands out from it."""
    ground = under.float()
    tint = torch.from_numpy(generator.uniform(0.1, 1, 3)).float() * 255
    if (tint - ground.mean((1, 2))).abs().mean() < 60:
        tint = 255 - tint
    shade = 0.4 + 0.6 * alpha  # so that seams and folds show
    opacity = alpha * float(generator.uniform(0.8, 1))
    under.copy_(torch.lerp(ground, tint.view(3, 1, 1) * shade, opacity))
