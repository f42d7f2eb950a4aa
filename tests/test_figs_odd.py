"""Gates and searches on networks of odd structure: exact, or refused by name with the network as it was.

Behind claims FG-1 and FG-3.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from conftest import speaking
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as spectral_norm_by_hook

from nkdlib.figs import CostModel, Gates, Search, keep_best, rebuild, score_evenly, search
from nkdlib.networks import Sum, cost, count_params
from nkdlib.networks.channels import channel_groups
from nkdlib.networks.cutting import cut
from nkdlib.networks.module import evaluating
from nkdlib.training import Checkpoints, Schedule


class Net(nn.Module):
    """Five convolutions and a BatchNorm in a row, or what `run` makes of them."""

    def __init__(self, run=None):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.n, self.d, self.o = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)
        self.run = run or Net.tail

    def tail(self, x):
        return self.o(self.d(self.n(self.c(self.b(self.a(x).relu())))).relu())

    def forward(self, x):
        return self.run(self, x)


def tied():
    net = Net()
    net.c.weight = net.b.weight
    return net


def tied_bias():
    net = Net()
    net.c.bias = net.b.bias
    return net


def tied_statistics():
    net = Net(lambda m, x: m.o(m.d(m.n(m.c(m.m(m.b(m.a(x)))))).relu()))
    net.m = nn.BatchNorm2d(6)
    net.m.running_mean = net.n.running_mean
    return net


def two_names():
    net = Net(lambda m, x: m.o(m.d(m.n(m.c(m.twin(m.a(x).relu())))).relu()))
    net.twin = net.b
    return net


def standardized(weight):
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)


class Standardized(nn.Module):
    def forward(self, weight):
        return standardized(weight)


class StandardizedConv2d(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, standardized(self.weight), self.bias, self.stride, self.padding)


def subclass():
    net = Net()
    net.b = StandardizedConv2d(6, 6, 1)
    return net


def on_b(change):
    net = Net()
    change(net.b)
    return net


def read_elsewhere():
    return Net(lambda m, x: m.o(m.d(m.n(m.c(m.b(y := m.a(x)) + F.conv2d(y, m.b.weight)))).relu()))


def norm_read():
    return Net(lambda m, x: Net.tail(m, x) * m.b.weight.norm())


def statistics_read():
    return Net(lambda m, x: Net.tail(m, x) + m.n.running_mean.norm())


def scaled_by_a_hook():
    net, scale = Net(), torch.linspace(0.5, 2, 6).view(1, -1, 1, 1)
    net.b.register_forward_hook(lambda _, __, y: y * scale)
    return net


def heads_in_training():
    def run(m, x):
        y = m.b(m.a(x).relu())
        z = m.o(m.d(m.n(m.c(y))).relu())
        return (z, m.head(y)) if m.training else z

    net = Net(run)
    net.head = nn.Sequential(nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1))
    return net


def features_in_training():
    def run(m, x):
        y = m.b(m.a(x).relu())
        z = m.o(m.d(m.n(m.c(y))).relu())
        return {"logits": z, "features": y} if m.training else {"logits": z}

    return Net(run)


def features_in_evaluation():
    def run(m, x):
        y = m.b(m.a(x).relu())
        z = m.o(m.d(m.n(m.c(y))).relu())
        return z if m.training else (z, y)

    return Net(run)


def random():
    return Net(lambda m, x: m.o(m.d(m.n(m.c(F.dropout(m.b(m.a(x).relu()), 0.5, True)))).relu()))


def only_trained_with_targets():
    def run(m, x):
        if m.training:
            raise TypeError("targets are missing")
        return Net.tail(m, x)

    return Net(run)


def plain_norm():
    net = Net()
    net.n = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
    return net


ALL = ["a", "b", "c", "d"]
ODD = {  # a network, and the layers whose channels can go
    "tied": (tied, ["d"]),
    "tied bias": (tied_bias, ["d"]),
    "tied statistics": (tied_statistics, ["a", "d"]),
    "two names": (two_names, ALL),
    "spectral norm": (lambda: on_b(parametrizations.spectral_norm), ["c", "d"]),
    "weight norm": (lambda: on_b(parametrizations.weight_norm), ["c", "d"]),
    "own": (lambda: on_b(lambda b: parametrize.register_parametrization(b, "weight", Standardized())), ["c", "d"]),
    "bias": (lambda: on_b(lambda b: parametrize.register_parametrization(b, "bias", nn.ReLU())), ["c", "d"]),
    "spectral norm by hook": (lambda: on_b(spectral_norm_by_hook), ["c", "d"]),
    "pruned": (lambda: on_b(lambda b: prune.l1_unstructured(b, "weight", 0.5)), ["c", "d"]),
    "subclass": (subclass, ["c", "d"]),
    "read elsewhere": (read_elsewhere, ["c", "d"]),
    "norm read": (norm_read, ["c", "d"]),
    "statistics read": (statistics_read, ["a", "b", "d"]),
    "scaled by a hook": (scaled_by_a_hook, ["a", "c", "d"]),
    "heads in training": (heads_in_training, ["a", "c", "d"]),
    "features in training": (features_in_training, ["a", "c", "d"]),
    "features in evaluation": (features_in_evaluation, ["a", "c", "d"]),
    "random": (random, ["a", "c", "d"]),
    "trained with targets": (only_trained_with_targets, ALL),
    "synchronized": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Net()), ALL),
    "plain norm": (plain_norm, ALL),
    "double": (lambda: Net().double(), ALL),
    "half": (lambda: Net().half(), ALL),
    "bfloat16": (lambda: Net().bfloat16(), ALL),
    "channels last": (lambda: Net().to(memory_format=torch.channels_last), ALL),
}


def odd(name):
    """One of these networks with statistics of its own, a layer frozen, and an input."""
    torch.manual_seed(0)
    network = ODD[name][0]()
    x = torch.randn(4, 3, 5, 5, dtype=network.o.weight.dtype)
    if name not in ("trained with targets", "synchronized"):  # which cannot be trained here
        network = speaking(network, x)
    network.c.requires_grad_(False)
    network.n.train()
    return network, x


def first(output):
    """The first tensor of an output."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


