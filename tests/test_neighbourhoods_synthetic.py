"""Distilling from inputs that are no data: noise, adapted noise, and that nothing real is read.

Behind claim ND-3.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from nkdlib.compendium.rivals.inversion import Inversion, invert
from nkdlib.compendium.synthetic import REAL, batches_of, pixel_limits, with_real
from nkdlib.data import DeadLeaves, GaussianImages, Images
from nkdlib.neighbourhoods import Library, Recipe, capture, distill, solve, split
from nkdlib.networks import resnet
from nkdlib.tasks import Cache
from nkdlib.training import Schedule, distill_end_to_end, mismatch, predict, reestimate_batchnorm

SHAPE = (3, 12, 12)


@pytest.fixture(scope="module")
def teacher():
    """A network whose BatchNorms remember images with correlated channels, far from white noise."""
    torch.manual_seed(0)
    images = torch.einsum("oc,bchw->bohw", 2 * torch.randn(3, 3), torch.randn(256, *SHAPE)).cumsum(3) / 3 + 1
    network = resnet(14, 5, seed=0, blocks=(1, 1, 1), widths=(8, 8, 12)).to(memory_format=torch.channels_last)
    return reestimate_batchnorm(network, [images], 256), images


def noise(count=256, seed=0):
    return GaussianImages(SHAPE, count, seed, batch_size=64)


def moments(x):
    return x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)


def test_the_mismatch_is_zero_for_what_was_remembered_and_known_for_a_single_norm(teacher):
    network, images = teacher
    own, others = mismatch(network, [images]), mismatch(network, noise())
    assert list(own) == [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert max(own.values()) < 1e-3 < 0.1 < min(others["stem.1"], others["layer3.0.bn2"])
    norm = nn.Sequential(nn.BatchNorm2d(1, eps=0.0)).eval()
    x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)  # mean 2, variance 1; remembered 0 and 4
    norm[0].running_var.fill_(4.0)
    wanted = 0.5 * (4 / 1 + 2**2 / 1 - 1 - torch.tensor(4.0).log().item())
    assert mismatch(norm, [x])["0"] == pytest.approx(wanted)
    assert mismatch(norm, [x, x], images=2)["0"] == pytest.approx(wanted)
    with pytest.raises(ValueError, match=r"model \(=Linear\) has no BatchNorm with running statistics"):
        mismatch(nn.Linear(2, 2), [x])
    with pytest.raises(ValueError, match="0 values a channel"):
        mismatch(norm, [])


class Auxiliary(nn.Module):
    """A BatchNorm, and one that only training runs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.second(self.first(x)) if self.training else self.first(x)


def test_layers_that_only_training_runs_have_no_mismatch():
    network, x = Auxiliary(), torch.randn(8, 2, 4, 4)
    assert mismatch(network, [x]) == {"first": mismatch(network.first, [x])[""]}
    with pytest.raises(ValueError, match="'first' gets 0 values a channel"):
        mismatch(network, [])


def test_statistics_are_replaced_only_within(teacher):
    network = copy.deepcopy(teacher[0])
    before = copy.deepcopy(network.state_dict())
    reestimate_batchnorm(network, noise(), within=["layer2.0"])
    after = network.state_dict()
    changed = {".".join(name.split(".")[:2]) for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"layer2.0"} and not any(module.training for module in network.modules())
    # Meanwhile the others normalize by what they see, so that what comes in has the moments of the real thing.
    everywhere = reestimate_batchnorm(copy.deepcopy(teacher[0]), noise()).state_dict()
    assert all(torch.equal(after[k], everywhere[k]) for k in after if k.startswith("layer2.0"))


def test_adapted_inputs_have_the_moments_that_real_images_cause_and_the_teachers_answers(teacher):
    network, images = teacher
    pieces = split(network, ["layer1.0", "layer2.0", "layer3.0"], images[:2])
    before = copy.deepcopy(network.state_dict())
    real = capture(network, pieces, [images], dtype=torch.float32)
    plain, adapted = (capture(network, pieces, noise(), dtype=torch.float32, adapt=adapt) for adapt in (False, True))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert plain.names["layer2.0"][0] == "layer1.0:y" and adapted.names["layer2.0"][0] == "layer2.0:x"
    off = {}
    for label, kept in (("plain", plain), ("adapted", adapted)):
        differences = []
        for name in pieces.names:
            (mean, _), (wanted, spread) = (
                moments(kept.of(name).take(slice(0, 256))["x"]),
                moments(real.of(name).take(slice(0, 256))["x"]),
            )
            differences.append(((mean - wanted).square() / spread.clamp_min(1e-3)).mean().item())
        off[label] = sum(differences)
    assert off["adapted"] < 0.5 * off["plain"]
    for here in pieces:
        rows = adapted.of(here.name).take(slice(0, 8))
        assert torch.allclose(here.module(rows["x"].clone()), rows["y"], atol=1e-5)


