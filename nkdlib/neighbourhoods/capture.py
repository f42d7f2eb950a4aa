"""Capture what flows between a teacher's neighbourhoods, for all of them in one forward pass."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.closed_form import Pairs
from nkdlib.neighbourhoods.split import Neighbourhood
from nkdlib.networks.module import copied, in_evaluation
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.store import Store, first_images

BATCH = 256  # images of one tensor that go through the teacher at a time


@dataclass
class Boundaries:
    """Inputs and outputs of neighbourhoods for the same images, in memory."""

    store: Store = field(repr=False)  # every boundary once
    names: dict[str, tuple[str, str]]  # by neighbourhood, the names of its input and output in the store
    layouts: dict[str, torch.memory_format] = field(repr=False)  # by neighbourhood, of the feature maps that it takes

    def of(self, name: str) -> Store:
        """Inputs x and outputs y of one neighbourhood."""
        x, y = self.names[name]
        return Store({"x": self.store.tensors[x], "y": self.store.tensors[y]}, self.layouts[name])

    def __repr__(self) -> str:
        return f"boundaries of {len(self.store):,} images kept in memory, {self.store.nbytes / 1e6:,.0f} MB"


class _LastBoundary(Exception):
    """The last boundary has been captured; the rest of the network need not run."""


@torch.no_grad()
def capture(
    teacher: nn.Module,
    neighbourhoods: Sequence[Neighbourhood],
    inputs: Iterable,
    *,
    images: int | None = None,
    dtype: torch.dtype = torch.float16,
    adapt: bool = False,
    shared: bool = False,
) -> Boundaries:
    """Run the teacher once over `inputs` and keep the inputs and outputs of its neighbourhoods.

    Args:
        teacher: put into evaluation mode.
        neighbourhoods: from `split`.
        inputs: batches of images, with or without labels.
        images: stop after this many; None takes all. If there are fewer, memory is wasted.
        dtype: of the boundaries; float16 holds activations up to 65,504.
        adapt: for inputs unlike those that the teacher was trained on: a copy of the teacher has its BatchNorms
            measured on `inputs` (AdaBN, Li et al. 2016, arXiv 1603.04779) and gives the neighbourhoods' inputs, with
            the mean and variance that real images cause; outputs are the teacher's own answers. Two passes more.
        shared: with `images`, keep boundaries where worker processes of this machine read them without a copy.

    Raises:
        ValueError: no batch in `inputs`, images that are not finite, a batch for which the last neighbourhood is not
            run, or boundaries that are not finite or that `dtype` cannot hold well.
        OverflowError: an activation that is too large for `dtype`.

    >>> import torch
    >>> from nkdlib.networks import resnet
    >>> from nkdlib.neighbourhoods import split
    >>> teacher, images = resnet(8, 10, seed=0), [torch.randn(64, 3, 16, 16)]
    >>> capture(teacher, split(teacher, ["layer1.0", "layer2.0"], images[0]), images)
    boundaries of 64 images kept in memory, 1 MB
    """
    most = sys.maxsize if images is None else images
    # DEVIATION D9: the paper's abstract does not say how synthetic data were made or corrected.
    front = in_evaluation(teacher)
    if adapt:
        inputs = repeatable(inputs, most)
        front = copied(teacher)
        reestimate_batchnorm(front, inputs, most)
    names = _boundary_names(neighbourhoods, adapt)
    last, (_, last_output) = list(names.items())[-1]
    row: dict[str, Tensor] = {}
    looked_at: set[str] = set()

    def record(name: str, tensor: Tensor) -> None:
        layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        kept = dtype if tensor.is_floating_point() else tensor.dtype
        row[name] = tensor.detach().to(kept, copy=True, memory_format=layout)  # layers may work in place
        if name not in looked_at and kept != tensor.dtype:
            _check_rounding(name, tensor[:64], row[name][:64])
        looked_at.add(name)
        if name == last_output:
            raise _LastBoundary

    def rows() -> Iterator[dict[str, Tensor]]:
        device = neighbourhoods[0].example.device
        for batch in first_images(inputs, most):
            row.clear()
            try:
                front(batch.to(device, copy=True))
            except _LastBoundary:
                if other := [name for name, value in row.items() if len(value) != len(batch)]:
                    raise ValueError(
                        f"boundary {other[0]!r} has {len(row[other[0]])} rows for {len(batch)} images; name a part "
                        "that takes and gives one for each image"
                    ) from None
                yield dict(row)
            else:
                raise ValueError(
                    f"{last!r} was not run for a batch of shape {tuple(batch.shape)}; "
                    "split the model with inputs like those it is used with"
                )

    with ExitStack() as hooks:
        for neighbourhood in neighbourhoods:
            x, y = names[neighbourhood.name]
            first, final = (front.get_submodule(neighbourhood.paths[end]) for end in (0, -1))
            if adapt:
                answer = neighbourhood.module
                hook = first.register_forward_pre_hook(
                    lambda _, args, y=y, answer=answer: record(y, answer(args[0].clone())), prepend=True
                )
            else:
                hook = final.register_forward_hook(lambda _, __, output, y=y: record(y, output))
            hooks.enter_context(hook)
            if x.endswith(":x"):  # first of all, since others may change it
                hook = first.register_forward_pre_hook(lambda _, args, x=x: record(x, args[0]), prepend=True)
                hooks.enter_context(hook)
        store = Store.collect(rows(), images, shared=shared)
    for name, values in store.tensors.items():
        if values.is_floating_point() and not torch.isfinite(sum(torch.aminmax(values))):
            if values.isnan().any() or values.dtype == torch.float32:
                raise ValueError(
                    f"boundary {name!r} holds NaN or infinite values for images that hold none; look for them in the "
                    "teacher's weights and operations"
                )
            raise OverflowError(
                f"boundary {name!r} is not finite in dtype (={dtype}); use dtype=torch.float32 or bfloat16"
            )
    return Boundaries(store, names, {neighbourhood.name: neighbourhood.layout for neighbourhood in neighbourhoods})


def _check_rounding(name: str, exact: Tensor, kept: Tensor) -> None:
    """Raise ValueError if rounding costs more than 0.1 % of the variance, or 100 times as much as of usual values."""
    exact = exact.float()
    lost, energy = (kept - exact).square().mean(), exact.square().mean()
    spread = (exact - exact.mean(0)).square().mean() if len(exact) > 1 else energy
    usual = torch.finfo(kept.dtype).eps ** 2 / 12
    if torch.isfinite(lost) and spread > 0 and (lost > 1e-3 * spread or lost > 100 * usual * energy):
        raise ValueError(
            f"boundary {name!r} loses too much in dtype (={kept.dtype}): values of size {energy.sqrt():.1e}, "
            f"which differ by {spread.sqrt():.1e} are rounded by {lost.sqrt():.1e}; use dtype=torch.float32"
        )


def _boundary_names(neighbourhoods: Sequence[Neighbourhood], adapt: bool) -> dict[str, tuple[str, str]]:
    """Names of each neighbourhood's input and output; an input may be the output of the neighbourhood before."""
    names, before = {}, ""
    for neighbourhood in neighbourhoods:
        linked = neighbourhood.chained and before and not adapt
        names[neighbourhood.name] = (before if linked else f"{neighbourhood.name}:x", f"{neighbourhood.name}:y")
        before = f"{neighbourhood.name}:y"
    return names


