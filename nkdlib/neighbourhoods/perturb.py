"""A teacher whose parts make mistakes of a known size: what an imperfect student does to the whole network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.split import resolve
from nkdlib.networks.module import copied, in_evaluation
from nkdlib.tasks.checks import check_number


class _Noisy(nn.Module):
    def __init__(self, name: str, module: nn.Module, relative: float, seed: int):
        super().__init__()
        self.name, self.module, self.relative, self.seed = name, module, relative, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def forward(self, x: Tensor) -> Tensor:
        h = self.module(x)
        if not isinstance(h, Tensor) or not (h.is_floating_point() or h.is_complex()):
            kind = h.dtype if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"relative holds {self.name!r}, which returns {kind}; name a part that returns one tensor")
        if h.device not in self.generators:
            self.generators[h.device] = torch.Generator(h.device).manual_seed(self.seed)
        noise = torch.randn(h.shape, generator=self.generators[h.device], device=h.device)
        if len(h) < 2:
            raise ValueError("perturb measures the output's deviation over a batch of 2 or more images, it got 1")
        exact = h.to(torch.promote_types(h.dtype, torch.float32))  # large batches give a fair estimate
        return h + (noise * self.relative * exact.var(0).mean().sqrt()).to(h.dtype)


def perturb(teacher: nn.Module, relative: Mapping[str, float], *, seed: int) -> nn.Module:
    """The teacher with white noise added to the outputs of neighbourhoods.

    Args:
        teacher: copied, not changed.
        relative: by neighbourhood name, the noise's standard deviation over that of the output; its square is the
            local error of a student whose mistakes are white.
        seed: of the noise.

    >>> import torch
    >>> from nkdlib.networks import resnet
    >>> perturb(resnet(8, 10, seed=0), {"layer1.0": 0.2}, seed=0)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    paths = resolve(teacher, list(relative))
    for name, size in relative.items():
        check_number(f"relative[{name!r}]", size, 0)
    network = copied(teacher)
    for index, (name, members) in enumerate(paths.items()):
        last = members[-1]
        noisy = _Noisy(name, network.get_submodule(last), relative[name], seed * 1_000 + index)
        network.set_submodule(last, noisy)
    return in_evaluation(network)
