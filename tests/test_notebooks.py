"""Every notebook at smoke, through the runner that `make reproduce` uses."""

import dataclasses
from pathlib import Path

import nbformat
import papermill
import pytest

from nkdlib.compendium import run
from nkdlib.compendium.tiers import PROFILES

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_typed_commented_and_known_to_every_profile(path):
    declared = papermill.inspect_notebook(str(path))
    for name, parameter in declared.items():
        assert parameter["inferred_type_name"] != "None", f"{name} has no type"
        assert parameter["help"], f"{name} has no comment"
    for profile in PROFILES.values():
        assert set(profile.for_notebook(path.stem)) <= set(declared)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_smoke_and_is_then_up_to_date(path, reproduced, capfd):
    command = [str(path), "--profile", "smoke", "--out", str(reproduced)]
    assert run.main(command) == 0, capfd.readouterr().err
    executed = nbformat.read(reproduced / "runs" / "smoke" / path.name, as_version=4)
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            assert not (output.output_type == "stream" and "Warning" in output.text), output.text
    assert run.main(command) == 0
    assert f"{path.stem}: up to date" in capfd.readouterr().out


@pytest.mark.parametrize("stem", ["01_local_replacement", "05_figs_classification", "06_figs_detection"])
def test_a_notebook_runs_small_with_what_only_a_gpu_gets(stem, tmp_path, monkeypatch, capfd):
    taken = papermill.inspect_notebook(str(NOTEBOOKS[0].with_name(f"{stem}.ipynb"))).keys()
    gpu = PROFILES["gpu"].for_notebook(stem)
    switches = {name: gpu[name] for name in ("amp", "augment", "teacher_recipe") if name in taken}
    assert switches["amp"] and switches.get("augment", True)
    small = dataclasses.replace(PROFILES["smoke"], parameters={stem: switches})
    monkeypatch.setitem(PROFILES, "smoke", small)
    assert run.main([stem, "--profile", "smoke", "--seeds", "1", "--out", str(tmp_path)]) == 0, capfd.readouterr().err


def test_the_claims_follow_every_observation():
    for path in NOTEBOOKS:
        if path.stem == "07_claims":
            notebook = nbformat.read(path, as_version=4)
            assert notebook.metadata.get("nkdlib", {}).get("reads") == ["*/observations.json", "reference.json"]


def test_every_profile_names_only_notebooks_that_exist():
    named = {stem for profile in PROFILES.values() for stem in profile.parameters}
    assert named <= {path.stem for path in NOTEBOOKS}
