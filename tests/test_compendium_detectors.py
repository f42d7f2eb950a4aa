"""What notebook 07 has of its own: networks as large as a budget allows, boxes that are drawn.

Behind claim FG-2.
"""

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from torch import nn

from nkdlib.compendium import detectors
from nkdlib.networks import count_params


@pytest.mark.parametrize("name", detectors.RIVALS)
def test_a_rival_is_as_wide_as_its_parameters_allow(name):
    network = detectors.rival(name, 1.5e6)
    assert 0.75 * 1.5e6 < count_params(network) <= 1.5e6
    assert {part.momentum for part in network.modules() if isinstance(part, nn.BatchNorm2d)} == {0.1}


def test_scenes_of_a_folder_of_images_are_drawn_below_runs(runs, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "own" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "own" / split / "cat" / "0.png")
    pictures = detectors.pictures_of(str(tmp_path / "own"), "val", 1, 32, (1, 1), (0.5, 0.5))
    assert pictures.folder.is_relative_to(runs / "scenes") and len(pictures) == 1


@pytest.mark.parametrize("least, taps", [(20.0, (8, 16, 32)), (40.0, (16, 32))])
def test_anchors_are_as_large_as_the_boxes_and_a_finer_map_finds_small_ones(least, taps):
    class Pictures(list):
        size = 200

        def target(self, place):
            return {"boxes": self[place]}

    flat = torch.tensor([[0, 0, 2 * least, least / 2]])  # as large as a square with sides of `least`
    head = detectors.fitting_head(Pictures([flat.repeat(60, 1), torch.tensor([[10.0, 10, 110, 110]]).repeat(60, 1)]))
    assert head["taps"] == taps and head["scales"] == pytest.approx((least / 200, 100 / 200))
    with pytest.raises(ValueError, match="the 1 pictures to learn from hold no box; name a folder with annotations"):
        detectors.fitting_head(Pictures([torch.zeros(0, 4)]))


def test_detections_are_drawn_beside_the_true_boxes_with_their_overlap():
    picture, true = torch.zeros(3, 20, 20, dtype=torch.uint8), torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20]])
    boxes = torch.tensor([[0.0, 0, 10, 5], [10, 10, 20, 20], [0, 0, 10, 10]])  # the third is one too many
    fig, ax = plt.subplots()
    found = {"boxes": boxes, "labels": torch.tensor([1, 2, 1])}
    assert detectors.draw_boxes(ax, picture, found, ("cat", "dog"), true) == 0.75  # of 1/2 and 1
    assert [patch.get_linestyle() for patch in ax.patches] == ["--", "--", "-", "-"]
    assert [text.get_text() for text in ax.texts] == ["cat", "dog"]
    nothing = {"boxes": boxes[:0], "labels": torch.tensor([]).long()}
    assert detectors.draw_boxes(ax, picture, nothing, ("cat", "dog"), true) == 0
    plt.close(fig)


def test_detections_come_back_picture_by_picture():
    box = torch.tensor([[0.0, 0, 1, 1]])
    some = {"image_id": 7, "boxes": box, "scores": torch.tensor([0.5]), "labels": torch.tensor([3])}
    none = {"image_id": 5, "boxes": box[:0], "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    back = detectors.restored(detectors.stored([some, none]), [5, 7])
    assert [one["image_id"] for one in back] == [5, 7]
    assert back[0]["boxes"].shape == (0, 4) and back[1]["labels"].tolist() == [3]
