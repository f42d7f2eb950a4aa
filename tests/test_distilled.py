"""Whole runs of both ways to distill.

Behind claims ND-0 and ND-1.
"""

import pytest
import torch

from nkdlib.compendium.distilled import alone, distilled, tuned
from nkdlib.data.load import load
from nkdlib.neighbourhoods import narrow, recompose, split
from nkdlib.networks import resnet
from nkdlib.tasks.cache import Cache, Task
from nkdlib.training import accuracy


@pytest.fixture(scope="module")
def train():
    return load("digits", "train").subset(600, seed=0)


def run(train, folder, **changed):
    """One run of few images, kept in a folder."""
    teacher = resnet(8, 10, seed=0, in_channels=1).eval()
    given = {"teacher": teacher, "method": "ND", "start": "copied", "steps": 0, "lr": 1e-2, "temperature": 1.0}
    given |= {"train": train, "judge": train.subset(100), "share": 1.0, "images": 600, "solve_images": 64}
    given |= {"amp": False, "seed": 0, "device": "cpu"}
    (artefact,) = Cache(folder).run([Task(distilled, given | changed, "run")])
    return teacher, artefact


def test_whole_blocks_that_are_copied_cost_nothing_alone(train, tmp_path):
    teacher, copies = run(train, tmp_path)
    lost = alone(teacher=teacher, students=copies, share=1.0, probe=train.subset(100), device="cpu")["lost"]
    assert lost == dict.fromkeys(teacher.block_names, 0.0)
    assert max(copies.info["errors"].values()) < 1e-5  # boundaries are kept in float16


def test_blocks_that_are_nothing_are_looked_at_one_by_one(train, tmp_path):
    teacher, students = run(train, tmp_path, start="random", share=0.5)
    probe = train.subset(100)
    lost = alone(teacher=teacher, students=students, share=0.5, probe=probe, device="cpu")["lost"]
    block = {key: value.clone() for key, value in students.state("layer2.0.").items()}
    part = split(teacher, ["layer2.0"], torch.zeros(1, 1, 8, 8))[0]
    (student := narrow(part.module, part.example, 0.5)).load_state_dict(block)
    by_hand = accuracy(recompose(teacher, {"layer2.0": student}), probe.in_order("cpu"))
    assert lost["layer2.0"] == accuracy(teacher, probe.in_order("cpu")) - by_hand


def test_end_to_end_pays_for_the_teacher_and_its_steps_alone(train, tmp_path):
    info = run(train, tmp_path, method="end to end", start="random", steps=2)[1].info
    assert info["start_s"] == info["join_s"] == 0 and info["parts"] == {}
    assert info["teacher_s"] > 0 and info["whole_s"] > 0


def test_both_methods_are_tuned_on_one_grid_and_end_to_end_over_temperatures_too(train, tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_RUNS", str(tmp_path))
    teacher = resnet(8, 10, seed=0, in_channels=1).eval()
    given = {"train": train, "share": 0.5, "images": 600, "solve_images": 64, "amp": False, "device": "cpu"}
    trials, best = tuned(teacher, train.subset(50), 1, [1e-2, 1e-1], [1.0, 4.0], given)
    grid = [tuple(row) for row in trials[["method", "lr", "temperature"]].itertuples(index=False)]
    pairs = [(rate, temperature) for rate in (1e-2, 1e-1) for temperature in (1.0, 4.0)]
    assert grid == [("ND", 1e-2, 1.0), ("ND", 1e-1, 1.0), *(("end to end", *pair) for pair in pairs)]
    for method, kept in best.items():
        mine = trials[trials.method == method].set_index(["lr", "temperature"]).accuracy
        assert mine[kept["lr"], kept["temperature"]] == mine.max()
