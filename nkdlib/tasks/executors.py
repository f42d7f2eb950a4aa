"""Executors: tasks run in this process, in local worker processes or on a Ray cluster.

Each runs under the same number of BLAS threads, so results do not depend on the number of workers, bit for bit.
"""

import ctypes
import math
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from torch.utils.weak import WeakIdKeyDictionary

from nkdlib.tasks.progress import Progress


def computing(threads: int) -> dict[str, str]:
    """Return the environment variables of a process that computes with so many threads.

    glibc would return every block of 32 MB and more to the system and get it anew, zeroed page by page: up to two
    thirds of the seconds of a large network's forward pass. So up to 512 MB of it stay with the process.
    """
    several = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return several | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**29)}


def release_memory() -> None:
    """Return what this process has freed to the system, which costs a tenth of a second; glibc alone can do so."""
    if trim := getattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "malloc_trim", None):
        trim(0)


class InProcess(Executor):
    """Run each task at submission, in this process."""

    def __init__(self, threads: int = 1):
        self.jobs, self.threads = 1, threads

    def submit(self, fn: Callable, *args: object, **kwargs: object) -> Future:
        """Run `fn(*args, **kwargs)` and return its finished future; KeyboardInterrupt passes through."""
        future: Future = Future()
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        finally:
            torch.set_num_threads(before)
        return future


def packed(tensor: torch.Tensor) -> tuple:
    """Pickle a contiguous tensor as raw bytes, twice as fast as torch's own pickling: a function and its arguments."""
    if tensor.requires_grad or tensor.layout != torch.strided or not tensor.is_contiguous():
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    data = tensor.cpu().reshape(-1).view(torch.uint8).numpy()
    return unpacked, (data, tensor.dtype, tuple(tensor.shape), tensor.device)


def unpacked(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the tensor that was packed; one on the CPU uses the memory of `data`."""
    return torch.from_numpy(data).view(dtype).reshape(shape).to(device)


_FILES = WeakIdKeyDictionary()  # tensor of `shared_empty` -> the file that workers of this machine open


def shared_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the CPU that tasks in worker processes of this machine get without a copy; they cannot change it.

    Its memory has no place in a folder: it is free as soon as no process uses it, even if one was killed. Linux alone
    has such memory; on other systems it is a usual tensor, and tasks get copies.
    """
    if not hasattr(os, "memfd_create"):
        return torch.empty(shape, dtype=dtype)
    descriptor = os.memfd_create("nkdlib")
    os.ftruncate(descriptor, math.prod(shape) * dtype.itemsize)
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    tensor = _mapped(path, dtype, shape, shared=True)
    weakref.finalize(tensor, os.close, descriptor)
    _FILES[tensor] = path
    return tensor


def _mapped(path: str, dtype: torch.dtype, shape: Sequence[int], shared: bool = False) -> torch.Tensor:
    """Return the tensor in a file; what is written to it stays in this process unless it is shared."""
    return torch.from_file(path, shared=shared, size=math.prod(shape), dtype=dtype).reshape(shape)


def _to_worker(tensor: torch.Tensor) -> tuple:
    path = _FILES.get(tensor)
    return packed(tensor) if path is None else (_mapped, (path, tensor.dtype, tuple(tensor.shape)))


REDUCERS: dict[type, Callable[[object], tuple]] = {}  # how types travel to machines without this one's disk


def _start_worker(threads: int, parent: int) -> None:
    torch.set_num_threads(threads)
    # Loky takes a worker that grew by 300 MB for a leak and replaces it, and has no public setting for it; kept
    # boundaries are no leak. A loky that renames this one would replace workers again and still run every task.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize

    def follow_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the parent was killed: nobody waits for this worker's results

    threading.Thread(target=follow_parent, daemon=True).start()


class Processes(Executor):
    """Run tasks in `jobs` worker processes, started at the first submission and again after a crash."""

    def __init__(self, jobs: int, threads: int = 1):
        self.jobs, self.threads = jobs, threads
        self._variables = {**computing(threads), "NKD_PROGRESS": os.devnull}  # a worker's steps are not the user's
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, fn: Callable, *args: object, **kwargs: object) -> Future:
        """Hand `fn(*args, **kwargs)`, which a notebook's cell may define, to a worker; return its future."""
        if self._pool is not None:
            with suppress(BrokenExecutor):  # a worker was killed
                return self._pool.submit(fn, *args, **kwargs)
        self._pool = ProcessPoolExecutor(
            self.jobs,
            job_reducers={torch.Tensor: _to_worker},
            timeout=600,  # idle workers go home; a later submission starts new ones
            initializer=_start_worker,
            initargs=(self.threads, os.getpid()),
            env=self._variables,
        )
        return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers; cancel_futures: at once, dropping what is in flight as well."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, kill_workers=cancel_futures)

    def __exit__(self, kind: type | None, *exc: object) -> None:
        self.shutdown(cancel_futures=kind is not None)


