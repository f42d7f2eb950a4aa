"""Generated scenes: small images, scaled, on textured backgrounds; a data set in COCO's layout.

For detection without photographs at hand, or if everything in a picture has to be known exactly.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nkdlib.data import DeadLeaves, Images, SmoothImages
from nkdlib.data.noise import NoiseImages
from nkdlib.detection import CocoImages
from nkdlib.tasks.cache import Cache
from nkdlib.tasks.places import write_atomically
from nkdlib.tasks.progress import Progress

FAINT = 0.08  # of white; darker pixels of an article are transparent
CROWDING = 0.15  # of the smaller of two boxes may lie in the other
TRIES = 30  # positions for one article, before it is left out


def write_scenes(
    images: Images,
    folder: str | Path,
    count: int,
    size: int = 128,
    seed: int = 0,
    split: str | None = None,
    articles: Sequence[int] = (1, 6),
    sides: Sequence[float] = (0.11, 0.9),
) -> CocoImages:
    """Write `count` pictures as `folder/<split>/*.png` with COCO's annotations, and open them; drawn once (cached).

    A picture has articles of `images`, each with a box tight around its visible pixels; they cover little of each
    other. Boxes' sides (the root of their area) are log-uniform in `sides`. COCO calls boxes below 32^2 pixels small
    and those from 96^2 large, whatever the picture's size. The annotated area is the box's.

    Args:
        images: uint8 (N, C, h, w), of which articles are drawn with replacement. Gray ones (C=1) are on black, which is
            transparent, and get a tint; colored ones (C=3) are whole rectangles. Other splits need other images, such
            as the parts of `images.hold_out(...)`.
        folder: made if need be; it may hold other splits, and earlier scenes of this one are replaced.
        count: pictures.
        size: pixels of their sides.
        seed: of everything drawn; another split gets other draws.
        split: its name; `images.split` by default.
        articles: fewest and most in a picture; fewer if there is no room, but never none.
        sides: shortest and longest, as shares of the picture's side.

    Raises:
        ValueError: arguments out of range, or a folder with other annotations.

    >>> import tempfile
    >>> from nkdlib.data import load
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pixels, target = write_scenes(load("digits"), folder, count=2, size=64)[0]  # doctest: +ELLIPSIS
    draw...done after ...
    >>> tuple(pixels.shape), sorted(target)
    ((3, 64, 64), ['area', 'boxes', 'image_id', 'iscrowd', 'labels'])
    """
    split = split or images.split
    if images.shape[0] not in (1, 3) or not split.isidentifier():
        raise ValueError(
            f"images (={images!r}) must have one or three channels, and split (={split!r}) be a plain word"
        )
    if count < 1 or size < 16 or not 1 <= articles[0] <= articles[1] or not 4 / size <= sides[0] <= sides[1] <= 1:
        raise ValueError(
            f"count (={count}) must be 1 or more, size (={size}) 16 or more, articles (={articles}) two numbers from "
            f"1 up, sides (={sides}) two shares of the picture's side from {4 / size:.3f} (4 pixels) to 1"
        )
    pictures = Path(folder).resolve() / split
    path = pictures.parent / "annotations" / f"instances_{split}.json"
    drawn = {"count": count, "size": size, "seed": _seed(seed, split), "articles": articles, "sides": sides}
    scenes = Cache().call(draw_scenes, images=images, **drawn)
    content, before = scenes.info["coco"], json.loads(path.read_bytes()) if path.exists() else None
    if before and before.get("info") != content["info"]:
        raise ValueError(f"{path} holds other annotations; take another folder or split")
    if before != content:
        for image, picture in zip(content["images"], scenes.tensors["pixels"], strict=True):
            file = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
            write_atomically(pictures / image["file_name"], file.getvalue())
        write_atomically(path, json.dumps(content).encode())  # last: it stands for all pictures
    return CocoImages.open(pictures, path)


def _seed(seed: int, split: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {split}".encode()).digest()[:6], "big")


def draw_scenes(
    images: Images, count: int, size: int, seed: int, articles: Sequence[int], sides: Sequence[float]
) -> dict[str, object]:
    """Pixels, uint8 (count, 3, size, size), and COCO's dictionary of their boxes; a task for the cache."""
    generator, pictures, entries, annotations = np.random.default_rng(seed), [], [], []
    with Progress("drawing scenes", count, "pictures") as progress:
        for number, picture in enumerate(backgrounds(count, size, seed), 1):
            for row, (x1, y1, x2, y2) in draw(picture, images, generator, articles, sides):
                width, height = x2 - x1, y2 - y1
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": int(images.labels[row]) + 1}
                annotations.append(entry | {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0})
            entries.append({"id": number, "file_name": f"{number:06d}.png", "width": size, "height": size})
            pictures.append(picture)
            progress.advance()
    categories = [{"id": number, "name": name} for number, name in enumerate(images.classes, 1)]
    coco = {"info": {"description": "generated scenes"}, "images": entries, "annotations": annotations}
    coco |= {"categories": categories, "articles": images.fingerprint}  # others may have the same boxes
    return {"pixels": torch.stack(pictures), "coco": coco}


