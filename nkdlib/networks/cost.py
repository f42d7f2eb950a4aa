"""Parameters and multiply-accumulates, counted by torch's own operator counter.

One MAC is one fused multiply-add, for which torch's FlopCounterMode counts two operations, in convolutions, matrix
products and attention alone, as torchvision does in its published counts (called GFLOPS there).
"""

import math
from dataclasses import dataclass

import torch
import torchvision.ops  # noqa: F401, registers its operators
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nkdlib.networks.module import check_example, evaluating

UNKNOWN = {  # to torch's counter: operations by the shapes of an operator's arguments and of its output
    torch.ops.aten.mkldnn_rnn_layer: lambda x, w, u, *_, **__: 2 * math.prod(x[:2]) * (math.prod(w) + math.prod(u)),
    torch.ops.aten._cudnn_rnn: lambda x, weights, *_, **__: (
        2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) > 1)
    ),
    torch.ops.aten.mv: lambda a, _, **__: 2 * math.prod(a),
    torch.ops.aten.addmv: lambda _, a, *__, **___: 2 * math.prod(a),
    torch.ops.aten.dot: lambda a, _, **__: 2 * math.prod(a),
    torch.ops.aten.vdot: lambda a, _, **__: 2 * math.prod(a),
    torch.ops.aten.addbmm: lambda _, a, b, **__: 2 * math.prod(a) * b[-1],
    torch.ops.aten._trilinear: lambda x, w, *_, **__: 2 * x[0] * math.prod(w),  # nn.Bilinear
    torch.ops.torchvision.deform_conv2d: lambda x, w, *_, out_shape, **__: 2 * math.prod(out_shape) * math.prod(w[1:]),
}


@dataclass(frozen=True)
class Cost:
    """A network's learnable parameters, and the MACs of one example's forward pass."""

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
    return Cost(count_params(model), macs_by_module(model, example)[""])


def macs_by_module(model: nn.Module, example: Tensor) -> dict[str, int]:
    """MACs per example of each submodule that has any, by path, those of its parts included; "" is the whole."""
    check_example(example)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False, custom_mapping=UNKNOWN)
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention is one operator that the counter does not know
    try:
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            (whole := _Whole(model))(example.clone())  # it may begin by working in place
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    names = {part: path for path, part in model.named_modules()}  # one for a module that has several
    found, counts = {"": counter.get_total_flops()}, counter.get_flop_counts()
    for path, part in whole.named_modules(remove_duplicate=False):
        if operators := counts.get(f"_Whole.{path}"):  # other names are of layers that the model runs but does not have
            found[names[part]] = sum(operators.values())
    return {path: flops // 2 // len(example) for path, flops in found.items()}


class _Whole(nn.Sequential):
    """Holds a model so that the counter's names of its parts begin like no other module's."""
