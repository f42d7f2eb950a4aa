"""Least squares of a linear layer: its normal equations, and the weights that meet them.

A layer that reads features z and should give values t has the best weights W = (Z'Z + r)^-1 Z'T, r being a ridge.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Normal:
    """The normal equations of a least-squares problem, sums over all positions and examples, float64."""

    gram: Tensor  # (F, F), the last feature a constant 1 where there is an intercept
    cross: Tensor  # (F, O)
    count: int
    channel_features: int  # features of one channel: kernel height x width
    intercept: bool
    own: Tensor | None = None  # (F, O), weights that the ridge pulls to; to zero where there are none

    def regularized(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The Gram matrix plus `ridge` times its mean diagonal, and the cross term to go with it.

        The intercept is not shrunk.
        """
        features = len(self.gram) - self.intercept
        diagonal = self.gram.diagonal()[:features]
        strength = torch.zeros_like(self.gram.diagonal())
        strength[:features] = ridge * (diagonal.mean() if diagonal.any() else 1.0)
        pull = 0.0 if self.own is None else strength[:, None] * self.own
        return self.gram + torch.diag(strength), self.cross + pull

    def rows_of(self, channels: Tensor) -> Tensor:
        """Positions of these channels' features, and of the intercept."""
        k = self.channel_features
        rows = (channels[:, None] * k + torch.arange(k, device=channels.device)).flatten()
        if self.intercept:
            rows = torch.cat([rows, rows.new_tensor([len(self.gram) - 1])])
        return rows

    def solve(self, ridge: float, channels: Tensor | None = None) -> Tensor:
        """Weights (features of the channels [+ 1], O) that read only these channels."""
        gram, cross = self.regularized(ridge)
        if channels is not None:
            rows = self.rows_of(channels.to(gram.device))
            gram, cross = gram[rows][:, rows], cross[rows]
        return torch.linalg.solve(gram, cross)


@torch.no_grad()
def normal_equations(pairs: Iterable[tuple[Tensor, Tensor]], layer: nn.Module, intercept: bool) -> Normal:
    """Accumulate the normal equations of a layer from (features that it reads, values that it should give)."""
    gram, cross, count = 0.0, 0.0, 0
    for features, target in pairs:
        z, t = columns(features, layer), outputs(target, layer)  # (F, n), (O, n)
        if intercept:
            z = torch.cat([z, z.new_ones(1, z.shape[1])])
        gram, cross, count = gram + (z @ z.T).double(), cross + (z @ t.T).double(), count + z.shape[1]
    return Normal(gram, cross, count, layer.weight[0, 0].numel(), intercept)


def outputs(target: Tensor, layer: nn.Module) -> Tensor:
    """Values of a layer's outputs, one column a position: (O, B L)."""  # a linear layer's lie in the last dimension
    return target.flatten(0, -2).T if isinstance(layer, nn.Linear) else target.transpose(0, 1).flatten(1)


def columns(features: Tensor, layer: nn.Module) -> Tensor:
    """What a layer multiplies its weights with, one column a position: (C k k, B L)."""
    if isinstance(layer, nn.Linear):
        return features.flatten(0, -2).T
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding in ((0, 0), "valid"):
        return features.transpose(0, 1).flatten(1)
    around = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]  # of padding "same"
    around = around if layer.padding == "same" else [0 if layer.padding == "valid" else 2 * p for p in layer.padding]
    sides = [side for both in reversed(around) for side in (both // 2, both - both // 2)]
    features = F.pad(features, sides, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    z = F.unfold(features, layer.kernel_size, layer.dilation, 0, layer.stride)
    return z.transpose(0, 1).flatten(1)
