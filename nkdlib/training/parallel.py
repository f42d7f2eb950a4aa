"""One training in several processes: who takes which part of a batch, and how it goes on after it was cut off."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

NOTED = 50  # steps between two lines of metrics


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Within it this process is one of those that torchrun started, if it did; yields the device of this one.

    Raises:
        ValueError: a device that is not there.

    >>> with joined("cpu") as device:
    ...     device
    device(type='cpu')
    """
    here = torch.device(device)
    if here.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device (={device}) is not there; choose cpu")
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(here)
    joins = dist.is_torchelastic_launched() and not dist.is_initialized()
    if joins:
        store, rank, size = next(rendezvous("env://"))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torch 2.14 keeps it over restarts of one node,
            store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)  # with addresses of the dead
        gpu = here.type == "cuda"
        about = {"store": store, "rank": rank, "world_size": size, "device_id": here if gpu else None}
        dist.init_process_group("nccl" if gpu else "gloo", **about)
    try:
        yield here
    finally:
        if joins:
            dist.destroy_process_group()


class Parallel:
    """How processes share one training, and where it is kept; one process shares it with itself.

    The batch of a step consists of `parts`, of which each process takes its share, one after the other. Gradients,
    losses and BatchNorm's running statistics are averaged over all parts, and BatchNorm normalizes within one. So a
    step depends on how its batch is divided, not on the number of processes, up to the order of float32 sums.

    All gradients go through one all-reduce behind the backward pass. DistributedDataParallel would hide it in the
    backward pass, of which networks of 4M parameters (15 MB) have little to gain, and knows no gates' log-odds. A
    parameter has to get a gradient in all processes or in none.

    Args:
        parts: of a step's batch, over all processes.
        folder: where the first process keeps checkpoints and metrics.jsonl; None keeps nothing.
        every_s: seconds from one checkpoint to the next; 0 keeps every step.
        settings: plain values that must not change when a training goes on.

    Raises:
        ValueError: parts that the processes cannot share evenly, a checkpoint made with other settings.

    >>> parallel = Parallel(parts=4)
    >>> parallel.rank, parallel.size, parallel.own, parallel.start
    (0, 1, range(0, 4), 0)
    """

    def __init__(
        self,
        parts: int = 1,
        *,
        folder: str | Path | None = None,
        every_s: float = 600.0,
        settings: dict[str, object] | None = None,
    ):
        together = dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        if parts < 1 or parts % self.size:
            raise ValueError(f"parts (={parts}) of a batch must be a multiple of the {self.size} processes")
        share = parts // self.size
        self.parts, self.own = parts, range(self.rank * share, (self.rank + 1) * share)
        self.every_s, self.settings = every_s, settings or {}
        self.folder, self._kept = folder and Path(folder), time.monotonic()
        saved: list[dict] = [{}]
        if self.folder and not self.rank:
            self.folder.mkdir(parents=True, exist_ok=True)
            saved = [{path.stem: torch.load(path, map_location="cpu") for path in self.folder.glob("*.pt")}]
        if together:  # other machines may not see the folder
            dist.broadcast_object_list(saved)
        self._saved = saved[0]
        for stage in self._saved.values():
            for name, was in stage["settings"].items():
                if self.settings.get(name) != was:
                    raise ValueError(
                        f"{name} (={self.settings.get(name)}) was {was} when the training in {folder} began; give that "
                        "again, or another folder"
                    )

    @property
    def start(self) -> int:
        """Steps that were done, in all stages, when this process began: their batches are not to be given again."""
        return sum(stage["step"] for stage in self._saved.values())

    def saved(self, stage: str) -> dict | None:
        """What `keep` was given for a stage before this process began."""
        return self._saved[stage]["state"] if stage in self._saved else None

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the mean over processes, in place."""
        tensors = list(tensors)
        if self.size > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            for tensor, mean in zip(tensors, flat.div_(self.size).split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, values: list) -> list:
        """The values of all processes."""
        everyone = [values]
        if self.size > 1:
            everyone = [None] * self.size
            dist.all_gather_object(everyone, values)
        return list(itertools.chain(*everyone))

    def keep(
        self, stage: str, step: int, steps: int, state: Callable[[], dict], numbers: Mapping[str, float | Tensor]
    ) -> None:
        """After `step` of `steps` steps of a stage: note numbers now and then, and its state where it is time."""
        if self.rank or not self.folder:
            return
        if step % NOTED == 0 or step == steps:
            line = {name: float(value) for name, value in numbers.items()}
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line | {"stage": stage, "step": step, "time": time.time()}) + "\n")
        if step == steps or time.monotonic() - self._kept >= self.every_s:
            part = self.folder / f"{stage}.part"
            with part.open("wb") as file:
                torch.save({"step": step, "settings": self.settings, "state": state()}, file)
                file.flush()
                os.fsync(file.fileno())
            part.rename(self.folder / f"{stage}.pt")
            self._kept = time.monotonic()
