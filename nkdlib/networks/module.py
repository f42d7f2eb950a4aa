"""Helpers for any module: its device, its mode, its random numbers, fresh weights."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType

import torch
from torch import Tensor, nn

INSIDE = {  # by class, what a wrapper calls the network
    **dict.fromkeys(("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"), "module"),
    "OptimizedModule": "_orig_mod",
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for the block; each of its parts then gets its own mode back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.train(mode)  # its own method: a module may do more than set the flag


def in_evaluation(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode and return it, also one whose own `train` returns nothing."""
    module.eval()
    return module


def in_training(module: nn.Module) -> nn.Module:
    """Put a module into training mode and return it, as `in_evaluation`."""
    module.train()
    return module


class _Gone(nn.Module):
    """Stands in a copy wherever a part that was left out is held, such as in a plain list, and cannot be run."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, *inputs: object, **named: object) -> None:
        raise ValueError(
            f"{self.path!r} was replaced, but the network runs it by another attribute too (a list, a function); let "
            "it hold the module under one name"
        )


def copied(module: nn.Module, without: Iterable[str] = ()) -> nn.Module:
    """A deep copy, also of a module whose hooks leave computed weights with their graph (pruning, spectral norm).

    The parts at the paths `without` are not copied, and the copy cannot run them. Raises ValueError for a forward
    method or hook that holds a part of the original, since a copy would run that.
    """
    own = {id(each) for part in module.modules() for each in (part, *part.parameters(recurse=False))}
    for path, part in module.named_modules():
        hooks = [hook for name in ("_forward_hooks", "_forward_pre_hooks") for hook in getattr(part, name).values()]
        for function in [f for f in (vars(part).get("forward"), *hooks) if isinstance(f, FunctionType)]:
            held = [*inspect.getclosurevars(function).nonlocals.values(), *(function.__defaults__ or ())]
            if not own.isdisjoint(map(id, held)):
                raise ValueError(
                    f"layer {path!r} has a function ({function.__name__}) that holds a part of the network itself, so "
                    "that a copy would run the original; use a method, or what the function is given"
                )
    values = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach().clone() for value in values if not value.is_leaf}
    return copy.deepcopy(module, memo | {id(module.get_submodule(path)): _Gone(path) for path in without})


def state_of(module: nn.Module) -> dict[str, object]:
    """A module's `state_dict`, and by their names the buffers that it leaves out (`persistent=False`)."""
    state, buffers = module.state_dict(), module.named_buffers(remove_duplicate=False)
    return state | {name: value.detach() for name, value in buffers if name not in state}


def load_state(module: nn.Module, state: Mapping[str, object]) -> None:
    """Give a module copies of what `state_of` found in one of the same layers."""
    rest, own = dict(state), module.state_dict().keys()
    for name in state.keys() - own:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:
            value, held = rest.pop(name).to(device_of(module), copy=True), owner._buffers[leaf]
            if held is None:
                setattr(owner, leaf, value)
            else:
                held.data = value  # may be of another shape, and under several names
    module.load_state_dict(rest)


def tensors_of(value: object) -> list[Tensor]:
    """The tensors in a module's output, also in attributes of an object; ValueError if there are none to compare."""
    if found := list(_tensors_in(value, [])):
        return found
    raise ValueError(
        f"an output of type {type(value).__name__} holds no tensor that could be compared; wrap the network so that it "
        "returns a tensor, or a dict, list or tuple of them"
    )


def _tensors_in(value: object, around: list) -> Iterator[Tensor]:
    """Tensors in a value that others are around; one that holds itself is gone through once."""
    if isinstance(value, Tensor):
        yield value
    elif not any(value is other for other in around):
        held = value if isinstance(value, Mapping | list | tuple) else getattr(value, "__dict__", ())  # of a dataclass
        for part in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors_in(part, [*around, value])


def device_of(model: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def check_plain(module: nn.Module, called: str = "module") -> None:
    """Raise ValueError for modules that run copies or compiled code instead of their parts."""
    for path, part in module.named_modules():
        compiled = isinstance(part, torch.jit.ScriptModule)
        if inside := "original" if compiled else INSIDE.get(type(part).__name__):
            inside = inside if compiled else repr(f"{path}.{inside}".removeprefix("."))
            kinds = type(module).__name__, type(part).__name__
            raise ValueError(f"{called} (={kinds[0]}) wraps a network in {kinds[1]}; give its {inside} instead")


def check_example(example: Tensor, called: str = "example") -> None:
    """Raise an error unless an example is one tensor that holds at least one input."""
    if not isinstance(example, Tensor):
        raise TypeError(
            f"{called} (a {type(example).__name__}) must be one tensor (B, ...); wrap a network that takes more in a "
            "module that takes one tensor"
        )
    if not example.dim() or not len(example):
        raise ValueError(f"{called} (={tuple(example.shape)}) must hold at least one input")


def check_float32(module: nn.Module, called: str) -> None:
    """Raise ValueError for weights of another type than float32."""
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{called} holds {name!r} in {str(parameter.dtype).removeprefix('torch.')}, but training and closed "
                f"forms are in float32; give {called}.float(), or a copy of it"
            )


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw torch's random numbers on a device from `seed` for the block; its generator's state is then put back."""
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def reset(module: nn.Module, seed: int) -> nn.Module:
    """A copy with new random weights, by each layer's own `reset_parameters`; others (a class token) stay.

    A parametrized weight gets what a plain one would be drawn. Raises ValueError for one that this does not reach.

    >>> layer = nn.Linear(2, 2)
    >>> reset(layer, seed=0).weight.equal(reset(layer, seed=0).weight), reset(layer, seed=0).weight.equal(layer.weight)
    (True, False)
    """
    fresh = copied(module)
    with seeded(device_of(fresh), seed), torch.no_grad():
        for path, layer in fresh.named_modules():
            if again := getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None):
                for name in [name for name, value in vars(layer).items() if isinstance(value, Tensor)]:
                    if layer._forward_pre_hooks and any(own.startswith(f"{name}_") for own in layer._parameters):
                        raise _unreached(path, name)  # a hook computes it
                _redraw(path, layer) if nn.utils.parametrize.is_parametrized(layer) else again()
    return fresh


def _redraw(path: str, layer: nn.Module) -> None:
    """Reset a layer of which parametrizations compute weights, through them."""
    plain, held = copied(layer), layer.parametrizations
    plain.__class__ = type(layer).__base__  # to take them off a copy would take them off the original's class too
    del plain.parametrizations
    for name in held:
        setattr(plain, name, nn.Parameter(getattr(layer, name).clone(), requires_grad=False))
    (getattr(plain, "reset_parameters", None) or plain._reset_parameters)()
    drawn = state_of(plain)
    for name, parametrization in held.items():
        before, wanted = getattr(layer, name).clone(), drawn.pop(name)
        try:
            setattr(layer, name, wanted)
        except (RuntimeError, ValueError) as error:
            raise _unreached(path, name) from error
        parametrization.train()
        for _ in range(15):  # spectral normalization finds the norm step by step, in training; torch begins with 15
            now = getattr(layer, name)
        parametrization.train(layer.training)
        if now.equal(before) and not now.equal(wanted):
            raise _unreached(path, name)
    load_state(layer, state_of(layer) | drawn)


def _unreached(path: str, name: str) -> ValueError:
    return ValueError(
        f"layer {path!r} computes its {name} (spectral or weight normalization, pruning), which new random weights do "
        "not reach; use torch.nn.utils.parametrizations, whose weights can be set, or remove it before and put it back "
        "afterwards, or use start='given' or 'copied'"
    )
