"""The notebook runner, on a small notebook in a folder with a space in its name."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from nkdlib.compendium import run
from nkdlib.compendium.tiers import TIERS
from nkdlib.compendium.watch import MemoryWatch
from nkdlib.tasks.checks import usable_device
from nkdlib.tasks.places import locked

ROOT = Path(__file__).parents[1]
PARAMETERS = """
profile: str = "cpu"  # the budget
data: str = "none"  # the data set
seeds: int = 1  # repeats
jobs: int = 1  # workers
device: str = "cpu"  # where
executor: str = "local"  # how
steps: int = 1  # unused
end: str = "well"  # how it ends
"""
WORK = """
import os, time
from pathlib import Path
import torch
from nkdlib.tasks import Cache, Task, make_executor

def task(seed, log):
    while seed > 0 and Path(log).with_name("hold").exists():
        time.sleep(0.05)
    os.write(1, b"compiled code")
    with open(log, "a") as file:
        file.write(f"{seed}\\n")
    return {"drawn": torch.randn(3), "seed": seed}

log = str(Path(os.environ["NKD_RUNS"]) / "log")
with make_executor(executor, jobs=jobs) as pool:
    tasks = [Task(task, {"seed": seed, "log": log}, f"nap {seed}") for seed in range(seeds)]
    made = Cache().run(tasks, pool, "napping")
"""
END = """
figures = Path(os.environ["NKD_FIGURES"]) / profile / "00_nap"
figures.mkdir(parents=True, exist_ok=True)
(figures / "sum.csv").write_text(str(sum(float(item.tensors["drawn"].sum()) for item in made)))
if end == "error":
    raise ValueError("as asked")
