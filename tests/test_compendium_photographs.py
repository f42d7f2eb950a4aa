"""Photographs for the ImageNet notebook: stand-ins, labels, a network in two, agreement, the run that lacks them."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from nkdlib.compendium import run
from nkdlib.compendium.photographs import (
    PIXEL_MEAN,
    Kept,
    cut_before,
    draw,
    judge_student,
    open_judged,
    open_mobilenet,
    open_photographs,
    pass_on,
)
from nkdlib.training.evaluate import predict


def test_drawn_images_have_the_mean_of_photographs_and_stand_in_for_them():
    drawn = torch.cat(draw("white", 20, 24, seed=0))
    assert drawn.shape == (20, 3, 24, 24) and drawn.mean().abs() < 0.02
    images = open_photographs("drawn", 28, 12)
    assert images.shape == (3, 32, 32) and len(images) == 12
    leaves = torch.cat(draw("leaves", 12, 32, seed=0))
    torch.testing.assert_close(images.normalize(images.pixels), leaves, atol=0.02, rtol=0)


def test_photographs_are_squares_larger_than_the_crops(tmp_path, monkeypatch):
    for number, kind in enumerate(("cat", "dog")):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for name in range(2):
            Image.new("RGB", (60, 40), (0, 100 * number, 0)).save(tmp_path / "photos" / kind / f"{name}.png")
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    images = open_photographs("photos", 28, 3)
    assert images.shape == (3, 32, 32) and len(images) == 3 and images.mean == PIXEL_MEAN


def test_photographs_to_judge_have_the_place_of_their_class_among_those_that_are_learned_from(tmp_path, monkeypatch):
    for folder, kind, gray in (("one/val", "n02", 20), ("one/val", "n09", 90), ("two", "n02", 200)):
        (tmp_path / folder / kind).mkdir(parents=True)
        Image.new("RGB", (40, 40), (gray,) * 3).save(tmp_path / folder / kind / "0.png")
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    images, sets = open_judged(["one/val", "two"], 28, 10, ["n01", "n02", "n05", "n09"])
    assert images.labels.tolist() == [1, 3, 1] and sets.tolist() == [0, 0, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [20, 90, 200] and images.classes[3] == "n09"
    with pytest.raises(ValueError, match="judged holds 'one/val' with the class 'n09', which is no folder of photos"):
        open_judged(["two", "one/val"], 28, 10, ["n01", "n02"])


def test_a_network_in_two_is_the_network_and_its_layers_keep_their_names():
    network, images = open_mobilenet("random"), open_photographs("drawn", 28, 20)
    front, rest = cut_before(network, 15)
    x = pass_on(front, images.batches(8, shuffle=False))
    assert x.dtype == torch.float16 and x.shape == (20, 1, 1, 160) and x.is_contiguous()
    kept = Kept(x)
    for _ in range(2):  # as often as wanted
        batches = list(kept)
        assert [len(batch) for batch in batches] == [16, 4] and batches[0].dtype == torch.float32
    wanted = predict(network, images.batches(20, shuffle=False))
    assert (predict(rest, kept) - wanted).abs().max() < 0.01 * wanted.std()
    assert rest.get_submodule("features.16") is network.features[16]


def test_agreement_and_top_1_by_hand():
    student = [torch.eye(6)[[0, 1, 5, 5]]]
    answers = {"teacher": torch.tensor([0, 2, 5, 3]), "labels": torch.tensor([0, 1, 2, 3])}
    answers["set"] = torch.tensor([0, 0, 1, 0])
    found = judge_student(nn.Identity(), student, answers)
    assert found == {"agreement": 50.0, "top_1": 50.0, "agreement_1": pytest.approx(100 / 3), "agreement_2": 100.0}


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (None, ""),
        (["here", ["nowhere"]], "it needs judged, the folder 'nowhere' in NKD_DATA; docs/data.md says"),
        (
            ["away", ["here", "nowhere"]],
            "it needs photos, the folder 'away' and judged, the folder 'nowhere' in NKD_DATA",
        ),
    ],
)
def test_a_notebook_that_lacks_its_photographs_says_so(tmp_path, monkeypatch, folders, said):
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    (tmp_path / "here").mkdir()
    notebook = tmp_path / "08.ipynb"
    metadata = {"nkdlib": {"needs": ["photos", "judged"]}}
    notebook.write_text(json.dumps({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    parameters = {} if folders is None else dict(zip(("photos", "judged"), folders, strict=True))
    reason = run.lacking(run.Job(notebook, "cpu", parameters))
    assert reason.startswith(said) and bool(reason) == bool(said)
    for name in ("nowhere", "away"):
        (tmp_path / name).mkdir()
    assert run.lacking(run.Job(notebook, "cpu", parameters)) == ""
