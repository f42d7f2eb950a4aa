"""What travels to workers, and what stands for it in a cache's keys."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nkdlib.runtime.cache import Artefact
from nkdlib.runtime.code import reached_code
from nkdlib.training.store import Store

PLAIN = (bool, int, float, str, tuple, type(None))  # settings of a module that its `repr` may not show


@dataclass
class Portable:
    """A module on its way to a worker; its fingerprint covers structure, code, settings and weights."""

    module: nn.Module

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.module).encode())
        for name, part in self.module.named_modules():
            plain = {key: value for key, value in vars(part).items() if isinstance(value, PLAIN) and key != "training"}
            digest.update(repr((name, sorted(plain.items()))).encode())
        digest.update(repr(reached_code(*{type(part) for part in self.module.modules()})).encode())
        trained = [name for name, value in self.module.named_parameters() if value.requires_grad]
        digest.update(repr(trained).encode())
        for name, value in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass
class Known:
    """A value that stands in a key by what determines it, so that the key is there before the value is."""

    fingerprint: str
    value: Store | Tensor | Artefact | None = None