print(Path.cwd().name, os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture(autouse=True)
def another_kernel(tmp_path, monkeypatch):
    """A user's kernel of the same name, which must not be taken."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "another", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))


@pytest.fixture
def notebook(tmp_path):
    """A notebook that computes, records and can fail."""
    cells = [
        new_markdown_cell("# Nap"),
        new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}),
        new_code_cell(WORK.strip()),
        new_code_cell(END.strip()),
    ]
    path = tmp_path / "note books" / "00_nap.ipynb"
    path.parent.mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def command(notebook, tmp_path):
    """Return a function that gives the command line of a run."""
    common = [str(notebook), "--profile", "smoke", "--jobs", "1", "--out", str(tmp_path / "out")]
    return lambda *options: [*common, *options]


@pytest.fixture
def parameters(monkeypatch):
    """Return a function that sets the notebook's parameters in the profile."""

    def change(**values):
        monkeypatch.setitem(TIERS, "smoke", replace(TIERS["smoke"], notebooks={"00_nap": values}))

    return change


def log(tmp_path):
    """Return the seeds that were computed, in order."""
    path = tmp_path / "out" / "runs" / "log"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_failure_is_shown_and_mended_and_a_notebook_runs_again_only_after_a_change(
    command, parameters, tmp_path, capfd
):
    parameters(end="error")
    assert run.main(command()) == 1
    said, error = capfd.readouterr()
    assert error.rstrip().endswith("ValueError: as asked") and "\x1b" not in error
    kept = tmp_path / "out" / "runs" / "smoke" / "00_nap.failed.ipynb"
    assert str(kept) in said and kept.exists() and not kept.with_name("00_nap.ipynb").exists()

    parameters(end="well")
    assert run.main(command()) == 0
    executed = nbformat.read(kept.with_name("00_nap.ipynb"), as_version=4)
    assert executed.cells[-1].outputs[0].text == "note books 1\n"
    figure = tmp_path / "out" / "figures" / "smoke" / "00_nap" / "sum.csv"
    assert log(tmp_path) == [0, 1] and figure.exists() and not kept.exists()
    assert run.main(command()) == 0
    said = capfd.readouterr().out
    assert "00_nap: up to date" in said and "compiled code" not in said

    figure.unlink()
    parameters(seeds=3)
    assert run.main(command()) == 0 and figure.exists()
    assert log(tmp_path) == [0, 1, 2]  # the artefacts were kept all along
    last = capfd.readouterr().out.splitlines()[-1]
    assert re.search(r"1 run, 0 up to date, 0 failed, 00:\d\d, at most [\d,]+ MB at once \(in 00_nap\)$", last)


def test_a_notebook_that_was_changed_while_it_ran_runs_again(notebook, command, monkeypatch, tmp_path, capfd):
    text, execute = nbformat.read(notebook, as_version=4), run.papermill.execute_notebook

    def changed_meanwhile(*arguments, **options):
        execute(*arguments, **options)
        text.cells[0].source += ", longer"
        nbformat.write(text, notebook)

    with monkeypatch.context() as first:
        first.setattr(run.papermill, "execute_notebook", changed_meanwhile)
        assert run.main(command()) == 0
    for said in ("1 run, 0 up to date", "0 run, 1 up to date"):
        capfd.readouterr()
        assert run.main(command()) == 0 and said in capfd.readouterr().out


def test_a_notebook_that_lacks_its_data_says_so_and_leaves_what_is_committed(notebook, command, tmp_path, capfd):
    text = nbformat.read(notebook, as_version=4)
    text.metadata["nkdlib"] = {"needs": ["data"]}
    nbformat.write(text, notebook)
    committed = tmp_path / "out" / "figures" / "smoke" / "00_nap" / "observations.json"
    committed.parent.mkdir(parents=True)
    committed.write_text("[]")
    assert run.main(command()) == 0
    assert "00_nap: left out, it needs data, the folder 'digits' in NKD_DATA" in capfd.readouterr().out
    assert [path.name for path in committed.parent.iterdir()] == ["observations.json"] and not log(tmp_path)


def test_ones_own_data_or_seeds_never_touch_a_tiers_results(command, tmp_path, capfd):
    assert run.main(command()) == 0
    figures, runs = tmp_path / "out" / "figures", tmp_path / "out" / "runs"
    tiers = [
        figures / "smoke" / "00_nap" / "sum.csv",
        runs / "smoke" / "00_nap.ipynb",
        runs / "smoke" / "00_nap.stamp.json",
    ]
    before = [path.read_bytes() for path in tiers]
    (tmp_path / "photos").mkdir()
    for options, name in {
        ("--seeds", "1"): "1-seeds",
        ("--data", str(tmp_path / "photos")): "photos",
        ("--data", f"{tmp_path / 'photos'}/.", "--seeds", "3"): "photos-3-seeds",
    }.items():
        assert run.main(command(*options)) == 0
        assert (figures / "own" / name / "smoke" / "00_nap" / "sum.csv").exists()
        assert (runs / "own" / name / "smoke" / "00_nap.ipynb").exists()
        assert f"results are in {figures / 'own' / name} and are not judged" in capfd.readouterr().out
    assert run.main(command("--seeds", "2", "--data", "digits", "--device", "cpu")) == 0  # the tier's own
    assert "00_nap: up to date" in capfd.readouterr().out
    assert [path.read_bytes() for path in tiers] == before and log(tmp_path) == [0, 1, 2]


@pytest.fixture
def pictures(notebook, tmp_path):
    """A notebook that counts pictures, in a folder of one's own and in one that NKD_DATA has."""
    text = nbformat.read(notebook, as_version=4)
    text.cells[2:] = [new_code_cell('from nkdlib.data import load\nprint(len(load(data)), len(load("pets")))')]
    nbformat.write(text, notebook)
    for number in range(4):
        for name in ("photos", "sets/pets"):
            of_class = tmp_path / name / ("train", "test")[number % 2] / "cat"
            of_class.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), number).save(of_class / f"{number}.png")
    return lambda: nbformat.read(tmp_path / "out/runs/own/photos/smoke/00_nap.ipynb", as_version=4).cells[-1].outputs


def test_folders_are_found_from_where_a_command_is_given_and_their_pictures_count(
    command, pictures, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NKD_DATA", "sets")
    monkeypatch.setenv("NKD_CACHE", "fetched")
    assert run.environment(None, str(tmp_path))["NKD_CACHE"] == str(tmp_path / "fetched")
    assert run.main(command("--data", "photos")) == 0 and pictures()[-1].text == "2 2\n"
    assert run.main(command("--data", str(tmp_path / "photos"))) == 0
    assert "00_nap: up to date" in capfd.readouterr().out
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "train" / "cat" / "new.png")
    assert run.main(command("--data", "photos")) == 0 and pictures()[-1].text == "3 2\n"