EXECUTORS = ("local", "ray")


def make_executor(kind: str = "local", jobs: int = 1, threads: int = 1) -> InProcess | Processes:
    """Return an executor, to be used as a context manager.

    kind: "local" or "ray". jobs: number of workers; 1 runs in this process. A Ray cluster that is running already has
    as many as it has room for, and `jobs` of them share a GPU. threads: BLAS threads of each worker.
    Raises ValueError for an unknown kind or a count below one.
    """
    if kind not in EXECUTORS:
        raise ValueError(f"executor (={kind!r}) is not known; choose one of {', '.join(EXECUTORS)}")
    if min(jobs, threads) < 1:
        raise ValueError(f"jobs (={jobs}) and threads (={threads}) must be at least 1")
    if kind == "local":
        return InProcess(threads) if jobs == 1 else Processes(jobs, threads)
    if find_spec("ray") is None:
        raise ValueError("executor (='ray') needs the package ray; install nkdlib[ray]")
    from nkdlib.tasks.ray_cluster import RayCluster

    return RayCluster(jobs, threads)


def gather(
    calls: Iterable[tuple[str, Callable[[], object]]],
    executor: InProcess | Processes,
    title: str,
    seconds: Sequence[float] | None = None,
    done: int = 0,
    keep: Callable[[object], object] = lambda result: result,
) -> list:
    """Return what calls return, in their order.

    calls: each with a label; an iterator is advanced when the next call is submitted. title: what progress shows.
    seconds: what each call may take, up to a factor, for the time left; an iterator of calls needs it. done: how many
    more were made before. keep: called here with each result as soon as there is one; what it returns takes the
    result's place.
    The first call that fails cancels those not yet begun; its error is raised with its label in a note.
    """
    waiting: dict[Future, tuple[int, str]] = {}  # place and label of what is not done
    results: dict[int, object] = {}
    seconds = [1.0] * len(calls) if seconds is None else seconds
    with Progress(title, done + len(seconds), "tasks") as progress:
        progress.work = 0.0, sum(seconds)
        progress.advance(done)

        def take(future: Future) -> None:
            place, label = waiting.pop(future)
            try:
                results[place] = keep(future.result())
            except Exception as error:
                error.add_note(f"in task {label!r}")
                raise
            progress.work = progress.work[0] + seconds[place], progress.work[1]
            progress.advance()

        try:
            for place, (label, call) in enumerate(calls):
                future = executor.submit(call)
                waiting[future] = place, label
                if future.done():
                    take(future)  # at once what was made in this process, its error too
            for future in as_completed(list(waiting)):
                take(future)
        except BaseException as error:
            for future in waiting:
                future.cancel()
            if isinstance(error, BrokenExecutor):
                raise RuntimeError(_why_broken(error)) from error
            if not isinstance(error, Exception):  # Ctrl-C
                executor.shutdown(cancel_futures=True)
            raise
    return [results[place] for place in range(len(seconds))]


def _why_broken(error: BrokenExecutor) -> str:
    """Tell a worker that was killed from one that could not read what another process sent."""
    kept = "What a cache has kept is not lost: the next run goes on from there"
    if error.__cause__ is None:
        return f"a worker process was killed, most often because memory ran out; use fewer jobs. {kept}"
    reason = str(error.__cause__).strip('"\n ').rpartition("\n")[2]
    return f"a worker process could not read its task or the result ({reason}); jobs=1 sends nothing. {kept}"
