"""Training one student neighbourhood against its teacher's part, on nothing but its own input and output.

ND (arXiv 2010.01189): S_i learns S_i(h_{i-1}) ~ h_i without the rest of the network.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nkdlib.networks.module import device_of
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training.batchnorm import NORMS, reestimate_batchnorm
from nkdlib.training.loop import Schedule, Trainer
from nkdlib.training.store import Store

STARTS = ("given", "random", "copied", "solved")


@dataclass(frozen=True)
class Recipe(Schedule):
    """How student neighbourhoods are made. All values are our choice; the paper's abstract gives none."""

    steps: int = 100  # gradient steps of each neighbourhood; 0 leaves the start as it is
    lr: float = 2e-3  # right for copied and solved weights; about 1.5e-2 from random ones
    start: str = "solved"  # given: as they come; random; copied from the teacher; solved in closed form
    seed: int = 0  # of random weights and of the order of examples
    holdout: int = 256  # first images, never trained on, that local errors are measured on
    solve_images: int = 2048  # images that the closed form sees
    ridge: float = 1e-3  # of the closed form, relative to the features' mean energy
    ridge_to: str = "zero"  # what it pulls weights to: zero, or own, those that the layer has: for few images
    front_to_back: bool = True  # solve on what the students before produce, where each has one candidate
    bn_images: int = 1024  # images that a trained student's BatchNorm is re-estimated on; 0 leaves it
    batchnorm: str = "batch"  # frozen: a student keeps the statistics that it starts with, in every step
    inner: float = 0.0  # weight of the errors at the boundaries within a run "first:last"; the one at its end has 1
    adapt: bool = False  # for inputs unlike the teacher's own (noise): see `capture`
    memory_limit_gb: float = 4.0  # above it boundaries are streamed
    dtype: torch.dtype = torch.float16  # that boundaries are kept in

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"start (={self.start!r}) must be one of {', '.join(STARTS)}")
        if self.ridge_to not in ("zero", "own"):
            raise ValueError(f"ridge_to (={self.ridge_to!r}) must be zero or own")
        if self.batchnorm not in ("batch", "frozen"):
            raise ValueError(f"batchnorm (={self.batchnorm!r}) must be batch or frozen")
        if not self.inner >= 0:
            raise ValueError(f"inner (={self.inner}) is a weight; choose 0 or more")
        for name in ("holdout", "solve_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} (={getattr(self, name)}) must be at least 2 images")

    @property
    def solved(self) -> slice:
        """Which images the closed form sees."""
        return slice(self.holdout, self.holdout + self.solve_images)


def variance(store: Store) -> float:
    """E|y - mean(y)|^2 per element: the energy of the target around its mean over examples."""
    return _variance(lambda: (rows["y"] for rows in store.select(["y"]).chunks()), len(store))


def _variance(ys: Callable[[], Iterable[Tensor]], count: int) -> float:
    mean = sum(y.sum(0) for y in ys()) / count
    squares = sum((y - mean).square().sum().item() for y in ys())
    return max(squares / (count * mean.numel()), 1e-12)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output: Tensor, y: Tensor) -> Tensor:
        difference = output - y
        ctx.save_for_backward(difference)
        maps = difference.dim() == 4 and not difference.is_contiguous()
        flat = (difference.permute(0, 2, 3, 1) if maps else difference).reshape(-1)
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


def local_error(student: nn.Module, store: Store) -> float:
    """E|S(x) - y|^2 / E|y - mean(y)|^2 over a store's examples, the student in evaluation mode.

    0 is a perfect student, 1 one that always says the mean.

    >>> x = torch.randn(64, 2, 3, 3)
    >>> local_error(nn.Identity(), Store.of({"x": x, "y": x}))
    0.0
    """
    return _error(student, store) / variance(store)


@torch.no_grad()
def _error(student: nn.Module, store: Store) -> float:
    student.eval()
    error = count = 0.0
    for rows in store.chunks():
        error += squared_error(student(rows["x"]), rows["y"]).item() * rows["y"].numel()
        count += rows["y"].numel()
    return error / count


