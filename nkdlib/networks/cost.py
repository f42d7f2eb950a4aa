"""Parameters and multiply-accumulates, counted by torch's own operator counter.

One MAC is one fused multiply-add, for which torch's FlopCounterMode counts two operations, in convolutions, matrix
products and attention alone, as torchvision does in its published counts (called GFLOPS there).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nkdlib.networks.module import evaluating


@dataclass(frozen=True)
class Cost:
    """What a network costs: learnable parameters, and MACs of one example's forward pass."""

    params: int
    macs: int


def count_params(model: nn.Module) -> int:
    """Learnable numbers of a module, shared ones counted once.

    >>> count_params(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def cost(model: nn.Module, example: Tensor) -> Cost:
    """Parameters, and MACs per example.

    Args:
        model: any module that takes one tensor; its mode is put back.
        example: (B, ...), of which only the shape, type and device matter.

    >>> cost(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10))
    Cost(params=224, macs=21600)
    """
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention is one operator that the counter does not know
    try:
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    return Cost(count_params(model), counter.get_total_flops() // 2 // len(example))