def passes(
    neighbourhoods: Sequence[Neighbourhood],
    inputs: Iterable,
    *,
    memory_limit_gb: float,
    images: int | None = None,
    dtype: torch.dtype = torch.float16,
    adapt: bool = False,
) -> tuple[list[list[Neighbourhood]], int]:
    """Divide neighbourhoods, front to back, into sets with boundaries that fit into memory; arguments as `capture`.

    Returns:
        The sets, and the number of images: counted if they would take more than a quarter of the limit.

    Raises:
        ValueError: one neighbourhood whose boundaries do not fit, or several passes over inputs that differ in each.
    """

    def size(members: Sequence[Neighbourhood]) -> int:
        """Bytes of one image's boundaries."""
        shapes = {}
        for member, (x, y) in zip(members, _boundary_names(members, adapt).values(), strict=True):
            shapes |= {x: member.input_shape, y: member.output_shape}
        return sum(map(math.prod, shapes.values())) * dtype.itemsize

    limit = memory_limit_gb * 1e9
    if images is None or 4 * images * size(neighbourhoods) > limit:
        images = sum(map(len, first_images(inputs, sys.maxsize if images is None else images)))
    sets: list[list[Neighbourhood]] = [[]]
    for neighbourhood in neighbourhoods:
        if (alone := images * size([neighbourhood])) > limit:
            raise ValueError(
                f"the boundaries of {neighbourhood.name!r} for {images:,} images take {alone / 1e9:.3g} GB, more than "
                f"memory_limit_gb (={memory_limit_gb:g}); raise the limit, give fewer images, or choose a smaller dtype"
            )
        if images * size([*sets[-1], neighbourhood]) > limit:
            sets.append([])
        sets[-1].append(neighbourhood)
    if len(sets) > 1 and not torch.equal(first_batch(inputs), first_batch(inputs)):
        raise ValueError(
            "inputs gives other images, or another order, in every pass, and memory_limit_gb "
            f"(={memory_limit_gb:g}) asks for {len(sets)} passes; give a loader with shuffle=False and without "
            "augmentation, or a list of batches"
        )
    return sets, images


def input_pairs(rows: Store, previous: list[Tensor] | None = None) -> Pairs:
    """Batches to solve from: the teacher's input, and the student's: `previous`, or the same.

    Both are copies, since a layer may work in place.
    """

    def of_teacher() -> Iterator[Tensor]:
        return (row["x"] for row in rows.select(["x"]).chunks(BATCH))

    def copies() -> Iterator[Tensor]:
        plain = rows.layout == torch.contiguous_format
        return (x.clone(memory_format=torch.contiguous_format if plain else torch.preserve_format) for x in previous)

    return lambda: zip(of_teacher(), of_teacher() if previous is None else copies(), strict=True)


def repeatable(inputs: Iterable, images: int = sys.maxsize) -> Iterable:
    """Batches that can be gone through again: a tensor (N, ...) is split, an iterator's first images are kept."""
    if isinstance(inputs, Tensor):
        return inputs.split(BATCH)
    return list(first_images(inputs, images)) if iter(inputs) is inputs else inputs


def first_batch(inputs: Iterable) -> Tensor:
    """The images of the first batch that holds any; ValueError if there is none."""
    for images in first_images(inputs):
        return images
    raise ValueError("inputs holds no batch; give at least one")
