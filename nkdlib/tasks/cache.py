"""Artefacts: expensive results, kept under the SHA-256 of what determines them.

An artefact is a directory with `tensors.safetensors` and a readable `info.json`, which is written last: with it the
artefact is complete. Digests are checked when a process first opens it.
"""

import hashlib
import json
import os
import platform
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from nkdlib.tasks.checks import usable_device
from nkdlib.tasks.executors import REDUCERS, InProcess, Processes, gather, make_executor, release_memory
from nkdlib.tasks.keys import Ingredients, qualified_name, sha256
from nkdlib.tasks.measure import Stopwatch
from nkdlib.tasks.places import runs_root, write_atomically

TENSORS, INFO = "tensors.safetensors", "info.json"
_VERIFIED: set[tuple[Path, int]] = set()


class ArtefactDamaged(UserWarning):
    """An artefact on disk is not what was written."""


@dataclass(frozen=True)
class Task:
    """One call, `fn(**kwargs, **inputs)`, whose result is an artefact.

    fn: returns a dict of tensors and plain JSON values. Torch, NumPy and `random` are seeded from the task's key
    before the call. kwargs: part of the key. label: what progress and errors call it. inputs: further arguments that
    follow from kwargs and are no part of the key, each a function without arguments, called in this process when the
    task has to be run.
    """

    fn: Callable[..., dict[str, object]]
    kwargs: Mapping[str, object]
    label: str
    inputs: Mapping[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Artefact:
    """A result on disk; pickled as its path."""

    key: str
    path: Path = field(compare=False)
    info: dict[str, object] = field(compare=False, repr=False)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU, read when first asked for; clone before changing one in place."""
        return safetensors.torch.load_file(self.path / TENSORS)  # mapped: processes share the memory

    @property
    def fingerprint(self) -> str:
        """The key, which stands for the artefact in the keys of what is made from it."""
        return self.key

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with `prefix`, without it."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def __reduce__(self) -> tuple:
        return open_artefact, (self.path,)


def _arrived(key: str, path: Path, info: dict[str, object], tensors: dict[str, torch.Tensor]) -> Artefact:
    """Return an artefact that was sent whole."""
    artefact = Artefact(key, path, info)
    vars(artefact)["tensors"] = tensors
    return artefact


REDUCERS[Artefact] = lambda artefact: (_arrived, (artefact.key, artefact.path, artefact.info, artefact.tensors))


def open_artefact(path: Path) -> Artefact:
    """Open the artefact at `path`; raises FileNotFoundError, or ArtefactDamaged naming path and reason."""
    if not os.path.lexists(path) or (path.is_dir() and not (path / INFO).exists()):
        raise FileNotFoundError(f"there is no artefact {path}")
    try:
        content = json.loads((path / INFO).read_bytes())
        if not isinstance(content, dict) or content.pop("sha256", None) != sha256(content):
            raise ValueError(f"the digest of {INFO} differs")
        if not content["key"].startswith(path.name):
            raise ValueError("it is another task's")
        stamp = (path, (path / INFO).stat().st_ino)
        if stamp not in _VERIFIED:
            with (path / TENSORS).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != content["tensors_sha256"]:
                    raise ValueError(f"the digest of {TENSORS} differs")
            _VERIFIED.add(stamp)
    except (OSError, ValueError) as error:
        raise ArtefactDamaged(f"{path} is damaged: {error}") from error
    return Artefact(content["key"], path, content["info"])


class Cache:
    """Artefacts by key.

    root: the directory that holds `cache/`; NKD_RUNS, else the checkout's `runs/`, else the user's cache.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root if root is not None else runs_root()).resolve() / "cache"

    def key(self, task: Task) -> str:
        """Return the SHA-256 of what determines the result; TypeError for an argument without a key."""
        return sha256(_ingredients(task))

    def find(self, task: Task) -> Artefact | None:
        """Return the task's artefact, None if it would have to be made."""
        return _open_or_discard(self._place(task, self.key(task)))

    def call(self, fn: Callable, **kwargs: object) -> Artefact:
        """Return the artefact of `fn(**kwargs)`, made in this process if it is missing."""
        return self.run([Task(fn, kwargs, fn.__name__)])[0]

    def run(
        self, tasks: Iterable[Task], executor: InProcess | Processes | None = None, title: str = ""
    ) -> list[Artefact]:
        """Return the tasks' artefacts in their order, making the missing ones.

        executor: where to make them; None is this process with one BLAS thread. title: what progress shows.
        The first task that fails cancels those not yet begun; its error is raised with the task's label in a
        note. What is done by then is kept.
        """
        if not (tasks := list(tasks)):
            return []
        ingredients = [_ingredients(task) for task in tasks]
        keys = [sha256(each) for each in ingredients]
        wanted = dict(zip(keys, zip(tasks, ingredients, strict=True), strict=True))
        artefacts = {key: _open_or_discard(self._place(task, key)) for key, (task, _) in wanted.items()}
        missing = self._longest_first({key: wanted[key][0] for key, found in artefacts.items() if found is None})
        calls = (
            (task.label, partial(_make, _with_inputs(task), key, content, self._place(task, key)))
            for key, (task, content) in ((key, wanted[key]) for key in missing)
        )
        title, done = title or tasks[0].label, len(wanted) - len(missing)
        made = gather(calls, executor or make_executor(), title, list(missing.values()), done, _keep)
        artefacts |= zip(missing, made, strict=True)
        return [artefacts[key] for key in keys]

    def _longest_first(self, tasks: dict[str, Task]) -> dict[str, float]:
        """Return what tasks may take in seconds: what the last of their label took; if new, the longest of all."""
        took: dict[str, dict[str, float]] = {task.fn.__name__: {} for task in tasks.values()}
        for name, labels in took.items():
            with suppress(FileNotFoundError):  # one that another process found damaged
                for info in sorted((self.root / name).glob(f"*/{INFO}"), key=lambda path: path.stat().st_mtime):
                    with suppress(ValueError, KeyError, TypeError):
                        content = json.loads(info.read_bytes())
                        labels[content["label"]] = content["seconds"]["wall"]
        known = {key: (took[task.fn.__name__], task.label) for key, task in tasks.items()}
        seconds = {key: labels.get(label, max(labels.values(), default=1.0)) for key, (labels, label) in known.items()}
        return dict(sorted(seconds.items(), key=lambda each: -each[1]))

    def _place(self, task: Task, key: str) -> Path:
        return self.root / task.fn.__name__ / key[:16]


