"""Splitting any network by names, what flows between the parts, and putting it together again.

Behind claim ND-0.
"""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn

from nkdlib.figs import CostModel
from nkdlib.neighbourhoods import Recipe, capture, local_error, perturb, recompose, solve, split
from nkdlib.networks import Cost, cost, resnet
from nkdlib.networks.module import tensors_of
from nkdlib.training import Store

# by name: pixels, and names in the order in which they run
NETWORKS = {
    "alexnet": (64, ["features.0:features.2", "features.3", "features.6:features.8", "classifier.1:classifier.3"]),
    "convnext_tiny": (32, ["features.1.0", "features.3:features.5", "features.7.2"]),
    "densenet121": (32, ["features.denseblock1", "features.transition1:features.denseblock2", "features.transition3"]),
    "efficientnet_b0": (32, ["features.1", "features.3:features.5", "features.6.1"]),
    "efficientnet_v2_s": (32, ["features.2.1", "features.3:features.4"]),
    "googlenet": (32, ["inception3a", "inception3b:maxpool3", "inception5a"]),
    "inception_v3": (75, ["Mixed_5b:Mixed_5d", "Mixed_6a", "Mixed_7c"]),
    "mnasnet0_5": (32, ["layers.8:layers.9", "layers.10.1", "layers.12"]),
    "mobilenet_v2": (32, ["features.2", "features.3:features.5", "features.11", "features.18"]),
    "mobilenet_v3_large": (32, ["features.3:features.5", "features.8.block.0", "features.12:features.13"]),
    "mobilenet_v3_small": (32, ["features.1", "features.3:features.5", "features.7", "classifier.0:classifier.1"]),
    "regnet_x_400mf": (32, ["trunk_output.block1", "trunk_output.block3.block3-1"]),
    "regnet_y_400mf": (32, ["stem", "trunk_output.block2:trunk_output.block3", "trunk_output.block4.block4-2"]),
    "resnet18": (32, ["layer1.0", "layer2", "layer3.0:layer3.1", "avgpool"]),
    "resnet50": (32, ["layer1.1", "layer2.0:layer2.2", "layer4.2.conv2"]),
    "resnext50_32x4d": (32, ["layer1:layer2", "layer3.4"]),
    "shufflenet_v2_x0_5": (32, ["stage2.0", "stage3.1:stage3.3", "conv5"]),
    "squeezenet1_1": (48, ["features.3:features.5", "features.7", "features.9.squeeze"]),
    "swin_t": (32, ["features.1.0", "features.3:features.5", "features.7.1.mlp"]),
    "vgg11_bn": (32, ["features.0:features.2", "features.4", "features.8:features.10"]),
    "vit_b_32": (32, ["encoder.layers.encoder_layer_0:encoder.layers.encoder_layer_1", "encoder.ln"]),
}
SMALL = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vgg11_bn": {"init_weights": False},
    "vit_b_32": {"image_size": 32},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_split_and_recomposed_from_its_own_parts_is_the_network(name):
    pixels, names = NETWORKS[name]
    torch.manual_seed(0)
    net = zoo.get_model(name, num_classes=5, **SMALL.get(name, {})).train()
    if name == "vit_b_32":
        nn.init.normal_(net.heads.head.weight)  # torchvision begins with zeros, which hide what comes before
    x = torch.randn(2, 3, pixels, pixels)
    neighbourhoods = split(net, list(reversed(names)), x)
    assert neighbourhoods.names == names and all(module.training for module in net.modules())
    again = recompose(net, {here.name: here.module for here in neighbourhoods})
    with torch.no_grad():
        wanted = net.eval()(x)
        torch.testing.assert_close(again(x), wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 0
    for here in neighbourhoods:
        with torch.no_grad():
            assert here.module(here.example).shape[1:] == here.output_shape
        assert 0 <= here.cost.params <= neighbourhoods.total.params
    boundaries = capture(net, neighbourhoods, [x], dtype=torch.float32)
    for here in neighbourhoods:  # each part gives the boundary after it from the boundary before it
        assert local_error(here.module, boundaries.of(here.name)) < 1e-9


def test_shapes_parameters_and_macs_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1, stride=2), nn.Flatten())
    parts = split(net, ["0:1", "2"], torch.zeros(2, 3, 6, 6))
    a, b = parts
    assert (a.input_shape, a.output_shape, a.cost) == ((3, 6, 6), (4, 6, 6), Cost(112, 36 * 4 * 27))
    assert (b.input_shape, b.output_shape, b.cost) == ((4, 6, 6), (2, 3, 3), Cost(10, 9 * 2 * 4))
    assert parts.total == Cost(112 + 10, a.cost.macs + b.cost.macs) and (a.chained, b.chained) == (False, True)
    assert parts["2"] is parts[1] is b and len(parts) == 2 and "0:1" in repr(parts)
    table = parts.table().set_index("neighbourhood")
    assert table.loc["2", "share of MACs"] == pytest.approx(72 / (72 + 3888)) and table.loc["2", "input"] == "4x6x6"
    assert "<table" in parts._repr_html_()
    with pytest.raises(KeyError, match=r"'1' is no neighbourhood here; choose from \['0:1', '2'\]"):
        parts["1"]


