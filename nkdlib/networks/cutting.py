"""Channels that are cut out of a module together, and a trial of what cutting them does.

Nothing is assumed of how a module uses its layers: the trial compares the module that is left with the whole one.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from nkdlib.networks.module import NORMS, copied, device_of, evaluating, in_evaluation, in_training, seeded, tensors_of

NOTHING = "a trial that shows nothing"
TENSORS = ("weight", "bias", "running_mean", "running_var")  # of a layer, an entry a channel each


@dataclass(eq=False)
class ChannelGroup:
    """Channels that stay or go together, and the layers that know them, by submodule path in forward order."""

    size: int
    producers: list[str] = field(default_factory=list)  # convolutions and linear layers that make them
    consumers: list[str] = field(default_factory=list)  # and that read them
    carriers: list[str] = field(default_factory=list)  # depthwise convolutions and BatchNorms, one entry a channel
    passers: list[str] = field(default_factory=list)  # activations and pooling that are called once
    starts: dict[str, list[int]] = field(default_factory=dict)  # first channels in layers that take a concatenation
    inner: bool = True  # can be cut without changing the module's input or output
    tokens: bool = False  # lie in the last dimension, not in dimension 1

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.producers[0]

    def slices(self, path: str) -> list[slice]:
        """Slices of a layer's channels that are this group's: all of them, unless it takes a concatenation."""
        return [slice(start, start + self.size) for start in self.starts.get(path, [0])]


def cut(module: nn.Module, groups: list[ChannelGroup], keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with only some channels of some groups left.

    Args:
        module: the one that `groups` were found in.
        groups: from `channel_groups`.
        keep: for a group's name, the indices (int64) of the channels that stay; other groups stay whole.

    Raises:
        ValueError: a name that is no inner group, no channel left in one, or a layer whose weights are shared with
            another one or computed from others.
    """
    known = {group.name: group for group in groups}
    for name, index in keep.items():
        if name not in known:
            raise ValueError(f"keep names {name!r}, which is no inner channel group; choose from {list(known)}")
        if len(index) == 0:
            raise ValueError(f"keep[{name!r}] is empty; leave at least one channel")
    less = {place: kept for place, kept in stays(module, groups, keep).items() if not kept.all()}
    check_own(module, [path for path, _ in less])
    for path, _ in less:
        layer = module.get_submodule(path)
        own = {None, *layer.parameters(recurse=False), *layer.buffers(recurse=False)}
        if any(getattr(layer, name, None) not in own for name in TENSORS):
            raise ValueError(f"layer {path!r} computes its weight from others; take its parametrization off first")
    slim = copied(module)
    for (path, dim), kept in less.items():
        _slice(slim.get_submodule(path), kept.nonzero()[:, 0], dim)
    return slim


