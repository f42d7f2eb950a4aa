"""Search spaces and torchvision's networks: counts by hand, slim against gated networks, rebuilt and exported ones.

Behind claims FG-1 and FG-3.
"""

import io
import math

import pytest
import torch
import torchvision.models as zoo
from conftest import speaking
from torch import nn
from torchvision.models.inception import InceptionA, InceptionC

from nkdlib.figs import CostModel, Gates, rebuild
from nkdlib.networks import CellNetwork, Cost, cost, mixed_space, residual_space
from nkdlib.networks.spaces import DARTS_OPERATORS, MixedBlock, RemovableBlock, darts_operator

SPACES = {
    "residual": lambda: residual_space(4, blocks=(1, 2), widths=(4, 6)),
    "mixed": lambda: mixed_space(4, stem=4, stages=((2, 4, 1, 1), (3, 6, 2, 2)), head=8, kernels=(3, 5)),
    "squeeze": lambda: mixed_space(
        4, stem=4, stages=((4, 4, 1, 1), (4, 6, 1, 2)), head=8, kernels=(3, 5), squeeze=True
    ),
    "cells": lambda: CellNetwork(4, channels=4, cells="nr", nodes=1),
    "dense": lambda: CellNetwork(4, channels=4, cells="rn", nodes=2, operators=("avg_pool_3x3", "sep_conv_5x5")),
}
each_space = pytest.mark.parametrize("name", SPACES)


def gated(make, size=8, seed=0, middle=0.0):
    """A network, an input and gates with log-odds on both sides of zero."""
    torch.manual_seed(seed)
    x = torch.randn(2, 3, size, size)
    network = speaking(make(), x)
    gates = Gates(CostModel(network, x))
    gates.log_odds.data.copy_(torch.randn(gates.log_odds.shape) + middle)
    return network, x, gates


def without(gates, paths):
    """Log-odds that leave out some operators and nothing else."""
    gates.log_odds.data.fill_(1.0)
    for path in paths:
        gates.log_odds.data[gates.model.slots[path]] = -1.0
    return gates.slim()


@pytest.mark.parametrize(
    ("network", "x", "places"),
    [
        (residual_space(5, in_channels=1, blocks=(1, 2), widths=(4, 6)), (2, 1, 9, 9), (5, 5)),
        (residual_space(5, blocks=(1, 1, 1), widths=(4, 4, 8), stem_stride=2), (2, 3, 16, 16), (2, 2)),
        (mixed_space(5, in_channels=1, stem=4, stages=((6, 8, 1, 2), (6, 8, 2, 1)), head=8), (2, 1, 9, 9), (3, 3)),
        (CellNetwork(5, in_channels=1, channels=4, cells="rnr", nodes=3), (2, 1, 9, 9), (3, 3)),
        (CellNetwork(5, channels=4, cells="n", nodes=1, stem_stride=2), (2, 3, 8, 8), (4, 4)),
    ],
)
def test_spaces_make_logits_at_the_resolution_that_strides_leave(network, x, places):
    seen = []
    (pool,) = (part for part in network.modules() if isinstance(part, nn.AdaptiveAvgPool2d))
    pool.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    assert network(torch.randn(x)).shape == (2, 5) and seen == [places]


@pytest.mark.parametrize("name", DARTS_OPERATORS)
@pytest.mark.parametrize("stride", [1, 2])
def test_operators_of_a_cell_keep_the_channels_and_share_their_strides(name, stride):
    operator, x = darts_operator(name, 4, stride), torch.randn(2, 4, 7, 7)
    assert operator(x).shape == (2, 4, math.ceil(7 / stride), math.ceil(7 / stride))
    norm, halving = 8, 16 + 8 if stride == 2 else 0
    kernels = {"sep_conv_3x3": (2, 9), "sep_conv_5x5": (2, 25), "dil_conv_3x3": (1, 9), "dil_conv_5x5": (1, 25)}
    repeats, kernel = kernels.get(name, (0, 0))
    by_hand = repeats * (4 * kernel + 16 + norm) if repeats else halving if name == "skip" else 0
    assert sum(value.numel() for value in operator.parameters()) == by_hand


