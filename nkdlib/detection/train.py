"""Training of a detector, and detection; a batch is (images, targets).

images: uint8 (B, C, S, S). targets: B of {"boxes": float32 (N, 4) as x1 y1 x2 y2 in pixels, "labels": int64 (N,) from
1, "image_id": int}.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import length_hint

import torch
from torch import Tensor

from nkdlib.detection.ssdlite import Detector
from nkdlib.networks.module import device_of, in_evaluation
from nkdlib.training.distributed import Checkpoints
from nkdlib.training.loop import Schedule, minimize
from nkdlib.training.store import naming_batch

Batch = tuple[Tensor, Sequence[Mapping]]


def train_detector(
    detector: Detector,
    batches: Iterable[Batch],
    schedule: Schedule,
    name: str = "detector",
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> list[float]:
    """Train in place on the sum of the classification and the box loss, one step for each batch.

    Args:
        detector: trained in place, on the device where it lies; left in evaluation mode.
        batches: (images, targets), at least `schedule.steps`.
        schedule, name, seed, checkpoints: see `minimize`.

    Returns:
        The loss of every step.

    Raises:
        ValueError: the batches end before the steps do; a batch that the detector refuses.
        FloatingPointError: a loss that is not finite.

    >>> import torch
    >>> from nkdlib.detection import ssdlite
    >>> from nkdlib.networks import residual_space
    >>> from nkdlib.training import Schedule
    >>> detector = ssdlite(residual_space(10, blocks=(1, 1), widths=(8, 8)), 2, 32, taps=[1, 2], extra=[16])
    >>> target = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1]), "image_id": 7}
    >>> batch = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [target, target]
    >>> len(train_detector(detector, [batch] * 2, Schedule(steps=2)))
    2
    >>> [sorted(found) for found in detect(detector, [batch])][0]
    ['boxes', 'image_id', 'labels', 'scores']
    """
    device, start = device_of(detector), checkpoints.start if checkpoints else 0
    if (given := start + length_hint(batches, schedule.steps)) < schedule.steps:
        raise ValueError(
            f"batches ended after {given} of the {schedule.steps} steps of {name}; give more batches or fewer steps"
        )

    def loss(numbered: tuple[int, Batch]) -> Tensor:
        number, (images, targets) = numbered
        targets = [{key: target[key].to(device) for key in ("boxes", "labels")} for target in targets]
        with naming_batch(number, images):
            return sum(detector(images.to(device), targets).values())

    return minimize(detector, enumerate(batches, start), loss, schedule, name, seed, checkpoints)


@torch.no_grad()
def detect(detector: Detector, batches: Iterable[Batch]) -> list[dict]:
    """Detect objects in all batches; the detector is left in evaluation mode.

    Args:
        batches: (images, targets), of which "image_id" is read.

    Returns:
        For each image {"image_id", "boxes": (N, 4) as x1 y1 x2 y2 in pixels, "scores": (N,), "labels": (N,) from 1},
        best first, on the CPU, as `evaluate` takes them.
    """
    detector, device, found = in_evaluation(detector), device_of(detector), []
    for images, targets in batches:
        for target, result in zip(targets, detector(images.to(device)), strict=True):
            found.append({"image_id": int(target["image_id"]), **{key: value.cpu() for key, value in result.items()}})
    return found
