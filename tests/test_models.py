"""Networks and their costs: counted by hand, against torchvision's published counts, and after channels are cut."""

import math
import os
import warnings
from pathlib import Path

import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torchvision.ops import StochasticDepth

from nkdlib.networks import (
    BasicBlock,
    CellNetwork,
    Cost,
    cost,
    count_params,
    mixed_space,
    residual_space,
    resnet,
)
from nkdlib.networks.channels import channel_groups
from nkdlib.networks.cost import macs_by_module
from nkdlib.networks.cutting import cut
from nkdlib.networks.latency import latencies
from nkdlib.networks.trace import trace

PUBLISHED_RESNETS = Path(os.environ.get("NKD_DATA") or "nowhere") / "cifar10-resnets"
PUBLISHED = (
    *("alexnet", "vgg11", "resnet18", "resnet50", "squeezenet1_1", "densenet121", "mobilenet_v2", "mobilenet_v3_large"),
    *("mnasnet1_0", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "shufflenet_v2_x1_0", "vit_b_32", "swin_t"),
)


def test_a_mac_is_one_multiply_add():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 5 * 5, 7))
    # 5 x 5 places x 8 outputs x 27 inputs, and 200 x 7
    assert cost(net, torch.zeros(4, 3, 10, 10)) == Cost(params=224 + 1407, macs=5400 + 1400)


def test_depthwise_macs_and_shared_parameters():
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    assert cost(depthwise, torch.zeros(1, 6, 4, 4)) == Cost(params=54, macs=6 * 9 * 16)
    twice = nn.Sequential(depthwise, depthwise)
    assert cost(twice, torch.zeros(1, 6, 4, 4)) == Cost(params=54, macs=2 * 6 * 9 * 16)


class Runs(nn.Module):
    """A function of an input and of parameters."""

    def __init__(self, run, *shapes):
        super().__init__()
        self.run, self.weights = run, nn.ParameterList([torch.randn(shape) for shape in shapes])

    def forward(self, x):
        return self.run(x, *self.weights)


@pytest.mark.parametrize(
    ("run", "shapes", "macs"),
    [
        (lambda x, w: x @ w, [5], 3 * 5),
        (lambda x, w: nn.functional.linear(x, w), [5], 3 * 5),
        (lambda x, w: torch.addmv(x.new_zeros(3), x[0], w), [5], 3 * 5 / 2),  # of one of two inputs
        (lambda x, w: torch.dot(x[0, 0], w) + torch.vdot(x[1, 0], w), [5], 5),
        (lambda x, w: torch.addbmm(x.new_zeros(3, 7), x, w), [(2, 5, 7)], 3 * 5 * 7),
        (lambda x, w: nn.functional.bilinear(x, x, w), [(7, 5, 5)], 3 * 7 * 5 * 5),
        (lambda x, w: torch.einsum("bli,oi->blo", x, w), [(7, 5)], 3 * 7 * 5),
    ],
)
def test_macs_of_a_product_by_hand(run, shapes, macs):
    assert cost(Runs(run, *shapes), torch.randn(2, 3, 5)).macs == int(macs)


