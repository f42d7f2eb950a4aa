"""Notebooks as they are kept, and every one of them at smoke, through the runner that `make reproduce` uses."""

import dataclasses
from pathlib import Path

import nbformat
import papermill
import pytest

from nkdlib.compendium import run
from nkdlib.compendium.tiers import TIERS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LINES, COLUMNS = 25, 88  # of a cell, at most
ONE_SEED = ("02_distillation_speed", "03_student_search", "04_synthetic_data")  # half the seconds
WITH_GPU_SWITCHES = ("05_figs_spaces", "07_figs_detection")  # one seed, with what only the gpu tier turns on
SMALLER = {"05_figs_spaces": {"repeats": 2}}  # it has the most tasks

ELSEWHERE = ("05", "06", "08")  # run in test_notebooks_figs, so that two workers share the runs


def each(paths):
    """Run a test once for each notebook."""
    return pytest.mark.parametrize("path", list(paths), ids=lambda path: path.stem)


notebooks = each(NOTEBOOKS)


@notebooks
def test_a_notebook_is_kept_as_it_is_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, second = notebook.cells[:2]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "parameters" in second.metadata.get("tags", [])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            clear = f"{path.name} has outputs; in JupyterLab, Edit > Clear Outputs of All Cells, and save"
            assert not cell.outputs and cell.execution_count is None, clear
            assert not any(sign in cell.source for sign in ("sys.path", "%pip", "!pip", "papermill"))
    assert notebook.metadata.kernelspec.name == "python3"


@notebooks
def test_a_cell_fits_a_screen(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    parameters, *others = code
    assert "parameters" in parameters.metadata.get("tags", [])
    longest = max(len(cell.source.splitlines()) for cell in others)
    assert longest <= LINES, f"a cell of {path.name} has {longest} lines"


@notebooks
def test_a_notebook_is_read_in_a_narrow_column(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if "parameters" not in cell.metadata.get("tags", []):
            lines = [line for line in cell.source.splitlines() if not line.startswith("|")]  # a table's row stays whole
            longest = max(lines, key=len)
            assert len(longest) <= COLUMNS, f"{path.name} has a line of {len(longest)} characters: {longest}"


@notebooks
def test_parameters_are_typed_and_commented(path):
    for name, parameter in papermill.inspect_notebook(str(path)).items():
        assert parameter["inferred_type_name"] != "None", f"{name} has no type"
        assert parameter["help"], f"{name} has no comment"


def run_at_smoke(path, reproduced, monkeypatch, capfd):
    """Run a notebook, and again when it is up to date; assert that neither fails and that nothing warns."""
    command = [str(path), "--profile", "smoke", "--jobs", "1", "--out", str(reproduced)]
    values = {"seeds": 1} if path.stem in ONE_SEED + WITH_GPU_SWITCHES else {}
    if path.stem in WITH_GPU_SWITCHES:
        assert TIERS["gpu"].for_notebook(path.stem)["amp"]
        values |= dict.fromkeys({"amp", "augment"} & papermill.inspect_notebook(str(path)).keys(), True)
        values |= SMALLER.get(path.stem, {})
    monkeypatch.setitem(TIERS, "smoke", dataclasses.replace(TIERS["smoke"], notebooks={path.stem: values}))
    assert run.main(command) == 0, capfd.readouterr().err
    executed = nbformat.read(reproduced / "runs" / "smoke" / path.name, as_version=4)
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            assert not (output.output_type == "stream" and "Warning" in output.text), output.text
            assert "image/png" not in output.get("data", {}), f"a figure is shown twice, first here: {cell.source}"
    assert run.main(command) == 0
    assert f"{path.stem}: up to date" in capfd.readouterr().out


@each(path for path in NOTEBOOKS if not path.stem.startswith(ELSEWHERE))
def test_a_notebook_runs_at_smoke_and_is_then_up_to_date(path, reproduced, monkeypatch, capfd):
    run_at_smoke(path, reproduced, monkeypatch, capfd)


def test_the_claims_follow_every_observation():
    for path in NOTEBOOKS:
        if path.stem == "09_claims":
            notebook = nbformat.read(path, as_version=4)
            assert notebook.metadata.get("nkdlib", {}).get("reads") == ["*/observations.json", "reference.json"]