@torch.no_grad()
def output(network, x):
    """The first tensor of what a network gives, which may draw random numbers."""
    torch.manual_seed(1)
    return first(network(x))


def scatter(gates):
    draw = torch.Generator().manual_seed(0)
    gates.log_odds.data.copy_(torch.randn(gates.log_odds.shape, generator=draw))
    return gates


def traces(network):
    """Everything that a call may leave behind."""
    parts = list(network.modules())
    values = [(name, value.clone(), value.requires_grad) for name, value in network.state_dict(keep_vars=True).items()]
    return [
        [(name, value.tolist(), grad) for name, value, grad in values],
        [(type(part), part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts],
        [id(parameter) for parameter in network.parameters()],
        list(vars(network)),
    ]


def near(dtype):
    return {torch.float16: 3e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)


@pytest.mark.parametrize("name", ODD)
def test_slim_networks_are_the_gated_ones_or_whole_and_nothing_else_changes(name):
    network, x = odd(name)
    before = traces(network)
    gates = scatter(Gates(CostModel(network, x)))
    assert list(gates.model.groups) == ODD[name][1]
    slim = gates.slim()
    with evaluating(network):
        theirs = output(network, x)
        assert (output(slim, x) - theirs).abs().max() < near(x.dtype) * theirs.abs().max()
    assert cost(slim, x) == gates.model(gates.counts) != gates.model(gates.model.sizes)
    assert sum(value.numel() for value in {*slim.parameters()}) == gates.model(gates.counts).params
    assert not any(value.requires_grad for value in slim.c.parameters()) and slim.a.weight.requires_grad
    assert slim.a.weight.dtype == x.dtype and not slim.training
    last = network.a.weight.is_contiguous(memory_format=torch.channels_last)
    assert slim.a.weight.is_contiguous(memory_format=torch.channels_last) == last
    assert traces(gates.remove()) == before


@pytest.mark.parametrize("name", ODD)
def test_networks_narrowed_at_full_width_or_rebuilt_keep_all_that_they_are(name):
    network, x = odd(name)
    groups = channel_groups(network, x)
    whole = cut(network, groups, {group.name: torch.arange(group.size) for group in groups})
    with evaluating(network), evaluating(whole):
        assert torch.equal(output(whole, x), output(network, x))
    assert count_params(whole) == count_params(network)
    less = rebuild(network, x, {group.name: 2 for group in groups})
    for copied in (whole, less):
        for part, own in zip(copied.modules(), network.modules(), strict=True):
            assert part.training == own.training and type(part).__name__ == type(own).__name__
        for value, own in zip(copied.parameters(), network.parameters(), strict=True):
            assert (value.requires_grad, value.dtype) == (own.requires_grad, own.dtype)
            if own.dim() == 4:
                last = own.is_contiguous(memory_format=torch.channels_last)
                assert value.is_contiguous(memory_format=torch.channels_last) == last


SEARCH = Search(Schedule(steps=10, batch_size=4, lr=1e-3))


def logits_alone(output, labels):
    return F.cross_entropy(first(output).mean((2, 3)).float(), labels)


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("trained with targets", "synchronized")])
def test_searches_come_to_their_target_and_leave_the_mode_and_all_else_in_place(name):
    network, x = odd(name)
    batches = [(x, torch.arange(4) % 2)] * 10
    model = CostModel(network, x)
    target = 0.95 * model.total(model.sizes, "params")
    frozen, before = network.c.bias.clone(), traces(network)
    found = search(network, x, batches, target, recipe=SEARCH, loss=logits_alone)
    assert cost(found.network, x) == found.cost and 0.8 * target < found.cost.params <= target
    assert torch.equal(network.c.bias, frozen)
    assert traces(network)[1:] == before[1:] and [key for key, *_ in before[0]] == list(network.state_dict())
    with torch.no_grad():
        found.network.train()(x)


