"""Images made from a network alone: optimized until its BatchNorms see what they remember.

DeepInversion (Yin et al. 2020, arXiv 1912.08795), the strong rival of noise.
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
    """How images are optimized; values are our choice."""

    steps: int = 150  # of Adam, for each batch
    lr: float = 0.1  # in normalized units; it falls to zero as a cosine
    class_weight: float = 0.2  # of the cross-entropy with a class drawn for each image
    smooth_weight: float = 0.01  # of the squared difference between neighboring pixels


def invert(
    teacher: nn.Module,
    start: Iterable,
    recipe: Inversion | None = None,
    limits: tuple[float, float] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Images, batch by batch, for which every BatchNorm of a teacher sees the mean and variance that it remembers.

    Args:
        teacher: with BatchNorm2d layers and logits (B, classes); not changed.
        start: batches of images to begin with, such as noise; statistics are those of a batch, so make it large.
        recipe: steps and weights.
        limits: lowest and highest value of a normalized pixel, None where any is allowed.
        seed: of the classes, drawn evenly, that images are optimized for as well.

    Raises:
        ValueError: a teacher without BatchNorm2d.

    >>> from nkdlib.networks import resnet
    >>> images = invert(resnet(8, 10, seed=0), [torch.randn(8, 3, 8, 8)], Inversion(steps=2))  # doctest: +ELLIPSIS
    making images: ...
    >>> images[0].shape
    torch.Size([8, 3, 8, 8])
    """
    recipe, teacher = recipe or Inversion(), copy.deepcopy(teacher).eval().requires_grad_(False)
    memory, generator, made = Memory(teacher), torch.Generator().manual_seed(seed), []
    if not memory.norms:
        raise ValueError(f"teacher (={type(teacher).__name__}) has no BatchNorm2d, whose memory images are made from")
    for batch in progress(start, "making images", unit="batches"):
        x = images_of(batch).to(device_of(teacher)).clone(memory_format=torch.channels_last).requires_grad_(True)
        optimizer, wanted = torch.optim.Adam([x], recipe.lr, betas=(0.5, 0.9)), None
        for step in range(recipe.steps):
            optimizer.param_groups[0]["lr"] = recipe.lr * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            logits = teacher(x)
            if wanted is None:
                wanted = torch.randint(0, logits.shape[1], (len(x),), generator=generator).to(x.device)
            loss = memory.distance() + recipe.class_weight * F.cross_entropy(logits, wanted)
            steps = (x[..., 1:] - x[..., :-1]).square().mean() + (x[:, :, 1:] - x[:, :, :-1]).square().mean()
            (x.grad,) = torch.autograd.grad((loss + recipe.smooth_weight * steps) * len(x), x)
            optimizer.step()
            if limits is not None:
                x.data.clamp_(*limits)
        made.append(x.detach())
    return made


class Memory:
    """What the BatchNorms of a module remember, against what they see in its latest forward pass."""

    def __init__(self, module: nn.Module):
        self.norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        self.seen: dict[nn.Module, Tensor] = {}
        self.handles = [norm.register_forward_pre_hook(self._note) for norm in self.norms]

    def _note(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        self.seen[norm] = inputs[0]

    def distance(self) -> Tensor:
        """Squared differences of means and deviations, in each channel's remembered deviation; summed over layers."""
        return sum(self._distance(norm) for norm in self.norms)

    def _distance(self, norm: nn.BatchNorm2d) -> Tensor:
        x = self.seen[norm]
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        memory = norm.running_var + norm.eps
        shift = (mean - norm.running_mean).square() / memory
        return (shift + ((variance / memory + 1e-3).sqrt() - 1).square()).mean()

    def close(self) -> None:
        """Stop watching."""
        for handle in self.handles:
            handle.remove()
