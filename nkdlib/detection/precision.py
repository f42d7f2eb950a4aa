"""Average precision of detections as COCO defines it (Lin et al. 2014, arXiv 1405.0312), by faster-coco-eval."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """COCO's twelve numbers, 0 to 1, and precision over recall; NaN where there is no such object to be found.

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
    recall: np.ndarray  # (101,), thresholds of the curves below, 0 to 1
    precision_by_class: np.ndarray  # (classes, 101), at IoU 0.5, rows as the labels 1, 2, ...
    precision: np.ndarray  # (101,), mean over the classes that have objects


NUMBERS = tuple(AveragePrecision.__annotations__)[:12]  # in COCO's order


def evaluate(
    predictions: Iterable[Mapping], ground_truth: Mapping, categories: Sequence[int] | None = None
) -> AveragePrecision:
    """Average precision of predictions, equal to what pycocotools says.

    Args:
        predictions: for each image {"image_id", "boxes": (N, 4) as x1 y1 x2 y2 in pixels, "scores": (N,), "labels":
            (N,) from 1}, tensors on the CPU or arrays; images that are left out have no detection.
        ground_truth: COCO's dictionary: "images", "annotations" (of which "image_id", "category_id", "bbox" as x y
            width height, "area" and "iscrowd" matter) and "categories". Not changed.
        categories: the category of each label 1, 2, ...; by default those of the ground truth by rising id. Others
            are not evaluated.

    Raises:
        ValueError: an image that the ground truth does not have or that comes twice, a label without a category, no
            categories or one that comes twice.

    >>> truth = {"images": [{"id": 7}], "categories": [{"id": 3}]}
    >>> truth["annotations"] = [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100}]
    >>> found = {"image_id": 7, "boxes": [[0, 0, 10, 10]], "scores": [0.9], "labels": [1]}
    >>> evaluate([found], truth).ap, evaluate([], truth).ap
    (1.0, 0.0)
    """
    categories = tuple(categories or sorted(category["id"] for category in ground_truth["categories"]))
    if len(set(categories)) < max(len(categories), 1):
        raise ValueError(f"categories (={categories}) must name at least one category and none twice")
    images = [{"id": image["id"]} for image in ground_truth["images"]]
    truth = [
        {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": annotation["area"],
            "iscrowd": annotation.get("iscrowd", 0),
        }
        for number, annotation in enumerate(ground_truth["annotations"], 1)
    ]
    quiet = {"print_function": lambda *_: None}
    with _without_collector():
        found = _annotations(predictions, {image["id"] for image in images}, categories)
        both = (_coco(images, annotations, categories, quiet) for annotations in (truth, found))
        evaluation = COCOeval_faster(*both, iouType="bbox", **quiet)
        evaluation.run()
    numbers = [np.nan if value < 0 else float(value) for value in evaluation.stats]
    curves = np.array(evaluation.eval["precision"])[0, :, :, 0, -1].T  # (classes by rising id, 101)
    curves = np.where(curves < 0, np.nan, curves)[np.argsort(np.argsort(categories))]
    known = curves[~np.isnan(curves[:, 0])]
    mean = known.mean(0) if len(known) else np.full(curves.shape[1], np.nan)
    return AveragePrecision(*numbers, evaluation.params.recThrs, curves, mean)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Within it Python looks for no cycles: a third of the time where dictionaries are made by the thousand."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _coco(images: list[dict], annotations: list[dict], categories: Sequence[int], quiet: dict) -> COCO:
    return COCO({"images": images, "annotations": annotations, "categories": [{"id": i} for i in categories]}, **quiet)


def _annotations(predictions: Iterable[Mapping], images: set[int], categories: Sequence[int]) -> list[dict]:
    """One of COCO's dictionaries for each detection."""
    found, seen = [], set()
    for prediction in predictions:
        image = int(prediction["image_id"])
        if image not in images or image in seen:
            raise ValueError(
                f"image_id (={image}) of predictions {'comes twice' if image in seen else 'is not in ground_truth'}"
            )
        seen.add(image)
        boxes = np.asarray(prediction["boxes"]).astype(np.float64).reshape(-1, 4)  # a copy
        scores, labels = (np.asarray(prediction[key]) for key in ("scores", "labels"))
        if ((labels < 1) | (labels > len(categories))).any():
            raise ValueError(f"labels of image {image} must lie in 1 to {len(categories)}, one for each of categories")
        boxes[:, 2:] -= boxes[:, :2]
        areas = (boxes[:, 2] * boxes[:, 3]).tolist()
        for box, area, label, score in zip(boxes.tolist(), areas, labels.tolist(), scores.tolist(), strict=True):
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": image,
                    "category_id": categories[label - 1],
                    "bbox": box,
                    "area": area,
                    "score": score,
                }
            )
    return found
