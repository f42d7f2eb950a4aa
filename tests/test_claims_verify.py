"""`make verify` on observations made up here, and the executed notebooks that a reference keeps."""

import base64
import io
import json
import re
from itertools import count
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image
from test_layers import MODULES, imported, module_name

from nkdlib.compendium.claims import CLAIMS
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.results import Results
from nkdlib.compendium.tiers import TIERS
from nkdlib.compendium.verify import Record, check_reference, read_reference
from nkdlib.compendium.verify import main as verify

ROOT = Path(__file__).parents[1]
CRITERIA = (ROOT / "nkdlib" / "compendium" / "claims.toml").read_text()
SHOWN = [("show", f"{commit * 40}:nkdlib/compendium/claims.toml") for commit in "abc"]


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


@pytest.fixture
def git(monkeypatch):
    """Return a function that sets what provenance says of the checkout."""

    def set_(dirty=False, commit="c" * 40, claims=CRITERIA):
        monkeypatch.setattr("nkdlib.compendium.verify.git", lambda *a: claims if a in SHOWN else None)
        monkeypatch.setattr(
            "nkdlib.compendium.results.provenance", lambda *a: provenance(*a) | stated | {"time": next(clock)}
        )
        stated.update(dirty=dirty, commit=commit)

    stated, clock = {}, count()
    return set_


@pytest.fixture
def clean(git):
    """A clean tree of one commit."""
    git()


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def run(values=(2.5, 2.6, 2.7, 2.4, 2.5), profile="cpu", **changed):
    parameters = TIERS[profile].protocol("02_distillation_speed") | {"jobs": 2} | changed
    results = Results("02_distillation_speed", profile, parameters, "abc")
    for seed, value in enumerate(values):
        results.observe("ND-1", "speedup_critical_path", seed, value)
    results.write()


def test_without_a_reference_there_is_nothing_to_compare(figures, capsys):
    run()
    assert verify([]) == 0
    out = capsys.readouterr().out
    assert all(f"{claim.id} " in out for claim in CLAIMS)
    assert "REPRODUCED" in out and "no reference is committed" in out


def test_the_same_is_the_same_even_when_a_claim_is_contradicted(figures, clean, capsys):
    run([0.5, 0.6, 0.5, 0.4, 0.5])
    assert verify(["--write-reference"]) == 0
    run([0.55, 0.6, 0.5, 0.4, 0.5])
    assert verify([]) == 0
    out = capsys.readouterr().out
    assert "CONTRADICTED" in out and "as in the committed reference" in out and "run here" not in out


def test_where_nothing_was_run_this_is_said(figures, clean, capsys):
    run()
    verify(["--write-reference"])
    assert verify([]) == 0
    assert "nothing was run here; committed results are compared with themselves" in capsys.readouterr().out


def test_a_reference_is_of_clean_trees_of_which_every_notebook_may_have_its_own(figures, git, capsys):
    run()
    for tree in ({"dirty": True}, {"dirty": None, "commit": None}):
        git(**tree)
        run()
        assert verify(["--write-reference"]) == 2
        assert "02_distillation_speed ran with changes that are not committed" in capsys.readouterr().err
    git(commit="a" * 40)
    run()
    git(commit="b" * 40)
    other = Results("01_local_replacement", "cpu", TIERS["cpu"].protocol("01_local_replacement"))
    other.observe("ND-0", "worst_drop_points", 0, 0.5)
    other.write()
    assert verify(["--write-reference"]) == 0
    record = read_reference("cpu").provenance
    assert [record[stem]["commit"][0] for stem in sorted(record)] == ["b", "a"]
    (figures / "cpu" / "reference.json").unlink()
    git()
    other.write()
    run(seeds=2)
    assert verify(["--write-reference"]) == 2
    assert "02_distillation_speed: seeds=2 in place of " in capsys.readouterr().err
    assert not (figures / "cpu" / "reference.json").exists()
    run()
    assert verify(["--write-reference"]) == 0