def test_distilling_and_solving_from_noise_leaves_the_teacher_alone(teacher):
    network, images = teacher
    before = copy.deepcopy(network.state_dict())
    recipe = Recipe(Schedule(3, batch_size=32, lr=2e-3), holdout=32, solve_images=128, adapt=True)
    students = {"layer1.0": 0.5, "layer2.0": 0.5}
    for done in (distill(network, students, noise(), recipe), solve(network, students, noise(), recipe)):
        assert torch.isfinite(predict(done.recompose(network), [images[:8]])).all()
        assert not done.sequential_start
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_frozen_statistics_stay_what_they_were_at_the_start(teacher):
    network, _ = teacher
    recipe = Recipe(Schedule(3, 32), start="copied", holdout=32)
    untrained = replace(recipe, schedule=Schedule(0))
    start = distill(network, {"layer1.0": 0.5}, noise(), untrained)["layer1.0"].module
    for frozen in (True, False):
        changed = replace(recipe, schedule=Schedule(3, 32, freeze_batchnorm=frozen))
        done = distill(network, {"layer1.0": 0.5}, noise(), changed)["layer1.0"].module
        assert torch.equal(done.bn1.running_mean, start.bn1.running_mean) == frozen
        assert not torch.equal(done.conv1.weight, start.conv1.weight)


def test_a_library_knows_adapted_from_plain(teacher, tmp_path):
    network, _ = teacher
    recipe = Recipe(Schedule(0), holdout=32, solve_images=128)
    errors = []
    for adapt in (False, True):
        library = Library(network, {"layer1.0": [0.5]}, noise(), replace(recipe, adapt=adapt), Cache(tmp_path))
        assert ("layer1.0", "0.5") in library.fill()
        errors.append(library.candidates["layer1.0"]["0.5"].error)
    assert errors[0] != errors[1]


def test_inverted_images_meet_the_teachers_memory_within_their_limits(teacher):
    network, _ = teacher
    before = copy.deepcopy(network.state_dict())
    start = list(noise(64))
    made = invert(network, start, Inversion(steps=20), limits=(-2.0, 2.0), seed=0)
    assert [batch.shape for batch in made] == [batch.shape for batch in start]
    assert min(x.min() for x in made) >= -2.0 and max(x.max() for x in made) <= 2.0
    assert sum(mismatch(network, made).values()) < 0.5 * sum(mismatch(network, start).values())
    assert all(torch.equal(a, b) for a, b in zip(made, invert(network, start, Inversion(20), (-2.0, 2.0)), strict=True))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(not module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match=r"teacher \(=Linear\) has no BatchNorm2d"):
        invert(nn.Linear(2, 2), start)


def test_nothing_real_is_read_on_the_way_to_a_student(teacher, monkeypatch):
    network, _ = teacher
    pixels, labels = torch.zeros(4, *SHAPE, dtype=torch.uint8), torch.zeros(4).long()
    said = Images("real", "train", pixels, labels, ("a",), (0.5,) * 3, (0.2,) * 3)

    def refuse(*_):
        raise AssertionError("a real image was read")

    for name in ("pixels", "labels"):
        monkeypatch.setattr(Images, name, property(refuse))
    for name in ("batches", "normalize", "subset"):
        monkeypatch.setattr(Images, name, refuse)
    with pytest.raises(AssertionError, match="real image"):
        said.batches(2)
    source = DeadLeaves.like(said, 256, seed=0, batch_size=64)
    names = ["layer1.0", "layer2.0"]
    ranked = sorted([source, noise()], key=lambda s: sum(mismatch(network, s).values()))  # the choice of the source
    inverted = invert(network, ranked[0], Inversion(steps=2))
    for inputs in (*ranked, inverted):
        for adapt in (False, True):
            recipe = Recipe(Schedule(2, batch_size=32, lr=2e-3), holdout=32, solve_images=64, adapt=adapt)
            student = distill(network, dict.fromkeys(names, 0.5), inputs, recipe).recompose(network)
            reestimate_batchnorm(student, inputs, within=names)
    distill_end_to_end(network, student, source, Schedule(steps=2, batch_size=32))


def pictures(count, shape=SHAPE):
    """Real images, each of one gray value of its own."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *shape).contiguous()
    return Images("gray", "train", pixels, torch.zeros(count).long(), ("a",), (0.5,) * 3, (0.25,) * 3)


def test_noise_and_real_images_take_turns_and_real_ones_are_shown_equally_often():
    real, noise = pictures(3), [torch.full((4, *SHAPE), 9.0), torch.full((3, *SHAPE), 9.0)]
    mixed = torch.cat(with_real(noise, real, "cpu"))
    assert len(mixed) == 14 and bool((mixed[1::2] == 9).all())
    shown = mixed[0::2, 0, 0, 0].unique(return_counts=True)
    assert shown[0].tolist() == pytest.approx([-2, 4 / 255 - 2, 8 / 255 - 2], abs=1e-6)
    assert sorted(shown[1].tolist()) == [2, 2, 3]
    alone = torch.cat(with_real([], real, "cpu", count=12))
    assert alone[:, 0, 0, 0].unique(return_counts=True)[1].tolist() == [4, 4, 4]


def test_a_source_takes_the_shape_of_the_data_and_real_images_are_no_source():
    like = pictures(2)
    low, high = pixel_limits(like)
    assert (low, high) == (-2.0, 2.0)
    for source in ("white", "spectrum", "leaves"):
        first, again = (torch.cat(batches_of(source, like, 300, seed=3, device="cpu")) for _ in range(2))
        assert first.shape == (300, *SHAPE) and first.equal(again)
        inside = (first >= low - 1e-5) & (first <= high + 1e-5)
        assert bool(inside.all()) == (source != "white")  # white noise knows nothing of pixels
    assert batches_of(REAL, like, 300, seed=3, device="cpu") == []
