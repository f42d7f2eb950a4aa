"""Latencies of a library's modules, taken together and kept."""

import copy
import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nkdlib.models.latency import Latency, latencies
from nkdlib.runtime.cache import Cache, Task
from nkdlib.runtime.executors import make_executor
from nkdlib.runtime.keys import fingerprint
from nkdlib.runtime.provenance import provenance


@dataclasses.dataclass(frozen=True)
class Timing:
    """How latencies are taken."""

    threads: int = 1
    batch: int = 1  # images of one forward pass
    repeats: int = 50  # timed passes
    channels_last: bool = False


def time_together(cache: Cache, modules: Iterable[tuple[nn.Module, Tensor]], timing: Timing) -> list[Latency]:
    """Latencies of (module, example of one image), measured in this process; equal shapes are timed once."""
    modules = list(modules)
    blanks = [(_blank(module), (timing.batch, *example.shape[1:])) for module, example in modules]
    keys = [(fingerprint(module), shape) for module, shape in blanks]
    different = dict(zip(keys, blanks, strict=True))
    kwargs = {"modules": list(different.values()), "timing": timing, "device": str(modules[0][1].device)}
    kwargs["hardware"] = provenance({})["hardware"]["cpu"]
    task = Task(time_modules, kwargs, f"{len(different)} modules")
    (artefact,) = cache.run([task], make_executor(threads=timing.threads), "measuring latencies")
    found = dict(zip(different, artefact.info["latencies"], strict=True))
    return [Latency(**found[key]) for key in keys]


def time_modules(
    modules: list[tuple[nn.Module, tuple[int, ...]]], timing: Timing, hardware: str, device: str
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Latencies of modules, each on inputs of a shape (B, ...); a task for the cache."""
    layout, models = torch.channels_last if timing.channels_last else torch.contiguous_format, []
    for module, shape in modules:
        example = torch.randn(shape, device=device)
        example = example.contiguous(memory_format=layout) if example.dim() == 4 else example
        models.append((copy.deepcopy(module).to(memory_format=layout), example))
    return {}, {"latencies": [dataclasses.asdict(found) for found in latencies(models, timing.repeats, hardware)]}


@torch.no_grad()
def _blank(module: nn.Module) -> nn.Module:
    """A module with weights of zero, so that those of equal shapes are alike; zeros take no longer than others."""
    module = copy.deepcopy(module)
    for value in module.state_dict().values():
        value.zero_()
    return module
