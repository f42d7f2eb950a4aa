"""Tasks on a Ray cluster: a share of a GPU for each, large tensors once per node, retries when a node dies.

RAY_ADDRESS names a running cluster; without it one is started on this machine. A large tensor goes to the object
store once, wherever it stands in the arguments of however many tasks, and the tasks of a node share one copy. No disk
has to be shared, and results return to the caller.
"""

import math
import os
import platform
import sys
import warnings
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import BrokenExecutor, Future

import ray
import torch
from ray.exceptions import RayTaskError
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

from nkdlib.tasks.executors import REDUCERS, Processes, packed, unpacked
from nkdlib.tasks.keys import PACKAGE

SHARED_BYTES = 100_000  # smaller tensors travel with their task, as Ray's own small objects do
RETRIES = 3  # deaths of its node or worker that a task survives
SAME = ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")  # variables that tasks find as the caller has them


def _versions() -> tuple[str, str]:
    return torch.__version__, platform.machine()


def _call(versions: tuple[str, str], fn: Callable, *args: object, **kwargs: object) -> object:
    """Run a task on its node."""
    if versions != _versions():
        raise RuntimeError(f"torch and machine of node {platform.node()} are {_versions()}, the caller's {versions}")
    return fn(*args, **kwargs)


def _tensor(sent: tuple) -> torch.Tensor:
    """Return the tensor that `RayCluster._sent` describes; a large one is read only, since others of the node share it.

    Parameters and small ones, such as statistics of BatchNorm, are the task's own.
    """
    kind, requires_grad, make, (data, *rest) = sent
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    shared = isinstance(data, ray.ObjectRef)
    tensor = make(ray.get(data) if shared else data, *rest)
    if kind is Parameter:
        return Parameter(tensor.clone(), requires_grad)
    return (tensor if shared else tensor.clone()).requires_grad_(requires_grad)


def _restored(reduced: tuple) -> object:
    make, args = reduced
    return make(*args)


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
        variables = {name: os.environ[name] for name in SAME if name in os.environ}
        folders = os.pathsep.join(map(os.path.abspath, sys.path))  # where the caller's own modules are, on every node
        variables |= self._variables | {"PYTHONPATH": folders}
        code = {"py_modules": [str(PACKAGE)], "env_vars": variables}
        quiet = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
        ray.init(address or "local", runtime_env=code, **quiet, **size)
        for kind in (torch.Tensor, Parameter):
            ray.util.register_serializer(kind, serializer=self._sent, deserializer=_tensor)
        for kind, reduced in REDUCERS.items():
            ray.util.register_serializer(kind, serializer=reduced, deserializer=_restored)
        share = os.environ.get("NKD_GPU_SHARE") or ("GPU" in ray.cluster_resources()) / self.jobs
        gpus = math.floor(float(share) * 1e4) / 1e4  # Ray counts in ten-thousandths
        self._remote = ray.remote(_call).options(num_cpus=self.threads, num_gpus=gpus, max_retries=RETRIES)

    def _sent(self, tensor: torch.Tensor) -> tuple:
        """Describe a tensor, a large one by its place in the object store, where it is put once."""
        make, args = packed(tensor.detach() if tensor.is_leaf else tensor)
        if make is unpacked and tensor.nbytes >= SHARED_BYTES:
            version = tensor._version  # goes up when the tensor is changed in place
            if self._shared.get(tensor, (None,))[0] != version:
                self._shared[tensor] = version, ray.put(args[0])
            args = (self._shared[tensor][1], *args[1:])
        return type(tensor), tensor.requires_grad, make, args

    def submit(self, fn: Callable, *args: object, **kwargs: object) -> Future:
        """Hand `fn(*args, **kwargs)`, which a notebook's cell may define, to the cluster; return its future."""
        if self._remote is None:
            self._connect()
        ref = self._remote.remote(_versions(), fn, *args, **kwargs)
        future: Future = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        future.add_done_callback(lambda it: it.cancelled() and ray.is_initialized() and ray.cancel(ref))
        ref.future().add_done_callback(lambda it: _settle(future, it))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or end the one that was started here, when its tasks are done; cancel_futures: at once."""
        if self._remote is None:
            return
        if cancel_futures:
            for future in list(self._pending):
                future.cancel()
        else:
            futures.wait(list(self._pending))
        self._remote = None
        self._shared.clear()
        for kind in (torch.Tensor, Parameter, *REDUCERS):
            ray.util.deregister_serializer(kind)
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