def test_auxiliary_heads_stay_whole_and_are_trained():
    network, x = odd("heads in training")
    batches = [(x, torch.arange(4) % 2)] * 10

    def loss(output, labels):
        outputs = output if isinstance(output, tuple) else (output,)
        assert len(outputs) == 2
        return sum(F.cross_entropy(each.mean((2, 3)), labels) for each in outputs)

    before = network.head[0].weight.clone()
    found = search(network, x, batches, 150, recipe=SEARCH, loss=loss)
    assert found.network.head[0].in_channels == 6 and not torch.equal(found.network.head[0].weight, before)


def wrapped(kind):
    return {
        "DataParallel": lambda: nn.DataParallel(Net()),
        "OptimizedModule": lambda: torch.compile(Net()),
        "inner": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.DataParallel(Net())),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("DataParallel", r"module \(=DataParallel\) wraps a network in DataParallel; give its 'module' instead"),
        ("OptimizedModule", r"module \(=OptimizedModule\) wraps .* in OptimizedModule; give its '_orig_mod' instead"),
        ("inner", r"module \(=Sequential\) wraps a network in DataParallel; give its '1.module' instead"),
    ],
)
def test_wrappers_are_named_with_what_is_inside(kind, message):
    with pytest.raises(ValueError, match=message):
        CostModel(wrapped(kind), torch.zeros(1, 3, 5, 5))


def test_an_input_of_another_type_is_named(capsys):
    with pytest.raises(ValueError, match=r"\(=Net\) does not take .* \(1, 3, 5, 5\), torch.float32 on cpu: .*Half"):
        CostModel(Net().half(), torch.zeros(1, 3, 5, 5))
    assert capsys.readouterr().err == ""


def vit():
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    return zoo.VisionTransformer(image_size=32, patch_size=16, num_classes=4, **sizes)


def swin():
    return zoo.SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=4)


def convnext():
    return zoo.ConvNeXt([zoo.convnext.CNBlockConfig(8, None, 2)], num_classes=4)


def normed():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.PReLU(), nn.Conv2d(4, 2, 1))