def test_macs_of_a_recurrent_layer_on_a_gpu_are_those_on_the_cpu():
    layer = nn.LSTM(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    weights, state = [weight.to("meta") for weight in layer.parameters()], torch.zeros(4, 2, 7, device="meta")
    arguments = (None, state, state, 2, 7, 0, 2, True, 0.0, False, True, [], None)  # as torch.nn gives them to cuDNN

    def on_gpu(x):
        return torch.ops.aten._cudnn_rnn(x.to("meta"), weights, 4, *arguments)[0]

    macs = 3 * 2 * 4 * 7 * ((5 + 7) + (2 * 7 + 7))  # three positions, two directions, four gates, two layers
    assert cost(Runs(lambda x: layer(x)[0]), torch.zeros(2, 3, 5)).macs == macs
    assert cost(Runs(on_gpu), torch.zeros(2, 3, 5)).macs == macs


class Hiding(nn.Module):
    """Runs layers that it does not have: in a plain list, and made in its forward pass."""

    def __init__(self):
        super().__init__()
        self.own, self.hidden = nn.Conv2d(3, 8, 1), [nn.Sequential(nn.Conv2d(8, 4, 1))]

    def forward(self, x):
        return nn.Conv2d(4, 2, 1)(self.hidden[0](self.own(x)))


def test_macs_of_layers_that_a_network_runs_but_does_not_have_are_in_the_sum():
    x = torch.zeros(2, 3, 5, 5)
    assert cost(Hiding(), x) == Cost(params=32, macs=25 * (3 * 8 + 8 * 4 + 4 * 2))
    within = nn.Sequential(Hiding(), nn.Conv2d(2, 6, 1))
    assert macs_by_module(within, x) == {"": 25 * (64 + 12), "0": 25 * 64, "0.own": 25 * 24, "1": 25 * 12}


def test_a_scripted_network_costs_what_the_network_does():
    net, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.zeros(2, 3, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cost(torch.jit.script(net), x) == cost(net, x) == Cost(params=32 + 18, macs=25 * (24 + 16))


def test_cost_leaves_modes_and_weights_alone():
    net = resnet(8, 10, seed=0).train()
    net.stem.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost(net, torch.randn(2, 3, 8, 8))
    assert net.training and not net.stem.training and not net.stem[1].training and net.head.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_that_torchvision_publishes(name):
    published = zoo.get_model_weights(name).DEFAULT.meta
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNet computes its widths with tensors
        options = {"init_weights": False} if name.startswith("vgg") else {}
        found = cost(zoo.get_model(name, **options), torch.zeros(1, 3, 224, 224))
    assert found.params == published["num_params"]
    assert found.macs / 1e9 == pytest.approx(published["_ops"], abs=6e-4)


def test_attention_counts_the_same_on_a_cpu_and_without_data():
    options = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    net, image = zoo.VisionTransformer(num_classes=4, **options), torch.zeros(1, 3, 32, 32)
    # patches 4 x 768 x 8; 5 tokens: in and out 8 x 32, scores and sums 2 x 5 x 8, two layers 2 x 8 x 16; head
    macs = 4 * 768 * 8 + 5 * (8 * 32 + 2 * 5 * 8 + 2 * 8 * 16) + 8 * 4
    assert cost(net, image).macs == cost(net.to("meta"), image.to("meta")).macs == macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_resnet_is_the_papers():
    # He et al., section 4.2 and table 6: 0.27M and 0.85M for CIFAR-10; projections add 2,560 + 192
    assert count_params(resnet(20, 10)) == 269_722 + 2_752
    assert cost(resnet(20, 10), torch.zeros(1, 3, 32, 32)).macs == 40_551_040 + 2 * 131_072
    assert count_params(resnet(20, 10, width=4)) == count_params(resnet(20, 10, widths=(4, 8, 16)))
    net = resnet(14, 7, in_channels=1, widths=(4, 8, 16), stem_stride=2)
    assert net.block_names == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]
    x = net.layer3(net.layer2(net.layer1(net.stem(torch.zeros(2, 1, 28, 28)))))
    assert x.shape == (2, 16, 4, 4) and net.head(x).shape == (2, 7)


def test_a_seed_draws_the_same_network_and_nothing_else():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (resnet(8, 10, seed=seed).stem[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("depth", "params"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_shortcuts_by_padding_make_the_published_networks(depth, params):
    network = resnet(depth, 10, shortcut="padding").eval()
    assert count_params(network) == params  # 0.27M, 0.46M and 0.85M in He et al., table 6
    (path,) = [*PUBLISHED_RESNETS.glob(f"resnet{depth}-*.th")] or pytest.skip("NKD_DATA has no cifar10-resnets")
    published = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    names = {"module.conv1": "stem.0", "module.bn1": "stem.1", "module.linear": "head.2"}
    own = {}
    for name, value in published.items():
        layer, _, entry = name.rpartition(".")
        own[f"{names.get(layer, layer.removeprefix('module.'))}.{entry}"] = value
    missing, unexpected = network.load_state_dict(own, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)


def test_a_padded_shortcut_by_hand():
    block, x = BasicBlock(2, 4, stride=2, shortcut="padding").eval(), torch.rand(1, 2, 5, 5)
    assert block.shortcut(x).shape == (1, 4, 3, 3) and not list(block.shortcut.parameters())
    nn.init.zeros_(block.bn2.weight)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2]) and not y[:, [0, 3]].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(10, 10), r"depth \(=10\) must be 6n \+ 2; choose 8"),
        (lambda: resnet(8, 10, widths=(4, 8)), r"blocks \(=\(1, 1, 1\)\) and widths \(=\(4, 8\)\)"),
        (lambda: resnet(8, 10, width=0), r"widths \(=\(0, 0, 0\)\) must be equally long, whole, and at least 1"),
        (
            lambda: residual_space(10, blocks=(1, 1), widths=(4,)),
            r"blocks \(=\(1, 1\)\) and widths \(=\(4,\)\)",
        ),
        (lambda: residual_space(10, blocks=(1,), widths=(4.5,)), r"widths \(=\(4.5,\)\) must be equally long, whole"),
        (lambda: mixed_space(10, kernels=(3, 4)), r"kernels \(=\(3, 4\)\) must be odd numbers"),
        (lambda: mixed_space(10, kernels=(3, 3)), r"kernels \(=\(3, 3\)\) must be odd numbers, .* none twice"),
        (lambda: mixed_space(10, kernels=()), r"kernels \(=\(\)\) must be odd numbers, at least one"),
        (lambda: CellNetwork(10, cells="nx"), r"cells \(='nx'\) must be letters n and r"),
        (lambda: CellNetwork(10, nodes=0), r"nodes \(=0\) at least 1"),
        (lambda: CellNetwork(10, operators=("conv_3x3",)), r"operators \(=\('conv_3x3',\)\) must be some of max_pool"),
        (lambda: BasicBlock(4, 4, inner=0), r"inner \(=0\) must be at least 1"),
        (lambda: BasicBlock(4, 4, inner=math.nan), r"inner \(=nan\) must be at least 1 channel, and whole"),
        (lambda: latencies([(nn.ReLU(), torch.zeros(1, 2))], math.nan), r"repeats \(=nan\) must be at least 6, and"),
        (lambda: cost(nn.Conv2d(3, 4, 1), torch.zeros(0, 3, 8, 8)), r"example \(=\(0, 3, 8, 8\)\) must hold at least"),
        (lambda: BasicBlock(4, 4, shortcut="pad"), r"shortcut \(='pad'\) must be one of projection, padding"),
        (lambda: BasicBlock(4, 2, shortcut="padding"), r"more \(=-2\) channels cannot be padded"),
    ],
)
def test_what_cannot_be_built_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def filled(module):
    """Give BatchNorms statistics and weights that are not 0 and 1, so that a mistake in cutting shows."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for value in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    value.uniform_(0.5, 1.5)
    return module.eval()


def kill(module, group, dead):
    """Make channels of a group say nothing: zero the weights that read them."""
    for path in group.consumers:
        module.get_submodule(path).weight.data[:, dead] = 0


def block_of(name):
    """One block of a torchvision network, and an input for it."""
    torch.manual_seed(0)
    if name == "bottleneck":
        return filled(zoo.resnet50().layer1[0]), torch.randn(2, 64, 6, 6)
    if name == "mobile":
        return filled(zoo.mobilenet_v2().features[3]), torch.randn(2, 24, 6, 6)
    if name == "squeeze":
        return filled(zoo.mobilenet_v3_small().features[5]), torch.randn(2, 40, 6, 6)
    if name == "efficient":
        return filled(zoo.efficientnet_b0().features[3]), torch.randn(2, 24, 6, 6)
    return filled(BasicBlock(8, 12, inner=10, stride=2)), torch.randn(2, 8, 6, 6)


SIZES = {
    "basic": [10],
    "bottleneck": [64, 64],
    "mobile": [144],
    "squeeze": [240, 64],
    "efficient": [144, 6, 240, 10],  # two blocks; the stream between them is tied to the output
}


@pytest.mark.parametrize("name", SIZES)
def test_the_inner_channels_of_a_block_are_found_and_dead_ones_can_be_cut(name):
    block, x = block_of(name)
    groups = channel_groups(block, x)
    assert [group.size for group in groups] == SIZES[name]
    keep = {}
    for group in groups:
        alive = torch.arange(group.size) % 3 != 1
        kill(block, group, ~alive)
        keep[group.name] = alive.nonzero().flatten()
    before = {key: value.clone() for key, value in block.state_dict().items()}
    slim = cut(block, groups, keep)
    with torch.no_grad():
        torch.testing.assert_close(slim(x), block(x), rtol=1e-4, atol=1e-4)
    assert count_params(slim) < count_params(block) and cost(slim, x).macs < cost(block, x).macs
    assert [group.size for group in channel_groups(slim, x)] == [len(index) for index in keep.values()]
    assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


def test_the_layers_of_a_group_are_named():
    block, x = block_of("squeeze")
    expanded, squeezed = channel_groups(block, x)
    assert expanded.name == "block.0.0" and expanded.producers == ["block.0.0", "block.2.fc2"]
    assert expanded.carriers == ["block.0.1", "block.1.0", "block.1.1"]
    assert expanded.consumers == ["block.2.fc1", "block.3.0"]
    assert (squeezed.producers, squeezed.consumers) == (["block.2.fc1"], ["block.2.fc2"])


class Odd(nn.Module):
    """A linear layer, something between, a linear layer."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 4), nn.Linear(4, 4), between
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