class Odd(nn.Module):
    """Parts that are run twice, not at all, out of order, with keywords, or give two tensors."""

    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.late, self.early = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.keyword, self.pair = Keyword(), Pair()
        self.before, self.after = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.late(self.early(self.twice(self.twice(x))))
        a, b = self.pair(self.keyword(x, scale=2))
        return self.after(F.relu_(self.before(a + b)))


class Keyword(nn.Module):
    """Takes a keyword."""

    def forward(self, x, scale):
        return x * scale


class Pair(nn.Module):
    """Gives two tensors."""

    def forward(self, x):
        return x, x + 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0"], r"names holds '0', but the model has no submodule '0'; see model.named_modules"),
        (["twise"], r"no submodule 'twise'; did you mean twice"),
        ([""], r"has no submodule ''"),
        ("twice", r"names \(='twice'\) must be a list"),
        ([], r"names \(=\[\]\) must be a list of at least one"),
        (["twice"], r"'twice', which is run 2 times in one forward pass; .* exactly once: name a part that is"),
        (["never"], r"'never', which is run 0 times"),
        (["late:early"], r"'early' does not take what 'late' returns and nothing else; name the parts one by one"),
        (["early:late"], r"'early' must stand before 'late' in \["),
        (["before:after"], r"'after' does not take what 'before' returns"),  # F.relu_ works in place between them
        (["keyword"], r"'keyword', which takes 1 arguments and 1 keywords and returns Tensor; .* one tensor"),
        (["pair"], r"'pair', which takes 1 arguments and 0 keywords and returns tuple"),
        (["late", "early:late:pair"], r"'early:late:pair'; a run is 'first:last' of two children of one module"),
        (["late", "late"], r"names \(=\['late', 'late'\]\) names a neighbourhood twice"),
    ],
)
def test_names_that_cannot_be_are_explained(names, message):
    with pytest.raises(ValueError, match=message):
        split(Odd(), names, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer1", "layer1.0"], r"names overlap: 'layer1.0' and 'layer1' share 'layer1.0'; each part"),
        (["layer1:layer2", "layer2.0.conv1"], r"names overlap: 'layer2.0.conv1' and 'layer1:layer2' share"),
        (["layer1.0:layer2.0"], r"a run is 'first:last' of two children of one module"),
        (["layer1.7"], r"no submodule 'layer1.7'; did you mean layer1"),
    ],
)
def test_overlaps_and_runs_are_explained_by_split_and_recompose_alike(names, message):
    net = resnet(14, 10, seed=0)
    for act in (
        lambda: split(net, names, torch.zeros(1, 3, 8, 8)),
        lambda: recompose(net, dict.fromkeys(names, nn.Identity())),
        lambda: perturb(net, dict.fromkeys(names, 0.1), seed=0),
    ):
        with pytest.raises(ValueError, match=message):
            act()


