"""Teachers that are kept in `teachers/`, published ones, and the division of the images."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from nkdlib.compendium import teachers
from nkdlib.compendium.teachers import (
    IMAGENET,
    PUBLISHED,
    RECIPES,
    TeacherRecipe,
    build,
    deeper_teacher,
    divided,
    keep_teacher,
    levels,
    linear_accuracy,
    open_teachers,
    published_teacher,
    train_teacher,
)
from nkdlib.data.load import DataNotFound
from nkdlib.data.readers import DataDamaged
from nkdlib.tasks import Cache
from nkdlib.training import Checkpoints, accuracy

SHORT = dataclasses.replace(RECIPES["digits"], epochs=1, width=4, augment=True)
KEPT = sorted((Path(__file__).parents[1] / "teachers").glob("*.json"))


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Digits' teachers trained for ten steps, and kept in a folder of the test's own."""
    monkeypatch.setitem(RECIPES, "digits", SHORT)
    monkeypatch.setattr(teachers, "checkout", lambda: tmp_path)
    return tmp_path / "teachers"


def test_the_three_parts_share_no_image_and_no_recipe_learns_from_the_held_out_one():
    train, validation, test = divided("digits")
    assert (len(train), len(validation), len(test)) == (1294, 143, 360)
    rows = [{image.numpy().tobytes() for image in part.pixels} for part in (train, validation, test)]
    assert not rows[0] & rows[1] and not rows[0] & rows[2]


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path):
    train, _, _ = divided("digits")
    whole = train_teacher(train, 8, SHORT, 1, "cpu")
    first = Checkpoints(tmp_path, every_s=0)
    save, first.save = first.save, lambda stage, step, *rest: save(stage, step, *rest) if step <= 4 else None
    train_teacher(train, 8, SHORT, 1, "cpu", first)
    resumed = Checkpoints(tmp_path, every_s=0)
    assert resumed.start == 4
    again = train_teacher(train, 8, SHORT, 1, "cpu", resumed)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_kept_teacher_is_what_its_provenance_says(short, tmp_path, capsys):
    about = keep_teacher("digits-resnet8", 3, short, tmp_path / "runs")
    assert json.loads((short / "digits-resnet8-3.json").read_text())["accuracy"] == about["accuracy"]
    capsys.readouterr()
    [network] = open_teachers("digits", 8, [3], cache=Cache(tmp_path / "cache"))
    assert capsys.readouterr().out == ""  # nothing to train, so no word of it
    assert not list((tmp_path / "cache").glob("*/*.safetensors"))  # read, not trained
    assert accuracy(network, divided("digits")[2].in_order()) == about["accuracy"]["test"]
    assert not network.training


def test_a_damaged_file_and_a_misspelt_name_are_named(short, tmp_path):
    short.mkdir()
    (short / "digits-resnet8-0.safetensors").write_bytes(b"half of it")
    with pytest.raises(DataDamaged, match=r"digits-resnet8-0.safetensors is no file of weights .* make teachers"):
        open_teachers("digits", 8, [0], cache=Cache(tmp_path / "cache"))
    with pytest.raises(
        ValueError, match=r"name \(='digits'\) must be a data set and a depth, such as cifar10-resnet20"
    ):
        keep_teacher("digits", 0, short, tmp_path / "runs")


def test_teachers_that_are_not_kept_are_trained_once(short, tmp_path):
    cache = Cache(tmp_path / "cache")
    one, other = open_teachers("digits", 8, [0, 1], cache=cache)
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)
    [again] = open_teachers("digits", 8, [1], cache=cache)
    assert torch.equal(again.stem[0].weight, other.stem[0].weight)


def test_the_schedule_counts_epochs_and_the_network_is_the_published_one():
    assert TeacherRecipe(epochs=2, batch_size=100).schedule(1000).steps == 20
    network = build(20, 10, 3, TeacherRecipe(), seed=0)
    assert sum(p.numel() for p in network.parameters()) == 269_722  # He et al., Table 6: 0.27M


