"""Training from labels, and end-to-end distillation, the rival of distilling neighbourhoods.

Hinton, Vinyals and Dean 2015 (arXiv 1503.02531). The teacher's logits are computed once and kept, as boundaries are in
Neighbourhood Distillation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.networks.module import device_of, evaluating
from nkdlib.tasks.checks import check_number, check_seed
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training.distributed import Checkpoints
from nkdlib.training.evaluate import check_labels, logits_of
from nkdlib.training.loop import Schedule, minimize
from nkdlib.training.store import Store, check_finite, images_of, labeled


@dataclass
class EndToEnd:
    """A network distilled as a whole, and its costs."""

    module: nn.Module
    losses: list[float]  # of every step
    teacher_s: float  # device-seconds of the teacher's one pass
    train_s: float  # device-seconds of the student's steps

    @property
    def device_s(self) -> float:
        """Device-seconds in all."""
        return self.teacher_s + self.train_s


def fit(
    model: nn.Module,
    batches: Iterable,
    schedule: Schedule,
    *,
    label_smoothing: float = 0.0,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> list[float]:
    """Train in place with cross-entropy on batches of (images, labels); return the loss of every step.

    Args:
        model: on any device; images and labels are moved there. See `minimize`.
        label_smoothing: share of each label spread evenly over all classes, 0 to 1.
        schedule, seed, checkpoints: see `minimize`.

    Raises:
        ValueError: NaN in images on the CPU, labels that are not one class (B,) for each output (B, classes).
    """
    check_number("label_smoothing", label_smoothing, 0, 1)
    device = device_of(model)

    def loss(numbered: tuple[int, tuple[Tensor, Tensor]]) -> Tensor:
        number, (images, labels) = numbered[0], labeled(numbered[1])
        if images.device.type == "cpu":  # to look at those on a GPU would wait for it in every step
            images_of(images, number)
        logits = logits_of(model, images.to(device))
        check_labels(labels, logits)
        return F.cross_entropy(logits, labels.to(device, torch.int64), label_smoothing=label_smoothing)

    return minimize(model, enumerate(batches), loss, schedule, seed=seed, checkpoints=checkpoints)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (B, classes), mean over the batch (section 2).

    Raises:
        ValueError: logits of two shapes.
    """
    if student.shape != teacher.shape:  # they might broadcast
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"logits of student and teacher must have one shape; they have {shapes}")
    wanted = F.log_softmax(teacher / temperature, 1)
    got = F.log_softmax(student / temperature, 1)
    return temperature**2 * F.kl_div(got, wanted, reduction="batchmean", log_target=True)


@torch.no_grad()
def capture_logits(teacher: nn.Module, inputs: Iterable) -> Store:
    """Images and the teacher's logits of one pass over `inputs`."""
    device = device_of(teacher)

    def rows() -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(inputs):
            images = images_of(batch, number).to(device)
            logits = logits_of(teacher, images)
            check_finite(logits, f"the teacher's outputs for batch {number}")
            yield {"images": images, "logits": logits}

    with evaluating(teacher):
        return Store.collect(rows())


def distill_end_to_end(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Iterable,
    schedule: Schedule,
    *,
    temperature: float = 4.0,  # our choice, Hinton et al. use 1 to 20
    seed: int = 0,
) -> EndToEnd:
    """Distill a whole network: the student learns the teacher's softened predictions.

    Args:
        teacher: takes (B, C, H, W), returns logits (B, classes); not changed.
        student: likewise; trained in place.
        inputs: batches of images, with or without labels; read once.
        schedule: steps, batch size and rates.
        temperature: of both distributions; higher weighs the wrong classes more.
        seed: of the order of examples, and of the random numbers that the student draws, such as dropout.

    Raises:
        ValueError: a temperature that is not positive; NaN in images; logits of two shapes.
        FloatingPointError: a loss that is not finite.

    >>> from nkdlib.networks import resnet
    >>> teacher, student, images = resnet(8, 10, seed=0), resnet(8, 10, seed=1), torch.randn(32, 3, 8, 8)
    >>> result = distill_end_to_end(teacher, student, [images], Schedule(steps=2, batch_size=16))
    >>> len(result.losses)
    2
    """
    check_number("temperature", temperature, 0, above=True)
    check_seed(seed)
    device = device_of(teacher)
    with Stopwatch(device) as teacher_watch:
        store = capture_logits(teacher, inputs)
    student.to(device)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return soft_targets(logits_of(student, batch["images"]), batch["logits"], temperature)

    with Stopwatch(device) as watch:
        batches = store.batches(schedule.batch_size, steps=schedule.steps, seed=seed)
        losses = minimize(student, batches, loss, schedule, "student", seed)
    return EndToEnd(student, losses, teacher_watch.device_s, watch.device_s)