@pytest.mark.parametrize(
    ("between", "shape", "inner"),
    [
        (lambda self, x: x.relu(), (2, 4), 1),
        (lambda self, x: x * 2 + 1, (2, 4), 1),
        (lambda self, x: x * self.scale, (2, 4), 0),  # a scale for each channel, which would have to be cut
        (lambda self, x: x.roll(1, 1), (2, 4), 0),
        (lambda self, x: x.relu(), (2, 4, 4), 1),  # tokens: as many as channels, by chance
        (lambda self, x: x.mT, (2, 4, 4), 0),
        (lambda self, x: x.softmax(2), (2, 4, 4), 0),
    ],
    ids=["relu", "affine", "scale", "roll", "tokens", "transposed", "softmax"],
)
def test_what_is_not_understood_stays_whole(between, shape, inner):
    assert len(channel_groups(Odd(between), torch.randn(shape))) == inner


class Branching(nn.Module):
    """Its forward depends on values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_errors_name_what_cannot_be_cut():
    block, x = block_of("basic")
    groups = channel_groups(block, x)
    with pytest.raises(ValueError, match=r"keep names 'conv2', which is no inner channel group; .*\['conv1'\]"):
        cut(block, groups, {"conv2": torch.arange(3)})
    with pytest.raises(ValueError, match=r"keep\['conv1'\] is empty; leave at least one"):
        cut(block, groups, {"conv1": torch.arange(0)})
    with pytest.raises(ValueError, match=r"module \(=Branching\) cannot be traced .* must not depend on values"):
        trace(Branching(), x)
    with pytest.raises(ValueError, match=r"module \(=Conv2d\) does not take an input \(2, 8, 6, 6\)"):
        trace(nn.Conv2d(3, 3, 1), x)


def test_tracing_is_in_evaluation_mode_and_puts_the_mode_back():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), StochasticDepth(0.5, "row"), nn.ReLU(inplace=True)).train()
    x = torch.randn(64, 2, 3, 3)
    graph = trace(net, x)
    assert net.training and net[0].training
    with torch.no_grad():
        torch.testing.assert_close(graph(x), net[0](x).relu())
