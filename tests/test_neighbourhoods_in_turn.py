"""Neighbourhoods distilled one after another: what each learns from, and that mistakes are made up for."""

import pytest
import torch

from nkdlib.models import resnet
from nkdlib.neighbourhoods import Recipe, distill, distill_in_turn, recompose
from nkdlib.training import predict

NAMES = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]


@pytest.fixture
def teacher():
    return resnet(14, 10, seed=0, widths=(8, 8, 8)).eval()


@pytest.fixture
def images():
    return list(torch.randn(192, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(64))


def drift(teacher, result, images):
    """Squared error of the logits after recomposing, over their variance."""
    wanted = predict(teacher, images)
    return ((predict(result.recompose(teacher), images) - wanted).square().mean() / wanted.var()).item()


def test_students_make_up_for_those_before(teacher, images):
    recipe = Recipe(steps=20, batch_size=32, holdout=16, lr=5e-3, batchnorm="frozen")
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    in_turn = distill_in_turn(teacher, dict.fromkeys(NAMES, 0.5), images, recipe)
    apart = distill(teacher, dict.fromkeys(NAMES, 0.5), images, recipe)
    assert drift(teacher, in_turn, images) < drift(teacher, apart, images)
    assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())
    again = distill_in_turn(teacher, dict.fromkeys(NAMES, 0.5), images, recipe)
    assert [d.losses for d in again.every()] == [d.losses for d in in_turn.every()]


def test_local_errors_are_those_in_context(teacher, images):
    recipe = Recipe(steps=0, holdout=64, dtype=torch.float32)
    names = NAMES[:2]
    result = distill_in_turn(teacher, dict.fromkeys(names, 0.5), images, recipe)
    network, held_out = result.recompose(teacher), images[0]
    with torch.no_grad():
        x = network.stem(held_out)
        found, wanted = network.layer1(x), teacher.layer1(x)
    error = (found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
    assert result[names[1]].local_error == pytest.approx(error.item(), rel=1e-4)
    closed = distill(teacher, dict.fromkeys(names, 0.5), images, recipe)  # front to back as well: the same solutions
    for name in names:
        torch.testing.assert_close(result[name].module.conv2.weight, closed[name].module.conv2.weight)


def test_all_seconds_are_on_the_critical_path(teacher, images):
    result = distill_in_turn(teacher, {"layer1.0": 0.5, "layer1.1": 0.5}, images, Recipe(steps=1, holdout=16))
    work = result.device_s - result.teacher_s
    assert result.critical_path_s() == pytest.approx(work + result.teacher_s / 2)
    assert result.critical_path_s(1) == pytest.approx(result.device_s)


def test_a_given_module_is_copied_and_used(teacher, images):
    mine = resnet(14, 10, seed=1, widths=(8, 8, 8)).layer1[0]
    before = mine.conv1.weight.clone()
    recipe = Recipe(start="given", steps=2, batch_size=16, holdout=16)
    result = distill_in_turn(teacher, {"layer1.0": mine}, images, recipe)
    assert torch.equal(mine.conv1.weight, before)
    network = recompose(teacher, {"layer1.0": result["layer1.0"].module})
    assert not torch.equal(network.layer1[0].conv1.weight, before)


def test_what_cannot_be_done_in_turn_is_refused(teacher, images):
    with pytest.raises(ValueError, match=r"'layer2.0' does not take what 'layer1.0' gives"):
        distill_in_turn(teacher, {"layer1.0": 0.5, "layer2.0": 0.5}, images)
    with pytest.raises(ValueError, match=r"hold at least 2 images more than recipe.holdout \(=256\)"):
        distill_in_turn(teacher, {"layer1.0": 0.5}, images)
    small = Recipe(steps=1, holdout=16, memory_limit_gb=1e-4)
    with pytest.raises(ValueError, match=r"must fit within recipe.memory_limit_gb \(=0.0001\)"):
        distill_in_turn(teacher, {"layer1.0": 0.5}, images, small)
