"""COCO's annotations as tables; wrong entries are named and left out, never repaired."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nkdlib.data import DataDamaged, DataNotFound

FIELDS = {  # of which those after the bar may be missing
    "categories": ("category", "id name"),
    "images": ("image", "id file_name width height"),
    "annotations": ("annotation", "id image_id category_id bbox | area iscrowd"),
}


def read_annotations(path: Path, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[str]]:
    """Read the right entries of an `instances_*.json` about the images of a folder, and name the wrong ones.

    Returns categories (id, name) by rising id; images (id, file_name, width, height, bytes) in the file's order; boxes
    (image: its position, x1, y1, x2, y2 within it, label, iscrowd, area), ascending by image; and the problems.
    Raises DataNotFound if there is no such file, DataDamaged for one without COCO's three lists.
    """
    content, problems = _parse(path), []
    categories, images, boxes = (_table(content[part], part, problems) for part in FIELDS)
    images["path"] = [folder / str(name) for name in images.file_name]
    images["bytes"] = [file.stat().st_size if file.is_file() else -1 for file in images.path]
    odd = [not (_is_whole(w) and _is_whole(h) and w > 0 and h > 0) for w, h in images[["width", "height"]].to_numpy()]
    checks = {
        "there is no file {path}": images.bytes < 0,
        "its file {path} is empty": images.bytes == 0,
        "width (={width!r}) and height (={height!r}) must be whole numbers of pixels": odd,
    }
    images = _sift(images, "image", checks, problems)
    named = {entry["id"] for entry in content["images"] if _is_whole(entry.get("id"))} - set(images.id)
    lost = np.array([_is_whole(id) and id in named for id in boxes.image_id], bool)  # their images are problems
    boxes = boxes[~lost]
    categories = categories.sort_values("id")
    return categories, images, _boxes(boxes, images, categories, problems), problems


def _parse(path: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataNotFound(f"annotations_json (={path}) must be a file that exists") from error
    except ValueError as error:
        raise DataDamaged(f"{path} is not JSON: {error}") from error
    for part in FIELDS:
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataDamaged(f"{path} must have a list {part!r} of objects, as COCO's instances_*.json have")
    return content


def _table(entries: list[dict], part: str, problems: list[str]) -> pd.DataFrame:
    """Entries that have all that they need and an id of their own."""
    kind, (needed, *optional) = FIELDS[part][0], (fields.split() for fields in FIELDS[part][1].split("|"))
    columns = {field: [entry.get(field) for entry in entries] for field in sum(optional, needed)}
    table = pd.DataFrame(columns, dtype=object)
    whole = np.array([_is_whole(id) for id in table.id], bool)
    checks = {f"missing {field}": table[field].isna() for field in needed}
    checks["its id must be an integer"] = ~whole
    checks["its id was there before"] = table.id.where(whole).duplicated()
    return _sift(table, kind, checks, problems)


def _boxes(boxes: pd.DataFrame, images: pd.DataFrame, categories: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    place_of, label_of = ({id: place for place, id in enumerate(table.id)} for table in (images, categories))
    boxes["image"] = [place_of.get(id, -1) if _is_whole(id) else -1 for id in boxes.image_id]
    boxes["label"] = [label_of.get(id, -1) + 1 if _is_whole(id) else 0 for id in boxes.category_id]
    checks = {
        "there is no image {image_id!r}": boxes.image < 0,
        "there is no category {category_id!r}": boxes.label < 1,
        "bbox (={bbox}) must be four numbers x, y, width, height": [
            not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))) for box in boxes.bbox
        ],
        "area (={area!r}) must be 0 or more": [
            not (area is None or (_is_number(area) and area >= 0)) for area in boxes.area
        ],
        "iscrowd (={iscrowd!r}) must be 0 or 1": [crowd not in (None, 0, 1) for crowd in boxes.iscrowd],
    }
    boxes = _sift(boxes, "annotation", checks, problems)
    sizes = images[["width", "height"]].to_numpy(np.int64)[boxes.image.to_numpy(int)]
    corners, extents = np.hsplit(np.array(boxes.bbox.tolist(), np.float64).reshape(-1, 4), 2)
    clipped = np.hstack([np.maximum(corners, 0), np.minimum(corners + extents, sizes)])
    single = clipped.astype(np.float32)  # as detectors take them, to which a sliver is empty
    boxes[["width", "height"]], boxes[["x1", "y1", "x2", "y2"]] = sizes, clipped
    checks = {
        "bbox (={bbox}) is empty": (extents <= 0).any(1),
        "bbox (={bbox}) leaves nothing within the image, {width}x{height}": (single[:, 2:] <= single[:, :2]).any(1),
    }
    boxes = _sift(boxes, "annotation", checks, problems)
    boxes["area"] = boxes.area.astype(float).fillna((boxes.x2 - boxes.x1) * (boxes.y2 - boxes.y1))
    return boxes.sort_values("image", kind="stable")


def _sift(table: pd.DataFrame, kind: str, checks: Mapping[str, object], problems: list[str]) -> pd.DataFrame:
    """Rows that pass all checks, given the words for each and whether a row fails it; the problems of the others."""
    found = {}
    for words, failed in checks.items():
        for index in table.index[np.asarray(failed, bool)]:
            row = table.loc[index]
            found.setdefault(index, f"{kind} {row.id!r}: {words.format(**row)}")
    problems += [found[index] for index in sorted(found)]
    return table.drop(index=list(found))


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
