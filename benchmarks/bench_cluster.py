"""Distillation tasks on 1, 2 and 4 workers of a local Ray cluster.

Six blocks of a ResNet-14 distilled into two students each, on random images of Fashion-MNIST's size: twelve tasks,
the longest first, workers started before the clock. Speed-up is against one worker; the critical path, the longest
task, bounds it, and so do the machine's cores. If the workers do not have the cores to themselves, which the last
column tells, wall seconds and speed-up say little.
"""

import contextlib
import functools
import io
import json
import os
import time

import ray
import torch

from nkdlib.neighbourhoods import Recipe, narrow, split
from nkdlib.neighbourhoods.capture import capture
from nkdlib.neighbourhoods.local import train_local
from nkdlib.networks import reset, resnet
from nkdlib.tasks.executors import gather, make_executor
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule

WORKERS = (1, 2, 4)
RECIPE, IMAGES = Recipe(Schedule(1000, lr=2e-3), start="random"), 4096


def timed(**task: object) -> float:
    """CPU seconds of one task, where it runs."""
    with Stopwatch() as watch:
        train_local(**task)
    return watch.cpu_s


def distillations() -> list[tuple[str, functools.partial]]:
    """The tasks, by falling cost."""
    teacher = resnet(14, 10, seed=0, in_channels=1, stem_stride=2).eval()
    images = torch.randn(IMAGES, 1, 28, 28).split(128)
    pieces = split(teacher, teacher.block_names, images[0][:2])
    boundaries, calls = capture(teacher, pieces, images), []
    for piece in sorted(pieces, key=lambda piece: -piece.cost.macs):
        for width in (0.5, 0.25):
            student = reset(narrow(piece.module, piece.example, width), seed=0)
            task = {"name": piece.name, "student": student, "store": boundaries.of(piece.name), "recipe": RECIPE}
            calls.append((f"{piece.name} {width}", functools.partial(timed, **task, seed=0)))
    return calls


def main() -> None:
    torch.set_num_threads(1)
    calls, put, sizes = distillations(), ray.put, []
    ray.put = lambda content: sizes.append(content[0].nbytes) or put(content)
    named = sum(call.keywords["store"].bytes for _, call in calls)
    walls, sent, seconds = {}, {}, {}
    for workers in WORKERS:
        with contextlib.redirect_stdout(io.StringIO()), make_executor("ray", workers) as executor:
            gather([("start", functools.partial(time.sleep, 2))] * workers, executor, "")
            sizes.clear()
            with Stopwatch() as watch:
                seconds[workers] = gather(calls, executor, "")
        walls[workers], sent[workers] = watch.wall_s, sum(sizes)
    tasks = seconds[1]
    print(f"{len(tasks)} tasks on {os.cpu_count()} cores: {sum(tasks):.1f} CPU-s, the longest {max(tasks):.2f} s")
    print(f"boundaries that tasks name {named / 1e6:.0f} MB, put into the object store {sent[1] / 1e6:.0f} MB")
    print("workers   wall s  speed-up  bound    CPU-s  of its cores")
    for workers, wall in walls.items():
        cores = min(workers, os.cpu_count())
        bound, busy = min(cores, sum(tasks) / max(tasks)), sum(seconds[workers]) / (wall * cores)
        print(f"{workers:7}{wall:9.2f}{walls[1] / wall:10.2f}{bound:7.2f}{sum(seconds[workers]):9.1f}{busy:14.0%}")
    found = {"walls": walls, "seconds": seconds, "put_bytes": sent, "named_bytes": named}
    print(json.dumps({"bench": "cluster", **found}))


if __name__ == "__main__":
    main()
