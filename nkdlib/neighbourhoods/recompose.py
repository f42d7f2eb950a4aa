"""Put student neighbourhoods in the teacher's place."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nkdlib.neighbourhoods.split import resolve


def recompose(teacher: nn.Module, students: Mapping[str, nn.Module]) -> nn.Module:
    """A network with student neighbourhoods in the teacher's place.

    Args:
        teacher: copied, not changed.
        students: by neighbourhood name, as for `split`; used as they are, not copied. In a run of children the
            first place takes the student and the others an identity.

    Returns:
        A plain network of the teacher's class, in evaluation mode.

    Raises:
        ValueError: names that do not exist or overlap.

    >>> from nkdlib.models import resnet
    >>> teacher = resnet(8, 10, seed=0)
    >>> network = recompose(teacher, {"layer1.0": nn.Identity()})
    >>> network.layer1[0], teacher.layer1[0].conv1.in_channels
    (Identity(), 16)
    """
    paths = resolve(teacher, list(students))
    replaced = [teacher.get_submodule(path) for members in paths.values() for path in members]
    network = copy.deepcopy(teacher, {id(module): module for module in replaced})  # do not copy what goes away
    for name, (first, *others) in paths.items():
        network.set_submodule(first, students[name])
        for path in others:
            network.set_submodule(path, nn.Identity())
    return network.eval()


class _Noisy(nn.Module):
    def __init__(self, module: nn.Module, relative: float, seed: int):
        super().__init__()
        self.module, self.relative, self.seed = module, relative, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def forward(self, x: Tensor) -> Tensor:
        h = self.module(x)
        if h.device not in self.generators:
            self.generators[h.device] = torch.Generator(h.device).manual_seed(self.seed)
        noise = torch.randn(h.shape, generator=self.generators[h.device], device=h.device)
        variance = (h - h.mean(0)).square().mean()  # of the batch: large ones give a fair estimate
        return h + noise * self.relative * variance.sqrt()


def perturb(teacher: nn.Module, relative: Mapping[str, float], *, seed: int) -> nn.Module:
    """The teacher with white noise added to the outputs of neighbourhoods.

    Args:
        teacher: copied, not changed.
        relative: by neighbourhood name, the noise's standard deviation over that of the output; its square is the
            local error of a student whose mistakes are white.
        seed: of the noise.

    >>> import torch
    >>> from nkdlib.models import resnet
    >>> perturb(resnet(8, 10, seed=0), {"layer1.0": 0.2}, seed=0)(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 10])
    """
    paths = resolve(teacher, list(relative))
    network = copy.deepcopy(teacher)
    for index, (name, members) in enumerate(paths.items()):
        last = members[-1]
        noisy = _Noisy(network.get_submodule(last), relative[name], seed * 1_000 + index)
        network.set_submodule(last, noisy)
    return network.eval()
