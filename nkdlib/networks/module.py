"""Small helpers for any module: its device, its mode, its random numbers, fresh weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it a module is in evaluation mode; afterwards each of its parts has the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.train(mode)  # its own method: a module may do more than set the flag


def device_of(model: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer lies; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Within it, what torch draws on a device comes from `seed`; afterwards its generator is as it was."""
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