class Skipping(nn.Module):
    """Adds a value from inside a run to its end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        a = self.a(x)
        return self.c(a + self.b(a))


class Hourglass(nn.Module):
    """A small U-Net: the decoder takes what the encoder gave, beside what lies between."""

    def __init__(self):
        super().__init__()
        self.encode, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 2, stride=2)
        self.up, self.decode = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        skip = self.encode(x)
        return self.decode(torch.cat([skip, self.up(self.down(skip))], 1))


class Reading(nn.Module):
    """Reads a layer's weight beside calling it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return {"out": self.b(self.a(x)) * self.b.weight.norm()}


@pytest.mark.parametrize(
    ("net", "run", "others"),
    [(Skipping, "a:b", ["b", "c"]), (Hourglass, "encode:down", ["down:up"]), (Reading, "a:b", ["a"])],
)
def test_a_run_with_a_value_that_is_read_elsewhere_is_refused(net, run, others):
    torch.manual_seed(0)
    net, x = net(), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=rf"names holds '{run}'.* a layer outside reads a value inside it"):
        split(net, [run], x)
    for name in others:
        assert len(split(net, [name], x)) == 1
    assert all(module.training for module in net.modules()) and hooks(net) == 0


class Twice(nn.Module):
    """Holds one block under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.layers = nn.ModuleList([self.first, nn.Conv2d(3, 3, 1)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


@pytest.mark.parametrize(("name", "alias"), [("first", "layers.0"), ("layers.0", "first"), ("first.0", "layers.0.0")])
def test_a_module_under_two_names_is_refused(name, alias):
    net = Twice()
    for act in (
        lambda: split(net, [name], torch.zeros(1, 3, 4, 4)),
        lambda: recompose(net, {name: nn.Identity()}),
        lambda: perturb(net, {name: 0.1}, seed=0),
    ):
        with pytest.raises(ValueError, match=rf"names holds '{name}', but '{name}' is the same module as '{alias}'"):
            act()
    assert split(net, ["layers.1"], torch.zeros(1, 3, 4, 4)).names == ["layers.1"]


def tied(where):
    """Two blocks of two convolutions and a head, with one weight in two places."""
    block = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))  # noqa: E731
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(block(), block()), nn.Conv2d(3, 3, 1))
    a, b = (net.get_submodule(path) for path in where)
    b.weight = a.weight
    return net


@pytest.mark.parametrize(
    ("where", "refused", "whole"),
    [
        (["1.0.2", "1.1.2"], {"1.0": "'1.0.2' .* '1.1.2'", "1.1": "'1.1.2' .* '1.0.2'"}, ["1", "1.0:1.1"]),
        (["1.0.1", "1.1.1"], {"1.0.0:1.0.1": "'1.0.1' .* '1.1.1'"}, ["1.0.0", "1.0.2", "1"]),
        (["0", "1.0.0"], {"1": "'1.0.0' .* '0'", "0": "'0' .* '1.0.0'", "1.0.0:1.0.2": "'1.0.0' .* '0'"}, ["1.1", "2"]),
        (["1.0.0", "1.0.2"], {"1.0.2": "'1.0.2' .* '1.0.0'"}, ["1.0", "1.0.1", "1.1", "1"]),
    ],
)
def test_a_part_that_shares_weights_with_others_is_refused(where, refused, whole):
    net, x = tied(where), torch.randn(2, 3, 4, 4)
    for name, layers in refused.items():
        with pytest.raises(ValueError, match=rf"names holds '{name}', whose layer {layers} outside it; give each a"):
            split(net, [name], x)
    for name in whole:
        assert split(net, [name], x).names == [name]


def test_a_layer_of_a_part_with_a_second_name_outside_it_is_refused():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.Conv2d(3, 3, 1))
    net.looked_at = net[0][0]
    net.forward = lambda x: net[1](net[0](x))
    with pytest.raises(ValueError, match=r"names holds '0', whose layer '0.0' shares a weight with 'looked_at' out"):
        split(net, ["0"], torch.zeros(1, 3, 4, 4))


def test_layer1_does_not_overlap_layer10():
    net = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(11)))
    assert split(net, ["10", "1"], torch.zeros(1, 2, 3, 3)).names == ["1", "10"]


def state(net):
    """A network's state, copied."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def hooks(net):
    """How many hooks there are in a network."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_looking_changes_nothing_even_where_it_fails():
    net = resnet(8, 10, seed=0).train()
    before, x = state(net), torch.randn(2, 3, 8, 8)
    split(net, ["layer1.0", "layer2.0"], x)
    with pytest.raises(RuntimeError):
        split(net, ["layer1.0"], torch.randn(2, 5, 8, 8))
    recompose(net, {"layer1.0": nn.Identity()})
    assert hooks(net) == 0 and all(module.training for module in net.modules())
    neighbourhoods = split(net, ["layer1.0"], x)
    capture(net, neighbourhoods, [x])
    with pytest.raises(RuntimeError):
        capture(net, neighbourhoods, [torch.randn(2, 5, 8, 8)])
    assert hooks(net) == 0 and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_recompose_takes_students_as_they_are_and_copies_the_rest():
    net = resnet(14, 10, seed=0).eval()
    student = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1)).train()
    again = recompose(net, {"layer2.0": student, "layer3.0:layer3.1": nn.Conv2d(32, 64, 1)})
    assert again.layer2[0] is student and isinstance(again.layer3[1], nn.Identity) and not again.training
    assert again.stem[0].weight.data_ptr() != net.stem[0].weight.data_ptr() and not hasattr(net.layer2[0], "0")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        by_hand = net.layer2[1](student(net.layer1(net.stem(x))))
        torch.testing.assert_close(again(x), net.head(again.layer3[0](by_hand)))
    assert set(again.state_dict()) & {"layer2.0.0.weight", "layer3.0.weight"} and "layer3.1.conv1.weight" not in set(
        again.state_dict()
    )


def inplace():
    """Convolutions with ReLUs that work in place, between, before and after the neighbourhoods."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.Conv2d(4, 4, 3, padding=1), nn.Hardswish(True)]
    return nn.Sequential(*layers, nn.Conv2d(4, 4, 1), nn.ReLU(True)).eval()


