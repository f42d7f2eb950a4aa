"""Dropping whole blocks of MobileNetV2: which can go, where adaptors stand, what they recover, which are dropped."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from nkdlib.compendium.rivals.drop_blocks import choose_dropped, recovered_error, removable, with_adaptors
from nkdlib.neighbourhoods import Menu, Option, Recipe, recompose
from nkdlib.training import Schedule, reestimate_batchnorm


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return reestimate_batchnorm(mobilenet_v2(num_classes=4), [torch.randn(32, 3, 64, 64)])


def test_adaptors_begin_as_identities_around_the_gap_and_learn_alone(network):
    x = torch.randn(4, 3, 64, 64)
    for name in removable(network):
        run, part = with_adaptors(network, name)
        gap, first = recompose(network, {name: nn.Identity()}), int(run.split(":")[0].removeprefix("features."))
        before = network.features[:first](x)
        torch.testing.assert_close(part.eval()(before), gap.features[first:](before))
        learning = {name for name, p in part.named_parameters() if p.requires_grad}
        assert learning == {name for name in part.state_dict() if "adaptor" in name}
    run, part = with_adaptors(network, "features.15")
    assert run == "features.14:features.18"
    found = {name.split(".adaptor")[0] for name in part.state_dict() if "adaptor" in name}
    assert found == {"14.conv.2", "16.conv.0.0", "17.conv.0.0"}


def test_adaptors_recover_a_part_of_what_a_block_did_and_leave_the_network_alone(network):
    inputs, before = [torch.randn(200, 3, 64, 64)], [p.clone() for p in network.parameters()]

    def error(steps):
        recipe = Recipe(Schedule(steps, 32, lr=2e-3, freeze_batchnorm=True), start="given", holdout=40)
        return recovered_error(network, "features.15", inputs, recipe)

    assert 0 < error(30) < 0.95 * error(0)
    assert all(map(torch.equal, network.parameters(), before)) and all(p.requires_grad for p in network.parameters())


def test_blocks_are_dropped_by_the_error_for_each_millisecond_that_they_save():
    def block(ms):
        return {"teacher": Option(0, {"latency_ms": ms}), "identity": Option(0.5, {"latency_ms": 0.0})}

    menu = Menu(
        {"a": block(1.0), "b": block(4.0), "c": block(2.0), "kept": {"teacher": Option(0, {"latency_ms": 9.0})}}
    )
    errors = {"a": 0.1, "b": 0.3, "c": 0.25}  # 0.1, 0.075 and 0.125 a millisecond
    assert choose_dropped(menu, errors, 0) == dict.fromkeys("abc", "teacher") | {"kept": "teacher"}
    assert choose_dropped(menu, errors, 2) == {"a": "identity", "b": "identity", "c": "teacher", "kept": "teacher"}
