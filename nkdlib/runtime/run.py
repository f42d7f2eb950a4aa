"""Run notebooks under a profile: `python -m nkdlib.runtime.run notebooks/01_*.ipynb --profile cpu`.

A notebook runs when it, its parameters, nkdlib, the pinned packages or the outputs it left have changed since
its last run. What it computes is kept in the artefact cache, so a run that was killed goes on from there.
"""

import argparse
import ast
import difflib
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import torch
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from nkdlib.runtime.code import SOURCES
from nkdlib.runtime.executors import THREAD_VARIABLES
from nkdlib.runtime.monitor import Monitor
from nkdlib.runtime.places import checkout, figures_root, locked, runs_root
from nkdlib.runtime.profiles import PROFILES
from nkdlib.runtime.progress import clock

ANSI_COLORS = re.compile(r"\x1b\[[0-9;]*m")


class UsageError(Exception):
    """The command line asks for something that cannot be."""


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters and places."""

    notebook: Path
    profile: str
    parameters: dict[str, object]
    runs: Path
    figures: Path

    def output(self, ending: str) -> Path:
        """Return the file `<stem>.<ending>` in the profile's folder of runs."""
        return self.runs / self.profile / f"{self.notebook.stem}.{ending}"


def own_kernel(folder: Path, variables: dict[str, str]) -> type[AsyncKernelManager]:
    """Return a manager of this interpreter's kernel, whatever kernels the user has installed under its name.

    folder: a private folder for its sockets, which no other user of the machine can open. variables: what the
    kernel's environment has beyond this process' own.
    """

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **settings: object):
            own = KernelSpecManager(kernel_dirs=[])
            super().__init__(kernel_spec_manager=own, transport="ipc", ip=str(folder / "kernel"), **settings)

        async def start_kernel(self, **settings: object) -> None:
            await super().start_kernel(env={**os.environ, **variables}, **settings)

    return OwnKernel


def plan(arguments: argparse.Namespace) -> list[Job]:
    """Return the jobs that the command line asks for; raises UsageError for what no run could satisfy."""
    profile = PROFILES[arguments.profile]
    named = {key: getattr(arguments, key) for key in ("data", "seeds", "jobs", "device", "executor")}
    if str(named["device"] or profile.device).startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"profile {profile.name} runs on a GPU and none is usable here; choose profile cpu")
    runs, figures = runs_root(), figures_root()
    if arguments.out:
        runs, figures = arguments.out / "runs", arguments.out / "figures"
    jobs = []
    for notebook in arguments.notebooks or sorted((checkout() or Path.cwd()).glob("notebooks/*.ipynb")):
        if not notebook.suffix:
            notebook = (checkout() or Path.cwd()) / "notebooks" / f"{notebook}.ipynb"
        if not notebook.is_file():
            raise UsageError(f"there is no notebook {notebook}")
        try:
            declared = papermill.inspect_notebook(str(notebook))
        except ValueError as error:  # not a notebook, or one that names no kernel
            raise UsageError(f"{notebook} cannot be read: {error}") from error
        parameters = profile.for_notebook(notebook.stem, **named)
        parameters |= {name: _typed(text, declared.get(name)) for name, text in arguments.parameter}
        for name in parameters:
            if name not in declared:
                near = ", ".join(difflib.get_close_matches(name, declared, n=3, cutoff=0) or ["none"])
                raise UsageError(f"{notebook.name} declares no parameter `{name}`; the nearest it has: {near}")
        jobs.append(Job(notebook.resolve(), profile.name, parameters, runs.resolve(), figures.resolve()))
    return jobs


