"""Run notebooks under a profile: `python -m nkdlib.compendium.run notebooks/01_*.ipynb --profile cpu`.

A notebook runs when it, its parameters, a folder of your own images, nkdlib, the pinned packages or the outputs it
left have changed since its last run. What it computes is kept in the artefact cache, so a run that was killed goes on
from there.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from tqdm import tqdm

from nkdlib.compendium.records import PROVENANCE
from nkdlib.compendium.tiers import TIERS, check_parameters
from nkdlib.compendium.watch import MemoryWatch, reporting
from nkdlib.data.load import NAMES, own_digest, own_folder, search_root
from nkdlib.tasks.cache import INFO
from nkdlib.tasks.checks import usable_device
from nkdlib.tasks.executors import EXECUTORS, computing
from nkdlib.tasks.places import checkout, figures_root, locked, runs_root

ANSI_COLORS = re.compile(r"\x1b\[[0-9;]*m")
SOURCES = Path(__file__).parents[1]  # of nkdlib


class QuietKernel(AsyncKernelManager):
    """A kernel on private sockets that keeps compiled code, such as HiGHS, from printing to the terminal."""

    def __init__(self, **settings: object):
        super().__init__(transport="ipc", ip=f"{os.environ['IPYTHONDIR']}/kernel", **settings)

    async def start_kernel(self, **settings: object) -> None:
        """Start the kernel; what notebooks print themselves is in their outputs."""
        await super().start_kernel(**settings, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters."""

    notebook: Path
    profile: str
    parameters: dict[str, object]
    own: Path = Path()  # own/<name>, below runs/ and figures/, if data, seeds or device are not the tier's

    def output(self, ending: str) -> Path:
        """Return the file `<stem>.<ending>` in the profile's folder of runs."""
        return runs_root() / self.own / self.profile / f"{self.notebook.stem}.{ending}"


