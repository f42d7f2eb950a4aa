"""Train one student neighbourhood on nothing but its own input and output.

ND (arXiv 2010.01189): S_i learns S_i(h_{i-1}) ~ h_i without the rest of the network.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nkdlib.networks.module import device_of, state_of
from nkdlib.tasks.checks import check_number
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.kernels import bfloat16_pays
from nkdlib.training.loop import Schedule, Trainer
from nkdlib.training.store import Store

STATE = "state."  # with which names of a student's state begin in what a task returns
CHOICES = {
    "start": ("given", "random", "copied", "solved"),
    "ridge_to": ("zero", "own"),
}


@dataclass(frozen=True)
class Recipe:
    """Settings of `distill`, `solve` and `Library`. Every value is our choice; the paper's abstract gives none."""

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=100, lr=2e-3))  # random weights need a higher lr
    start: str = "solved"  # weights before the first step: as given, random, copied from the teacher, or solved
    seed: int = 0  # of random weights and of the order of examples
    holdout: int = 256  # first images, never learned from, that local errors are measured on
    bn_images: int = 1024  # that a trained student's BatchNorm is re-estimated on, unless frozen; 0 leaves it
    solve_images: int = 2048  # images that the closed form sees
    ridge: float = 1e-3  # of the closed form, relative to the features' mean energy
    ridge_to: str = "zero"  # the weights that the ridge pulls to: zero or, if images are few, the layer's own
    front_to_back: bool = True  # solve on the outputs of the student before, if that one follows directly
    adapt: bool = False  # for noise: correct the students' inputs, see `capture`
    dtype: torch.dtype | None = None  # of boundaries in memory: bfloat16 if steps use it (amp), float16 otherwise
    memory_limit_gb: float = 4.0  # of boundaries in memory; more of them take several passes of the teacher

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} (={getattr(self, name)!r}) must be one of {', '.join(choices)}")
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule (={self.schedule!r}) must be a Schedule, such as Schedule(steps=100, lr=2e-3)")
        for name, least in {"holdout": 2, "solve_images": 2, "bn_images": 0, "seed": 0}.items():
            check_number(name, getattr(self, name), least, whole=True)
        check_number("ridge", self.ridge, 0)
        check_number("memory_limit_gb", self.memory_limit_gb, 0, above=True)
        if self.dtype is None:
            object.__setattr__(self, "dtype", torch.bfloat16 if self.schedule.amp else torch.float16)
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"dtype (={self.dtype}) must be a floating-point type, such as torch.bfloat16")

    @property
    def solved(self) -> slice:
        """The images that the closed form sees."""
        return slice(self.holdout, self.holdout + self.solve_images)

    @property
    def in_sequence(self) -> bool:
        """Whether a start waits for the student before."""
        return self.start == "solved" and self.front_to_back and not self.adapt

    @property
    def images(self) -> int:
        """The largest number of images that are used."""
        solved = self.solve_images if self.start == "solved" else 2
        return self.holdout + max(self.schedule.steps * self.schedule.batch_size, solved)


def variance(store: Store) -> float:
    """E|y - mean(y)|^2 per element: the energy of the target around its mean over examples."""
    targets = store.select(["y"])
    mean = sum(rows["y"].sum(0) for rows in targets.chunks()) / len(targets)
    squares = sum((rows["y"] - mean).square().sum().item() for rows in targets.chunks())
    return squares / (len(targets) * mean.numel())


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output: Tensor, y: Tensor) -> Tensor:
        difference = output - y
        ctx.save_for_backward(difference)
        maps = difference.dim() == 4 and not difference.is_contiguous()
        flat = (difference.permute(0, 2, 3, 1) if maps else difference).reshape(-1).float()
        return flat.dot(flat) / len(flat)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference.mul_(gradient * (2 / difference.numel())), None


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Mean of (output - y)^2, with a gradient for the output, in the output's own layout.

    The gradient of torch's `mse_loss` has channels first always; to turn it round takes a third of a step on a CPU.

    >>> squared_error(torch.ones(2, 3), torch.full((2, 3), 3.0)).item()
    4.0
    """
    return _SquaredError.apply(output, y)


@torch.no_grad()
def _mean_squared_error(student: nn.Module, store: Store) -> float:
    """E|S(x) - y|^2 per element, the student in evaluation mode."""
    student.eval()
    error = count = 0.0
    for rows in store.chunks():
        error += squared_error(student(rows["x"]), rows["y"]).item() * rows["y"].numel()
        count += rows["y"].numel()
    return error / count


def local_error(student: nn.Module, store: Store) -> float:
    """E|S(x) - y|^2 / E|y - mean(y)|^2 over a store's examples, the student in evaluation mode.

    0 is a perfect student, 1 one that always gives the mean. If y is constant, an imperfect one has an infinite error.
    """
    error, scale = _mean_squared_error(student, store), variance(store)
    if scale == 0:
        return math.inf if error else 0.0
    return error / scale


def step_dtype(store: Store, amp: bool) -> torch.dtype:
    """The type of rows in steps: bfloat16 if they are kept so and autocast hands it on between layers, else float32."""
    kept = {tensor.dtype for tensor in store.tensors.values()}
    return torch.bfloat16 if amp and kept == {torch.bfloat16} and bfloat16_pays(store.device) else torch.float32


def train_local(name: str, student: nn.Module, store: Store, recipe: Recipe, seed: int) -> dict[str, object]:
    """Train one student on boundaries in memory; a task for any executor.

    Args:
        name: of the neighbourhood, for error messages.
        student: trained in place, left in evaluation mode.
        store: inputs x (N, ...) and outputs y (N, ...), the held-out examples first.
        recipe: schedule, holdout, and how BatchNorm is treated.
        seed: of the order of examples and of dropout.

    Returns:
        Its state (`state_of`) by `STATE` and name, local_error, losses (one a step) and device_s.

    Raises:
        ValueError: a target that is the same for all held-out examples; a student without parameters.
        FloatingPointError: a loss that is not finite.
    """
    held_out, rest, schedule = store[: recipe.holdout], store[recipe.holdout :], recipe.schedule
    if schedule.steps == 0:
        return _state(student) | {"local_error": local_error(student, held_out), "losses": [], "device_s": 0.0}
    with Stopwatch(device_of(student)) as watch:
        if (spread := variance(held_out)) == 0:
            raise ValueError(
                f"the teacher's {name!r} gives the same output for all {len(held_out)} held-out images, which leaves "
                "nothing to learn; leave it out, or give other inputs"
            )
        # DEVIATION D3: the error is normalized by the target's variance; the paper's abstract names no loss.
        scale = 1 / spread
        trainer = Trainer(student, schedule, name, seed)
        how = {"steps": schedule.steps, "seed": seed, "dtype": step_dtype(store, schedule.amp)}
        for rows in rest.batches(schedule.batch_size, **how):
            trainer.step(lambda rows=rows: squared_error(student(rows["x"]), rows["y"]) * scale)
        losses = trainer.finish()
        if recipe.bn_images and not schedule.freeze_batchnorm:
            inputs = (rows["x"] for rows in rest.select(["x"]).chunks(256))
            reestimate_batchnorm(student, inputs, recipe.bn_images)
        error = _mean_squared_error(student, held_out) * scale
    return _state(student) | {"local_error": error, "losses": losses, "device_s": watch.device_s}


def _state(student: nn.Module) -> dict[str, object]:
    return {STATE + name: value for name, value in state_of(student).items()}