def _ingredients(task: Task) -> dict[str, object]:
    """Return everything that determines a task's result."""
    found, name = Ingredients(), task.fn.__name__
    arguments = {key: found.canonical(task.kwargs[key], f"argument {key} of {name}") for key in sorted(task.kwargs)}
    ingredients = {
        "function": found.canonical(task.fn, name),
        "arguments": arguments,
        "code": found.code,
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "machine": platform.machine(),
    }
    if (device := usable_device(task.kwargs.get("device", "cpu"))).type == "cuda":
        ingredients["device"] = torch.cuda.get_device_name(device)
    return ingredients


def _open_or_discard(place: Path) -> Artefact | None:
    try:
        return open_artefact(place)
    except FileNotFoundError:
        return None
    except ArtefactDamaged as damage:
        warnings.warn(ArtefactDamaged(f"{damage}; it is made anew"), stacklevel=4)
        shutil.rmtree(place, ignore_errors=True)
        if os.path.lexists(place):  # no folder
            place.unlink()
        return None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from freshly seeded global generators, and leave them as they were found."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _with_inputs(task: Task) -> Task:
    """Return the task with its inputs among its arguments, ready to travel to a worker."""
    try:
        inputs = {name: make() for name, make in task.inputs.items()}
    except Exception as error:
        error.add_note(f"in an input of task {task.label!r}")
        raise
    return replace(task, kwargs={**task.kwargs, **inputs}, inputs={})


def _make(task: Task, key: str, ingredients: dict[str, object], place: Path) -> tuple[Path, dict[str, bytes]]:
    """Make one artefact's files; runs in a worker, whose disk may be another one, or in the caller's process."""
    with _seeded(int(key[:8], 16)), Stopwatch() as watch:
        made = task.fn(**task.kwargs)
    if watch.wall_s > 1:
        release_memory()  # the next task may run in another process
    if not isinstance(made, dict):
        raise TypeError(f"{qualified_name(task.fn)} must return a dict of tensors and plain values")
    tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    data = safetensors.torch.save(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    )
    content = {
        "key": key,
        "kind": task.fn.__name__,
        "label": task.label,
        "info": {name: value for name, value in made.items() if name not in tensors},
        "seconds": {"wall": watch.wall_s, "cpu": watch.cpu_s},
        "ingredients": ingredients,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        content = json.loads(json.dumps(content))
    except TypeError as error:
        error.add_note(f"what {qualified_name(task.fn)} returns must be tensors and plain JSON values")
        raise
    content["sha256"] = sha256(content)
    return place, {TENSORS: data, INFO: json.dumps(content, indent=1).encode()}


def _keep(made: tuple[Path, dict[str, bytes]]) -> Artefact:
    """Write an artefact's files, its information last; if another process did so too, either stands."""
    place, files = made
    for left in place.glob(".*"):  # by writers that were killed, unless one is still at it
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 3_600:
                left.unlink()
    try:
        for name, data in files.items():
            write_atomically(place / name, data)
    except OSError as error:
        error.add_note(
            f"{sum(map(len, files.values())):,} bytes are needed for {place}; make room, or set NKD_RUNS to a larger "
            "disk, and run again"
        )
        raise
    return open_artefact(place)
