"""What flows between a teacher's neighbourhoods, captured in one forward pass for all of them.

Boundaries are kept in memory when they fit and computed again from the images when not; the teacher's front part is
never run once per neighbourhood.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.split import Neighbourhood, Neighbourhoods
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.evaluate import device_of
from nkdlib.training.store import Shelf, Store, images_of

Copy = Callable[[str, Tensor], Tensor]  # of a boundary, by its name


class _Seen(Exception):
    """The last boundary has been captured; the rest of the teacher need not run."""


def _clone(_: str, tensor: Tensor) -> Tensor:
    """A copy, maps with channels last, as a store gives them."""
    return tensor.clone(memory_format=torch.channels_last if tensor.dim() == 4 else torch.preserve_format)


@contextmanager
def taps(
    model: nn.Module, neighbourhoods: Neighbourhoods, copy: Copy = _clone, linked: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Within it, every forward pass fills the dict with `NAME:x` and `NAME:y`, the inputs and outputs.

    Tensors are copies: a layer that works in place cannot change them later. An input that is the output of the
    neighbourhood before it is not copied again. Where inputs and outputs are not `linked`, the model gives the inputs
    and the neighbourhoods' own modules the outputs.
    """
    row: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        row[name] = copy(name, tensor.detach())

    handles, end = [], neighbourhoods[-1]
    if not linked:
        for here in neighbourhoods:

            def ask(_: nn.Module, inputs: tuple[Tensor], here: Neighbourhood = here) -> None:
                keep(f"{here.name}:x", inputs[0])
                keep(f"{here.name}:y", here.module(inputs[0].clone()))
                if here is end:
                    raise _Seen

            handles.append(model.get_submodule(here.paths[0]).register_forward_pre_hook(ask))
        neighbourhoods = ()
    for before, here in zip((None, *neighbourhoods), neighbourhoods, strict=False):
        first, last = (model.get_submodule(path) for path in (here.paths[0], here.paths[-1]))
        if not here.chained or before is None:
            handles.append(
                first.register_forward_pre_hook(lambda _, inputs, name=here.name: keep(f"{name}:x", inputs[0]))
            )
        final = here is end

        def after(_: nn.Module, __: tuple, output: Tensor, name: str = here.name, final: bool = final) -> None:
            keep(f"{name}:y", output)
            if final:
                raise _Seen

        handles.append(last.register_forward_hook(after))
    try:
        yield row
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def boundary_rows(
    model: nn.Module, neighbourhoods: Neighbourhoods, inputs: Iterable, copy: Copy = _clone, linked: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Run the model over batches of images; for each, copies of the boundaries by name, on the model's device."""
    model, device = model.eval(), device_of(model)
    with taps(model, neighbourhoods, copy, linked) as row:
        for batch in inputs:
            row.clear()
            try:
                model(images_of(batch).to(device))
            except _Seen:
                yield dict(row)
            else:
                raise ValueError(
                    f"neighbourhood {neighbourhoods[-1].name!r} was not run for a batch of shape "
                    f"{tuple(images_of(batch).shape)}; split the model with inputs like those it is used with"
                )


@torch.no_grad()
def answers(
    neighbourhoods: Neighbourhoods, drawn: Iterable[Mapping[str, Tensor]], copy: Copy
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
    store: Store = field(repr=False)  # all images, or the first ones where they are streamed
    complete: bool  # all boundaries are in memory
    bytes_per_image: float
    front: nn.Module | None = field(default=None, repr=False)  # gives the inputs where it is not the teacher
    linked: bool = True  # an input is the output of the neighbourhood before it

    def of(self, name: str) -> Store:
        """Inputs x and outputs y of one neighbourhood, for the images in memory."""
        index = self.neighbourhoods.names.index(name)
        here = self.neighbourhoods[index]
        x = f"{self.neighbourhoods[index - 1].name}:y" if here.chained else f"{name}:x"
        tensors = {"x": self.store.tensors[x], "y": self.store.tensors[f"{name}:y"]}
        maps = {short for short, long in (("x", x), ("y", f"{name}:y")) if long in self.store.images}
        return Store(tensors, frozenset(maps))

    def rows(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """One pass of the teacher over the inputs: for each batch, (x, y) by neighbourhood."""
        model = self.front or self.teacher
        for row in boundary_rows(model, self.neighbourhoods, self.inputs, linked=self.linked):
            pairs, before = {}, None
            for here in self.neighbourhoods:
                x = row[f"{before}:y"] if here.chained else row[f"{here.name}:x"]
                pairs[here.name] = (x, row[f"{here.name}:y"])
                before = here.name
            yield pairs

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

    With `adapt`, for inputs unlike those that the teacher was trained on: a copy of the teacher has its BatchNorms
    measured on `inputs` (AdaBN, Li et al. 2016, arXiv 1603.04779) and gives the neighbourhoods' inputs, so that every
    BatchNorm's output there has the mean and variance that real images cause; the outputs are the teacher's own
    answers to them. Two passes more.

    Args:
        teacher: put into evaluation mode.
        neighbourhoods: from `split`.
        inputs: batches of images, with or without labels; or noise at the boundaries, see `BoundaryNoise`.
        images: stop after this many; None takes all.
        keep: images that stay in memory also where the whole does not fit.
        memory_limit_gb: above it the boundaries are streamed.
        dtype: that they are kept in; float16 holds activations up to 65,504.
        adapt: see above.

    Raises:
        ValueError: no batch in `inputs`.
        OverflowError: an activation that is not finite in `dtype`.
    """
    shelf, sums, complete, per_image, front = Shelf(dtype), {}, True, 0.0, None
    drawn = inputs.boundaries(teacher, neighbourhoods) if hasattr(inputs, "boundaries") else None
    linked = not adapt and drawn is None
    if not linked:
        apart = [dataclasses.replace(here, chained=False) for here in neighbourhoods]
        neighbourhoods = Neighbourhoods(apart, neighbourhoods.total)
    # DEVIATION D9: the paper's abstract does not say how synthetic data were made or corrected.
    if adapt and drawn is None:
        front = reestimate_batchnorm(deepcopy(teacher), inputs, images or sys.maxsize)

    def fitting() -> Iterator[Tensor]:
        nonlocal complete
        for batch in first_images(inputs, images) if images is not None else map(images_of, inputs):
            over = (shelf.filled + len(batch)) * per_image > memory_limit_gb * 1e9
            if over and shelf.filled >= min(keep, images or keep):
                complete = False
                return
            yield batch

    if drawn is not None:
        teacher.eval()
        rows = answers(neighbourhoods, drawn, shelf.put)
    else:
        rows = boundary_rows(front or teacher, neighbourhoods, fitting(), shelf.put, linked)
    for row in rows:
        if not shelf.filled:
            size = shelf.coming
            per_image = sum(t.numel() * t.element_size() for t in row.values()) / size
            expected = len(inputs) * size if isinstance(inputs, Sized) else size
            fit = max(int(memory_limit_gb * 1e9 / per_image), keep + size)
            shelf.reserve(min(expected, images or expected, fit))
        for name, kept in row.items():
            sums[name] = sums.get(name, 0) + kept.sum(dtype=torch.float32)
        shelf.advance()
    store = shelf.store()
    for name, total in sums.items():  # a finite sum has finite terms, and costs a tenth of looking at each
        if not torch.isfinite(total) and not torch.isfinite(store.tensors[name]).all():
            raise OverflowError(
                f"boundary {name!r} is not finite in dtype (={dtype}); use dtype=torch.float32 or bfloat16"
            )
    return Boundaries(teacher, neighbourhoods, inputs, store, complete, per_image, front, linked)


def first_images(inputs: Iterable, images: int) -> Iterator[Tensor]:
    """The first `images` images, batch by batch."""
    left = images
    for batch in inputs:
        x = images_of(batch)[:left]
        left -= len(x)
        if len(x):
            yield x
        if left <= 0:
            return