def test_data_that_are_not_there_are_an_error_before_anything_runs(command, tmp_path, monkeypatch, capsys):
    for root, said in ((tmp_path, "data set 'photo' is neither one of digits"), ("nowhere", "NKD_DATA (=nowhere)")):
        monkeypatch.setenv("NKD_DATA", str(root))
        with pytest.raises(SystemExit, match="2"):
            run.main(command("--data", "photo"))
        assert said in capsys.readouterr().err
    monkeypatch.delenv("NKD_DATA")
    assert not (tmp_path / "out").exists()


def test_several_notebooks_begin_with_what_is_left_and_how_long_it_took(notebook, command, parameters, tmp_path, capfd):
    other = str(shutil.copy(notebook, notebook.with_name("01_nap.ipynb")))
    assert run.main(command()) == 0
    stamp = tmp_path / "out" / "runs" / "smoke" / "00_nap.stamp.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"seconds": 3723}))
    record = tmp_path / "out" / "figures" / "smoke" / "01_nap" / "provenance.json"  # committed with the repository
    record.parent.mkdir()
    record.write_text(json.dumps({"seconds": {"wall": 60.0}}))
    capfd.readouterr()
    assert run.main([other, *command()]) == 0
    said = capfd.readouterr().out
    assert "1 of 2 notebooks need no run; 2 earlier results are kept\nleft, about 01:00" in said
    parameters(end="error")  # a change, and a run that does not end well
    assert run.main([other, *command()]) == 1
    parameters(end="well", steps=2)
    assert run.main([other, *command()]) == 0
    said = capfd.readouterr().out
    assert "  00_nap: 1:02:03" in said.split("1 of 2 notebooks need no run")[-1]  # kept though the last run failed


