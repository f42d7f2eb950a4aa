"""`make verify` and the README's table, on observations made up here."""

import json
from pathlib import Path

import pytest
from test_layers import MODULES, imported, module_name

from nkdlib.compendium.claims import CLAIMS
from nkdlib.compendium.results import Results
from nkdlib.compendium.verify import UPDATE, Record, claims_table, read_reference, updated
from nkdlib.compendium.verify import main as verify

ROOT = Path(__file__).parents[1]


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def run(values=(2.5, 2.6, 2.7, 2.4, 2.5), profile="cpu", seeds=5):
    parameters = {"profile": profile, "data": "fashion-mnist", "seeds": seeds, "jobs": 2}
    results = Results("02_distillation_speed", profile, parameters, "abc")
    for seed, value in enumerate(values):
        results.observe("ND-1", "speedup_critical_path", seed, value)
    results.write()


def test_without_a_reference_there_is_nothing_to_compare(figures, capsys):
    run()
    assert verify([]) == 0
    out = capsys.readouterr().out
    assert all(f"{claim.id} " in out for claim in CLAIMS)
    assert "PARTLY" in out and "no reference is committed" in out


def test_the_same_is_the_same_even_when_nothing_was_reproduced(figures, capsys):
    run([0.5, 0.6, 0.5, 0.4, 0.5])
    assert verify(["--write-reference"]) == 0
    run([0.55, 0.6, 0.5, 0.4, 0.5])
    assert verify([]) == 0
    out = capsys.readouterr().out
    assert "NOT REPRODUCED" in out and "as in the committed reference" in out


def test_a_verdict_that_changed_fails(figures, capsys):
    run([1.5, 1.6, 1.5, 1.4, 1.5])
    verify(["--write-reference"])
    run([1.5, 1.6, 1.5, 1.4, None])
    assert verify([]) == 1
    out = capsys.readouterr().out
    assert "here: speedup_critical_path was not reached by seed 4" in out
    assert "DIFFERS: ND-1 verdict: not reproduced; the reference: partly" in out
    assert "DIFFERS: ND-1 speedup_critical_path: not reached; the reference: 1.5 x" in out


def test_a_mean_beyond_the_tolerance_fails(figures, capsys):
    run([2.0, 2.1, 2.0, 1.9, 2.0])
    verify(["--write-reference"])
    run([2.5, 2.6, 2.5, 2.4, 2.5])
    assert verify([]) == 0  # 30 % of 2.0 are allowed
    run([2.8, 2.9, 2.8, 2.7, 2.8])
    assert verify([]) == 1
    assert "2.8 x; the reference: 2 x, tolerance 0.6" in capsys.readouterr().out


def test_what_is_missing_fails_and_other_parameters_are_named(figures, capsys):
    run()
    verify(["--write-reference"])
    run(values=[2.5, 2.6, 2.5], seeds=3)
    assert verify([]) == 1
    out = capsys.readouterr().out
    assert "note: 02_distillation_speed ran with seeds=3, the reference with 5" in out and "jobs" not in out
    assert "3 of 5 seeds" in out
    (figures / "cpu" / "02_distillation_speed" / "observations.json").unlink()
    assert verify([]) == 1
    assert "ND-1 speedup_critical_path: not observed; the reference: 2.54 [2.4, 2.68], n=5" in capsys.readouterr().out


def test_smoke_judges_nothing_and_is_no_reference(figures, capsys):
    run(profile="smoke")
    assert verify(["--profile", "smoke", "--write-reference"]) == 0
    assert "judges nothing" in capsys.readouterr().out
    assert not (figures / "smoke" / "reference.json").exists()


def test_an_empty_run_is_no_reference_and_a_damaged_one_is_an_error(figures, capsys):
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


def test_the_reference_carries_seeds_and_provenance(figures):
    run()
    verify(["--write-reference"])
    reference = json.loads((figures / "cpu" / "reference.json").read_text())
    observed = reference["claims"]["ND-1"]["metrics"]["speedup_critical_path"]
    assert observed["values"] == {"0": 2.5, "1": 2.6, "2": 2.7, "3": 2.4, "4": 2.5}
    assert reference["provenance"]["02_distillation_speed"]["packages"]["torch"]
    record = read_reference("cpu")
    assert record.claims["ND-1"].metrics["speedup_critical_path"].values == {0: 2.5, 1: 2.6, 2: 2.7, 3: 2.4, 4: 2.5}
    assert record.write(figures / "again.json").read_bytes() == (figures / "cpu" / "reference.json").read_bytes()


def test_the_committed_reference_is_read_and_written_as_it_is(tmp_path):
    path = ROOT / "figures" / "cpu" / "reference.json"
    assert Record.read(path).write(tmp_path / "reference.json").read_bytes() == path.read_bytes()


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


def test_the_table_has_a_row_for_every_claim(figures, tmp_path):
    assert claims_table(None, tmp_path).count("not attempted") == len(CLAIMS)
    run()
    verify(["--write-reference"])
    rows = claims_table(read_reference("cpu"), tmp_path).splitlines()
    (row,) = [line for line in rows if "**ND-1**" in line]
    assert "2.54 [2.4, 2.68], n=5" in row and "**partly**" in row and "scaled" in row
    assert "notebooks/" not in row  # no link to what is not there


def test_the_table_is_put_between_its_marks(figures, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- claims:begin -->\nold\n<!-- claims:end -->\nafter\n")
    assert verify(["--table", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- claims:begin -->\n") and text.endswith("<!-- claims:end -->\nafter\n")
    assert "old" not in text and "**FG-3**" in text
    page.write_text("no marks")
    assert verify(["--table", str(page)]) == 2
    assert "claims:begin" in capsys.readouterr().err and page.read_text() == "no marks"


def test_the_readme_agrees_with_the_committed_reference():
    text = (ROOT / "README.md").read_text()
    expected = updated(text, claims_table(read_reference("cpu", ROOT / "figures"), ROOT / "notebooks"))
    assert text == expected, f"the README's claims table is out of date; run {UPDATE}"