def normalized():
    return nn.Sequential(*(parametrizations.weight_norm(nn.Conv2d(3, 3, 1)) for _ in range(3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 4)),
            r"LayerNorm \(0\), Linear on the last dimension \(1",
        ),
        (normed, r"GroupNorm \(1\)"),
        (normalized, r"layer '0' computes its weight from others; .* off first \(0\), layer '1' computes"),
        (lambda: nn.Sequential(c := nn.Conv2d(3, 3, 1), c, c), r"Conv2d that is called 3 times \(0 and 2 more\)"),
        (lambda: nn.Conv2d(3, 2, 1), r"conv2d \(itself\); put operators"),
    ],
)
def test_what_is_in_the_way_of_gates_is_named(make, message):
    with pytest.raises(ValueError, match=r"has no inner channels to gate; in the way: .*" + message):
        Gates(CostModel(make(), torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (vit, [f"encoder.layers.encoder_layer_{block}.mlp.0" for block in range(2)]),
        (swin, [f"features.1.{block}.mlp.0" for block in range(2)]),
        (convnext, [f"features.1.{block}.block.3" for block in range(2)]),
    ],
)
def test_transformers_have_gates_within_their_blocks(make, names):
    network, x = make().eval(), torch.randn(2, 3, 32, 32)
    gates = Gates(CostModel(network, x[:1]))
    assert list(gates.counts) == names
    gates.keep(dict.fromkeys(names, 5))
    slim, wanted = gates.slim(), gates(x)
    assert {slim.get_submodule(name).out_features for name in names} == {5}
    torch.testing.assert_close(slim(x), wanted)


def test_gates_that_fail_half_way_leave_nothing(monkeypatch):
    network, x = odd("two names")
    model, before, register = CostModel(network, x), traces(network), parametrize.register_parametrization

    def failing(layer, *given):
        if layer is network.d:
            raise RuntimeError("no")
        return register(layer, *given)

    monkeypatch.setattr(parametrize, "register_parametrization", failing)
    with pytest.raises(RuntimeError, match="no"):
        Gates(model)
    assert traces(network) == before
    monkeypatch.undo()
    assert Gates(model).counts == model.sizes


def test_what_was_parametrized_after_the_model_was_built_is_refused():
    network, x = odd("two names")
    model = CostModel(network, x)
    parametrizations.spectral_norm(network.c)
    before = traces(network)
    with pytest.raises(ValueError, match=r"layer 'c' has been parametrized since model was built; build model anew"):
        Gates(model)
    assert traces(network) == before


def test_operators_without_weights_are_gated_in_any_type():
    for dtype in (torch.float64, torch.bfloat16):
        network = nn.Sequential(Sum({"a": nn.Identity(), "b": nn.MaxPool2d(3, 1, 1)}))
        x = torch.randn(2, 3, 5, 5, dtype=dtype)
        gates = Gates(CostModel(network, x))
        gates.keep({"0.operators.a": 0, "0.operators.b": 1})
        assert gates(x).dtype == dtype and torch.equal(gates.slim()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": 7}, r"counts\['a'\] \(=7\) must be a whole number from 1 to 6"),
        ({"a": 0}, r"counts\['a'\] \(=0\) must be a whole number from 1 to 6"),
        ({"a": 2.5}, r"counts\['a'\] \(=2.5\) must be a whole number"),
        ({"a": math.nan}, r"counts\['a'\] \(=nan\) must be a whole number"),
        ({"a": -1}, r"counts\['a'\] \(=-1\) must be"),
        ({"1.operators.x": 2}, r"counts\['1.operators.x'\] \(=2\) must be a whole number from 0 to 1"),
        ({"1.operators.x": 0, "1.operators.y": 0}, r"counts leave no operator of '1'; keep one of \['1.operators.x', "),
        ({"z": 1}, r"counts and the groups and operators of network differ in \['z'\]"),
    ],
)
def test_counts_that_cannot_be_are_named(change, message):
    middle = Sum({"x": nn.Sequential(nn.Conv2d(6, 6, 1)), "y": nn.Identity()})
    network, x = nn.Sequential(nn.Conv2d(3, 6, 1), middle, nn.Conv2d(6, 2, 1)), torch.zeros(1, 3, 4, 4)
    gates = Gates(CostModel(network, x))
    counts = gates.model.sizes | {name.replace("a", "0") if name == "a" else name: n for name, n in change.items()}
    message = message.replace("'a'", "'0'")
    with pytest.raises(ValueError, match=message):
        gates.keep(counts)
    with pytest.raises(ValueError, match=message):
        rebuild(gates.remove(), x, counts)