def backgrounds(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Textures in colors, uint8 (3, size, size): dead leaves and smooth noise in turn.

    Leaves are drawn at half the size, which takes an eighth of the time and makes their edges soft.
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
    articles: Sequence[int] = (1, 6),
    sides: Sequence[float] = (0.11, 0.9),
) -> list[tuple[int, Box]]:
    """Put articles onto a picture, uint8 (3, S, S), in place; return the row of images and the box of each.

    The large ones come first. A new box and an older one share at most CROWDING of the smaller of them.
    """
    size, drawn = picture.shape[-1], []
    wanted = generator.integers(articles[0], articles[1] + 1)
    low, high = np.log(sides)
    for side in -np.sort(-np.exp(generator.uniform(low, high, wanted))) * size:
        row = int(generator.integers(len(images)))
        article = _scaled(images.pixels[row], float(side), size, generator)
        height, width = article.shape[-2:]
        for x, y in zip(
            generator.integers(0, size - width + 1, TRIES).tolist(),
            generator.integers(0, size - height + 1, TRIES).tolist(),
            strict=True,
        ):
            box = (x, y, x + width, y + height)
            if all(_crowding(box, other) <= CROWDING for _, other in drawn):
                _paint(picture[:, y : y + height, x : x + width], article, generator)
                drawn.append((row, box))
                break
    return drawn


def _scaled(article: Tensor, side: float, size: int, generator: np.random.Generator) -> Tensor:
    """An article, uint8 (C, h, w), as (C, H, W) in 0 to 1 with H * W about side^2; of a gray one the visible part."""
    seen = article.float() / 255
    if gray := len(seen) == 1:
        seen = _tight(seen / seen.max().clamp_min(FAINT))
    height, width = seen.shape[-2:]
    scale = min(side / (height * width) ** 0.5, size / max(height, width))
    shape = max(round(height * scale), 2), max(round(width * scale), 2)
    seen = F.interpolate(seen[None], size=shape, mode="bilinear", align_corners=False, antialias=True)[0]
    if not gray:
        return seen
    seen = _tight(seen)
    return torch.where(seen > FAINT, seen ** float(generator.uniform(0.3, 0.6)), 0)


def _tight(seen: Tensor) -> Tensor:
    """Cut off borders without anything visible."""
    rows, columns = ((seen[0] > FAINT).any(axis).nonzero() for axis in (1, 0))
    if not len(rows):
        raise ValueError("an article is black all over; leave it out of images")
    return seen[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _crowding(box: Box, other: Box) -> float:
    """Share of the smaller box that lies in the other."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / smaller


def _paint(under: Tensor, article: Tensor, generator: np.random.Generator) -> None:
    """Paint an article (C, h, w) over a part of the picture, uint8 (3, h, w); a gray one in a tint that stands out."""
    if len(article) == 3:
        under.copy_(255 * article)
        return
    ground = under.float()
    tint = torch.from_numpy(generator.uniform(0.1, 1, 3)).float() * 255
    if (tint - ground.mean((1, 2))).abs().mean() < 60:
        tint = 255 - tint
    shade = 0.4 + 0.6 * article  # so that seams and folds show
    opacity = article * float(generator.uniform(0.8, 1))
    under.copy_(torch.lerp(ground, tint.view(3, 1, 1) * shade, opacity))