@torch.no_grad()
def inner_shapes(run: nn.Module | None, x: Tensor) -> list[tuple[int, ...]]:
    """Of what each part of a sequence gives for x (B, ...), without the batch; none where it is no sequence.

    >>> inner_shapes(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.zeros(1, 2))
    [(3,), (1,)]
    """
    shapes, x = [], x.clone()
    for part in run if isinstance(run, nn.Sequential) else ():
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    return shapes


class LocalTraining:
    """One student on its way: steps on batches (x, y), then an end that measures it on held-out examples.

    `name` is what errors call it, `seed` that of what it draws in a step, such as dropout. `piece`, the teacher's part,
    is what gives the boundaries within a run, with `recipe.inner`.
    """

    def __init__(
        self, name: str, student: nn.Module, held_out: Store, recipe: Recipe, seed: int, piece: nn.Module | None = None
    ):
        self.student, self.held_out, self.recipe = student, held_out, recipe
        # DEVIATION D3: the error is normalized by the target's variance; the paper's abstract names no loss.
        self.scale = 1 / variance(held_out)
        self.inner: list[tuple[nn.Module, float]] = []  # the teacher's parts within, and weights of their errors
        if recipe.inner:
            example = held_out.take(slice(0, 2))["x"]
            wanted, got = inner_shapes(piece, example), inner_shapes(student.eval(), example)
            if len(wanted) < 2 or wanted != got:
                raise ValueError(
                    f"recipe.inner (={recipe.inner:g}) needs boundaries within {name!r}, the teacher's parts give "
                    f"shapes {wanted}, the student's {got}; give a run 'first:last' and an nn.Sequential of as many"
                )
            for place, part in enumerate(piece[:-1], 1):
                within = partial(self._within, piece[:place])
                self.inner.append((part, recipe.inner / _variance(within, len(held_out))))
        self.trainer = Trainer(student, recipe, name, seed)
        if recipe.batchnorm == "frozen":
            for norm in (m for m in student.modules() if isinstance(m, NORMS)):
                norm.eval()

    @torch.no_grad()
    def _within(self, parts: nn.Module) -> Iterator[Tensor]:
        for rows in self.held_out.select(["x"]).chunks(256):
            yield parts(rows["x"])

    def step(self, x: Tensor, y: Tensor) -> None:
        """One gradient step on a batch, (B, ...) each."""
        self.trainer.step(lambda: self._loss(x, y))

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.inner:
            return squared_error(self.student(x), y) * self.scale
        theirs, loss = x.clone(), 0.0  # parts may work in place: each error is taken before the next part runs
        *parts, last = self.student
        for part, (original, weight) in zip(parts, self.inner, strict=True):
            x = part(x)
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                theirs = original(theirs)
            loss = loss + squared_error(x, theirs) * weight
        return loss + squared_error(last(x), y) * self.scale

    def finish(self, examples: Store) -> dict[str, object]:
        """Re-estimate BatchNorm on examples' x, and measure the local error."""
        losses = self.trainer.finish()
        if self.recipe.bn_images and self.recipe.batchnorm == "batch":
            inputs = (rows["x"] for rows in examples.select(["x"]).chunks(256))
            reestimate_batchnorm(self.student, inputs, self.recipe.bn_images)
        return {"local_error": _error(self.student, self.held_out) * self.scale, "losses": losses}


def train_local(
    name: str, student: nn.Module, store: Store, recipe: Recipe, seed: int, piece: nn.Module | None = None
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Train one student on boundaries in memory; a task for any executor. `piece`: see `LocalTraining`.

    Returns:
        Its state, and local_error, losses and device_s.
    """
    held_out, rest = store[: recipe.holdout], store[recipe.holdout :]
    if recipe.steps == 0:
        return student.state_dict(), {"local_error": local_error(student, held_out), "losses": [], "device_s": 0.0}
    with Stopwatch(device_of(student)) as watch:
        training = LocalTraining(name, student, held_out, recipe, seed, piece)
        for rows in rest.batches(recipe.batch_size, steps=recipe.steps, seed=seed):
            training.step(rows["x"], rows["y"])
        info = training.finish(rest)
    return student.state_dict(), {**info, "device_s": watch.device_s}
