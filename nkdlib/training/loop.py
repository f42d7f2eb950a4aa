"""One loop for every training by gradient steps."""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nkdlib.networks.module import NORMS, device_of, in_training, load_state, seeded, state_of
from nkdlib.tasks.checks import check_number, check_seed
from nkdlib.tasks.progress import progress
from nkdlib.training.distributed import Checkpoints, check_same, mean_over_processes, rank_and_size
from nkdlib.training.kernels import autocast, better_kernels


@dataclass(frozen=True)
class Schedule:
    """Settings of an optimization: Adam or SGD, a linear warm-up, a cosine to zero. Every value is our choice."""

    steps: int = 1000  # optimizer steps in all
    batch_size: int = 128  # images a step
    lr: float = 1e-2  # the highest learning rate
    warmup: float = 0.1  # share of the steps in which the rate rises from zero
    weight_decay: float = 0.0  # of Adam decoupled (AdamW), of SGD added to the gradient
    momentum: float = 0.0  # of SGD, Nesterov's; 0 is Adam
    max_grad_norm: float | None = 5.0  # longer gradients are scaled down to this norm; None leaves them
    amp: bool = False  # convolutions and products in bfloat16 (autocast) where it pays, all else and weights in float32
    freeze_batchnorm: bool = False  # normalize by the statistics from before instead of those of each batch
    ema: float = 0.0  # decay of the averages that replace weights and BatchNorm's statistics at the end; 0 leaves them

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 0, whole=True)
        check_number("batch_size", self.batch_size, 2, whole=True)  # BatchNorm needs two images
        check_number("lr", self.lr, 0, above=True)
        check_number("warmup", self.warmup, 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        for name in ("momentum", "ema"):
            check_number(name, getattr(self, name), 0, 1, below=True)
        if self.max_grad_norm is not None:
            check_number("max_grad_norm", self.max_grad_norm, 0, above=True)

    def rate(self, step: int) -> float:
        """Share of `lr` at a step, 0 <= step < steps."""
        rise = self.warmup * self.steps
        if step + 1 < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / max(self.steps + 1 - rise, 1)))