def residual_by_hand(a, b, c, d, first, second):
    """At 8 x 8 and 4 x 4: a the stem's channels, b and d inside the blocks, c those of the second stage."""
    params = 29 * a + first * (18 * a * b + 2 * b + 2 * a) + a * c + 2 * c
    params += second * (9 * a * d + 2 * d + 9 * d * c + 2 * c) + 4 * c + 4
    return params, 64 * (27 * a + first * 18 * a * b) + 16 * (a * c + second * 9 * (a * d + d * c)) + 4 * c


def mixed_by_hand(a, b3, b5, c3, e, c5, head, first3, first5, second3, second5):
    """At 4 x 4 and 2 x 2: a the stem's channels, b and c inside the paths, e those of the second block."""
    params, macs = 29 * a, 16 * 27 * a
    for stays, inner, kernel in ((first3, b3, 9), (first5, b5, 25)):
        params += stays * (2 * a * inner + (4 + kernel) * inner + 2 * a)
        macs += stays * 16 * (2 * a * inner + kernel * inner)
    for stays, inner, kernel in ((second3, c3, 9), (second5, c5, 25)):
        params += stays * (a * inner + (4 + kernel) * inner + inner * e + 2 * e)
        macs += stays * (16 * a * inner + 4 * (kernel * inner + inner * e))
    return params + e * head + 2 * head + 4 * head + 4, macs + 4 * e * head + 4 * head


def cell_by_hand(stem, n, m0, m1, pool0, skip0, sep0, pool1, skip1, sep1):
    """At 4 x 4: n the channels of the only node, m between the halves of a separable convolution."""
    params, macs = 29 * stem + 2 * (stem * n + 2 * n) + 4 * n + 4, 16 * (27 * stem + 2 * stem * n) + 4 * n
    for stays, m in ((sep0, m0), (sep1, m1)):
        params += stays * (9 * n + n * m + 2 * m + 9 * m + m * n + 2 * n)
        macs += stays * 16 * (9 * n + 2 * n * m + 9 * m)
    return params, macs


CELL = ("max_pool_3x3", "skip", "sep_conv_3x3")
BY_HAND = {
    "residual": (lambda: residual_space(4, blocks=(1, 1), widths=(4, 6)), 8, residual_by_hand),
    "mixed": (
        lambda: mixed_space(4, stem=4, stages=((2, 4, 1, 1), (2, 6, 1, 2)), head=5, kernels=(3, 5)),
        8,
        mixed_by_hand,
    ),
    "cells": (lambda: CellNetwork(4, channels=2, cells="n", nodes=1, operators=CELL), 4, cell_by_hand),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_spaces_cost_what_hand_counts_say(name):
    make, size, by_hand = BY_HAND[name]
    for seed in range(6):
        _, x, gates = gated(make, size, seed)
        counts = [gates.counts[key] for key in gates.model.sizes]
        assert cost(gates.slim(), x) == gates.model(gates.counts) == Cost(*by_hand(*counts))


@each_space
def test_slim_spaces_are_the_gated_ones_and_can_be_rebuilt(name):
    make, seen = SPACES[name], set()
    for seed in range(2):
        network, x, gates = gated(make, seed=seed)
        slim, file = gates.slim(), io.BytesIO()
        with torch.no_grad():
            torch.testing.assert_close(slim(x), network(x), rtol=0, atol=1e-5)
        assert cost(slim, x) == gates.model(gates.counts)
        torch.save(slim.state_dict(), file)
        file.seek(0)
        torch.manual_seed(100 + seed)
        again = rebuild(make(), x, gates.counts).eval()
        assert {key: value.shape for key, value in again.state_dict().items()} == {
            key: value.shape for key, value in slim.state_dict().items()
        }
        again.load_state_dict(torch.load(file), strict=True)
        with torch.no_grad():
            assert torch.equal(again(x), slim(x))
        seen |= {count for path, count in gates.counts.items() if path in gates.model.operators}
    assert seen == {0, 1}


@each_space
def test_operators_that_vanish_leave_nothing_behind(name):
    network, x, gates = gated(SPACES[name])
    gone = [path for path in gates.model.operators if not gates.counts[path]]
    slim, modules = gates.slim(), dict(network.named_modules())
    assert gone and all(path in modules for path in gone)
    left = [*dict(slim.named_modules()), *slim.state_dict()]
    assert not [path for path in left if path.startswith(tuple(f"{one}." for one in gone)) or path in gone]
    kept = [path for path in gates.model.operators if path not in gone]
    assert kept and all(path in left for path in kept)
    with torch.no_grad():
        assert slim(x).isfinite().all()


def test_a_block_without_paths_passes_its_input_on():
    x = torch.randn(2, 4, 6, 6)
    _, _, gates = gated(SPACES["residual"])
    blocks = [f"{place}.body.operators.3x3" for place in (2, 3, 4)]
    slim = without(gates, blocks)
    assert torch.equal(slim[2](x), x.relu()) and torch.equal(slim[3](x), slim[3].shortcut(x).relu())
    assert sum(isinstance(part, nn.Conv2d) for part in slim.modules()) == 2  # the stem's and one shortcut
    _, _, gates = gated(SPACES["mixed"])
    slim = without(gates, [path for path in gates.model.operators if path.startswith("2.")])
    assert torch.equal(slim[2](x), x) and slim[2].residual and not list(slim[2].parameters())
    assert not slim[3].residual and set(gates.alive["3.paths.operators.3x3"].tolist()) == {0}


def test_one_path_stays_where_the_shape_changes():
    _, _, gates = gated(SPACES["mixed"])
    sums = {path: part for path, part in gates.model.sums.items() if not part.optional}
    assert list(sums) == ["3.paths"]  # twice the stride, more channels
    slim = without(gates, gates.model.operators)
    assert [len(slim[place].paths.operators) for place in (2, 3, 4)] == [0, 1, 0]
    _, _, gates = gated(SPACES["cells"])
    slim = without(gates, gates.model.operators)
    assert [len(node.operators) for cell in slim.cells for node in cell.nodes] == [1, 1]


def test_blocks_say_whether_they_can_vanish():
    assert RemovableBlock(4, 6, 2).body.optional and RemovableBlock(4, 4).body.optional  # there is a shortcut
    for inputs, outputs, stride, can in ((4, 4, 1, True), (4, 4, 2, False), (4, 6, 1, False)):
        assert MixedBlock(inputs, outputs, 4, (3,), stride).paths.optional is can


@pytest.mark.parametrize("name", ["residual", "squeeze", "cells"])
def test_slim_networks_can_be_exported(name):
    _, x, gates = gated(SPACES[name])
    slim = gates.slim()
    exported = torch.export.export(slim, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), slim(x))


