"""Helpers for any module: its device, its mode, its random numbers, fresh weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module whose hooks leave computed weights with their graph (pruning, spectral norm)."""
    values = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in values if not value.is_leaf})


def device_of(model: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


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

    >>> layer = nn.Linear(2, 2)
    >>> reset(layer, seed=0).weight.equal(reset(layer, seed=0).weight), reset(layer, seed=0).weight.equal(layer.weight)
    (True, False)
    """
    fresh = copy.deepcopy(module)
    with seeded(device_of(fresh), seed):
        for layer in fresh.modules():
            again = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if again is not None:
                again()
    return fresh
