"""What a notebook hands over: written once, in one place, marked when it is no result."""

import json
import os
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from joblib import cpu_count

from nkdlib.compendium.claims import claim_by_id
from nkdlib.compendium.judge import Observation
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.results import Results
from nkdlib.compendium.tiers import TIERS
from nkdlib.compendium.verify import judge_all


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def speed(profile="cpu", values=(2.5, 2.6, 2.7, 2.4, 2.5), order=range(5), **changed):
    parameters = TIERS[profile].protocol("02_distillation_speed") | changed
    results = Results("02_distillation_speed", profile, parameters, "abc")
    for seed in order[: len(values)]:
        results.observe("ND-1", "speedup_critical_path", seed, values[seed], start="random")
    return results


def test_written_observations_are_read_again(figures):
    folder = (results := speed()).write()
    assert folder == figures / "cpu" / "02_distillation_speed" and not results.by_hand
    judged = judge_all("cpu").claims["ND-1"].found["speedup_critical_path"]
    Results("09_claims", "cpu", TIERS["cpu"].protocol("09_claims")).write()  # it reads the others, never itself
    assert [*judge_all("cpu").provenance] == ["02_distillation_speed"]
    assert judged.values == {0: 2.5, 1: 2.6, 2: 2.7, 3: 2.4, 4: 2.5}
    found = [Observation(**row) for row in json.loads((folder / "observations.json").read_text())["observations"]]
    assert found[0].condition == {"start": "random"}
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["parameters"]["data"] == TIERS["cpu"].common["data"] and origin["data"] == "abc"
    assert set(origin["seconds"]) == {"wall", "cpu"}


def test_the_file_depends_on_its_content_only(figures):
    first = (speed().write() / "observations.json").read_bytes()
    assert (speed(order=[4, 2, 0, 1, 3]).write() / "observations.json").read_bytes() == first
    assert not list(figures.rglob("*.tmp"))


def test_what_earlier_runs_left_is_removed_once_a_run_is_done(figures):
    earlier = speed()
    earlier.record("rows", [{"seed": 0}])
    folder = earlier.write()
    (folder / "kept").mkdir()
    later = speed()
    later.table(pd.DataFrame({"seed": [0]}), "summary", "A table")
    assert (folder / "rows.csv").exists()  # until the end, so that a run that fails leaves the last good one whole
    later.write()
    left = {"kept", "observations.json", "provenance.json", "summary.csv", "summary.md"}
    assert {path.name for path in folder.iterdir()} == left


