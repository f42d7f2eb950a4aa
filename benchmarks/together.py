"""Several modules trained in the same steps of one process, on a GPU as one CUDA graph with a stream for each.

Nothing in a step asks the host: its number, the learning rate, the order of examples and the losses stay on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nkdlib.data.images import random_rows
from nkdlib.neighbourhoods.local import step_dtype
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule
from nkdlib.training.kernels import better_kernels, bfloat16_pays
from nkdlib.training.store import Store

WARM_UP = 3  # eager steps before the capture, which count like all others


@dataclass
class Part:
    """A module, the examples that it learns from, its loss on a batch of them, and the seed of their order."""

    module: nn.Module
    store: Store
    loss: Callable[[dict[str, Tensor]], Tensor]
    seed: int


class Together:
    """Train several parts in the same steps, as `distill` and `distill_end_to_end` do one by one.

    Args:
        parts: with parameters of their own, on one device.
        schedule: of all of them; gradients are clipped part by part.
        graph: replay a CUDA graph of the step, with a stream for each part.
    """

    def __init__(self, parts: list[Part], schedule: Schedule, graph: bool = False):
        self.parts, self.schedule, self.graph = parts, schedule, graph
        self.device, steps = parts[0].store.device, schedule.steps
        at_device = partial(torch.zeros, device=self.device)
        self.at, self.lr, self.losses = at_device(1, dtype=torch.int64), at_device(()), at_device(len(parts), steps)
        rates = [schedule.lr * schedule.rate(step) for step in range(steps)]
        self.rates = torch.tensor(rates, device=self.device)
        rows = [random_rows(len(p.store), min(schedule.batch_size, len(p.store)), steps, p.seed) for p in parts]
        self.orders = [torch.stack(list(order)).to(self.device) for order in rows]  # (steps, B)
        self.streams = [torch.cuda.Stream(self.device) if graph else None for _ in parts]
        weights = [weight for part in parts for weight in part.module.train().parameters()]
        options = {"weight_decay": schedule.weight_decay, "fused": True, "capturable": graph}
        self.optimizer = torch.optim.AdamW(weights, self.lr, **options)

    def step(self) -> None:
        """Make one step of every part: forked from the current stream, and joined again before the optimizer."""
        self.lr.copy_(self.rates.index_select(0, self.at).squeeze(0))
        main = torch.cuda.current_stream(self.device) if self.graph else None
        for stream in filter(None, self.streams):
            stream.wait_stream(main)
        for part, order, losses, stream in zip(self.parts, self.orders, self.losses, self.streams, strict=True):
            with torch.cuda.stream(stream):  # no-op for None
                self.learn(part, order, losses)
        for stream in filter(None, self.streams):
            main.wait_stream(stream)
        self.optimizer.step()
        self.at += 1

    def learn(self, part: Part, order: Tensor, losses: Tensor) -> None:
        """Take the part's batch and make its gradients, clipped."""
        part.module.zero_grad()  # to None: a captured backward pass then writes gradients instead of adding to them
        dtype = step_dtype(part.store, self.schedule.amp)
        rows = part.store.take(order.index_select(0, self.at).squeeze(0), dtype)
        enabled = self.schedule.amp and bfloat16_pays(self.device)
        amp = {"enabled": enabled, "cache_enabled": False}  # a cached cast would stay that of the capture
        with better_kernels(part.module):
            with torch.autocast(self.device.type, torch.bfloat16, **amp):
                value = part.loss(rows)
            value.backward()
        nn.utils.clip_grad_norm_(part.module.parameters(), self.schedule.max_grad_norm)
        losses.index_copy_(0, self.at, value.detach().reshape(1))

    def run(self) -> float:
        """Make all steps; return the milliseconds of one of those after the warm-up and the capture."""
        stream, step = None, self.step
        if self.graph:  # AccumulateGrad must meet no default stream, neither in the warm-up
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step()
            if self.graph:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    self.step()  # recorded, not run
                step = graph.replay
            with Stopwatch(self.device) as watch:  # at its end it waits for the device
                for _ in range(self.schedule.steps - WARM_UP):
                    step()
        for part in self.parts:
            part.module.eval().zero_grad()
        if not self.losses.isfinite().all():
            raise FloatingPointError("a loss is not finite; choose a smaller learning rate")
        return 1e3 * watch.wall_s / (self.schedule.steps - WARM_UP)