def test_cells_figures_and_the_results_of_others_that_a_notebook_reads_count(notebook, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    other = tmp_path / "figures" / "smoke" / "01_other" / "observations.json"
    other.parent.mkdir(parents=True)
    job = run.Job(notebook, "smoke", {})
    text = nbformat.read(notebook, as_version=4)
    for change in ("[]", "[1]"):
        text.metadata["nkdlib"] = {"reads": ["*/observations.json"]}
        nbformat.write(text, notebook)
        before = run.state(job)
        assert run.state(job) == before
        other.write_text(change)
        assert run.state(job) != before
    before = run.state(job)
    figure = tmp_path / "figures" / "smoke" / "00_nap" / "sum.csv"
    figure.parent.mkdir()
    figure.write_text("0")
    assert run.state(job) != before
    before = run.state(job)
    text.cells[0].source = "# A nap"
    nbformat.write(text, notebook)
    assert run.state(job) != before


def test_a_parameter_that_is_not_declared_is_an_error_before_anything_runs(command, parameters, tmp_path, capsys):
    parameters(step=1)
    with pytest.raises(SystemExit, match="2"):
        run.main(command())
    error = capsys.readouterr().err
    assert "00_nap.ipynb: declares no parameter `step`" in error and "the nearest it has: steps" in error
    parameters(steps="many")
    with pytest.raises(SystemExit, match="2"):
        run.main(command())
    assert "00_nap.ipynb: declares steps as int, which 'many' is not" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_papers_size_has_no_notebooks(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(command("--profile", "paper"))
    assert "nkdlib.compendium.torchrun (docs/clusters.md)" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
@pytest.mark.parametrize("value", ["0", "-2", "two"])
def test_a_count_below_one_is_refused(option, value, capfd):
    with pytest.raises(SystemExit, match="2"):
        run.main(["00_start_here", "--profile", "smoke", option, value])
    assert f"argument {option}: '{value}' must be a whole number of at least 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--profile", "gpu"], *(["--device", name] for name in ("cuda", "cuda:1", "gpu", "meta", "cpu:x", "mps"))],
)
def test_a_missing_device_is_an_error_before_anything_runs(command, options, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        run.main(command(*options))
    said = capsys.readouterr().err
    assert f"device (='{'cuda' if options[0] == '--profile' else options[1]}') must be cpu, cuda or cuda:N" in said
    assert "this machine has 0 usable GPUs" in said


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [str(usable_device(name)) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(ValueError, match=r"device \(='cuda:2'\) .* this machine has 2 usable GPUs"):
        usable_device("cuda:2")


@pytest.mark.parametrize("data", ["it's", 'a "b" c', "x; y"])
@pytest.mark.parametrize("target", ["reproduce", "figures", "data"])
def test_make_hands_on_what_users_set_as_it_is(tmp_path, data, target):
    said, script = tmp_path / "said", tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport sys\nopen({str(said)!r}, 'a').write(repr(sys.argv[1:]))\n")
    script.chmod(0o755)
    line = ["make", "-o", ".venv/.ready", f"PYTHON={script}", target, f"DATA={data}", "PROFILE=smoke"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    assert repr(data if target == "data" else f"--data={data}") in said.read_text()
    said.unlink()
    subprocess.run([*line, "DATA="], cwd=ROOT, check=True, capture_output=True)
    assert "--data" not in said.read_text() and data not in said.read_text()


def test_a_place_that_cannot_be_written_is_one_line(notebook, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run.main([str(notebook), "--profile", "smoke", "--out", str(tmp_path / "file")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "file") in line and "--out" in line


def test_a_kernel_that_dies_is_explained(notebook, command, capsys):
    text = nbformat.read(notebook, as_version=4)
    text.cells[2:] = [new_code_cell("import os\nos.kill(os.getpid(), 9)")]
    nbformat.write(text, notebook)
    assert run.main(command()) == 1
    assert "the kernel died in cell 3: most often memory ran out" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on_where_it_was(command, tmp_path):
    options = command("--seeds", "4", "--jobs", "2")  # two workers
    hold = tmp_path / "out" / "runs" / "hold"  # keeps every task but the first from ending
    hold.parent.mkdir(parents=True)
    hold.touch()
    cache = hold.parent / "cache" / "task"
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        started = subprocess.Popen([sys.executable, "-m", "nkdlib.compendium.run", *options], stderr=subprocess.DEVNULL)
        runner = psutil.Process(started.pid)
        _wait(lambda runner=runner: len(runner.children(recursive=True)) >= 3)  # the kernel and its workers
        _wait(lambda: any(cache.glob("*/info.json")))
        family = runner.children(recursive=True)
        started.send_signal(number)
        assert started.wait(20) == status
        _wait(lambda family=family: not any(one.is_running() and one.status() != "zombie" for one in family))
        assert log(tmp_path) == [0]
    hold.unlink()
    assert run.main(command("--seeds", "4")) == 0
    assert log(tmp_path) == [0, 1, 2, 3]


def test_two_runs_at_once_do_the_work_once_and_a_terminal_shows_the_steps_of_a_kernel(command, tmp_path):
    terminal, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    line = [sys.executable, "-m", "nkdlib.compendium.run", *command()]
    with locked(tmp_path / "out" / "runs"):
        both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=inside, text=True) for _ in range(2)]
        os.close(inside)
        for process in both:
            assert process.stdout.readline() == "another run is at work here; waiting for it\n"
    shown = b""
    with suppress(OSError):  # the terminal is closed with the processes
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert log(tmp_path) == [0, 1]
    assert sum("up to date\n" in text for text in said) == 1
    assert b"00_nap:" in shown and b"napping: " in shown and b"/2 " in shown  # quick steps may not be drawn one by one


def test_a_log_gets_a_line_now_and_then(capsys):
    shown = ""
    with run.reporting(lambda: "00_nap: cell 2 after 01:00", every_s=0.01):
        while shown.count("\n") < 3:
            shown += capsys.readouterr().out
    assert set(shown.splitlines()) == {"00_nap: cell 2 after 01:00"}


def test_the_lines_of_a_log_say_what_the_kernel_is_at(command, monkeypatch):
    lines = []

    @contextmanager
    def told_at_the_end(line):
        yield
        lines.append(line())

    monkeypatch.setattr(run, "reporting", told_at_the_end)
    assert run.main(command()) == 0
    assert re.fullmatch(r"00_nap: cell \d after 00:\d\d; napping: 2/2 tasks, done after 00:\d\d", lines[0])


def _wait(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_memory_of_all_processes_is_watched():
    hold = "import time; held = bytearray(b'1') * (200 << 20); print(1, flush=True); time.sleep(60)"
    with MemoryWatch(every_s=0.05) as alone:
        time.sleep(0.2)
    with MemoryWatch(every_s=0.05) as watch:
        child = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.2)
        child.kill()
        child.communicate()
    assert alone.peak_mb + 195 < watch.peak_mb < alone.peak_mb + 300