@pytest.mark.parametrize("names", [["0", "2"], ["0", "1:2", "3:4"], ["0:1", "2", "4:5"]])
def test_layers_that_work_in_place_do_not_change_what_was_captured(names):
    net, x = inplace(), torch.randn(12, 3, 5, 5)
    values, h = [x], x
    with torch.no_grad():
        for layer in net:
            h = layer(h.clone())
            values.append(h)
    neighbourhoods = split(net, names, x[:2])
    boundaries = capture(net, neighbourhoods, x.split(4), dtype=torch.float32)
    for part in neighbourhoods:
        kept = boundaries.of(part.name).take(slice(None))
        torch.testing.assert_close(kept["x"], values[int(part.paths[0])])
        torch.testing.assert_close(kept["y"], values[int(part.paths[-1]) + 1])


def test_capture_takes_the_first_images_once_and_says_how_much_it_keeps():
    net, calls = inplace(), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    net[5].register_forward_hook(lambda *_: calls.append("end"))
    neighbourhoods = split(net, ["0", "2"], torch.randn(2, 3, 5, 5))
    calls.clear()
    boundaries = capture(net, neighbourhoods, [(torch.randn(4, 3, 5, 5), torch.zeros(4))] * 5, images=10)
    assert calls == [1, 1, 1]  # one teacher pass, which ends at the last boundary
    numbers = 25 * (3 + 4 + 4 + 4)
    assert len(boundaries.store) == 10 and boundaries.store.nbytes == 10 * 2 * numbers
    assert repr(boundaries) == "boundaries of 10 images kept in memory, 0 MB"
    with pytest.raises(ValueError, match="inputs holds no batch; give at least one"):
        capture(net, neighbourhoods, [])
    with pytest.raises(OverflowError, match=r"boundary '0:x' is not finite in dtype \(=torch.float16\); use dtype="):
        capture(net, neighbourhoods, [torch.full((2, 3, 5, 5), 1e6)])