def test_a_criterion_that_moved_after_the_run_gives_no_reference(figures, git, capsys):
    bound = '[claim.ND-1.criterion.ahead]\ncolumn = "paper"\nwords = ""\nmetric = "speedup_critical_path"\n'
    bound += 'asked = { sense = "above", bound = 1.0, unit = "x", tolerance = 0.3 }\n'
    git(claims=CRITERIA + bound)  # was there when the notebooks ran
    run()
    assert verify(["--write-reference"]) == 2
    assert "the criteria of ND-1 changed after the notebooks ran; run them again" in capsys.readouterr().err
    git(commit="d" * 40)
    run()
    assert verify(["--write-reference"]) == 2
    assert f"ran at {'d' * 40}, which this clone does not have" in capsys.readouterr().err
    git()
    run()
    assert verify(["--write-reference"]) == 0


def test_results_of_a_protocol_that_is_gone_are_not_judged_and_no_error(figures, capsys):
    run()
    folder = figures / "cpu" / "02_distillation_speed"
    old = json.loads((folder / "observations.json").read_text())
    old["observations"].append({"claim": "ND-1e", "metric": "speedup_solved", "seed": 0, "value": 1.0})
    (folder / "observations.json").write_text(json.dumps(old))
    assert verify([]) == 2 and "ND-1e" in capsys.readouterr().err  # with the tier's parameters it is a mistake
    origin = json.loads((folder / "provenance.json").read_text())
    del origin["parameters"]["amp"]
    (folder / "provenance.json").write_text(json.dumps(origin))
    assert verify([]) == 0
    assert "own parameters: not judged (without amp)" in capsys.readouterr().out


def test_a_verdict_that_changed_fails(figures, clean, capsys):
    run([1.5, 1.6, 1.5, 1.4, 1.5])
    verify(["--write-reference"])
    run([1.5, 1.6, 1.5, 1.4, None])
    assert verify([]) == 1
    out = capsys.readouterr().out
    assert "here: speed-up with a worker for each block was not reached by seed 4" in out
    assert "DIFFERS: ND-1 verdict: undecided; the reference: reproduced" in out
    assert "DIFFERS: ND-1 speedup_critical_path: not reached; the reference: 1.5 x" in out


def test_a_mean_beyond_the_tolerance_fails(figures, clean, capsys):
    run([2.0, 2.1, 2.0, 1.9, 2.0])
    verify(["--write-reference"])
    run([2.5, 2.6, 2.5, 2.4, 2.5])
    assert verify([]) == 0  # 30 % of 2.0 are allowed
    run([2.8, 2.9, 2.8, 2.7, 2.8])
    assert verify([]) == 1
    assert "2.8 x; the reference: 2 x, tolerance 0.6" in capsys.readouterr().out


def test_what_is_missing_fails_and_other_parameters_are_named(figures, clean, capsys):
    run()
    verify(["--write-reference"])
    run(values=[2.5, 2.6, 2.5], images=3)
    assert verify([]) == 1
    tier = TIERS["cpu"].protocol("02_distillation_speed")["images"]
    out = capsys.readouterr().out
    assert f"own parameters: not judged (images=3 in place of {tier})" in out and "jobs" not in out
    assert "DIFFERS: ND-1 verdict: not attempted; the reference: reproduced" in out
    (figures / "cpu" / "02_distillation_speed" / "observations.json").unlink()
    assert verify([]) == 1
    assert "ND-1 speedup_critical_path: not observed; the reference: 2.54 [2.4, 2.68; n=5]" in capsys.readouterr().out


def test_smoke_judges_nothing_and_is_no_reference(figures, capsys):
    run(profile="smoke")
    assert verify(["--profile", "smoke", "--write-reference"]) == 0
    assert "judges nothing" in capsys.readouterr().out
    assert not (figures / "smoke" / "reference.json").exists()


def test_an_empty_run_is_no_reference_and_a_damaged_one_is_an_error(figures, clean, capsys):
    assert verify(["--write-reference"]) == 2
    assert "make reproduce PROFILE=cpu" in capsys.readouterr().err
    run()
    path = figures / "cpu" / "02_distillation_speed" / "observations.json"
    verify(["--write-reference"])
    for damaged in (path, figures / "cpu" / "reference.json"):
        whole = damaged.read_text()
        damaged.write_text("{}")
        assert verify([]) == 2
        assert f"error: {damaged} is not" in capsys.readouterr().err
        damaged.write_text(whole)


