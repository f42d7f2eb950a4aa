"""The fewest seconds that a computation can take on a device: each operator's arithmetic or its memory, the slower.

Williams, Waterman and Patterson 2009, "Roofline". Peaks are measured, not read from a data sheet: the best of some
matrix products, and the best of copies of several sizes, so that small tensors may stay in a cache.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


def best_s(run: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Wall seconds of the fastest of several calls."""
    taken = []
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


def peaks(device: str, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """MACs and bytes a second."""
    products, rates = [], []
    for side in (512, 1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        products.append(side**3 / best_s(lambda: a @ b, device))  # noqa: B023
    for megabytes in (0.25, 1, 4, 16, 64, 256):
        source = torch.ones(int(megabytes * 2**18), device=device)
        target = torch.empty_like(source)
        rates.append(2 * 4 * source.numel() / best_s(lambda: target.copy_(source), device))  # noqa: B023
    return max(products), max(rates)


class Roofline(TorchDispatchMode):
    """Within it, `seconds` grows by the floor of every operator, the backward pass' too; views cost nothing."""

    def __init__(self, macs_per_s: float, bytes_per_s: float):
        super().__init__()
        self.macs_per_s, self.bytes_per_s = macs_per_s, bytes_per_s
        self.seconds = self.arithmetic_s = 0.0  # the latter: of operators whose arithmetic is the slower part

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors) / self.bytes_per_s
        count = flop_registry.get(func.overloadpacket)
        computed = count(*args, **(kwargs or {}), out_val=result) / 2 / self.macs_per_s if count else 0.0
        self.seconds += max(computed, moved)
        self.arithmetic_s += computed if computed > moved else 0.0
        return result