@pytest.mark.parametrize("inputs", [iter, itertools.cycle])
def test_an_iterator_is_read_once_and_only_as_far_as_its_images_are_used(inputs):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval(), torch.randn(12, 3, 4, 4)
    parts = split(net, ["2"], x)
    wanted = capture(net, parts, [x], adapt=True).of("2").take(slice(None))
    found = capture(net, parts, inputs(x.split(4)), images=12, adapt=True).of("2").take(slice(None))
    torch.testing.assert_close(found, wanted)


def test_inputs_that_are_no_batches_of_one_shape_are_refused():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.randn(8, 3, 4, 4)
    parts = split(net, ["1"], x)
    with pytest.raises(TypeError, match=r"inputs \(a tensor \(8, 3, 4, 4\)\) must be batches; give \[inputs\] or"):
        capture(net, parts, x)
    message = r"'1:x' is of shape \(4, 4, 4\) in one batch and of shape \(4, 1, 1\) in another; give"
    for images in (None, 16):
        with pytest.raises(ValueError, match=message):
            capture(net, parts, [x, x[:, :, :1, :1]], images=images)
    with pytest.raises(ValueError, match=r"example_inputs is on the device meta and holds no values; put network"):
        split(net.to("meta"), ["1"], x.to("meta"))


@pytest.mark.parametrize(
    "example", [{"x": torch.zeros(1, 3, 4, 4)}, (torch.zeros(1, 3, 4, 4),), torch.zeros(3).numpy()]
)
def test_examples_that_are_no_tensor_are_named(example):
    net, said = (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)),
        rf"\(a {type(example).__name__}\) must be one tens",
    )
    with pytest.raises(TypeError, match="example_inputs " + said):
        split(net, ["1"], example)
    for act in (cost, CostModel):
        with pytest.raises(TypeError, match="example " + said):
            act(net, example)


def test_examples_without_an_input_are_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    for example in (torch.zeros(0, 3, 4, 4), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"example_inputs \(=\(.*\)\) must hold at least one input"):
            split(net, ["1"], example)


class Doubling(nn.Module):
    """Runs a part on every image and on its mirror image."""

    def __init__(self):
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.first(x)
        return sum(self.part(torch.cat([y, y.flip(-1)])).chunk(2))


@pytest.mark.parametrize("names", [["part"], ["first", "part"]])
def test_a_part_with_other_rows_than_images_is_refused_by_name(names):
    net, x = Doubling(), torch.randn(8, 3, 4, 4)
    parts = split(net, names, x)
    with pytest.raises(ValueError, match=r"boundary 'part:x' has 16 rows for 8 images; name a part that takes and"):
        capture(net, parts, [x], images=32)