class Trainer:
    """Optimizer steps on one module; the caller brings the loss, so that several modules can share a batch.

    Args:
        model: put into training mode. In DistributedDataParallel, its processes share each step.
        schedule: learning rates and number of steps; one step more is refused.
        name: of the model, for errors.
        seed: of the random numbers that the model draws in a step (dropout, stochastic depth).
        parameters: of the model, those that are stepped; all by default. Others only get gradients. If all that are
            named are frozen (`requires_grad` is False), a step computes gradients alone.

    Raises:
        ValueError: no parameters to train, a negative seed.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        name: str = "model",
        seed: int = 0,
        parameters: Iterable[Tensor] | None = None,
    ):
        check_seed(seed)
        self.shared = isinstance(in_training(model), DistributedDataParallel)
        self.model, self.schedule, self.name, self.seed = model.module if self.shared else model, schedule, name, seed
        if schedule.freeze_batchnorm:
            for norm in [part for part in self.model.modules() if isinstance(part, NORMS)]:
                norm.eval()
        self.parameters = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
        if not self.parameters and parameters is None and schedule.steps:
            raise ValueError(f"{name} has no parameters to train; use steps=0 or leave it out")
        self.optimizer = None
        if self.parameters:
            options = {"lr": schedule.lr, "weight_decay": schedule.weight_decay, "fused": True}
            if momentum := schedule.momentum:
                self.optimizer = torch.optim.SGD(self.parameters, momentum=momentum, nesterov=True, **options)
            else:
                self.optimizer = torch.optim.AdamW(self.parameters, **options)
        self.losses: list[Tensor] = []
        self.average: dict[str, object] = {}  # by name in the model's state, after the first step

    def step(self, loss: Callable[[], Tensor]) -> None:
        """Make one optimizer step on `loss()`, a scalar.

        Raises:
            ValueError: the schedule's steps are done.
            FloatingPointError: a loss of the last 50 steps is not finite.
        """
        step = len(self.losses)
        if step >= self.schedule.steps:
            raise ValueError(f"{self.name} has had its {self.schedule.steps} steps; raise schedule.steps")
        for group in self.optimizer.param_groups if self.optimizer else ():
            group["lr"] = self.schedule.lr * self.schedule.rate(step)
        self.model.zero_grad()
        device, rank = device_of(self.model), rank_and_size()[0] if self.shared else 0
        draws = seeded(device, self.seed + step + (rank << 32))
        amp = autocast(device, self.schedule.amp)
        with better_kernels(self.model) if device.type == "cpu" else nullcontext():
            with draws, amp, torch.enable_grad():  # a generator of batches may have left gradients off
                value = loss()
            if value.numel() != 1:
                shape = tuple(value.shape)
                raise ValueError(f"loss of {self.name} has shape {shape}; give one number, such as its mean")
            value.backward()
        if self.schedule.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_grad_norm)
        if self.optimizer:
            self.optimizer.step()
        if self.schedule.ema:
            self._average(step)
        self.losses.append(self.mean(value.detach().reshape(())))
        if step % 50 == 49 or step + 1 == self.schedule.steps:  # seldom: it waits for the device
            self.check()

    def _average(self, count: int) -> None:
        """Move averages of `count` steps towards the model, with less decay if these are few; integers are copied."""
        kept, values = self.average, state_of(self.model)
        real = [k for k in kept if torch.is_tensor(v := values.get(k)) and (v.is_floating_point() or v.is_complex())]
        if real:
            move = get_ema_multi_avg_fn(min(self.schedule.ema, (1 + count) / (10 + count)))
            move([kept[key] for key in real], [values[key] for key in real], count)
        rest = {key: value for key, value in values.items() if key not in real}
        kept.update({k: v.clone() if torch.is_tensor(v) else copy.deepcopy(v) for k, v in rest.items()})

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes that share a step."""
        return mean_over_processes(value) if self.shared else value

    def state_dict(self) -> dict[str, object]:
        """Return everything that `load_state_dict` needs; raises FloatingPointError if a loss was not finite."""
        self.check()
        state = {"model": state_of(self.model), "optimizer": self.optimizer and self.optimizer.state_dict()}
        return state | {"losses": torch.stack(self.losses), "average": self.average, "settings": self._settings}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from the step at which `state_dict` was called; ValueError for another schedule or seed."""
        check_same(self._settings, state.get("settings", {}), f"the training of {self.name}")
        load_state(self.model, state["model"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"].to(device_of(self.model)))
        own = state_of(self.model)
        self.average = {k: v.to(own[k], copy=True) if torch.is_tensor(v) else v for k, v in state["average"].items()}

    @property
    def _settings(self) -> dict[str, object]:
        """What a resumed training must have as before."""
        return {f"schedule.{name}": value for name, value in vars(self.schedule).items()} | {"seed": self.seed}

    def check(self) -> None:
        """Raise FloatingPointError if one of the last 50 losses was not finite."""
        recent = torch.stack(self.losses[-50:])
        if not torch.isfinite(recent).all():
            bad = len(self.losses) - len(recent) + int((~torch.isfinite(recent)).nonzero()[0])
            raise FloatingPointError(
                f"loss of {self.name} is not finite at step {bad} of {self.schedule.steps} "
                f"with lr (={self.schedule.lr:g}); choose a smaller lr or check the inputs for NaN"
            )

    def finish(self) -> list[float]:
        """Put the model into evaluation mode, with averages if it has any; return the losses of all steps."""
        if self.average:
            load_state(self.model, self.average)
        if self.shared:
            for buffer in self.model.buffers():  # the first process's statistics, which are validated and saved
                dist.broadcast(buffer, 0)
        self.model.eval()
        return torch.stack(self.losses).tolist() if self.losses else []


def minimize(
    model: nn.Module,
    batches: Iterable,
    loss: Callable[..., Tensor],
    schedule: Schedule,
    name: str = "model",
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> list[float]:
    """Train `model` in place, one step a batch.

    Args:
        model: left in evaluation mode. With `data_parallel(model)` the processes of a group share each step, each
            giving its own part of a batch.
        batches: of anything that `loss` takes, at least `schedule.steps`; with `checkpoints` those from step
            `checkpoints.start` on.
        loss: batch -> scalar tensor; calls `model`.
        schedule, name, seed: see `Trainer`.
        checkpoints: to resume from and to write to.

    Returns:
        The loss of every step.

    Raises:
        ValueError: the batches end before the steps do.
        FloatingPointError: a loss that is not finite.

    >>> model, batches = nn.Linear(3, 2), [torch.randn(8, 3)] * 3
    >>> len(minimize(model, batches, lambda x: model(x).square().mean(), Schedule(steps=3)))
    3
    """
    trainer, stage, inputs = Trainer(model, schedule, name, seed), name.replace(" ", "_"), iter(batches)
    if checkpoints and (state := checkpoints.load(stage)):
        trainer.load_state_dict(state)
    steps = range(len(trainer.losses), schedule.steps)
    for step in progress(steps, f"training {name}", unit="steps") if checkpoints else steps:
        batch = next(inputs, None)
        if batch is None:
            raise ValueError(
                f"batches ended after {step} of the {schedule.steps} steps of {name}; give more batches or fewer steps"
            )
        trainer.step(partial(loss, batch))
        if checkpoints:
            metrics = {"loss": trainer.losses[-1], "lr": schedule.lr * schedule.rate(step)}
            checkpoints.save(stage, step + 1, schedule.steps, trainer.state_dict, metrics)
    return trainer.finish()
