"""Images with boxes in COCO's layout: a folder of images, and a JSON file with sizes, boxes and categories.

Every entry is checked when the file is opened. An annotation that is wrong is an error or is left out by request,
never repaired, except that a box which sticks out of its image is clipped.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nkdlib.data import DataDamaged, DataNotFound

Target = dict[str, Tensor | int]


class Problem(NamedTuple):
    """What is wrong with one entry of an annotations file."""

    kind: str  # "category", "image" or "annotation"
    id: object  # the entry's id as it stands there, None where it has none
    file: str  # the image's, or the annotations file where no image is known
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.id}: {self.what}"


@dataclass(frozen=True, eq=False)
class CocoImages:
    """Images of any size with their boxes; decoded when asked for, cheap to subset and to send to a process.

    `len` and indexing as a sequence: `images[i]` is (pixels uint8 (3, H, W), target) with the target a dict of
    "boxes" float32 (n, 4), x1 y1 x2 y2 in pixels; "labels" int64 (n,), 1 to K; "image_id" int; "iscrowd" bool (n,);
    "area" float32 (n,), in pixels. Label k is `classes[k - 1]` and COCO's category `category_ids[k - 1]`; 0 is left for
    the background.
    """

    folder: Path
    files: tuple[str, ...]  # below the folder, N
    bytes: tuple[int, ...]  # of the files
    image_ids: tuple[int, ...]
    sizes: np.ndarray  # int64 (N, 2): width, height
    owners: np.ndarray  # int64 (M,): the position of each box's image, ascending
    boxes: np.ndarray  # float64 (M, 4): x1 y1 x2 y2
    labels: np.ndarray  # int64 (M,)
    iscrowd: np.ndarray  # bool (M,)
    area: np.ndarray  # float64 (M,)
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    dropped: tuple[Problem, ...] = ()  # what `open` left out

    @classmethod
    def open(cls, images_folder: str | Path, annotations_json: str | Path, drop: bool = False) -> "CocoImages":
        """Read an `instances_*.json` and check it against the folder of its images.

        An annotation needs id, image_id, category_id and bbox; area is the box's where it is missing, iscrowd 0.
        drop: leave out entries with problems, listed in `.dropped`; an image takes its boxes with it.
        Raises ValueError with the first ten problems where there are any, DataNotFound for a folder or file that is
        not there, DataDamaged for a file that is no annotations file at all. That an image can be decoded is not
        known before it is (DataDamaged then).
        """
        folder, path = Path(images_folder).resolve(), Path(annotations_json).resolve()
        content = _parse(path)
        if not folder.is_dir():
            raise DataNotFound(f"images_folder (={folder}) must be a folder that exists")
        problems: list[Problem] = []
        categories = sorted(_categories(content["categories"], path.name, problems).items())
        boxes_of = Counter(_hashable(entry.get("image_id")) for entry in content["annotations"])
        images = _images(content["images"], folder, path.name, boxes_of, problems)
        kept = {id: image for id, image in images.items() if isinstance(image, tuple)}
        label_of = {id: label for label, (id, _) in enumerate(categories, 1)}
        rows = _annotations(content["annotations"], images, label_of, path.name, problems)
        if problems and not drop:
            listed = "".join(f"\n  {problem}" for problem in problems[:10])
            more = f"\n  and {len(problems) - 10:,} more" if len(problems) > 10 else ""
            raise ValueError(
                f"{path} has {len(problems):,} problem(s):{listed}{more}\n"
                "Mend the file, or leave them out with drop=True"
            )
        place_of = {id: place for place, id in enumerate(kept)}
        rows.sort(key=lambda row: place_of[row[0]])  # stable: within an image as in the file
        owners, boxes, labels, iscrowd, area = zip(*rows, strict=True) if rows else ((),) * 5
        return cls(
            folder,
            *(tuple(image[part] for image in kept.values()) for part in (0, 1)),
            tuple(kept),
            np.array([image[2:] for image in kept.values()], np.int64).reshape(-1, 2),
            np.array([place_of[id] for id in owners], np.int64),
            np.array(boxes, np.float64).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(iscrowd, bool),
            np.array(area, np.float64),
            tuple(name for _, name in categories),
            tuple(id for id, _ in categories),
            tuple(problems),
        )

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        crowds = f", {self.iscrowd.sum():,} of them crowds" if self.iscrowd.any() else ""
        dropped = f", {len(self.dropped):,} problems left out" if self.dropped else ""
        what = f"{len(self):,} images, {len(self.boxes):,} boxes{crowds}, {len(self.classes)} classes{dropped}"
        return f"CocoImages({self.folder.name}: {what}, {self.fingerprint[:8]})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images' names, bytes and ids, of boxes and categories; not of where the folder lies."""
        head = (self.files, self.bytes, self.image_ids, self.classes, self.category_ids)
        digest = hashlib.sha256(repr(head).encode())
        for part in (self.sizes, self.owners, self.boxes, self.labels, self.iscrowd, self.area):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def __getitem__(self, place: int) -> tuple[Tensor, Target]:
        return self.read(place), self.target(place)

    def read(self, place: int, size: int | None = None) -> Tensor:
        """Decode one image to uint8 (3, H, W), or resized to (3, size, size); raises DataDamaged."""
        path = self.folder / self.files[self._checked(place)]
        width, height = self.sizes[place]
        about = f"{path} (image {self.image_ids[place]})"
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
            raise DataDamaged(f"{about} is no readable image: {error}; fetch it again or remove its entry") from error
        if image.size != (width, height):
            is_size = "x".join(map(str, image.size))
            raise DataDamaged(f"{about} is {is_size} pixels, its annotations are for {width}x{height}")
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def target(self, place: int, crowds: bool = True) -> Target:
        """The boxes of one image, see the class; crowds: with regions marked so, which training leaves out."""
        rows = slice(*np.searchsorted(self.owners, [self._checked(place), place + 1]))
        kept = slice(None) if crowds else ~self.iscrowd[rows]
        return {
            "boxes": torch.from_numpy(self.boxes[rows][kept]).float(),
            "labels": torch.from_numpy(self.labels[rows][kept].copy()),
            "image_id": self.image_ids[place],
            "iscrowd": torch.from_numpy(self.iscrowd[rows][kept].copy()),
            "area": torch.from_numpy(self.area[rows][kept]).float(),
        }

    def _checked(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(f"image {place} of {len(self):,}; count from 0")
        return place

    def subset(self, indices: int | list[int] | Tensor, seed: int | None = None) -> "CocoImages":
        """Some of the images with their boxes and all classes.

        indices: positions in the order wanted, or a number: the first so many, or with a seed so many drawn at random
        without replacement (in their old order). Raises ValueError for a position or number out of range, or given
        twice.
        """
        if isinstance(indices, int):
            if not 0 < indices <= len(self):
                raise ValueError(f"indices (={indices}) must be 1 to the number of {self!r}")
            order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
            indices = np.sort(order[:indices])
        chosen = np.asarray(indices, np.int64)
        out_of_range = chosen.ndim != 1 or not len(chosen) or chosen.min() < 0 or chosen.max() >= len(self)
        if out_of_range or len(np.unique(chosen)) < len(chosen):
            raise ValueError(f"indices must be one row of different positions from 0 to {len(self) - 1:,} of {self!r}")
        bounds = np.searchsorted(self.owners, np.stack([chosen, chosen + 1]))  # (2, n)
        rows = np.concatenate([np.arange(*bound) for bound in bounds.T])
        of_boxes = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "iscrowd", "area")}
        return replace(
            self,
            **{name: tuple(getattr(self, name)[i] for i in chosen) for name in ("files", "bytes", "image_ids")},
            sizes=self.sizes[chosen],
            owners=np.repeat(np.arange(len(chosen)), bounds[1] - bounds[0]),
            **of_boxes,
        )

    def to_coco(self) -> dict[str, list]:
        """The ground truth as COCO's JSON has it, crowds included: "images", "annotations", "categories".

        Boxes are x y width height in pixels of the images as they lie on disk; annotations are numbered anew from 1,
        because COCO's evaluation takes the id 0 for none.
        """
        corners, extents = self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]
        sizes = self.sizes.tolist()
        return {
            "images": [
                {"id": id, "file_name": file, "width": width, "height": height}
                for id, file, (width, height) in zip(self.image_ids, self.files, sizes, strict=True)
            ],
            "annotations": [
                {
                    "id": row + 1,
                    "image_id": self.image_ids[self.owners[row]],
                    "category_id": self.category_ids[self.labels[row] - 1],
                    "bbox": [*corners[row].tolist(), *extents[row].tolist()],
                    "area": float(self.area[row]),
                    "iscrowd": int(self.iscrowd[row]),
                }
                for row in range(len(self.boxes))
            ],
            "categories": [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)],
        }


