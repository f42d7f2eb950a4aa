"""Noise drawn at the neighbourhoods' inputs instead of at the network's, fitted to what the teacher remembers.

Our own; Shao et al., arXiv 2010.01189, do not say which synthetic data they use.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nkdlib.data.noise import NoiseImages, field
from nkdlib.neighbourhoods.capture import inputs_within
from nkdlib.neighbourhoods.split import Neighbourhoods
from nkdlib.networks.module import evaluating
from nkdlib.tasks.progress import progress
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.inversion import Memory

POOL = 512  # fields that a fit draws its batches from
ROWS = 256  # examples drawn at once


@dataclass(frozen=True)
class BoundaryNoise:
    """Inputs for `distill` and `solve` that are no images: noise at every neighbourhood's input.

    x = relu(m + sum_k A_k f_k), the rectification only where a boundary is never negative. The f_k are Gaussian fields,
    one a channel, with an amplitude of 1 / frequency^k. m and A_k are fitted by Adam so that the BatchNorms behind the
    boundary see the mean and variance that they remember; without `mixing`, A_k is diagonal: noise matched per channel.
    A fit starts from the moments that `images` cause in a copy of the teacher with BatchNorm measured on them.
    """

    images: NoiseImages
    exponents: tuple[float, ...] = (0.0, 1.0, 2.0)  # of the fields' spectra; 0 is white
    mixing: bool = True
    steps: int = 100  # of the fit of each boundary
    lr: float = 0.03
    batch_size: int = 64  # examples of a step

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def boundaries(self, teacher: nn.Module, neighbourhoods: Neighbourhoods) -> Iterator[dict[str, Tensor]]:
        """Batches of noise by neighbourhood, (B, C, H, W) each; ValueError for one that takes no feature maps."""
        guesses = self._guesses(teacher, neighbourhoods)
        fitted: dict[str, tuple[_Noise, Generator]] = {}
        for place, here in enumerate(progress(neighbourhoods, "fitting noise", unit="boundaries")):
            after = neighbourhoods[place + 1 : place + 2]
            reader = nn.Sequential(here.module, *(part.module for part in after if part.chained))
            generator = Generator().manual_seed(1000 * self.images.seed + place)
            fitted[here.name] = self._fit(guesses[here.name], reader, generator), generator
        for start in range(0, self.images.count, ROWS):
            size = min(ROWS, self.images.count - start)
            with torch.no_grad():
                yield {name: noise(noise.fields(size, generator)) for name, (noise, generator) in fitted.items()}

    def _guesses(self, teacher: nn.Module, neighbourhoods: Neighbourhoods) -> dict[str, "_Noise"]:
        """Noise with the moments and the sign that each boundary has under `images`, channels independent."""
        for here in neighbourhoods:
            if len(here.input_shape) != 3:
                raise ValueError(f"{here.name!r} takes {here.input_shape}; boundary noise is for maps (C, H, W)")
        front = reestimate_batchnorm(deepcopy(teacher), self.images)
        row = next(inputs_within(front, neighbourhoods, self.images))
        return {name: _Noise(x, self.exponents, self.mixing) for name, x in row.items()}

    @torch.enable_grad()
    def _fit(self, noise: "_Noise", reader: nn.Module, generator: Generator) -> "_Noise":
        memory = Memory(reader)
        with evaluating(reader), closing(memory):
            pool, parameters = noise.fields(POOL, generator), list(noise.parameters())
            optimizer = torch.optim.Adam(parameters, self.lr)
            for step in range(self.steps if memory.norms else 0):
                optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
                reader(noise(pool[:, torch.randint(POOL, (self.batch_size,), generator=generator)]))
                gradients = torch.autograd.grad(memory.distance(), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        return noise


class _Noise(nn.Module):
    """x = relu(m + sum_k A_k f_k), started at the moments per channel of x, (B, C, H, W)."""

    def __init__(self, x: Tensor, exponents: tuple[float, ...], mixing: bool):
        super().__init__()
        self.shape, self.exponents, self.rectified = tuple(x.shape[1:]), exponents, bool((x >= 0).all())
        share = x.std((0, 2, 3)) / len(exponents) ** 0.5
        self.mean = nn.Parameter(x.mean((0, 2, 3)))
        self.mix = nn.Parameter(torch.stack([torch.diag(share) if mixing else share for _ in exponents]))

    def fields(self, count: int, generator: Generator) -> Tensor:
        """Gaussian fields of every spectrum, (K, N, C, H, W)."""
        drawn = [field(torch.full((count,), a), self.shape, generator) for a in self.exponents]
        return torch.stack(drawn).to(self.mean.device)

    def forward(self, fields: Tensor) -> Tensor:
        mixed = torch.einsum("koc,knchw->nohw" if self.mix.dim() == 3 else "kc,knchw->nchw", self.mix, fields)
        x = mixed + self.mean[:, None, None]
        return F.relu(x) if self.rectified else x
