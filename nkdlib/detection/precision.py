"""Average precision of detections as COCO defines it (Lin et al. 2014, arXiv 1405.0312), by faster-coco-eval."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real

import numpy as np


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """COCO's twelve numbers, 0 to 1; NaN if there is no such object to be found.

    Averages over the IoU thresholds 0.5, 0.55 to 0.95 unless the name says otherwise, and over classes.
    """

    ap: float  # average precision
    ap50: float  # at IoU 0.5 alone
    ap75: float
    ap_small: float  # objects below 32^2 pixels
    ap_medium: float
    ap_large: float  # from 96^2 pixels
    ar1: float  # recall with the best detection of each image and class
    ar10: float
    ar100: float
    ar_small: float  # recall with the 100 best
    ar_medium: float
    ar_large: float


NUMBERS = tuple(AveragePrecision.__annotations__)  # in COCO's order


def evaluate(predictions: Iterable[Mapping], ground_truth: Mapping) -> AveragePrecision:
    """Compute the average precision of predictions, with pycocotools' numbers.

    Args:
        predictions: for each image {"image_id", "boxes": (N, 4) as x1 y1 x2 y2 in pixels, "scores": (N,), "labels":
            (N,), k for the k-th category by rising id}, tensors on the CPU or arrays; images that are left out have no
            detection.
        ground_truth: COCO's dictionary: "images", "categories" and "annotations", of which "image_id", "category_id",
            "bbox" as x y width height, "iscrowd" and "area", by default the box's, matter. Not changed.

    Raises:
        ImportError: the package faster-coco-eval is missing.
        ValueError: an image that the ground truth does not have or that comes twice, a label without a category,
            shapes that do not fit, numbers that are not finite, a wrong annotation.

    >>> truth = {"images": [{"id": 7}], "categories": [{"id": 3}]}
    >>> truth["annotations"] = [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10]}]
    >>> found = {"image_id": 7, "boxes": [[0, 0, 10, 10]], "scores": [0.9], "labels": [1]}
    >>> evaluate([found], truth).ap, evaluate([], truth).ap
    (1.0, 0.0)
    """
    if find_spec("faster_coco_eval") is None:
        raise ImportError("evaluate needs a package: pip install faster-coco-eval, or nkdlib[compendium]")
    from faster_coco_eval import COCO, COCOeval_faster

    images, categories = ([{"id": one["id"]} for one in ground_truth[part]] for part in ("images", "categories"))
    quiet = {"print_function": lambda *_: None}
    with _no_garbage_collection():
        known = {one["id"] for one in images}, sorted({one["id"] for one in categories})
        found = _detections(predictions, *known)
        true = [_true(annotation, *known) for annotation in ground_truth["annotations"]]
        for number, annotation in enumerate([*true, *found], 1):
            annotation["id"] = number
        both = ({"images": images, "categories": categories, "annotations": part} for part in (true, found))
        evaluation = COCOeval_faster(*(COCO(part, **quiet) for part in both), iouType="bbox", **quiet)
        evaluation.run()
    return AveragePrecision(*(np.nan if value < 0 else float(value) for value in evaluation.stats))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Save a third of the time: COCO's evaluation makes dictionaries by the thousand and no cycles."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _true(annotation: Mapping, image_ids: set[int], categories: Sequence[int]) -> dict[str, object]:
    """Copy the parts of an annotation that matter, once they are right."""
    box, owner, category = (annotation[key] for key in ("bbox", "image_id", "category_id"))
    crowd, area, numbers = annotation.get("iscrowd") or 0, annotation.get("area"), np.asarray(box)
    right = numbers.shape == (4,) and numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()
    right = right and (numbers[2:] >= 0).all() and owner in image_ids and category in categories and crowd in (0, 1)
    if not right or not (area is None or (isinstance(area, Real) and np.isfinite(area) and area >= 0)):
        raise ValueError(
            f"annotation (={dict(annotation)}) of ground_truth must have an image_id of images, a category_id of "
            "categories, a bbox of four numbers x y width height, and may have an area and iscrowd, 0 or 1; width, "
            "height and area must be 0 or more"
        )
    box = numbers.tolist()
    area = box[2] * box[3] if area is None else area
    return {"image_id": owner, "category_id": category, "bbox": box, "area": area, "iscrowd": int(crowd)}


def _detections(predictions: Iterable[Mapping], image_ids: set[int], categories: Sequence[int]) -> list[dict]:
    """COCO's dictionary of each detection."""
    found, seen = [], set()
    for prediction in predictions:
        image = np.asarray(prediction["image_id"]).item()
        if image not in image_ids or image in seen:
            raise ValueError(
                f"image_id (={image!r}) of predictions {'comes twice' if image in seen else 'is not in ground_truth'}"
            )
        seen.add(image)
        boxes = np.asarray(prediction["boxes"]).astype(np.float64)  # a copy
        scores, labels = (np.asarray(prediction[key]) for key in ("scores", "labels"))
        boxes = boxes if boxes.size else boxes.reshape(-1, 4)
        if boxes.shape != (len(boxes), 4) or not scores.shape == labels.shape == (len(boxes),):
            raise ValueError(
                f"boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} of image {image} must be "
                "(N, 4), (N,) and (N,)"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
            raise ValueError(
                f"boxes and scores of image {image} must be finite, and boxes x1 y1 x2 y2 from low to high"
            )
        if not np.isin(labels, range(1, len(categories) + 1)).all():
            raise ValueError(f"labels of image {image} must lie in 1 to {len(categories)}, one for each category")
        boxes[:, 2:] -= boxes[:, :2]
        columns = boxes, boxes[:, 2] * boxes[:, 3], labels.astype(int), scores
        found += [
            {"image_id": image, "category_id": categories[label - 1], "bbox": box, "area": area, "score": score}
            for box, area, label, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
    return found
