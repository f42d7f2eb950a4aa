"""Data-parallel training under torchrun, and checkpoints from which the same call resumes.

One process of a training without torchrun is a group of one: every function here works there as well.
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nkdlib.tasks.checks import check_number, usable_device
from nkdlib.tasks.places import write_atomically

LOG_EVERY = 50  # steps between two lines of metrics.jsonl


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yields the device of this process.

    Raises:
        ValueError: no device of this machine.

    >>> with process_group("cpu") as device:
    ...     device, rank_and_size()
    (device(type='cpu'), (0, 1))
    """
    own = usable_device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(own)
    launched = dist.is_torchelastic_launched() and not dist.is_initialized()
    if launched:
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield own
    finally:
        if launched:
            dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Number of this process, from 0, and how many processes there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def data_parallel(model: nn.Module) -> nn.Module:
    """A model in DistributedDataParallel, which averages gradients over processes; as it is in a group of one.

    BatchNorm normalizes within a process, and the running statistics of the first process are the model's.
    """
    return DistributedDataParallel(model) if rank_and_size()[1] > 1 else model


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    size = rank_and_size()[1]
    if size == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / size


def gather(values: list) -> list:
    """The values of all processes in one list."""
    lists = [values] * rank_and_size()[1]
    if len(lists) > 1:
        dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


class Checkpoints:
    """States of a training's stages in a folder, written and read by the first of the processes that share it.

    Args:
        folder: for `<stage>.pt` and metrics.jsonl; only the first process needs to see it.
        every_s: seconds between checkpoints; 0 writes one every step.
        settings: plain values that must be the same in a resumed training.

    Raises:
        ValueError: the folder holds a training with other settings, or a damaged file.
    """

    def __init__(self, folder: str | Path, every_s: float = 600.0, settings: Mapping[str, object] | None = None):
        check_number("every_s", every_s, 0)
        self.folder, self.every_s, self.settings = Path(folder), every_s, dict(settings or {})
        self._first, self._written = rank_and_size()[0] == 0, time.monotonic()
        found: list[dict] = [{}]
        if self._first:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths = self.folder.glob("*.pt")
            found = [{path.stem: _read_checkpoint(path) for path in paths}]
        if rank_and_size()[1] > 1:
            dist.broadcast_object_list(found)
        self._found = found[0]
        for stage in self._found.values():
            check_same(self.settings, stage["settings"], f"the training in {folder}")

    @property
    def start(self) -> int:
        """Steps of all stages that were done when this process began: training goes on with the batch of this step."""
        return sum(stage["step"] for stage in self._found.values())

    def load(self, stage: str) -> dict | None:
        """The state of a stage when this process began, or None."""
        return self._found[stage]["state"] if stage in self._found else None

    def save(
        self, stage: str, step: int, steps: int, state: Callable[[], dict], metrics: Mapping[str, float | Tensor]
    ) -> None:
        """Log the metrics of a finished `step` of `steps`, and write the state, each if it is time."""
        if not self._first:
            return
        if step % LOG_EVERY == 0 or step == steps:
            row = {name: float(value) for name, value in metrics.items()}
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row | {"stage": stage, "step": step, "time": time.time()}) + "\n")
        if step == steps or time.monotonic() - self._written >= self.every_s:
            content = io.BytesIO()
            torch.save({"step": step, "settings": self.settings, "state": state()}, content)
            write_atomically(self.folder / f"{stage}.pt", content.getvalue())
            self._written = time.monotonic()


def check_same(settings: Mapping[str, object], before: Mapping[str, object], what: str) -> None:
    """Raise ValueError for a setting that was another one when something that is resumed began."""
    for name, was in before.items():
        if settings.get(name) != was:
            raise ValueError(
                f"{name} (={settings.get(name)}) was {was} when {what} began; give that again, or choose another folder"
            )


def _read_checkpoint(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, without the file's name
        raise ValueError(f"{path} is damaged or no checkpoint; remove it to begin its stage anew") from error
