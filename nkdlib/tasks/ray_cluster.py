"""Tasks on a Ray cluster: a share of a GPU for each, large tensors once per node, retries when a node dies.

RAY_ADDRESS names a running cluster; without it one is started on this machine. A large tensor goes to the object
store once, wherever it stands in the arguments of however many tasks, and the tasks of a node share one copy. (Ray's
own pickling would put the boundary between two neighbourhoods once for each.) No disk has to be shared, and results
return to the caller.
"""

import io
import math
import os
import pickle
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import BrokenExecutor, Future

import cloudpickle
import ray
import torch
from ray.exceptions import RayTaskError
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

from nkdlib.tasks.executors import REDUCERS, Processes, computing, packed, unpacked
from nkdlib.tasks.keys import PACKAGE

SHARED_BYTES = 100_000  # smaller tensors travel with their task, as Ray's own small objects do
RETRIES = 3  # deaths of its node or worker that a task survives
SAME = ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")  # variables that tasks find as the caller has them


class _Pickler(cloudpickle.Pickler):
    """Leave large tensors out: `share` returns their references, which are collected in `shared`."""

    def __init__(self, file: io.BytesIO, share: Callable[[torch.Tensor], ray.ObjectRef]):
        self.dispatch_table = {**self.dispatch_table, **REDUCERS}  # is read by what follows
        super().__init__(file)
        self.share, self.shared = share, []

    def persistent_id(self, value: object) -> tuple | None:
        plain = type(value) in (torch.Tensor, Parameter) and value.layout == torch.strided and value.is_leaf
        if not (plain and value.nbytes >= SHARED_BYTES and value.is_contiguous()):
            return None
        ref = self.share(value)
        if ref not in self.shared:
            self.shared.append(ref)
        return self.shared.index(ref), type(value), value.requires_grad


class _Unpickler(pickle.Unpickler):
    """Read what `_Pickler` wrote; shared: the packed tensors that its references stand for."""

    def __init__(self, file: io.BytesIO, shared: Sequence[tuple]):
        super().__init__(file)
        self.shared, self.made = shared, {}

    def persistent_load(self, name: tuple) -> torch.Tensor:
        index, kind, requires_grad = name
        if index not in self.made:  # what was one tensor stays one
            tensor = unpacked(*self.shared[index])  # read only: other tasks of the node see the same memory
            self.made[index] = tensor.requires_grad_(requires_grad)
            if kind is Parameter:
                self.made[index] = Parameter(tensor.detach().clone(), requires_grad)
        return self.made[index]


def _versions() -> tuple[str, str]:
    return torch.__version__, platform.machine()


def _call(pickled: bytes, versions: tuple[str, str], folders: Sequence[str], *shared: tuple) -> object:
    """Run a task on its node; folders: where the caller's own modules are, on every node."""
    sys.path += [folder for folder in folders if folder not in sys.path]
    if versions != _versions():
        raise RuntimeError(f"torch and machine of node {platform.node()} are {_versions()}, the caller's {versions}")
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    fn, args, kwargs = _Unpickler(io.BytesIO(pickled), shared).load()
    return fn(*args, **kwargs)


class RayCluster(Processes):
    """Run tasks on the cluster at RAY_ADDRESS, or on one of `jobs` workers that is started here.

    A task gets `threads` CPUs and, if the cluster has GPUs, NKD_GPU_SHARE of one, by default 1/jobs.
    """

    def __init__(self, jobs: int, threads: int = 1):
        super().__init__(jobs, threads)
        self._remote: ray.remote_function.RemoteFunction | None = None
        self._shared = WeakIdKeyDictionary()  # tensor -> its version, its place in the object store
        self._pending: set[Future] = set()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
        address = os.environ.get("RAY_ADDRESS")
        size = {} if address else {"num_cpus": self.jobs * self.threads, "include_dashboard": False}
        variables = computing(self.threads) | {"NKD_PROGRESS": os.devnull}
        variables |= {name: os.environ[name] for name in SAME if name in os.environ}
        code = {"py_modules": [str(PACKAGE)], "env_vars": variables}
        quiet = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
        ray.init(address or "local", runtime_env=code, **quiet, **size)
        share = os.environ.get("NKD_GPU_SHARE") or ("GPU" in ray.cluster_resources()) / self.jobs
        gpus = math.floor(float(share) * 1e4) / 1e4  # Ray counts in ten-thousandths
        self._remote = ray.remote(_call).options(num_cpus=self.threads, num_gpus=gpus, max_retries=RETRIES)

    def _share(self, tensor: torch.Tensor) -> ray.ObjectRef:
        version = tensor._version  # goes up when the tensor is changed in place
        if self._shared.get(tensor, (None,))[0] != version:
            self._shared[tensor] = version, ray.put(packed(tensor.detach())[1])
        return self._shared[tensor][1]

    def submit(self, fn: Callable, *args: object, **kwargs: object) -> Future:
        """Hand `fn(*args, **kwargs)`, which a notebook's cell may define, to the cluster; return its future."""
        if self._remote is None:
            self._connect()
        file = io.BytesIO()
        pickler = _Pickler(file, self._share)
        pickler.dump((fn, args, kwargs))
        ref = self._remote.remote(file.getvalue(), _versions(), sys.path, *pickler.shared)
        future: Future = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        future.add_done_callback(lambda it: it.cancelled() and ray.is_initialized() and ray.cancel(ref))
        ref.future().add_done_callback(lambda it: _settle(future, it))
        return future

    def shutdown(self, wait: bool = True, kill: bool = False) -> None:
        """Leave the cluster, or end the one that was started here, when its tasks are done; kill: at once."""
        if self._remote is None:
            return
        if kill:
            for future in list(self._pending):
                future.cancel()
        else:
            futures.wait(list(self._pending))
        self._remote = None
        self._shared.clear()
        ray.shutdown()


def _settle(future: Future, found: Future) -> None:
    """Give a future what Ray found: a result, the error that the task raised, or that it could not be run."""
    if not future.set_running_or_notify_cancel():
        return
    error = found.exception()
    if error is None:
        future.set_result(found.result())
    elif isinstance(error, RayTaskError):
        error.cause.__cause__ = error  # where it was raised
        future.set_exception(error.cause)
    else:
        future.set_exception(BrokenExecutor(str(error)))
