"""Detection: a training step and detecting against torchvision's detector, average precision against pycocotools.

Aim: a step and a pass at most 1.0 times torchvision's with the same network, batch and optimizer; average precision of
500 images with 100 detections each in at most 0.2 of pycocotools' time. Ratios of medians, taken in turns.
"""

import contextlib
import copy
import io
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torchvision.models as zoo
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from nkdlib.detection import evaluate, ssdlite
from nkdlib.tasks.measure import Stopwatch

TURNS = 10
CLASSES = 20
Calls = dict[str, Callable[[], object]]


def in_turns(what: str, calls: Calls, turns: int = TURNS) -> None:
    """Median CPU milliseconds of each call, and its share of the last one's."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items() if turn % 2 else reversed(calls.items()):
            with Stopwatch() as watch:
                call()
            seconds[name].append(watch.device_s)
    medians = {name: 1e3 * statistics.median(values[1:]) for name, values in seconds.items()}
    last = list(medians.values())[-1]
    print(f"{what}:", "; ".join(f"{name} {value:.0f} ms, {value / last:.3f}" for name, value in medians.items()))


def detectors(images: int) -> None:
    """A step and a pass on uint8 images of 320 pixels with five objects each."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    ours = ssdlite(zoo.mobilenet_v3_large(norm_layer=norm, reduced_tail=True), CLASSES)
    theirs = ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES + 1)
    renamed = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(renamed))
    models = {"channels last": copy.deepcopy(ours).to(memory_format=torch.channels_last), "nkdlib": ours}
    pixels = torch.randint(256, (images, 3, 320, 320), dtype=torch.uint8)
    corners = torch.rand(images, 5, 2) * 150
    boxes = torch.cat([corners, corners + 10 + torch.rand(images, 5, 2) * 150], 2)
    targets = [{"boxes": box, "labels": torch.randint(1, CLASSES + 1, (5,))} for box in boxes]

    def stepping(model: nn.Module, inputs: Callable[[], object]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4, fused=True)

        def step() -> None:
            loss = sum(model(inputs(), targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    def floats() -> list[Tensor]:
        return list(pixels / 255)

    steps: Calls = {name: stepping(model, lambda: pixels) for name, model in models.items()}
    in_turns(f"step of {images} images", {**steps, "torchvision": stepping(theirs, floats)})
    passes: Calls = {name: partial(model.eval(), pixels) for name, model in models.items()}
    theirs.eval()
    with torch.no_grad():
        in_turns(f"detecting in {images} images", {**passes, "torchvision": lambda: theirs(floats())})


def scene(images: int = 500, found: int = 100, classes: int = CLASSES) -> tuple[list[dict], dict]:
    """Predictions near random boxes, and the boxes as COCO's dictionary."""
    draw, annotations, predictions = np.random.default_rng(0), [], []
    for image in range(images):
        count = draw.integers(1, 9)
        corner, sides = draw.uniform(0, 190, (count, 2)), draw.uniform(4, 130, (count, 2))
        labels = draw.integers(1, classes + 1, count)
        for box, area, label in zip(np.hstack([corner, sides]).tolist(), sides.prod(1), labels, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box}
            annotations.append({**entry, "area": float(area), "iscrowd": 0})
        picked = draw.integers(0, count, found)
        near = np.hstack([corner, corner + sides])[picked] + draw.normal(0, 5, (found, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        predictions.append({"image_id": image, "boxes": near, "scores": draw.random(found), "labels": labels[picked]})
    categories = [{"id": number, "name": str(number)} for number in range(1, classes + 1)]
    return predictions, {
        "images": [{"id": i} for i in range(images)],
        "annotations": annotations,
        "categories": categories,
    }


def pycocotools(predictions: list[dict], truth: dict) -> float:
    """Average precision as pycocotools computes it."""
    results = [
        {"image_id": p["image_id"], "category_id": label, "bbox": [a, b, c - a, d - b], "score": score}
        for p in predictions
        for (a, b, c, d), score, label in zip(*(p[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    detectors(8)
    made = scene()
    assert abs(evaluate(*made).ap - pycocotools(*made)) < 1e-6
    calls: Calls = {"nkdlib": lambda: evaluate(*made), "pycocotools": lambda: pycocotools(*made)}
    in_turns("average precision of 500 images", calls, 5)
