"""DeepInversion: images optimized until a network's BatchNorms measure their own running statistics.

Yin et al. 2020, arXiv 1912.08795. The strong rival of noise: it needs nothing but the teacher.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.networks.module import device_of
from nkdlib.tasks.progress import progress
from nkdlib.training.store import images_of


@dataclass(frozen=True)
class Inversion:
    """Settings of the optimization of images; values are our choice."""

    steps: int = 150  # of Adam, for each batch
    lr: float = 0.1  # of normalized pixels; a cosine to zero
    class_weight: float = 0.2  # of the cross-entropy with a class drawn for each image
    smooth_weight: float = 0.01  # of the squared differences between neighboring pixels


def invert(
    teacher: nn.Module,
    start: Iterable,
    recipe: Inversion | None = None,
    limits: tuple[float, float] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Batches of images on which every BatchNorm of a teacher measures its running mean and variance.

    Args:
        teacher: with BatchNorm2d layers and logits (B, classes); not changed.
        start: batches of images to begin with, such as noise; large ones, since statistics are those of a batch.
        recipe: steps and weights.
        limits: lowest and highest value of a normalized pixel; None allows any.
        seed: of the classes, drawn evenly, that images are optimized for.

    Raises:
        ValueError: a teacher without BatchNorm2d.

    >>> from nkdlib.networks import resnet
    >>> images = invert(resnet(8, 10, seed=0), [torch.randn(8, 3, 8, 8)], Inversion(steps=2))  # doctest: +ELLIPSIS
    making images: ...
    >>> images[0].shape
    torch.Size([8, 3, 8, 8])
    """
    recipe, teacher = recipe or Inversion(), copy.deepcopy(teacher).eval().requires_grad_(False)
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        raise ValueError(f"teacher (={type(teacher).__name__}) has no BatchNorm2d with running statistics to invert")
    inputs: dict[nn.Module, Tensor] = {}  # of each BatchNorm in the latest forward pass
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, x: inputs.update({norm: x[0]}))
    generator, made = torch.Generator().manual_seed(seed), []
    for batch in progress(start, "making images", unit="batches"):
        x = images_of(batch).to(device_of(teacher)).clone(memory_format=torch.channels_last).requires_grad_(True)
        optimizer, classes = torch.optim.Adam([x], recipe.lr, betas=(0.5, 0.9)), None
        for step in range(recipe.steps):
            optimizer.param_groups[0]["lr"] = recipe.lr * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            logits = teacher(x)
            if classes is None:
                classes = torch.randint(0, logits.shape[1], (len(x),), generator=generator).to(x.device)
            loss = sum(_distance(norm, inputs[norm]) for norm in norms)
            loss = loss + recipe.class_weight * F.cross_entropy(logits, classes)
            steps = (x[..., 1:] - x[..., :-1]).square().mean() + (x[:, :, 1:] - x[:, :, :-1]).square().mean()
            (x.grad,) = torch.autograd.grad((loss + recipe.smooth_weight * steps) * len(x), x)
            optimizer.step()
            if limits is not None:
                x.data.clamp_(*limits)
        made.append(x.detach())
    return made


def _distance(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Squared differences of mean and deviation, in running deviations; mean over channels."""
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    memory = norm.running_var + norm.eps
    shift = (mean - norm.running_mean).square() / memory
    return (shift + ((variance / memory + 1e-3).sqrt() - 1).square()).mean()