def plan(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> list[Job]:
    """Return the jobs that the command line asks for; calls `refuse` with what no run could satisfy."""
    tier = TIERS[options.profile]
    named = {key: getattr(options, key) for key in ("data", "seeds", "jobs", "device", "executor")}
    if not tier.notebooks and tier.judged:
        refuse(
            f"profile {tier.name} is trained by nkdlib.compendium.torchrun (docs/clusters.md) and has no notebooks; "
            "choose gpu, with EXECUTOR=ray for many machines"
        )
    try:
        usable_device(named["device"] or tier.common["device"])
    except ValueError as error:
        refuse(f"{error}; profile cpu needs no GPU")
    try:
        root = search_root(None)
        if options.data is not None and options.data not in NAMES:
            here = own_folder(options.data, root).resolve()
            if Path(options.data).is_dir():
                named["data"] = str(here)  # kernels start in the notebooks' folder
    except (OSError, ValueError) as error:
        refuse(str(error))
    folder, jobs = (checkout() or Path.cwd()) / "notebooks", []
    for notebook in options.notebooks or sorted(folder.glob("*.ipynb")):
        notebook = notebook if notebook.suffix else folder / f"{notebook}.ipynb"
        if not notebook.is_file():
            refuse(f"there is no notebook {notebook}")
        parameters = tier.for_notebook(notebook.stem, **named)
        try:
            check_parameters(parameters, papermill.inspect_notebook(str(notebook)))
        except ValueError as error:  # also for a file that is no notebook, or one that names no kernel
            refuse(f"{notebook}: {error}")
        jobs.append(Job(notebook.resolve(), tier.name, parameters))
    changed = {"data": options.data, "seeds": options.seeds, "device": options.device}
    if any(job.parameters[name] != tier.for_notebook(job.notebook.stem)[name] for job in jobs for name in changed):
        names = options.data and Path(options.data).resolve().name, options.seeds and f"{options.seeds}-seeds"
        own = Path("own", "-".join(filter(None, (*names, options.device))))
        jobs = [replace(job, own=own) for job in jobs]
    return jobs


def state(job: Job) -> dict[str, object]:
    """Return what a run depends on and what it left, files as digests; equal states need no new run.

    Of a folder of images the names, sizes and times count.

    A notebook that reads other notebooks' results names them in its metadata, as patterns below the profile's
    figures: `{"nkdlib": {"reads": ["*/observations.json"]}}`.
    """
    notebook = nbformat.read(job.notebook, as_version=4)
    figures = figures_root() / job.profile
    left = set(filter(Path.is_file, figures.glob(f"{job.notebook.stem}/**/*")))
    files = {*SOURCES.rglob("*.py"), *SOURCES.rglob("*.toml"), *SOURCES.parent.glob("requirements.txt")}
    for pattern in notebook.metadata.get("nkdlib", {}).get("reads", []):
        files |= set(filter(Path.is_file, figures.glob(pattern)))
    return {
        "cells": [[cell.cell_type, cell.source] for cell in notebook.cells],
        "parameters": json.loads(json.dumps(job.parameters)),
        "images": own_digest(job.parameters.get("data", NAMES[0])),
        "files": _digests(files - left),
        "left": _digests(left),
    }


def _digests(paths: Iterable[Path]) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def lacking(job: Job) -> str:
    """Return what a notebook needs and lacks, or nothing.

    Its metadata lists the parameters that are folders of images, a name or names: `{"nkdlib": {"needs": ["photos"]}}`.
    A tier that leaves a parameter to the notebook needs no folder.
    """
    names = nbformat.read(job.notebook, as_version=4).metadata.get("nkdlib", {}).get("needs", [])
    missing, root = [], search_root(None)
    for name in names:
        folders = job.parameters.get(name, [])
        for folder in [folders] if isinstance(folders, str) else folders:
            if not any(path.is_dir() for path in (Path(folder), *([root / folder] if root else []))):
                missing.append(f"{name}, the folder {folder!r}")
    if not missing:
        return ""
    return f"it needs {' and '.join(missing)} in NKD_DATA; docs/data.md says where photographs come from"


def last_run(job: Job) -> dict[str, object]:
    """Return the state and the seconds of the job's last run that ended well, or an empty dict."""
    try:
        return json.loads(job.output("stamp.json").read_text()) if job.output("ipynb").is_file() else {}
    except (OSError, ValueError):
        return {}


def up_to_date(job: Job) -> bool:
    """Tell whether the job's last run ended well and nothing that it depends on or left has changed since."""
    return last_run(job).get("state") == state(job)


def execute(job: Job) -> str | None:
    """Run one notebook; return None, or the error of the cell that failed.

    The executed notebook is `runs/<profile>/<stem>.ipynb`; one that failed is kept as `<stem>.failed.ipynb`.
    """
    stem, running, failed = job.notebook.stem, job.output("running.ipynb"), job.output("failed.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    expected = last_run(job).get("seconds")
    job.output("stamp.json").write_text(json.dumps({"seconds": expected}))  # for who goes on after an interruption
    failed.unlink(missing_ok=True)
    print(f"{stem}: started", flush=True)
    started, begun, error, before = time.monotonic(), [], None, state(job)
    steps = Path(os.environ.get("NKD_PROGRESS", ""))  # what the kernel says of them, if no terminal shows its bars
    if steps.is_file():
        steps.write_text("")

    def how_far() -> str:
        took = time.monotonic() - started
        left = f", about {tqdm.format_interval(max(expected - took, 0))} left" if expected else ""
        said = steps.read_text().splitlines()[-1:] if steps.is_file() else []
        return "; ".join([f"{stem}: cell {len(begun)} after {tqdm.format_interval(took)}{left}", *said])

    with reporting(how_far):
        try:
            papermill.execute_notebook(
                job.notebook,
                running,
                parameters=job.parameters,
                kernel_name="python3",
                language="python",
                progress_bar={"desc": stem, "unit": "cell", "leave": False, "disable": None},  # in a terminal only
                cwd=job.notebook.parent,
                kernel_manager_class=QuietKernel,
                on_cell_execute=lambda **cell: begun.append(cell),
                shutdown_kernel="immediate",
            )
        except papermill.PapermillExecutionError as failure:
            error = "\n".join(failure.traceback) or f"{failure.ename}: {failure.evalue}"
        except DeadKernelError:
            error = f"the kernel died in cell {len(begun)}: most often memory ran out"
    seconds = time.monotonic() - started
    if error:
        running.replace(failed)
        print(f"{stem}: FAILED after {tqdm.format_interval(seconds)}; as far as it came: {failed}", flush=True)
        return error
    running.replace(job.output("ipynb"))
    done = before | {"left": state(job)["left"]}  # what was changed meanwhile is not what ran
    job.output("stamp.json").write_text(json.dumps({"seconds": seconds, "state": done}, indent=1))
    print(f"{stem}: done in {tqdm.format_interval(seconds)}", flush=True)
    return None


def remaining(jobs: list[Job]) -> str:
    """Say which notebooks are left and what they took last time, here or where the committed results come from."""
    left, lines, total = [job for job in jobs if not up_to_date(job) and not lacking(job)], [], 0.0
    for job in left:
        record = figures_root() / job.profile / job.notebook.stem / PROVENANCE
        seconds = last_run(job).get("seconds")
        if seconds is None and record.is_file():
            seconds = json.loads(record.read_text())["seconds"]["wall"]
        total += seconds or 0
        lines.append(f"  {job.notebook.stem}: {tqdm.format_interval(seconds) if seconds else 'time not known yet'}")
    kept = sum(1 for _ in (runs_root() / "cache").glob(f"*/*/{INFO}"))
    lines[:0] = [f"{len(jobs) - len(left)} of {len(jobs)} notebooks need no run; {kept:,} earlier results are kept"]
    if left:
        lines[1:1] = [f"left, about {tqdm.format_interval(total)} where nothing is kept:"]
    return "\n".join(lines)


def environment(out: Path | None, private: str, own: Path = Path()) -> dict[str, str]:
    """Return the variables that kernels get.

    Args:
        out: a folder for runs/ and figures/.
        private: one to be removed; without a terminal kernels note their progress in it.
        own: as a job's.
    """
    try:
        terminal = os.ttyname(sys.__stderr__.fileno())
    except OSError:  # none, or one without a name
        terminal = str(Path(private) / "progress")
    return {
        "NKD_RUNS": str((out / "runs" if out else runs_root()).resolve()),
        "NKD_FIGURES": str((out / "figures" if out else figures_root()).resolve() / own),
        **{name: str(Path(os.environ[name]).resolve()) for name in ("NKD_DATA", "NKD_CACHE") if os.environ.get(name)},
        "NKD_PROGRESS": terminal,  # where a kernel draws its bars, or a line a minute
        "IPYTHONDIR": private,  # the user's start-up files stay out
        "JUPYTER_PREFER_ENV_PATH": "1",  # and so do kernels that the user installed under the same name
        **computing(threads=1),
        "PYTHONHASHSEED": "0",  # the order of a set must not decide a result
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS sums in an order of its own
        "NVIDIA_TF32_OVERRIDE": "0",  # float32 on a GPU means float32; what may be coarser is in bfloat16
    }


def at_least_one(text: str) -> int:
    """Read a count from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.run", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--profile", choices=list(TIERS), default="cpu", help="the budget")
    parser.add_argument("--data", help="another data set than the profile's: a name or a folder of images")
    parser.add_argument("--seeds", type=at_least_one, help="number of repeats")
    parser.add_argument("--jobs", type=at_least_one, help="number of workers")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--executor", choices=list(EXECUTORS), help="where tasks run")
    parser.add_argument("--out", type=Path, help="a folder for runs/ and figures/ in place of the checkout's")
    parser.add_argument("--force", action="store_true", help="run what is up to date too")
    return parser


def reproduce(options: argparse.Namespace, jobs: list[Job]) -> int:
    """Run the notebooks that changed; returns 1 when one failed, else 0."""
    errors: dict[str, str] = {}
    memory: dict[str, float] = {}
    started, kept = time.monotonic(), 0
    if len(jobs) > 1:
        print(remaining(jobs), flush=True)
    for job in jobs:
        with locked(runs_root(), "another run is at work here; waiting for it"):
            if not options.force and up_to_date(job):
                print(f"{job.notebook.stem}: up to date", flush=True)
                kept += 1
                continue
            if reason := lacking(job):
                print(f"{job.notebook.stem}: left out, {reason}", flush=True)
                continue
            with MemoryWatch() as watch:
                error = execute(job)
            memory[job.notebook.stem] = watch.peak_mb
            if error:
                errors[job.notebook.stem] = error
    took = tqdm.format_interval(time.monotonic() - started)
    most = max(memory, key=memory.get, default="")
    said = f"{len(memory)} run, {kept} up to date, {len(errors)} failed, {took}"
    said += f", at most {memory[most]:,.0f} MB at once (in {most})" if memory else ""
    print(f"profile {options.profile}: {said}", flush=True)
    if jobs and jobs[0].own.parts:
        print(f"own data, seeds or device: results are in {figures_root()} and are not judged", flush=True)
    for stem, error in errors.items():
        shown = error if sys.stderr.isatty() else ANSI_COLORS.sub("", error)
        print(f"\n{stem} failed:\n{shown}", file=sys.stderr)
    return 1 if errors else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks; returns 0, 1 when one failed, 130 when interrupted; exits with 2 for a usage error."""
    command = parser()
    options = command.parse_args(arguments)
    jobs = plan(options, command.error)
    private = tempfile.TemporaryDirectory(prefix="nkdlib-", dir="/tmp")  # a socket's path ends at 103 characters
    own = jobs[0].own if jobs else Path()
    with private as folder, patch.dict(os.environ, environment(options.out, folder, own)):
        try:
            return reproduce(options, jobs)
        except KeyboardInterrupt:
            print("\ninterrupted; what was done is kept, and the next run goes on from there", file=sys.stderr)
            return 130
        except OSError as error:  # a full or read-only disk
            remedy = "what was done is kept; --out, or NKD_RUNS and NKD_FIGURES, can name another place"
            print(f"error: {error}; {remedy}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # end the kernel and its workers, as Ctrl-C does
    sys.exit(main())