def _typed(text: str, declared: dict | None) -> object:
    if declared and declared["inferred_type_name"] == "str":
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def state(job: Job) -> dict[str, object]:
    """Return what a run depends on and what it left, files as digests; equal states need no new run.

    A notebook that reads other notebooks' results names them in its metadata, as patterns below the profile's
    figures: `{"nkdlib": {"reads": ["*/observations.json"]}}`.
    """
    notebook = nbformat.read(job.notebook, as_version=4)
    figures = job.figures / job.profile
    files = [*SOURCES.glob("nkdlib/**/*.py"), *SOURCES.glob("requirements.txt")]
    for pattern in notebook.metadata.get("nkdlib", {}).get("reads", []):
        files += figures.glob(pattern)
    files += (path for path in (figures / job.notebook.stem).rglob("*") if path.is_file())
    return {
        "cells": [[cell.cell_type, cell.source] for cell in notebook.cells],
        "parameters": json.loads(json.dumps(job.parameters, default=str)),
        "files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def up_to_date(job: Job) -> bool:
    """Tell whether the job's last run ended well and nothing that it depends on or left has changed since."""
    try:
        stamp = json.loads(job.output("stamp.json").read_text())
    except (OSError, ValueError):
        return False
    return job.output("ipynb").is_file() and stamp == state(job)


def execute(job: Job) -> str | None:
    """Run one notebook; return None, or the error of the cell that failed.

    The executed notebook is `runs/<profile>/<stem>.ipynb`; one that failed is kept as `<stem>.failed.ipynb`.
    """
    running, failed = job.output("running.ipynb"), job.output("failed.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    job.output("stamp.json").unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    print(f"{job.notebook.stem}: started", flush=True)
    started, error = time.monotonic(), None
    short = "/tmp" if len(tempfile.gettempdir()) > 60 else None  # a socket's path ends at 103 characters
    with tempfile.TemporaryDirectory(prefix="nkdlib-", dir=short) as folder:
        private = Path(folder)
        report = private / "progress.json"
        variables = {
            "NKD_RUNS": str(job.runs),
            "NKD_FIGURES": str(job.figures),
            "NKD_PROGRESS": str(report),
            "IPYTHONDIR": str(private / "ipython"),  # the user's start-up files stay out
            **dict.fromkeys(THREAD_VARIABLES, "1"),
            "PYTHONHASHSEED": "0",  # the order of a set must not decide a result
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS sums in an order of its own
        }
        try:
            with Monitor(job.notebook, report) as monitor:
                papermill.execute_notebook(
                    job.notebook,
                    running,
                    parameters=job.parameters,
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    cwd=job.notebook.parent,
                    kernel_manager_class=own_kernel(private, variables),
                    on_cell_execute=monitor.next_cell,
                    shutdown_kernel="immediate",
                )
        except papermill.PapermillExecutionError as failure:
            error = "\n".join(failure.traceback) or f"{failure.ename}: {failure.evalue}"
        except DeadKernelError:
            error = f"the kernel died in cell {monitor.cell} of {monitor.cells}: most often memory ran out"
    took = f"{clock(time.monotonic() - started)}, memory up to {monitor.peak_mb:,.0f} MB"
    if error:
        running.replace(failed)
        print(f"{job.notebook.stem}: FAILED after {took}; as far as it came: {failed}", flush=True)
        return error
    running.replace(job.output("ipynb"))
    job.output("stamp.json").write_text(json.dumps(state(job), indent=1))
    print(f"{job.notebook.stem}: done in {took}", flush=True)
    return None


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser("python -m nkdlib.runtime.run", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--profile", choices=list(PROFILES), default="cpu", help="the budget")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--data", help="another data set than the profile's: a name or a folder of images")
    parser.add_argument("--seeds", type=int, help="number of repeats")
    parser.add_argument("--jobs", type=int, help="number of workers")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--executor", help="where tasks run")
    parser.add_argument("--out", type=Path, help="a folder for runs/ and figures/ in place of the checkout's")
    parser.add_argument("--force", action="store_true", help="run what is up to date too")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks; returns 0, 1 when one failed, 2 for a usage error, 130 when interrupted."""
    options = parser().parse_args(arguments)
    errors: dict[str, str] = {}
    started, ran, kept = time.monotonic(), 0, 0
    try:
        for job in plan(options):
            with locked(job.runs, "another run is at work here; waiting for it"):
                if not options.force and up_to_date(job):
                    print(f"{job.notebook.stem}: up to date", flush=True)
                    kept += 1
                    continue
                ran += 1
                if error := execute(job):
                    errors[job.notebook.stem] = error
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what was done is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    took = clock(time.monotonic() - started)
    print(f"profile {options.profile}: {ran} run, {kept} up to date, {len(errors)} failed, {took}", flush=True)
    for stem, error in errors.items():
        shown = error if sys.stderr.isatty() else ANSI_COLORS.sub("", error)
        print(f"\n{stem} failed:\n{shown}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # end the kernel and its workers, as Ctrl-C does
    sys.exit(main())
