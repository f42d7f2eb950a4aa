"""One loop for everything that is trained by gradient steps here."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nkdlib.networks.module import seeded
from nkdlib.tasks.progress import Progress
from nkdlib.training.batchnorm import NORMS
from nkdlib.training.parallel import Parallel


@dataclass(frozen=True)
class Schedule:
    """How weights are optimized: Adam or SGD, a linear warm-up, a cosine to zero. Every value is our choice."""

    steps: int = 1000  # optimizer steps in all
    batch_size: int = 128  # images a step
    lr: float = 1e-2  # the highest learning rate
    warmup: float = 0.1  # share of the steps in which the rate rises from zero
    weight_decay: float = 0.0  # of Adam decoupled (AdamW), of SGD added to the gradient
    momentum: float = 0.0  # of SGD, Nesterov's; 0 is Adam
    max_grad_norm: float | None = 5.0  # gradients are scaled down to this norm; None leaves them
    amp: bool = False  # convolutions and products in bfloat16 (autocast), all else and the weights in float32
    ema: float = 0.0  # decay of the averages that replace weights and BatchNorm's statistics at the end; 0 leaves them

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps (={self.steps}) must not be negative")
        if self.batch_size < 2:
            raise ValueError(f"batch_size (={self.batch_size}) must be at least 2, BatchNorm needs two images")
        if not self.lr > 0:
            raise ValueError(f"lr (={self.lr}) must be positive")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup (={self.warmup}) is a share of the steps; choose 0 to 1")
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) is a decay; choose 0 to below 1")

    def rate(self, step: int) -> float:
        """Share of `lr` at a step, 0 <= step < steps."""
        rise = self.warmup * self.steps
        if step + 1 < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / max(self.steps + 1 - rise, 1)))


class Trainer:
    """Gradient descent on one module, a step at a time, so that many can share one stream of batches.

    Args:
        model: put into training mode.
        schedule: of the rate; a step beyond its last one is refused.
        name: what errors call the model.
        seed: of what the model draws in a step (dropout, stochastic depth).
        parallel: with whom the steps are shared, None for nobody.
        parameters: of the model, those that this trainer steps; all by default. Others get gradients only.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        name: str = "model",
        seed: int = 0,
        parallel: Parallel | None = None,
        parameters: Iterable[Tensor] | None = None,
    ):
        self.model, self.schedule, self.name, self.seed = model.train(), schedule, name, seed
        self.parameters = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
        if not self.parameters and schedule.steps:
            raise ValueError(f"{name} has no parameters to train; use steps=0 or leave it out")
        if self.parameters:
            given = {"lr": schedule.lr, "weight_decay": schedule.weight_decay, "fused": True}
            if momentum := schedule.momentum:
                self.optimizer = torch.optim.SGD(self.parameters, momentum=momentum, nesterov=True, **given)
            else:
                self.optimizer = torch.optim.AdamW(self.parameters, **given)
        self.losses: list[Tensor] = []
        self.parallel = parallel
        norms = [part for part in model.modules() if isinstance(part, NORMS) and part.track_running_stats]
        self.statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
        if parallel:
            parallel.broadcast([p.data for p in model.parameters()] + self.statistics)
        self.averages = [value.detach().clone() for value in self._averaged] if schedule.ema else []

    @property
    def _averaged(self) -> list[Tensor]:
        return [*self.parameters, *self.statistics]

    def step(self, *losses: Callable[[], Tensor]) -> None:
        """One optimizer step on the mean of what every `loss()` returns, a scalar; each is one part of the batch."""
        step = len(self.losses)
        if step >= self.schedule.steps:
            raise ValueError(f"{self.name} has had its {self.schedule.steps} steps; raise schedule.steps")
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * self.schedule.rate(step)
        self.model.zero_grad()
        value = self._descend(losses, step)
        if self.schedule.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_grad_norm)
        self.optimizer.step()
        if self.averages:  # at the start over fewer steps: what the weights begin with is no part of it
            get_ema_multi_avg_fn(min(self.schedule.ema, (1 + step) / (10 + step)))(self.averages, self._averaged, None)
        self.losses.append(value)
        if step % 50 == 49 or step + 1 == self.schedule.steps:  # seldom: it waits for the device
            self.check()

    def _descend(self, losses: Sequence[Callable[[], Tensor]], step: int) -> Tensor:
        """Gradients and the value of the mean loss, over all parts of all processes."""
        device, parallel, several = self.parameters[0].device, self.parallel, len(losses) > 1
        place = parallel.own.start if parallel else 0
        before = [value.clone() for value in self.statistics] if several else []
        after, values = [torch.zeros_like(value) for value in before], []
        for part, loss in enumerate(losses, place):
            if values and before:  # each part finds the same statistics, wherever it is
                torch._foreach_copy_(self.statistics, before)
            draws = seeded(device, self.seed + step + (part << 32))
            with draws, torch.autocast(device.type, torch.bfloat16) if self.schedule.amp else nullcontext():
                value = loss()
            value.backward(torch.full_like(value, 1 / len(losses)))
            values.append(value.detach())
            if before:
                torch._foreach_add_(after, self.statistics, alpha=1 / len(losses))
        if before:
            torch._foreach_copy_(self.statistics, after)
        value = torch.stack(values).mean() if several else values[0]
        if parallel:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            value = value.float()  # a penalty may have made it float64, and then all would travel so
            parallel.average([value, *gradients, *self.statistics])
        return value

    def state_dict(self) -> dict[str, object]:
        """What a later process needs to go on; FloatingPointError where a loss was not finite."""
        self.check()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | {"losses": torch.stack(self.losses), "averages": self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"].to(self.parameters[0].device))
        for average, value in zip(self.averages, state["averages"], strict=True):
            average.copy_(value)

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
        """The losses of all steps; the model is put into evaluation mode, with the averages where there are any."""
        self.model.eval()
        with torch.no_grad():
            for value, average in zip(self._averaged, self.averages, strict=False):
                value.copy_(average)
        return torch.stack(self.losses).tolist() if self.losses else []


def minimize(
    model: nn.Module,
    batches: Iterable,
    loss: Callable[..., Tensor],
    schedule: Schedule,
    name: str = "model",
    seed: int = 0,
    parallel: Parallel | None = None,
) -> list[float]:
    """Train `model` in place: one step for each batch, until the schedule or the batches end.

    Args:
        model: trained in place, left in evaluation mode.
        batches: of anything that `loss` takes; with `parallel` this process' parts, from step `parallel.start` on.
        loss: batch -> scalar tensor.
        schedule, name, seed, parallel: see `Trainer`.

    Returns:
        The loss of every step.

    Raises:
        ValueError: the batches end before the steps do.
        FloatingPointError: a loss that is not finite.

    >>> model, batches = nn.Linear(3, 2), [torch.randn(8, 3)] * 3
    >>> len(minimize(model, batches, lambda x: model(x).square().mean(), Schedule(steps=3)))
    3
    """
    trainer = Trainer(model, schedule, name, seed, parallel)
    stage, inputs, parts = name.replace(" ", "_"), iter(batches), len(parallel.own) if parallel else 1
    if parallel and (state := parallel.saved(stage)):
        trainer.load_state_dict(state)
    with Progress(f"training {name}", schedule.steps, "steps") if parallel else nullcontext() as bar:
        if bar:
            bar.advance(len(trainer.losses))
        while (done := len(trainer.losses)) < schedule.steps:
            batch = list(itertools.islice(inputs, parts))
            if len(batch) < parts:
                raise ValueError(
                    f"inputs ended after {done} batches, schedule.steps is {schedule.steps}; give more batches or "
                    "fewer steps"
                )
            trainer.step(*(partial(loss, part) for part in batch))
            if parallel:
                numbers = {"loss": trainer.losses[-1], "lr": schedule.lr * schedule.rate(done)}
                parallel.keep(stage, done + 1, schedule.steps, trainer.state_dict, numbers)
                bar.advance()
    return trainer.finish()
