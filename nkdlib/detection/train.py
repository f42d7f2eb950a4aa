"""Training of a detector, and what it finds; a batch is (images, targets).

images: uint8 (B, C, S, S). targets: B of {"boxes": float32 (N, 4) as x1 y1 x2 y2 in pixels, "labels": int64 (N,) from
1, "image_id": int}.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nkdlib.detection.ssdlite import Detector
from nkdlib.training.evaluate import device_of
from nkdlib.training.loop import Schedule, minimize

Batch = tuple[Tensor, Sequence[Mapping]]


def train_detector(
    detector: Detector, batches: Iterable[Batch], schedule: Schedule, name: str = "detector", seed: int = 0
) -> list[float]:
    """Train in place on the sum of the classification and the box loss, one step for each batch.

    Args:
        detector: trained in place, on the device where it lies; left in evaluation mode.
        batches: (images, targets), at least `schedule.steps`.
        schedule, name, seed: see `Descent`.

    Returns:
        The loss of every step.

    Raises:
        ValueError: the batches end before the steps do; a batch that the detector refuses.
        FloatingPointError: a loss that is not finite.
    """
    device = device_of(detector)

    def loss(batch: Batch) -> Tensor:
        images, targets = batch
        targets = [{key: target[key].to(device) for key in ("boxes", "labels")} for target in targets]
        return sum(detector(images.to(device), targets).values())

    return minimize(detector, batches, loss, schedule, name, seed)


@torch.no_grad()
def detect(detector: Detector, batches: Iterable[Batch]) -> list[dict]:
    """What a detector finds in each image of all batches; it is left in evaluation mode.

    Args:
        batches: (images, targets), of which "image_id" is read.

    Returns:
        For each image {"image_id", "boxes": (N, 4) as x1 y1 x2 y2 in pixels, "scores": (N,), "labels": (N,) from 1},
        best first, on the CPU: what `evaluate` takes.
    """
    detector, device, found = detector.eval(), device_of(detector), []
    for images, targets in batches:
        for target, result in zip(targets, detector(images.to(device)), strict=True):
            found.append({"image_id": int(target["image_id"]), **{key: value.cpu() for key, value in result.items()}})
    return found
