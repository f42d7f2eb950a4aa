"""Executors: equal threads everywhere, failures in futures, no worker left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from nkdlib.tasks.executors import InProcess, Processes, computing, gather, make_executor, release_memory, shared_empty

ORPHANS = """
import os, time
from nkdlib.tasks.executors import Processes
def nap():
    print(os.getppid(), os.getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    with Processes(jobs=1) as executor:
        executor.submit(nap).result()
"""


def threads():
    """Return what a task sees."""
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.getpid()


def test_the_lab_computes_as_the_runner_does():
    recipe = (Path(__file__).parents[1] / "Makefile").read_text().partition("\nlab:")[2].partition("\n\n")[0]
    assert computing(1).items() <= dict(word.strip("@").split("=", 1) for word in recipe.split() if "=" in word).items()


def test_one_job_runs_in_this_process_under_its_own_threads():
    torch.set_num_threads(2)
    try:
        with make_executor(jobs=1) as executor:
            assert isinstance(executor, InProcess)
            future = executor.submit(threads)
            assert future.done() and future.result()[::2] == (1, os.getpid())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_worker_runs_elsewhere_under_the_same_threads():
    with Processes(jobs=1, threads=1) as executor:
        count, variable, process = executor.submit(threads).result()
    assert (count, variable) == (1, "1") and process != os.getpid()


def freed_and_released():
    """Return memory in MB: with 200 MB in use, after all but the last block was freed, and after it was released."""
    blocks = [torch.ones(2**18) for _ in range(200)]
    found = [psutil.Process().memory_info().rss / 2**20]
    del blocks[:-1]
    found.append(psutil.Process().memory_info().rss / 2**20)
    release_memory()
    return *found, psutil.Process().memory_info().rss / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps and releases memory so")
def test_a_process_keeps_freed_memory_until_it_is_released():
    with Processes(jobs=1) as executor:
        used, freed, released = executor.submit(freed_and_released).result()
    assert freed > used - 50 > released + 100


def test_a_failure_is_in_the_future():
    with make_executor() as executor:
        future = executor.submit(int, "x")
        assert isinstance(future.exception(), ValueError)


@pytest.mark.parametrize("wrong", [{"kind": "cluster"}, {"jobs": 0}, {"threads": 0}])
def test_what_cannot_be_is_named(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        make_executor(**wrong)


class Unreadable:
    """What can be sent and not read, as a file that a worker may not open."""

    def __reduce__(self):
        return open, ("/nowhere/at all",)


def test_a_worker_that_was_killed_is_told_from_one_that_cannot_read_its_task():
    ends = {"was killed, most often because memory": die, "could not read.*/nowhere": partial(print, Unreadable())}
    for words, task in ends.items():
        with Processes(jobs=1) as executor, pytest.raises(RuntimeError, match=f"a worker process {words}"):
            gather([("a task", task)], executor, "tasks")


def die():
    """End this worker as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def doubled(tensor):
    """Change a tensor in place; return its sum, and whether it lies in memory that has no name."""
    total = tensor.mul_(2).sum().item()
    return total, "nkdlib" in Path("/proc/self/maps").read_text()


def memories():
    """Count this process's open descriptors of shared memory; others come and go with workers."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            found += str(descriptor.readlink()).startswith("/memfd:nkdlib")
    return found


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux shares memory without a name")
def test_workers_map_a_shared_tensor_and_cannot_change_it():
    gc.collect()  # what other tests left
    before = memories()
    shared, usual = shared_empty((2, 3), dtype=torch.bfloat16).fill_(1.5), torch.full((2, 3), 1.5)
    with Processes(jobs=1) as executor:
        found = [executor.submit(doubled, tensor).result() for tensor in (usual, shared)]
    assert found == [(18.0, False), (18.0, True)]
    assert shared.eq(1.5).all() and shared.shape == (2, 3) and memories() == before + 1
    del shared
    assert memories() == before


def test_no_worker_outlives_its_parent(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    signals = (signal.SIGINT, signal.SIGKILL)
    parents = [subprocess.Popen([sys.executable, script], **quiet) for _ in signals]
    pids = [[int(word) for word in parent.stdout.readline().split()] for parent in parents]
    for parent, number, (name, _) in zip(parents, signals, pids, strict=True):
        assert parent.pid == name
        parent.send_signal(number)
    for parent in parents:
        parent.communicate(timeout=20)
    family = [pid for pair in pids for pid in pair]
    until = time.monotonic() + 5
    while any(map(_running, family)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(_running, family))


def _running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