def soft(output, labels):
    return -(labels * output.log_softmax(1)).sum(1).mean()


def two(output, labels):
    return F.cross_entropy(output["logits"].mean((2, 3)), labels["class"]) + output["logits"].square().mean()


def classifier():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("network", "labels", "loss", "scored"),
    [
        (classifier, torch.arange(6) % 4, F.cross_entropy, True),
        (classifier, torch.arange(6) % 4, lambda y, t: F.cross_entropy(y, t)[None], True),
        (classifier, torch.full((6, 4), 0.25), soft, False),
        (classifier, torch.full((6, 4), 0.25), F.cross_entropy, False),
        (classifier, torch.eye(4)[torch.arange(6) % 4].long(), soft, False),
        (classifier, torch.arange(6)[:, None] % 4, lambda y, t: F.cross_entropy(y, t[:, 0]), False),
        (classifier, ["a"] * 6, lambda y, t: y.square().mean() * len(t), False),
        (features_in_training, {"class": torch.arange(6) % 2}, two, False),
        (lambda: classifier()[:3], torch.ones(6, 5, 5).long(), F.cross_entropy, True),  # a class for each pixel
    ],
)
def test_searches_take_any_labels_and_score_those_of_classes(network, labels, loss, scored):
    network = network()
    target = 0.8 * count_params(network)
    found = search(network, IMAGES[:1], [(IMAGES, labels)] * 10, target, recipe=SEARCH, loss=loss)
    assert found.history.loss.notna().all() and found.cost.params <= target
    assert found.history.accuracy.notna().all() == found.history.accuracy.notna().any() == scored


def test_the_accuracy_of_a_search_is_that_of_its_batches():
    network, labels = classifier(), torch.arange(6) % 4
    with torch.no_grad():
        right = 100 * (network(IMAGES).argmax(1) == labels).float().mean().item()
    found = search(network, IMAGES[:1], [(IMAGES, labels)] * 10, 40, recipe=SEARCH)
    assert found.history.accuracy[0] == pytest.approx(right)  # all gates are open


@pytest.mark.parametrize(
    ("batch", "loss", "message"),
    [
        (IMAGES, F.cross_entropy, r"batches gives a batch of type Tensor; give pairs \(images, labels\)"),
        ((IMAGES,), F.cross_entropy, r"batches gives a batch of type tuple \(Tensor\); give pairs"),
        (({"x": IMAGES}, torch.zeros(6).long()), F.cross_entropy, r"tuple \(dict, Tensor\); give .* one tensor"),
        (
            (IMAGES, torch.zeros(6).long()),
            lambda y, t: F.cross_entropy(y, t, reduction="none"),
            r"loss of a search for 40 params has shape \(6,\); give one number, such as its mean",
        ),
    ],
)
def test_batches_and_losses_that_cannot_be_are_named_and_the_network_is_plain_again(batch, loss, message):
    network = classifier().train()
    before = traces(network)
    with pytest.raises(ValueError, match=message):
        search(network, IMAGES[:1], [batch] * 10, 40, recipe=SEARCH, loss=loss)
    assert traces(network) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 50}, r"target \(=50.0\) was 40.0 when the search began; give that again, or choose"),
        ({"metric": "macs", "target": 900}, r"(metric|target) \(=.*\) was .* when the search began"),
        ({"recipe": replace(SEARCH, penalty=5.0)}, r"penalty \(=5.0\) was 10.0 when the search began"),
    ],
)
def test_a_search_is_not_resumed_by_another_one(change, message, tmp_path):
    batches = [(IMAGES, torch.arange(6) % 4)] * 10
    asked = {"target": 40, "recipe": SEARCH}
    first = search(classifier(), IMAGES[:1], batches, checkpoints=Checkpoints(tmp_path, every_s=0), **asked)
    with pytest.raises(ValueError, match=message):
        search(classifier(), IMAGES[:1], [], checkpoints=Checkpoints(tmp_path), **asked | change)
    assert search(classifier(), IMAGES[:1], [], checkpoints=Checkpoints(tmp_path), **asked).counts == first.counts