def stays(module: nn.Module, groups: list[ChannelGroup], keep: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """Which channels stay, bool (channels,), by layer and dimension of its weight."""
    found: dict[tuple[str, int], Tensor] = {}
    for group in [group for group in groups if group.name in keep]:
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[torch.as_tensor(keep[group.name]).cpu()] = True
        for dim, paths in enumerate(((*group.producers, *group.carriers), group.consumers)):
            for path in paths:
                whole = torch.ones(_channels(module.get_submodule(path), dim), dtype=torch.bool)
                layer = found.setdefault((path, dim), whole)
                for part in [slice(0, group.size)] if path in group.producers and dim == 0 else group.slices(path):
                    layer[part] = mask
    return found


def check_own(module: nn.Module, paths: Iterable[str]) -> None:
    """Raise ValueError if one of these layers shares a parameter or buffer with another layer."""
    owners: dict[Tensor, list[str]] = {}
    for path, layer in module.named_modules():
        for tensor in {*layer.parameters(recurse=False), *layer.buffers(recurse=False)}:
            owners.setdefault(tensor, []).append(path)
    paths = set(paths)
    for layers in owners.values():
        if len(layers) > 1 and paths.intersection(layers):
            raise ValueError(f"layers {layers[0]!r} and {layers[1]!r} share a weight; give each a copy of its own")


def _channels(layer: nn.Module, dim: int) -> int:
    """How many outputs (dim 0) or inputs (dim 1) a layer has."""
    return layer.num_features if isinstance(layer, NORMS) else layer.weight.shape[dim]


def _slice(layer: nn.Module, index: Tensor, dim: int) -> None:
    """Keep the channels `index` of a layer: its outputs (dim 0) or its inputs (dim 1)."""
    for name in ("weight",) if dim == 1 else TENSORS:
        if (value := getattr(layer, name, None)) is not None:
            last = value.dim() == 4 and not value.is_contiguous()
            kept = value.detach().index_select(dim, index.to(value.device))
            value.data = kept.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if isinstance(layer, NORMS):
        layer.num_features = len(index)
    else:
        unit = "features" if isinstance(layer, nn.Linear) else "channels"
        setattr(layer, f"{('out', 'in')[dim]}_{unit}", len(index))
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # depthwise: carried, one filter a channel
        layer.groups = layer.in_channels = len(index)


class Trial:
    """A comparison of a module with what is left of it when every second channel of some groups is cut out.

    The slim module must give what the whole one gives with these channels set to zero where they are read, on the
    example, or on random numbers if that is constant; and in training mode the shapes that the whole one gives there,
    if it can be run so. Weights that are zero or alike are varied first, since training may show what they hide.
    """

    def __init__(self, module: nn.Module, example: Tensor):
        self.whole, self.x, self.given = module, example, "the example"
        self.read: list[bool] = []  # whether channels to be cut were anything but zero
        tells = not example.is_meta and example.isfinite().all() and (example != example.flatten()[0]).any()
        if example.is_floating_point() and not tells:
            with seeded(device_of(module), 0):
                self.x, self.given = torch.randn_like(example), "random numbers in place of the constant example"

    @cached_property
    def module(self) -> nn.Module:
        """The whole module; if its weights may hide something, a copy with others in their place."""
        if not _hiding(self.whole):
            return self.whole
        module = copied(self.whole)
        with seeded(torch.device("cpu"), 0):
            for tensor in _hiding(module):
                _vary(tensor)
        return module

    @cached_property
    def trained(self) -> list[tuple[int, ...]] | str:
        """Shapes of the whole module's outputs in training mode, or its error."""
        return self._train(copied(self.module))

    def _train(self, module: nn.Module) -> list[tuple[int, ...]] | str:
        try:
            return [tuple(each.shape) for each in self._run(in_training(module), 2)]  # BatchNorm needs two
        except Exception as error:  # a layer may raise anything on another shape
            return str(error).partition("\n")[0]

    def _run(self, module: nn.Module, times: int = 1) -> list[Tensor]:
        with seeded(device_of(module), 1):
            return tensors_of(module(torch.cat([self.x] * times)))

    def fault(self, groups: list[ChannelGroup]) -> str:
        """What goes wrong without these channels; empty if nothing does."""
        fault, x = self._fault(groups), self.x
        scales = (-8, 1e3, -1e5) if fault.startswith(NOTHING) and x.is_floating_point() else ()
        for scale in scales:  # which passes where ReLU and biases let nothing pass
            self.x = scale * x
            if not self._fault(groups):
                return ""
        self.x = x
        return fault

    @torch.no_grad()
    def _fault(self, groups: list[ChannelGroup]) -> str:
        keep = {group.name: torch.arange(0, group.size, 2) for group in groups}
        told = False  # whether the outputs tell anything
        try:
            slim = in_evaluation(cut(self.module, groups, keep))
            with evaluating(self.module), ExitStack() as hooks:
                for (path, dim), kept in stays(self.module, groups, keep).items():
                    if dim == 1:
                        layer = self.module.get_submodule(path)
                        hooks.enter_context(
                            layer.register_forward_pre_hook(_masked(kept, channel_dim(layer), self.read))
                        )
                wanted = self._run(self.module)
            for ours, theirs in zip(self._run(slim), wanted, strict=True):
                exact = torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0.0
                near = max(exact, theirs.is_cuda * 2**-11) ** 0.5  # TF32 has ten bits
                finite = torch.zeros(1) if theirs.is_meta else theirs[theirs.isfinite()].abs()
                size = finite.max().item() if finite.numel() else 0.0
                told |= size > 0 or theirs.is_meta or not theirs.is_floating_point()
                torch.testing.assert_close(ours, theirs, rtol=near, atol=near * size, equal_nan=True)
            if not (told and any(self.read)):
                why = "all channels are zero" if told else "all outputs are zero or not finite"
                return f"{NOTHING}: {why} for {self.given}; give an example of typical inputs that differ"
            trained = self._train(slim)
            if trained != [(2 * len(self.x), *each.shape[1:]) for each in wanted] and trained != self.trained:
                return f"training reads these channels elsewhere and gives {trained} instead of {self.trained}"
        except AssertionError:
            return "another output without these channels, which a layer, hook or value elsewhere reads or mixes"
        except Exception as error:
            return str(error).partition("\n")[0]
        return ""


def _hiding(module: nn.Module) -> list[Tensor]:
    """Weights and variances that may hide what they scale, or who reads them; what is added to values hides nothing."""
    named = [pair for layer in module.modules() for pair in layer.named_parameters(recurse=False)]
    norms = [layer for layer in module.modules() if isinstance(layer, NORMS)]
    named += [pair for norm in norms for pair in norm.named_buffers(recurse=False)]
    return [*dict.fromkeys(value for name, value in named if not name.endswith(("bias", "mean")) and _hides(value))]


@torch.no_grad()
def _hides(value: Tensor) -> bool:
    """Whether a tensor has a row of zeros, or is the same throughout."""
    if value.is_meta or not value.is_floating_point() or not value.numel():
        return False
    rows = value.abs().flatten(1).amax(1) if value.dim() > 1 else value.abs()
    alike = value.numel() > 1 and rows.min() == rows.max() and (value == value.flatten()[0]).all()
    return bool(alike or not rows.all())


@torch.no_grad()
def _vary(tensor: Tensor) -> None:
    """Scale a tensor along its first two dimensions by random factors around 1, and put numbers in place of zeros."""
    noise = torch.ones(())
    for dim in range(min(tensor.dim(), 2)):
        noise = noise + (torch.rand(tensor.shape[dim]) - 0.5).view(-1, *(1,) * (tensor.dim() - 1 - dim))
    noise, zero = noise.to(tensor), tensor == 0
    tensor.mul_((1 + noise) / 2).add_(zero * noise / (tensor[0].numel() if tensor.dim() else 1) ** 0.5)


def channel_dim(layer: nn.Module) -> int:
    """The dimension of a layer's channels in what it takes and gives: of a linear layer the last, else 1."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _masked(kept: Tensor, dim: int, read: list[bool]) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """A hook that sets all other channels of a layer's input to zero, and notes if that tells anything."""

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        shape = [1] * inputs[0].dim()
        shape[dim] = len(kept)
        masked = inputs[0] * kept.view(shape).to(inputs[0])
        read.append(masked.is_meta or bool(kept.all()) or not masked.equal(inputs[0]))
        return (masked,)

    return hook
