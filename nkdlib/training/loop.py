"""One loop for everything that is trained by gradient steps here."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """How weights are optimized: Adam, a linear warm-up, a cosine to zero. Every value is our choice."""

    steps: int = 1000  # optimizer steps in all
    batch_size: int = 128  # images a step
    lr: float = 1e-2  # the highest learning rate
    warmup: float = 0.1  # share of the steps in which the rate rises from zero
    weight_decay: float = 0.0  # decoupled (AdamW)
    max_grad_norm: float | None = 5.0  # gradients are scaled down to this norm; None leaves them

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps (={self.steps}) must not be negative")
        if self.batch_size < 2:
            raise ValueError(f"batch_size (={self.batch_size}) must be at least 2, BatchNorm needs two images")
        if not self.lr > 0:
            raise ValueError(f"lr (={self.lr}) must be positive")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup (={self.warmup}) is a share of the steps; choose 0 to 1")

    def rate(self, step: int) -> float:
        """Share of `lr` at a step, 0 <= step < steps."""
        rise = self.warmup * self.steps
        if step + 1 < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / max(self.steps + 1 - rise, 1)))


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Within it, what torch draws on a device comes from `seed`; afterwards its generator is as it was."""
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


class Descent:
    """Gradient descent on one module, a step at a time, so that many can share one stream of batches.

    Args:
        model: put into training mode.
        schedule: of the rate; a step beyond its last one is refused.
        name: what errors call the model.
        seed: of what the model draws in a step (dropout, stochastic depth).
    """

    def __init__(self, model: nn.Module, schedule: Schedule, name: str = "model", seed: int = 0):
        self.model, self.schedule, self.name, self.seed = model.train(), schedule, name, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters and schedule.steps:
            raise ValueError(f"{name} has no parameters to train; use steps=0 or leave it out")
        if self.parameters:
            decay = schedule.weight_decay
            self.optimizer = torch.optim.AdamW(self.parameters, schedule.lr, weight_decay=decay, fused=True)
        self.losses: list[Tensor] = []

    def step(self, loss: Callable[[], Tensor]) -> None:
        """One optimizer step on what `loss()` returns, a scalar."""
        step = len(self.losses)
        if step >= self.schedule.steps:
            raise ValueError(f"{self.name} has had its {self.schedule.steps} steps; raise schedule.steps")
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * self.schedule.rate(step)
        with own_random_numbers(self.parameters[0].device, self.seed + step):
            value = loss()
        for parameter in self.parameters:
            parameter.grad = None
        value.backward()
        if self.schedule.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_grad_norm)
        self.optimizer.step()
        self.losses.append(value.detach())
        if step % 50 == 49 or step + 1 == self.schedule.steps:  # seldom: it waits for the device
            self.check()

    def check(self) -> None:
        """Raise FloatingPointError where a loss so far was not finite."""
        recent = torch.stack(self.losses[-50:])
        if not torch.isfinite(recent).all():
            bad = len(self.losses) - len(recent) + int((~torch.isfinite(recent)).nonzero()[0])
            raise FloatingPointError(
                f"loss of {self.name} is not finite at step {bad} of {self.schedule.steps} "
                f"with lr (={self.schedule.lr:g}); choose a smaller lr or check the inputs for NaN"
            )

    def finish(self) -> list[float]:
        """The losses of all steps; the model is put into evaluation mode."""
        self.model.eval()
        return torch.stack(self.losses).tolist() if self.losses else []


def minimize(
    model: nn.Module,
    batches: Iterable,
    loss: Callable[..., Tensor],
    schedule: Schedule,
    name: str = "model",
    seed: int = 0,
) -> list[float]:
    """Train `model` in place: one step for each batch, until the schedule or the batches end.

    Args:
        model: trained in place, left in evaluation mode.
        batches: of anything that `loss` takes.
        loss: batch -> scalar tensor.
        schedule, name, seed: see `Descent`.

    Returns:
        The loss of every step.

    Raises:
        ValueError: the batches end before the steps do.
        FloatingPointError: a loss that is not finite.

    >>> model, batches = nn.Linear(3, 2), [torch.randn(8, 3)] * 3
    >>> len(minimize(model, batches, lambda x: model(x).square().mean(), Schedule(steps=3)))
    3
    """
    descent = Descent(model, schedule, name, seed)
    for batch in itertools.islice(batches, schedule.steps):
        descent.step(lambda batch=batch: loss(batch))
    if (done := len(descent.losses)) < schedule.steps:
        raise ValueError(
            f"inputs ended after {done} batches, schedule.steps is {schedule.steps}; give more batches or fewer steps"
        )
    return descent.finish()