@dataclass
class Outputs:
    """What a network may give in place of a tuple."""

    logits: torch.Tensor
    size: torch.Tensor


@pytest.mark.parametrize("kind", [Outputs, lambda *values: values])
def test_values_in_an_object_keep_the_channels_that_they_are_made_from(kind):
    network = Net(lambda m, x: kind(Net.tail(m, x), m.b.weight.norm()))
    assert [group.name for group in channel_groups(network, torch.zeros(1, 3, 5, 5))] == ["c", "d"]


def test_scores_that_are_no_numbers_are_refused():
    model = CostModel(classifier(), IMAGES)
    scores = score_evenly(model)
    scores["0"][3] = math.nan
    with pytest.raises(ValueError, match=r"scores of '0' hold NaN"):
        keep_best(model, scores, "params", 40)


def flipped(dim):
    return lambda layer, inputs, output: output.flip(dim)


def behind_a_zero():
    network = Net(lambda m, x: x + m.g * Net.tail(m, x).mean(1, keepdim=True) * m.b.weight.norm())
    network.g = nn.Parameter(torch.zeros(1))
    return network


def vit_with_a_hook():
    network = vit()
    assert not network.heads.head.weight.any()  # torchvision's default
    network.encoder.layers[0].mlp[1].register_forward_hook(flipped(-1))
    return network


def tokens_with_a_hook():
    network = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    network[2].register_forward_hook(flipped(-1))
    return network


def constant_scales():
    return Net(lambda m, x: Net.tail(m, x) * m.n.weight.mean() + m.n.running_var.mean())


@pytest.mark.parametrize(
    ("make", "example", "names"),
    [
        (behind_a_zero, torch.zeros(1, 3, 5, 5), ["c", "d"]),
        (vit_with_a_hook, torch.zeros(1, 3, 32, 32), ["encoder.layers.encoder_layer_1.mlp.0"]),
        (tokens_with_a_hook, torch.zeros(1, 3).long(), []),
        (constant_scales, torch.zeros(1, 3, 5, 5), ["a", "b", "d"]),
    ],
)
def test_what_weights_at_the_start_hide_is_found(make, example, names):
    network = make().eval()
    before = traces(network)
    assert [group.name for group in channel_groups(network, example)] == names
    assert traces(network) == before


class Scaled(nn.Module):
    def forward(self, x):
        return (x.float() / 255).sqrt()


@pytest.mark.parametrize(
    ("constant", "varied", "why"),
    [
        (
            torch.zeros(1, 3, 5, 5).byte(),
            torch.arange(75).view(1, 3, 5, 5).byte(),
            "all channels are zero for the example",
        ),
        (torch.ones(1, 3, 5, 5), torch.rand(1, 3, 5, 5), "outputs are zero or not finite for random numbers"),
        (torch.zeros(1, 3, 5, 5), torch.rand(1, 3, 5, 5), "outputs are zero or not finite for random numbers"),
    ],
)
def test_a_trial_that_shows_nothing_is_named_with_its_remedy(constant, varied, why):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3, bias=False), nn.ReLU(), nn.Conv2d(12, 2, 1)
    network = nn.Sequential(Scaled(), *layers).eval()
    assert [group.name for group in channel_groups(network, varied)] == ["1"]
    with pytest.raises(
        ValueError, match=rf"a trial that shows nothing: .*{why}.*; give an example of typical .* \(1\)"
    ):
        Gates(CostModel(network, constant))
