"""Photographs for the ImageNet notebook: stand-ins, divisions, agreement, and the run that lacks them."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from nkdlib.compendium import run
from nkdlib.compendium.photographs import PIXEL_MEAN, divide, draw, judge_student, open_photographs


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


def test_a_division_shares_nothing_and_never_judges_what_settings_were_chosen_on():
    judged = []
    for seed in range(4):
        learned, held_out = divide(50, seed)
        assert sorted([*learned.tolist(), *held_out.tolist()]) == list(range(50))
        assert len(held_out) == 25 and torch.equal(learned[:5], divide(50, 0)[0][:5])
        judged.append(set(held_out.tolist()))
    assert len({frozenset(part) for part in judged}) == 4
    assert not set.union(*judged) & set(divide(50, 0)[0][:5].tolist())


def test_agreement_and_top_1_by_hand():
    class Fixed(nn.Module):
        def __init__(self, answers):
            super().__init__()
            self.answers = nn.functional.one_hot(torch.tensor(answers), 10).float()

        def forward(self, x):
            return self.answers[: len(x)]

    images = open_photographs("drawn", 28, 4)  # of classes 0, 1, 2, 3
    student, teacher = Fixed([0, 1, 5, 5]), Fixed([0, 2, 5, 3])
    assert judge_student(student, teacher, images, 28, "cpu") == {"agreement": 50.0, "top_1": 50.0}


@pytest.mark.parametrize(
    ("folder", "said"), [(None, ""), ("nowhere", "it needs photos, the folder 'nowhere' in NKD_DATA")]
)
def test_a_notebook_that_lacks_its_photographs_says_so(tmp_path, monkeypatch, folder, said):
    monkeypatch.delenv("NKD_DATA", raising=False)
    notebook = tmp_path / "08.ipynb"
    metadata = {"nkdlib": {"needs": "photos"}}
    notebook.write_text(json.dumps({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    parameters = {} if folder is None else {"photos": folder}
    assert run.lacking(run.Job(notebook, "cpu", parameters)).startswith(said)
    if folder:
        (tmp_path / "nowhere").mkdir()
        monkeypatch.setenv("NKD_DATA", str(tmp_path))
        assert run.lacking(run.Job(notebook, "cpu", parameters)) == ""
