"""What a notebook hands over: written once, in one place, marked when it is no result."""

import json
import os
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from joblib import cpu_count

from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.results import Results
from nkdlib.compendium.verify import read_observations


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def speed(profile="cpu", values=(2.5, 2.6, 2.7, 2.4, 2.5), order=range(5)):
    parameters = {"profile": profile, "data": "fashion-mnist", "seeds": 5}
    results = Results("02_distillation_speed", profile, parameters, "abc")
    for seed in order:
        results.observe("ND-1", "speedup_critical_path", seed, values[seed], start="random")
    return results


def test_written_observations_are_read_again(figures):
    folder = speed().write()
    assert folder == figures / "cpu" / "02_distillation_speed"
    found = read_observations("cpu")
    assert [o.value for o in found] == [2.5, 2.6, 2.7, 2.4, 2.5]
    assert {o.profile for o in found} == {"cpu"} and found[0].condition == {"start": "random"}
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["parameters"]["seeds"] == 5 and origin["data"] == "abc"
    assert set(origin["seconds"]) == {"wall", "cpu"}


def test_the_file_depends_on_its_content_only(figures):
    first = (speed().write() / "observations.json").read_bytes()
    assert (speed(order=[4, 2, 0, 1, 3]).write() / "observations.json").read_bytes() == first
    assert not list(figures.rglob("*.tmp"))


def test_wrong_observations_are_refused_at_once(figures):
    results = speed()
    with pytest.raises(ValueError, match="observed twice under seed 0"):
        results.observe("ND-1", "speedup_critical_path", 0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        results.observe("ND-1e", "speedup_solved", 0, float("nan"))
    with pytest.raises(ValueError, match="speedup_solved"):
        results.observe("ND-1e", "speedup", 0, 1.0)
    with pytest.raises(ValueError, match=r"profile \(='laptop'\)"):
        Results("02_distillation_speed", "laptop", {})


def test_a_damaged_file_is_named(figures):
    path = speed().write() / "observations.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"02_distillation_speed.observations.json.*make reproduce PROFILE=cpu"):
        read_observations("cpu")


def test_verdict_prints_itself(figures):
    results = speed()
    results.observe("ND-1e", "speedup_solved", 0, None)
    verdicts = results.verdict("ND-1", "ND-1e")
    text = repr(verdicts)
    assert "PARTLY, scaled" in text and "2.54 [2.4, 2.68], n=5" in text
    assert "seeds 2.5, 2.6, 2.7, 2.4, 2.5" in text and "1 of 5 seeds" in text
    assert "judges nothing" in repr(speed(profile="smoke").verdict("ND-1"))


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
    assert 'alt="A line that rises from 0 to 1 &amp; is &quot;straight&quot;"' in shown[0]
    assert not plt.get_fignums()


def test_by_hand_nothing_touches_the_committed_figures(runs, monkeypatch, capsys):
    monkeypatch.delenv("NKD_FIGURES", raising=False)
    assert speed().write() == runs / "by-hand" / "cpu" / "02_distillation_speed"
    assert "run by hand" in capsys.readouterr().out


def test_provenance_names_code_data_packages_and_hardware_and_no_one():
    record = provenance({"seeds": 5, "data": f"{os.sep}home{os.sep}someone{os.sep}photos"}, "d1", {"wall": 1.23456})
    text = json.dumps(record)
    assert record["parameters"] == {"seeds": 5, "data": "photos"}
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