def test_published_teachers_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"depth \(=21\) must be one of 20, 32, 56"):
        published_teacher(21)
    with pytest.raises(DataNotFound, match=r"resnet20-12fca82f.th is not in NKD_DATA"):
        published_teacher(20, tmp_path)
    (tmp_path / PUBLISHED[20]).write_bytes(b"other weights")
    with pytest.raises(DataDamaged, match="12fca82f"):
        published_teacher(20, tmp_path)


@pytest.mark.skipif(not (Path(os.environ.get("NKD_DATA", "-")) / "cifar10-resnets").is_dir(), reason="no NKD_DATA")
@pytest.mark.parametrize(("depth", "published"), [(20, 91.73), (32, 92.63), (56, 93.39)])
def test_published_teachers_reach_what_was_published(depth, published):
    _, _, test = divided("cifar10")
    batches = test.renormalized(*IMAGENET).in_order(count=2000)
    assert abs(accuracy(published_teacher(depth), batches) - published) < 1.5


def test_a_deeper_teacher_is_our_own_if_it_is_kept(short, tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    with pytest.raises(DataNotFound, match=r"or run: python -m nkdlib\.compendium\.teachers digits-resnet20"):
        deeper_teacher("digits", 20)
    teachers.main(["digits-resnet14", "--out", str(short), "--runs", str(tmp_path / "runs")])
    origin, teacher, normalization = deeper_teacher("digits", 14)
    train, _, _ = divided("digits")
    assert origin == "ours" and len(teacher.block_names) == 6 and normalization == (train.mean, train.std)


def test_teachers_of_a_published_data_set_are_not_those_of_a_folder_of_that_name(short, tmp_path, monkeypatch):
    folder = tmp_path / "own" / "digits"
    for number in range(40):
        of_class = folder / ("test" if number % 4 == 0 else "train") / "ab"[number % 2]
        of_class.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * number).save(of_class / f"{number}.png")
    (tmp_path / "teachers").mkdir(exist_ok=True)
    (tmp_path / "teachers" / "digits-resnet8-0.safetensors").write_bytes(b"of digits")
    monkeypatch.setattr(teachers, "TeacherRecipe", lambda: dataclasses.replace(SHORT, batch_size=4))
    [own] = open_teachers(str(folder), 8, [0], cache=Cache(tmp_path / "cache"))
    assert own.head[-1].out_features == 2
    monkeypatch.setattr(teachers, "published_teacher", lambda depth: "CIFAR-10's")
    with pytest.raises(DataNotFound, match=r"no teacher of 20 layers for .*own/digits is published, or run"):
        deeper_teacher(str(folder), 20)


def test_a_linear_classifier_is_the_floor():
    assert 93 < linear_accuracy("digits") < 97.5  # scikit-learn's logistic regression: 96 %


def test_teachers_are_judged_once_for_all_notebooks(short, tmp_path, monkeypatch):
    pair = open_teachers("digits", 8, [0, 1], cache=Cache(tmp_path / "cache"))
    *_, test = divided("digits")
    expected = [accuracy(teacher, test.in_order()) for teacher in pair]
    assert levels("digits", pair) == (expected, linear_accuracy("digits")) and expected[0] != expected[1]
    monkeypatch.setattr(teachers, "accuracy", lambda network, batches: pytest.fail("judged again"))
    assert levels("digits", pair[::-1])[0] == expected[::-1]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_teachers_come_from_a_clean_tree_with_the_recipe_of_today(path):
    about, state = json.loads(path.read_text()), safetensors.torch.load_file(path.with_suffix(".safetensors"))
    data, depth = path.stem.rpartition("-")[0].rsplit("-resnet", 1)
    build(int(depth), 10, 3, RECIPES[data], seed=0).load_state_dict(state)
    assert about["dirty"] is False and len(about["commit"]) == 40
    assert about["parameters"]["epochs"] == RECIPES[data].epochs and about["parameters"]["lr"] == RECIPES[data].lr
    assert about["accuracy"]["test"] >= 90