def test_the_reference_carries_seeds_and_provenance(figures, clean):
    run()
    verify(["--write-reference"])
    reference = json.loads((figures / "cpu" / "reference.json").read_text())
    observed = reference["claims"]["ND-1"]["found"]["speedup_critical_path"]
    assert observed["values"] == {"0": 2.5, "1": 2.6, "2": 2.7, "3": 2.4, "4": 2.5}
    assert reference["provenance"]["02_distillation_speed"]["packages"]["torch"]
    record = read_reference("cpu")
    assert record.claims["ND-1"].found["speedup_critical_path"].values == {0: 2.5, 1: 2.6, 2: 2.7, 3: 2.4, 4: 2.5}
    assert record.write(figures / "again.json").read_bytes() == (figures / "cpu" / "reference.json").read_bytes()


def test_committed_references_are_read_and_written_as_they_are_and_come_from_clean_trees(tmp_path):
    for path in ROOT.glob("figures/*/reference.json"):
        record = Record.read(path)
        check_reference(record)
        assert record.write(tmp_path / "reference.json").read_bytes() == path.read_bytes()


def test_judging_needs_no_drawing():
    files = {module_name(path): path for path in MODULES}
    reached, waiting = set(), {"nkdlib.compendium.verify"}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= imported(files[module]) & files.keys() - reached
    assert "nkdlib.compendium.judge" in reached
    for module in reached:
        packages = {other.split(".")[0] for other in imported(files[module])}
        assert not packages & {"matplotlib", "IPython", "papermill", "sphinx"}, module


def executed(path, *pictures):
    """A notebook as the runner leaves it, on a machine with folders."""
    shown = [new_output("display_data", {"text/html": f'<img src="data:image/png;base64,{one}">'}) for one in pictures]
    printed = new_output("stream", name="stdout", text=f"{ROOT}/x and {Path.home()}/y")
    cell = new_code_cell("1", outputs=[*shown, printed])
    cell.metadata["papermill"] = {"start_time": "today"}
    ran = {"parameters": {"seeds": 3, "data": f"{ROOT}/photos"}, "input_path": f"{ROOT}/notebooks/{path.name}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[cell], metadata={"papermill": ran}), path)


def picture(size, colors, kind="png"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, colors, (*size, 3), np.uint8) * (255 // max(colors - 1, 1))
    Image.fromarray(pixels).save(buffer, kind, compress_level=0)
    return base64.b64encode(buffer.getvalue()).decode()


def opened(encoded):
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_reference_keeps_its_executed_notebooks_small_and_without_the_machines_paths(figures, runs, clean):
    run()
    before = [picture((40, 40), 2), picture((40, 1600), 256, "jpeg"), picture((40, 800), 256, "jpeg")]
    executed(runs / "cpu" / "02_distillation_speed.ipynb", *before)
    executed(runs / "cpu" / "02_distillation_speed.failed.ipynb")
    executed(runs / "cpu" / "03_student_search.ipynb")  # of another run: it left no results
    assert verify(["--write-reference"]) == 0
    (kept,) = (figures / "cpu").glob("*.ipynb")
    notebook = nbformat.read(kept, as_version=4)
    assert notebook.metadata.papermill == {"parameters": {"seeds": 3, "data": ".../photos"}}
    *shown, printed = notebook.cells[0].outputs
    assert printed.text == "./x and ~/y" and "papermill" not in notebook.cells[0].metadata
    drawing, wide, narrow = (re.search('base64,([^"]+)', one.data["text/html"])[1] for one in shown)
    assert len(drawing) < len(before[0]) / 2
    same = [np.array(opened(one).convert("RGB")) for one in (before[0], drawing)]
    assert (same[0] == same[1]).all()  # eight colors need no more than a palette
    assert (opened(wide).format, opened(wide).size) == ("JPEG", (800, 20)) and narrow == before[2]


def test_executed_notebooks_of_more_than_5_mb_are_refused(figures, runs, clean, monkeypatch, capsys):
    run()
    executed(runs / "cpu" / "02_distillation_speed.ipynb")
    monkeypatch.setattr("nkdlib.compendium.verify.MOST_BYTES", 100)
    assert verify(["--write-reference"]) == 2
    assert "must be below 5 MB in all; draw smaller figures" in capsys.readouterr().err
    assert not (figures / "cpu" / "reference.json").exists()


def test_the_committed_executed_notebooks_are_small():
    assert sum(path.stat().st_size for path in ROOT.glob("figures/*/*.ipynb")) <= 5_000_000
