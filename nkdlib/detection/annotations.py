"""Read COCO's annotations, checking every entry; what is wrong with one is told, never repaired."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from nkdlib.data import DataDamaged, DataNotFound


class Problem(NamedTuple):
    """What is wrong with one entry of an annotations file."""

    kind: str  # "category", "image" or "annotation"
    id: object  # the entry's id as it stands there, None where it has none
    file: str  # the image's, or the annotations file where no image is known
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.id}: {self.what}"


def read_annotations(
    path: Path, folder: Path
) -> tuple[list[tuple[int, str]], dict[int, tuple], list[tuple], list[Problem]]:
    """What is good in an `instances_*.json` about the images of a folder, and what is not.

    Returns the categories' (id, name) in the ids' order; by the images' ids (file, bytes, width, height); for each box
    (image's id, (x1, y1, x2, y2) in pixels, label from 1, iscrowd, area); and the problems.
    Raises DataNotFound where the file is not there, DataDamaged for one that is no annotations file at all.
    """
    content, problems = _parse(path), []
    categories = sorted(_categories(content["categories"], path.name, problems).items())
    boxes_of = Counter(_hashable(entry.get("image_id")) for entry in content["annotations"])
    images = _images(content["images"], folder, path.name, boxes_of, problems)
    label_of = {id: label for label, (id, _) in enumerate(categories, 1)}
    rows = _annotations(content["annotations"], images, label_of, path.name, problems)
    return categories, {id: image for id, image in images.items() if image is not None}, rows, problems


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
