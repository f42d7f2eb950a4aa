"""Checks of arguments, made where they enter; errors name the argument and its value."""

import math
from numbers import Integral, Real

import torch


def check_number(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise ValueError unless a value is a finite number in a range; `above` and `below` leave out its ends.

    >>> check_number("ema", 1.0, 0, 1, below=True)
    Traceback (most recent call last):
    ...
    ValueError: ema (=1.0) must be a finite number of at least 0 and below 1
    """
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most or (above and value == least) or (below and value == most):
        ends = [f"{'above' if above else 'of at least'} {least:g}"] if least > -math.inf else []
        ends += [f"{'below' if below else 'at most'} {most:g}"] if most < math.inf else []
        said = f"{name} (={value!r}) must be a {'whole' if whole else 'finite'} number {' and '.join(ends)}"
        raise ValueError(said.rstrip())


def check_seed(seed: object) -> None:
    """Raise ValueError for a seed that torch or NumPy would not take."""
    check_number("seed", seed, 0, whole=True)


def usable_device(device: str | torch.device) -> torch.device:
    """The device that a name means; ValueError unless it is the CPU or a GPU of this machine.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")  # any that is refused below
    if found.type != "cpu" and not (found.type == "cuda" and (found.index or 0) < gpus):
        raise ValueError(f"device (={str(device)!r}) must be cpu, cuda or cuda:N; this machine has {gpus} usable GPUs")
    return found
