"""What flows between a teacher's neighbourhoods, captured in one forward pass for all of them.

Boundaries are kept in memory when they fit and computed again from the images when not; the teacher's front part is
never run once per neighbourhood.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.split import Neighbourhoods
from nkdlib.networks.module import device_of
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.store import Store, first_images, images_of

BATCH = 256  # images of one tensor that go through the teacher at a time
Copy = Callable[[str, Tensor], Tensor]  # of a tensor with a name
Tap = tuple[str, str, str]  # a name, a submodule path, and which of its tensors is meant: input or output


class _Seen(Exception):
    """The last boundary has been captured; the rest of the network need not run."""


def _clone(_: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy, maps with channels last, as a store gives them, and floating-point numbers as `dtype`."""
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
    return tensor.to(dtype, copy=True, memory_format=layout)


@torch.no_grad()
def tapped(model: nn.Module, inputs: Iterable, taps: Sequence[Tap], copy: Copy = _clone) -> Iterator[dict[str, Tensor]]:
    """Run a model over batches of images; for each, copies of what its submodules take and give, by name.

    Args:
        model: put into evaluation mode; a pass ends with the last tap.
        inputs: batches of images, with or without labels.
        taps: in the order in which they run.
        copy: makes the copies, so that a layer that works in place cannot change them later.

    Raises:
        ValueError: a batch for which the last submodule is not run.
    """
    row: dict[str, Tensor] = {}
    end, last, _ = taps[-1]

    def keep(name: str, tensor: Tensor) -> None:
        row[name] = copy(name, tensor.detach())
        if name == end:
            raise _Seen

    with ExitStack() as hooks:
        for name, path, side in taps:
            module = model.get_submodule(path)
            if side == "input":
                handle = module.register_forward_pre_hook(lambda _, taken, name=name: keep(name, taken[0]))
            else:
                handle = module.register_forward_hook(lambda _, __, given, name=name: keep(name, given))
            hooks.enter_context(handle)
        device = device_of(model.eval())
        for batch in inputs:
            row.clear()
            try:
                model(images_of(batch).to(device))
            except _Seen:
                yield dict(row)
            else:
                raise ValueError(
                    f"{last!r} was not run for a batch of shape {tuple(images_of(batch).shape)}; "
                    "split the model with inputs like those it is used with"
                )


def inputs_within(model: nn.Module, neighbourhoods: Neighbourhoods, inputs: Iterable) -> Iterator[dict[str, Tensor]]:
    """What each neighbourhood takes within a model, by name, for each batch of images."""
    return tapped(model, inputs, [(here.name, here.paths[0], "input") for here in neighbourhoods])


@torch.no_grad()
def answers(
    neighbourhoods: Neighbourhoods, drawn: Iterable[Mapping[str, Tensor]], copy: Copy = _clone
) -> Iterator[dict[str, Tensor]]:
    """Copies of inputs that are given for each neighbourhood, and of what its own module makes of them."""
    for inputs in drawn:
        row = {}
        for here in neighbourhoods:
            row[f"{here.name}:x"] = copy(f"{here.name}:x", inputs[here.name])
            row[f"{here.name}:y"] = copy(f"{here.name}:y", here.module(inputs[here.name].clone()))
        yield row