def _parse(path: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataNotFound(f"annotations_json (={path}) must be a file that exists") from error
    except ValueError as error:
        raise DataDamaged(f"{path} is not JSON: {error}") from error
    for part in ("images", "annotations", "categories"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataDamaged(f"{path} must have a list {part!r} of objects, as COCO's instances_*.json have")
    return content


def _hashable(id: object) -> object:
    return id if _is_id(id) else None


def _is_id(id: object) -> bool:
    return isinstance(id, int) and not isinstance(id, bool)


def _entry_problem(entry: dict, fields: tuple[str, ...], seen: set[int] | dict) -> str | None:
    """What is wrong with any kind of entry: missing fields, or an id that is none or not its own."""
    if missing := [field for field in fields if entry.get(field) is None]:
        return f"missing {', '.join(missing)}"
    if not _is_id(entry["id"]):
        return "its id must be an integer"
    return "its id was there before" if entry["id"] in seen else None


def _categories(entries: list[dict], file: str, problems: list[Problem]) -> dict[int, str]:
    """Names by id."""
    names: dict[int, str] = {}
    for entry in entries:
        if what := _entry_problem(entry, ("id", "name"), names):
            problems.append(Problem("category", entry.get("id"), file, what))
        else:
            names[entry["id"]] = str(entry["name"])
    return names


def _images(
    entries: list[dict], folder: Path, file: str, boxes_of: Counter, problems: list[Problem]
) -> dict[int, tuple[str, int, int, int] | None]:
    """File, bytes, width and height by id; None for an image that has a problem."""
    images: dict[int, tuple[str, int, int, int] | None] = {}
    for entry in entries:
        id, name = entry.get("id"), entry.get("file_name")
        what, size = _entry_problem(entry, ("id", "file_name", "width", "height"), images), 0
        if what is None:
            width, height = entry["width"], entry["height"]
            try:
                size = (folder / name).stat().st_size
            except (OSError, TypeError, ValueError):
                what = f"there is no such file in {folder}"
            else:
                if size == 0:
                    what = "the file is empty"
                elif not (_is_id(width) and _is_id(height) and width > 0 and height > 0):
                    what = f"width (={width}) and height (={height}) must be whole numbers of pixels"
        if what is None:
            images[id] = (name, size, width, height)
            continue
        if _is_id(id) and id not in images:
            images[id] = None
            what += f" (it has {boxes_of[id]:,} boxes)" if boxes_of[id] else ""
        problems.append(Problem("image", id, str(name or file), what))
    return images


def _annotations(
    entries: list[dict], images: dict, label_of: dict[int, int], file: str, problems: list[Problem]
) -> list[tuple]:
    """Rows of image id, box, label, iscrowd, area."""
    rows, seen = [], set()
    for entry in entries:
        id, owner = entry.get("id"), _hashable(entry.get("image_id"))
        if owner in images and images[owner] is None:
            continue  # its image was reported, with the number of its boxes
        what = _entry_problem(entry, ("id", "image_id", "category_id", "bbox"), seen)
        if what is None:
            seen.add(id)
            if owner not in images:
                what = f"there is no image {entry['image_id']}"
            elif _hashable(entry["category_id"]) not in label_of:
                what = f"there is no category {entry['category_id']}"
            else:
                box, what = _clipped(entry["bbox"], *images[owner][2:])
        area = entry.get("area")
        if what is None and area is not None and not (_is_number(area) and area >= 0):
            what = f"area (={area}) must be 0 or more"
        if what is None:
            area = (box[2] - box[0]) * (box[3] - box[1]) if area is None else area
            rows.append((owner, box, label_of[entry["category_id"]], bool(entry.get("iscrowd", 0)), area))
        else:
            problems.append(Problem("annotation", id, images[owner][0] if owner in images else file, what))
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clipped(bbox: object, width: int, height: int) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """Corners of the part of a box that lies in its image, or what is wrong with it."""
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        return None, f"bbox (={bbox}) must be four numbers x, y, width, height"
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return None, f"bbox (={bbox}) is empty"
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x2 <= x1 or y2 <= y1:
        return None, f"bbox (={bbox}) lies outside of the image, {width}x{height}"
    return (x1, y1, x2, y2), None