def test_wrong_observations_are_refused_at_once(figures):
    results = speed()
    with pytest.raises(ValueError, match="observed twice under seed 0"):
        results.observe("ND-1", "speedup_critical_path", 0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        results.observe("ND-1", "closed_form_ratio", 0, float("nan"))
    with pytest.raises(ValueError, match="closed_form_ratio"):
        results.observe("ND-1", "speedup", 0, 1.0)
    with pytest.raises(ValueError, match=r"profile \(='laptop'\)"):
        Results("02_distillation_speed", "laptop", {})


def test_a_damaged_file_is_named(figures):
    path = speed().write() / "observations.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"02_distillation_speed.observations.json.*make reproduce PROFILE=cpu"):
        judge_all("cpu")


def test_verdict_prints_itself(figures):
    results = speed()
    results.observe("ND-1", "closed_form_ratio", 0, None)
    text = repr(results.verdict("ND-1"))
    assert "REPRODUCED" in text and "2.54 [2.4, 2.68; n=5]" in text and "asked: above 1; holds" in text
    assert (
        "seeds 2.5, 2.6, 2.7, 2.4, 2.5" in text and "our aim: speed-up of the closed form not reached by seed 0" in text
    )
    assert "judges nothing" in repr(speed(profile="smoke").verdict("ND-1"))


def test_the_chance_to_be_met_stands_beside_the_verdict(figures, monkeypatch):
    claim = claim_by_id("ND-1")
    criteria = [replace(one, expected=1.5, spread=0.2) for one in claim.criteria]
    monkeypatch.setattr("nkdlib.compendium.claims.CLAIMS", (replace(claim, criteria=tuple(criteria)),))
    chance = f"chance that {criteria[0].label} is met by {{}} seeds if exactly true: {{:.0%}}"
    assert chance.format(5, criteria[0].chance(5)) in repr(speed().verdict("ND-1"))
    assert chance.format(3, criteria[0].chance(3)) in repr(speed(values=[]).verdict("ND-1"))  # before there are results


@pytest.mark.parametrize("changed", [{"steps": [1]}, {"data": "digits"}, {"seeds": 2}, {"images": 10}])
def test_parameters_of_ones_own_are_marked_and_not_judged_under_a_tiers_name(figures, changed):
    results, ((name, value),) = speed(**changed), changed.items()
    assert f"own parameters: not judged ({name}={value!r} in place of" in repr(results.verdict("ND-1"))
    assert "own parameters: not judged" in results.table(pd.DataFrame({"a": [1]}), "a", "A").to_html()
    results.write()
    record = judge_all("cpu")
    assert record.claims["ND-1"].verdict == "not attempted"
    assert record.claims["ND-1"].found["speedup_critical_path"].outcome == "not judged"  # shown all the same
    assert f"{name}={value!r} in place of" in record.claims["ND-1"].reason


def test_a_folder_that_is_named_as_the_tiers_data_set_is_data_of_ones_own(figures):
    results = speed(data="/somewhere/cifar10")
    reason = "own parameters: not judged (data='.../cifar10' in place of 'cifar10')"
    assert reason in repr(results.verdict("ND-1"))
    results.write()
    assert judge_all("cpu").claims["ND-1"].verdict == "not attempted"


def test_a_tiers_name_alone_is_answered_with_the_lines_that_are_missing(figures, capsys):
    def opened(**changed):
        parameters = TIERS["cpu"].protocol("00_start_here") | {"profile": "cpu"} | changed
        results = Results.of_notebook("00_start_here", parameters | {"__annotations__": dict.fromkeys(parameters)})
        return results.mark, capsys.readouterr().out

    assert opened() == ("", "")
    mark, said = opened(depth=8, data="digits")
    assert mark == "own parameters: not judged"
    assert said.startswith("own parameters: not judged, and marked so in every figure. For those of cpu, put this at")
    assert said.splitlines()[1:] == ["data = 'cifar10'", "depth = 20"]


def test_workers_do_not_count_as_parameters_of_ones_own(figures):
    assert speed(jobs=7, executor="ray").verdict("ND-1")["ND-1"].verdict == "reproduced"


def test_tables_are_kept_as_csv_and_markdown(figures):
    frame = pd.DataFrame({"method": ["ND", "end|to end"], "accuracy": [88.1234, float("nan")]})
    styled = speed().table(frame, "accuracy", "Accuracy (%)")
    folder = figures / "cpu" / "02_distillation_speed"
    assert pd.read_csv(folder / "accuracy.csv")["accuracy"][0] == 88.1234
    lines = (folder / "accuracy.md").read_text().splitlines()
    assert lines[0] == "Accuracy (%)"
    assert lines[2:] == ["| method | accuracy |", "| --- | --- |", "| ND | 88.1 |", "| end\\|to end | - |"]
    assert "88.1" in styled.to_html() and styled.to_html() == styled.to_html()
    assert "#T_accuracy .col0 {" in styled.to_html() and ".col1 {" not in styled.to_html()  # words to the left
    smoke = speed(profile="smoke").table(frame, "accuracy", "Accuracy (%)")
    assert "not a result" in smoke.to_html()


def test_rows_of_any_kind_are_recorded(figures):
    frame = speed().record("curve", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    assert frame["loss"].sum() == 0.75
    kept = figures / "cpu" / "02_distillation_speed" / "curve.csv"
    assert kept.read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_a_figure_is_written_described_and_shown(figures, monkeypatch):
    shown = []
    monkeypatch.setattr("nkdlib.compendium.results.display", lambda item: shown.append(item.data))
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1])
    speed().figure(fig, "line", 'A line that rises from 0 to 1 & is "straight"')
    folder = figures / "cpu" / "02_distillation_speed"
    assert {path.name for path in folder.iterdir()} == {"line.svg", "line.png", "line.alt.txt"}
    assert 'id="line" class="drawing" width="' in shown[0]
    assert 'alt="A line that rises from 0 to 1 &amp; is &quot;straight&quot;"' in shown[0]
    assert not plt.get_fignums()


def test_a_figure_is_not_shown_when_a_cell_ends_before_it_is_done(figures):
    plt.ion()
    Results.of_notebook("01_local_replacement", {"__annotations__": ["profile"], "profile": "smoke"})
    assert not plt.isinteractive()  # as the kernel's plots look at, before they show what is open


def test_by_hand_nothing_touches_the_committed_figures(runs, monkeypatch, capsys):
    monkeypatch.delenv("NKD_FIGURES", raising=False)
    assert (results := speed()).write() == runs / "by-hand" / "cpu" / "02_distillation_speed"
    assert results.by_hand
    assert "run by hand" in capsys.readouterr().out


def test_provenance_names_code_data_packages_and_hardware_and_no_one():
    record = provenance({"seeds": 5, "data": f"{os.sep}home{os.sep}someone{os.sep}photos"}, "d1", {"wall": 1.23456})
    text = json.dumps(record)
    assert record["parameters"] == {"seeds": 5, "data": ".../photos"}
    assert record["seeds"] == 5 and record["data"] == "d1" and record["seconds"] == {"wall": 1.235}
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["hardware"]["cores"] == cpu_count() and record["python"] in sys.version
    assert len(record["commit"]) == 40 and isinstance(record["dirty"], bool)
    for private in (os.uname().nodename, os.path.expanduser("~") + os.sep, "someone"):
        assert private not in text


def test_the_typed_variables_of_a_notebook_are_its_parameters():
    variables = {"profile": "smoke", "seeds": 3, "train": object(), "__annotations__": {"profile": str, "seeds": int}}
    results = Results.of_notebook("01_local_replacement", variables)
    assert (results.profile, results.parameters) == ("smoke", {"profile": "smoke", "seeds": 3})