@dataclass
class Boundaries:
    """Inputs and outputs of every neighbourhood for the same images, in memory as far as they fit."""

    teacher: nn.Module = field(repr=False)
    neighbourhoods: Neighbourhoods = field(repr=False)
    inputs: Iterable = field(repr=False)
    front: nn.Module | None = field(repr=False)  # gives the inputs where it is not the teacher
    linked: bool  # an input is the output of the neighbourhood before it
    store: Store | None = field(default=None, repr=False)  # all images, or the first ones where they are streamed
    complete: bool = True  # all boundaries are in memory
    bytes_per_image: float = 0.0

    def names(self) -> dict[str, tuple[str, str]]:
        """What each neighbourhood's input and output are called; an input may be the output of the one before."""
        outputs = [f"{here.name}:y" for here in self.neighbourhoods]
        return {
            here.name: (before if here.chained else f"{here.name}:x", output)
            for here, before, output in zip(self.neighbourhoods, ["", *outputs], outputs, strict=False)
        }

    def of(self, name: str) -> Store:
        """Inputs x and outputs y of one neighbourhood, for the images in memory."""
        x, y = self.names()[name]
        return Store({"x": self.store.tensors[x], "y": self.store.tensors[y]})

    def batches(self, inputs: Iterable, copy: Copy = _clone) -> Iterator[dict[str, Tensor]]:
        """Boundaries by name for each batch of images, in one pass of the teacher."""
        if self.front is not None:
            return answers(self.neighbourhoods, inputs_within(self.front, self.neighbourhoods, inputs), copy)
        taps = []
        for here in self.neighbourhoods:
            taps += [] if here.chained else [(f"{here.name}:x", here.paths[0], "input")]
            taps += [(f"{here.name}:y", here.paths[-1], "output")]
        return tapped(self.teacher, inputs, taps, copy)

    def rows(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """One pass of the teacher over the inputs: for each batch, (x, y) by neighbourhood."""
        for row in self.batches(self.inputs):
            yield {name: (row[x], row[y]) for name, (x, y) in self.names().items()}

    def __repr__(self) -> str:
        size = f"{self.store.bytes / 1e6:,.0f} MB"
        if self.complete:
            return f"boundaries of {len(self.store):,} images kept in memory, {size}"
        return (
            f"boundaries streamed, {self.bytes_per_image / 1e6:.2f} MB an image computed anew in every pass; "
            f"the first {len(self.store):,} images kept in memory, {size}"
        )


def capture(
    teacher: nn.Module,
    neighbourhoods: Neighbourhoods,
    inputs: Iterable,
    *,
    images: int | None = None,
    keep: int = 2304,
    memory_limit_gb: float = 4.0,
    dtype: torch.dtype = torch.float16,
    adapt: bool = False,
) -> Boundaries:
    """Run the teacher once over `inputs` and keep what passes between its neighbourhoods.

    Args:
        teacher: put into evaluation mode.
        neighbourhoods: from `split`.
        inputs: batches of images, with or without labels; or noise at the boundaries, see `BoundaryNoise`.
        images: stop after this many; None takes all.
        keep: images that stay in memory also where the whole does not fit.
        memory_limit_gb: above it the boundaries are streamed.
        dtype: that they are kept in; float16 holds activations up to 65,504.
        adapt: for inputs unlike those that the teacher was trained on: a copy of the teacher has its BatchNorms
            measured on `inputs` (AdaBN, Li et al. 2016, arXiv 1603.04779) and gives the neighbourhoods' inputs, with
            the mean and variance that real images cause; outputs are the teacher's own answers. Two passes more.

    Raises:
        ValueError: no batch in `inputs`.
        OverflowError: an activation that is not finite in `dtype`.

    >>> import torch
    >>> from nkdlib.networks import resnet
    >>> teacher, images = resnet(8, 10, seed=0).eval(), [torch.randn(64, 3, 16, 16)]
    >>> from nkdlib.neighbourhoods import split
    >>> pieces = split(teacher, ["layer1.0", "layer2.0"], images[0])
    >>> capture(teacher, pieces, images)  # doctest: +ELLIPSIS
    boundaries of 64 images kept in memory, ... MB
    """
    limit, wanted, front = memory_limit_gb * 1e9, sys.maxsize if images is None else images, None
    noise = inputs.boundaries(teacher, neighbourhoods) if hasattr(inputs, "boundaries") else None
    linked = not adapt and noise is None
    if not linked:
        apart = [dataclasses.replace(here, chained=False) for here in neighbourhoods]
        neighbourhoods = Neighbourhoods(apart, neighbourhoods.total)
    # DEVIATION D9: the paper's abstract does not say how synthetic data were made or corrected.
    if adapt and noise is None:
        front = reestimate_batchnorm(deepcopy(teacher), inputs, wanted)
    found, sums = Boundaries(teacher.eval(), neighbourhoods, inputs, front, linked), {}

    def fitting() -> Iterator[Tensor]:
        given = 0
        for batch in first_images(inputs, wanted):
            if given >= min(keep, wanted) and (given + len(batch)) * found.bytes_per_image > limit:
                found.complete = False
                return
            given += len(batch)
            yield batch

    def copy(name: str, tensor: Tensor) -> Tensor:
        tensor = _clone(name, tensor, dtype)
        sums[name] = sums.get(name, 0) + tensor.sum(dtype=torch.float32)
        return tensor

    rows = found.batches(fitting(), copy) if noise is None else answers(neighbourhoods, noise, copy)
    if (first := next(rows, None)) is None:
        raise ValueError("inputs holds no batch; give at least one")
    found.bytes_per_image = sum(t.numel() * t.element_size() / len(t) for t in first.values())
    found.store = Store.collect(itertools.chain([first], rows))
    for name, total in sums.items():  # a finite sum has finite terms, and costs a tenth of looking at each
        if not torch.isfinite(total) and not torch.isfinite(found.store.tensors[name]).all():
            raise OverflowError(
                f"boundary {name!r} is not finite in dtype (={dtype}); use dtype=torch.float32 or bfloat16"
            )
    return found


def repeatable(inputs: Iterable) -> Iterable:
    """Batches that can be gone through again: a tensor (N, ...) is split, an iterator is kept as a list."""
    if isinstance(inputs, Tensor):
        return inputs.split(BATCH)
    return list(inputs) if iter(inputs) is inputs else inputs


def first_batch(inputs: Iterable) -> Tensor:
    """The images of the first batch; ValueError where there is none."""
    for batch in inputs:
        return images_of(batch)
    raise ValueError("inputs holds no batch; give at least one")