class Sometimes(nn.Module):
    """Runs its second part for small images only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) if x.shape[-1] < 4 else x


def test_a_part_that_is_not_run_for_a_batch_is_an_error():
    net = Sometimes()
    neighbourhoods = split(net, ["b"], torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match=r"'b' was not run for a batch of shape \(2, 1, 5, 5\); split the model with"):
        capture(net, neighbourhoods, [torch.zeros(2, 1, 5, 5)])


def test_noise_has_the_size_that_was_asked_for():
    net = resnet(8, 10, seed=0).eval()
    noisy, x = perturb(net, {"layer1.0": 0.5}, seed=3), torch.randn(128, 3, 8, 8)
    with torch.no_grad():
        h = net.layer1(net.stem(x))
        error = local_error(noisy.layer1, Store.of({"x": net.stem(x), "y": h}))
        y, again = (perturb(net, {"layer1.0": 0.5}, seed=3)(x) for _ in range(2))
        silent = perturb(net, {"layer1.0": 0.0}, seed=3)(x)
    assert error == pytest.approx(0.25, rel=0.02) and torch.equal(y, again) and torch.equal(silent, net(x))
    assert not torch.equal(y, silent) and type(net.layer1[0]).__name__ == "BasicBlock"


def test_noise_of_few_images_has_its_size_on_average_and_one_is_refused():
    net, added = nn.Sequential(nn.Identity(), nn.Identity()), []
    with torch.no_grad():
        noisy = perturb(net, {"0": 0.5}, seed=0)
        for x in torch.randn(400, 2, 3, 8, 8):
            added.append((noisy(x) - x).square().mean().item())
    assert sum(added) / len(added) == pytest.approx(0.25, rel=0.05)  # half of it if the mean of two took its share
    with pytest.raises(ValueError, match=r"perturb measures .* over a batch of 2 or more images, it got 1"):
        noisy(x[:1])
    for size in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"relative\['0'\] \(={size}\) must be a finite number of at least 0"):
            perturb(net, {"0": size}, seed=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_noise_has_the_type_and_the_size_of_what_it_is_added_to(dtype):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).to(dtype), torch.randn(256, 3, 8, 8).to(dtype)
    with torch.no_grad():
        h, noisy = net[0](x), perturb(net, {"0": 0.5}, seed=0)
        error = (noisy[0](x) - h).double().square().mean() / (h - h.mean(0)).double().square().mean()
        assert noisy(x).dtype == dtype and error.item() == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize(
    ("part", "kind"), [(Pair(), "tuple"), (nn.AdaptiveMaxPool2d(1, True), "tuple"), (nn.Flatten(), "torch.int64")]
)
def test_noise_on_what_is_no_tensor_of_real_numbers_is_refused(part, kind):
    net, x = nn.Sequential(nn.Identity(), part), torch.ones(4, 3, 8, 8)
    with pytest.raises(ValueError, match=rf"relative holds '1', which returns {kind}; name a part that returns one"):
        perturb(net, {"1": 0.1}, seed=0)(x.long() if kind == "torch.int64" else x)


class Stored(nn.Module):
    """A U-Net whose decoder reads what a hook, or the encoder itself, has stored."""

    def __init__(self, hook):
        super().__init__()
        self.encode, self.down, self.decode = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.shelf = {}
        if hook:
            self.encode.register_forward_hook(lambda module, given, output: self.shelf.update(skip=output))
        else:
            self.encode = Storing(self.encode, self.shelf)

    def forward(self, x):
        return self.decode(self.down(self.encode(x)) + self.shelf["skip"])


class Storing(nn.Module):
    """Stores its output."""

    def __init__(self, conv, shelf):
        super().__init__()
        self.conv, self.shelf = conv, shelf

    def forward(self, x):
        self.shelf["skip"] = self.conv(x)
        return self.shelf["skip"]


class Looking(nn.Module):
    """Gives what `look` makes of the output of a part and of the part itself."""

    def __init__(self, look):
        super().__init__()
        self.a, self.b, self.look = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), look
        self.a.inner, self.a.scale, self.a.twice = nn.Conv2d(3, 3, 1), 2.0, lambda x: 2 * x

    def forward(self, x):
        return self.look(self.b(self.a(x)), self.a)


@pytest.mark.parametrize(
    ("look", "name"),
    [
        (lambda y, a: y * a.weight.norm(), "weight"),
        (lambda y, a: y if a.weight.norm() > 0 else -y, "weight"),
        (lambda y, a: y + a.bias[:, None, None].detach(), "bias"),
        (lambda y, a: y * float(a.bias.data[0]), "bias"),
        (lambda y, a: a.inner(y), "inner"),
        (lambda y, a: y * a.inner.weight.norm(), "inner"),
        (lambda y, a: a.twice(y), "twice"),
        (lambda y, a: a._conv_forward(y, torch.ones(3, 3, 1, 1), None), "_conv_forward"),
    ],
)
def test_a_part_whose_insides_another_layer_reads_is_refused_by_name(look, name):
    torch.manual_seed(0)
    net, x = Looking(look), torch.randn(2, 3, 4, 4)
    with pytest.raises(
        ValueError, match=rf"names holds 'a', .* reads a value inside it \('{name}'\) .* a larger one that holds both"
    ):
        split(net, ["a"], x)
    assert split(net, ["b"], x).names == ["b"]


@pytest.mark.parametrize(
    ("look", "name", "value"),
    [
        (lambda y, a: y * a.scale, "scale", "2.0"),
        (lambda y, a: y.reshape(len(y), a.out_channels, -1), "out_channels", "3"),
        (lambda y, a: F.pad(y, a.kernel_size * 2), "kernel_size", r"\(1, 1\)"),
        (lambda y, a: y.to(a.weight.dtype), "weight", r"\(torch.float32, \(3, 3, 1, 1\)\)"),
        (lambda y, a: y / a.weight.shape[0], "weight", r"\(torch.float32, \(3, 3, 1, 1\)\)"),
    ],
)
def test_a_student_has_the_attributes_that_other_layers_read(look, name, value):
    torch.manual_seed(0)
    net, x, recipe = Looking(look), torch.randn(24, 3, 4, 4), Recipe(holdout=4, dtype=torch.float32)
    message = rf"students\['a'\] must have {name} \(={value}\) as the teacher's part has, since layers outside 'a' read"
    wrong = nn.Conv2d(3, 3, 3, padding=1)
    wrong.scale, wrong.out_channels = 3.0, 4
    for student in (nn.Sequential(nn.Conv2d(3, 3, 1)), wrong):
        with pytest.raises(ValueError, match=message):
            solve(net, {"a": student}, x.split(12), recipe)
    right = nn.Conv2d(3, 3, 1)
    right.scale = 2.0
    found = solve(net, {"a": right}, x.split(12), dataclasses.replace(recipe, ridge=0))
    with torch.no_grad():
        torch.testing.assert_close(found.recompose(net)(x), net(x), atol=1e-4, rtol=1e-4)


class Changing(nn.Module):
    """Adds what a part has changed in place to its output."""

    def __init__(self):
        super().__init__()
        self.a, self.part, self.b = nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(True), nn.Conv2d(3, 3, 1)), nn.ReLU()

    def forward(self, x):
        x = self.a(x)
        return self.b(self.part(x) + x)


class Random(nn.Module):
    """Draws random numbers in evaluation mode as well."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.b(F.dropout(self.a(x)))