def inception():
    """Two of Inception v3's blocks: branches of pooling and of factorised convolutions, side by side."""
    blocks = [InceptionA(8, 4), InceptionC(64 + 64 + 96 + 4, 8)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 10))


# How many groups each has: whatever stands between an unknown operation and the next layer stays whole.
NETWORKS = {
    "densenet121": 120,
    "efficientnet_b0": 40,
    "googlenet": 57,
    "mnasnet0_5": 24,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 27,
    "regnet_x_400mf": 5,  # grouped convolutions: stem and streams alone
    "resnet18": 12,
    "shufflenet_v2_x0_5": 17,  # what is shuffled stays whole
    "squeezenet1_1": 25,
    "inception": 18,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_networks_become_slim(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    make = inception if name == "inception" else lambda: zoo.get_model(name, num_classes=10, **options)
    network, x, gates = gated(make, size=64, middle=1.0)
    assert len(gates.model.groups) == NETWORKS[name]
    slim = gates.slim()
    with torch.no_grad():
        want = network(x)
        torch.testing.assert_close(slim(x), want, rtol=0, atol=1e-4 * want.abs().max().item())
    assert (want[0] - want[1]).abs().max() > 1e-3 * want.abs().max()  # the images reach the end
    assert cost(slim, x) == gates.model(gates.counts) != gates.model(gates.model.sizes)


@pytest.mark.parametrize(
    "name",
    ["densenet121", "efficientnet_b0", "mnasnet1_0", "mobilenet_v2", "regnet_x_400mf", "resnet18", "squeezenet1_1"],
)
def test_whole_networks_cost_what_torchvision_publishes(name):
    published = zoo.get_model_weights(name).DEFAULT.meta
    device = "cpu" if name.startswith("regnet") else "meta"  # RegNet computes its widths with tensors
    with torch.device(device):
        network, x = zoo.get_model(name).eval(), torch.zeros(1, 3, 224, 224)
    model = CostModel(network, x)
    assert not model.uncounted and model.rest == {"params": 0, "macs": 0}  # every layer was counted by itself
    assert model.groups
    found = model(model.sizes)
    assert found.params == published["num_params"]
    assert found.macs / 1e9 == pytest.approx(published["_ops"], abs=6e-4)