@pytest.mark.parametrize(
    ("make", "names", "others"),
    [
        (lambda: Stored(True), ["encode"], []),
        (lambda: Stored(True), ["down"], []),  # a copy stores where the original does
        (lambda: Stored(False), ["encode"], ["down", "decode"]),
        (lambda: Stored(True), ["encode:down"], []),
        (Changing, ["part"], ["part.1", "a"]),
        (Random, ["a"], ["b"]),
    ],
)
def test_a_part_that_does_more_than_to_give_its_output_is_refused(make, names, others):
    torch.manual_seed(0)
    net, x = make(), torch.randn(2, 3, 4, 4)
    before, count = state(net), hooks(net)
    with pytest.raises(
        ValueError, match=rf"names holds '{names[0]}', but with its output .* gives another one: .* name"
    ):
        split(net, names, x)
    for name in others:
        assert len(split(net, [name], x)) == 1
    assert hooks(net) == count and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Giving(nn.Module):
    """Gives what another network does in an object."""

    def __init__(self, inner, kind):
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x):
        return self.kind(self.inner(x))


class Slot:
    """An object that shows nothing of what it holds."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def test_values_in_an_object_are_compared_and_none_at_all_are_refused():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"names holds 'inner.part', but with its output .* gives another one"):
        split(Giving(Changing(), lambda y: SimpleNamespace(y=[y])), ["inner.part"], x)
    assert len(split(Giving(Changing(), lambda y: SimpleNamespace(y=[y])), ["inner.a"], x)) == 1
    ring = SimpleNamespace(itself=None)
    ring.itself, ring.y = ring, torch.zeros(2)
    assert len(tensors_of(ring)) == 1
    with pytest.raises(ValueError, match=r"an output of type Slot holds no tensor that could be compared; wrap"):
        split(Giving(Changing(), Slot), ["inner.a"], x)


def test_hooks_of_a_part_are_its_own():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval(), torch.randn(4, 3, 4, 4)
    net[1].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    net[1].register_forward_hook(lambda module, given, output: output + 1)
    parts = split(net, ["0", "1", "2"], x)
    boundaries = capture(net, parts, [x], dtype=torch.float32)
    assert all(local_error(part.module, boundaries.of(part.name)) < 1e-12 for part in parts)
    with torch.no_grad():
        torch.testing.assert_close(recompose(net, {part.name: part.module for part in parts})(x), net(x))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, r"model \(=DataParallel\) wraps a network in DataParallel; give its 'module' instead"),
        (lambda net: nn.Sequential(nn.DataParallel(net[0]), net[1]), r"in DataParallel; give its '0.module' instead"),
        (lambda net: torch.compile(net, backend="eager"), r"in OptimizedModule; give its '_orig_mod' instead"),
        (
            lambda net: nn.Sequential(torch.compile(net[0], backend="eager"), net[1]),
            r"in OptimizedModule; give its '0._orig_mod' instead",
        ),
        (lambda net: torch.jit.trace(net, torch.zeros(1, 3, 4, 4)), r"give its original instead"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*jit.trace")
def test_wrapped_networks_are_refused_by_name(wrap, message):
    net = wrap(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval())
    name = next(name for name, module in net.named_modules() if name.endswith("0"))
    for act in (
        lambda: split(net, [name], torch.zeros(1, 3, 4, 4)),
        lambda: recompose(net, {name: nn.Identity()}),
        lambda: perturb(net, {name: 0.1}, seed=0),
    ):
        with pytest.raises(ValueError, match=message):
            act()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_named(value):
    net, x = inplace(), torch.randn(12, 3, 5, 5)
    parts = split(net, ["0"], x)
    x[5, 1, 2, 2] = value
    with pytest.raises(ValueError, match=r"example_inputs must be finite; 1 of 12 examples"):
        split(net, ["0"], x)
    with pytest.raises(ValueError, match=r"batch 1 of inputs must be finite; 1 of 4 examples"):
        capture(net, parts, x.split(4))
    with pytest.raises(ValueError, match=r"of inputs must be finite; 1 of 12 examples"):
        solve(net, {"0": nn.Conv2d(3, 4, 3, padding=1)}, x, Recipe(holdout=4))
    net[0].weight.data[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"boundary '0:y' holds NaN or infinite values for images that hold none"):
        capture(net, parts, x[:4].split(4), dtype=torch.float32)


@pytest.mark.parametrize(
    ("size", "shift", "dtype", "fits"),
    [
        (1.0, 0.0, torch.float16, True),
        (1e-4, 0.0, torch.float16, True),
        (1e-6, 0.0, torch.float16, False),
        (1e-9, 0.0, torch.float16, False),
        (1e-9, 0.0, torch.bfloat16, True),
        (1e-30, 0.0, torch.bfloat16, True),
        (1.0, 3.0, torch.bfloat16, True),
        (1e-2, 3.0, torch.float16, False),
        (0.1, 3.0, torch.float16, True),
        (0.1, 3.0, torch.bfloat16, False),
        (1e-9, 0.0, torch.float32, True),
        (1e-2, 3.0, torch.float32, True),
        (0.0, 0.5, torch.float16, True),
    ],
)
def test_boundaries_are_kept_well_or_refused(size, shift, dtype, fits):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.randn(64, 3, 5, 5) * size + shift
    parts = split(net, ["1"], x)
    if not fits:
        with pytest.raises(
            ValueError, match=rf"boundary '1:x' loses too much in dtype \(={dtype}\): .* use dtype=torch.fl"
        ):
            capture(net, parts, x.split(16), dtype=dtype)
        return
    kept = capture(net, parts, x.split(16), dtype=dtype).of("1").take(slice(None))["y"]
    assert (kept - x).square().mean() <= 1e-3 * (x - x.mean(0)).square().mean()
