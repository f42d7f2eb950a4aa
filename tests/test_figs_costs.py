"""Channel groups, costs and gates of toy networks, one for each kind of layer and tie, against every possible mask.

Behind claims FG-1 and FG-3.
"""

import itertools

import pytest
import torch
from conftest import speaking
from torch import nn
from torchvision.ops import SqueezeExcitation

from nkdlib.figs import CostModel, Gates, keep_best, prune, rebuild, score_by_scale
from nkdlib.networks import Cost, Sum, cost
from nkdlib.networks.channels import channel_groups

AREA = 16  # places of every feature map: inputs are 4 x 4, strides 1


class Toy(nn.Module):
    """Named layers and what is done with them."""

    def __init__(self, run, /, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def plain():
    return Toy(lambda m, x: m.o(m.a(x).relu()), a=conv(3, 4, 3), o=conv(4, 2))


def depthwise():
    layers = {"a": conv(3, 3, bias=False), "d": conv(3, 3, 3, groups=3), "n": nn.BatchNorm2d(3), "o": conv(3, 2)}
    return Toy(lambda m, x: m.o(m.n(m.d(m.a(x))).relu()), **layers)


def residual():
    return Toy(lambda m, x: m.o((y := m.a(x)) + m.b(y)), a=conv(3, 4), b=conv(4, 4, 3), o=conv(4, 2))


def joined():
    """a, the images and b side by side."""
    layers = {"a": conv(3, 3), "b": conv(3, 2), "n": nn.BatchNorm2d(8), "d": conv(8, 8, 3, groups=8), "o": conv(8, 2)}
    return Toy(lambda m, x: m.o(m.d(m.n(torch.cat([m.a(x), x, m.b(x).relu()], 1)))), **layers)


def joined_twice():
    """a, b and a again side by side."""
    layers = {"a": conv(3, 3), "b": conv(3, 2), "n": nn.BatchNorm2d(8), "d": conv(8, 8, 3, groups=8), "o": conv(8, 2)}
    return Toy(lambda m, x: m.o(m.d(m.n(torch.cat(tensors=[y := m.a(x), m.b(y), y], dim=1)))), **layers)


def own():
    """p reads a twice, side by side, and adds to it."""
    layers = {"a": conv(3, 3), "p": conv(6, 3), "o": conv(3, 2)}
    return Toy(lambda m, x: m.o((y := m.a(x)) + m.p(torch.cat([y, y], 1))), **layers)


def tied_later():
    """a and b are read in two orders, before their sum makes them one."""

    def run(m, x):
        y, z = m.a(x), m.b(x)
        return m.o(torch.cat([y, z], 1)) + m.q(torch.cat([z, x, y], 1)) + m.r(y + z)

    return Toy(run, a=conv(3, 4), b=conv(3, 4), o=conv(8, 2), q=conv(11, 2), r=conv(4, 2))


def squeeze():
    return Toy(lambda m, x: m.o(m.s(m.a(x))), a=conv(3, 3), s=SqueezeExcitation(3, 2), o=conv(3, 2))


def grouped():
    layers = {"a": conv(3, 4), "g": conv(4, 4, 3, groups=2), "c": conv(4, 3), "o": conv(3, 2)}
    return Toy(lambda m, x: m.o(m.c(m.g(m.a(x)).relu())), **layers)


def linear():
    layers = {"a": conv(3, 3), "pool": nn.AdaptiveAvgPool2d(1), "l": nn.Linear(3, 3), "o": nn.Linear(3, 2)}
    return Toy(lambda m, x: m.o(m.l(m.pool(m.a(x)).flatten(1)).relu()), **layers)


def places():
    """A linear layer that reads every place of a channel: they stay whole."""
    layers = {"a": conv(3, 4), "l": nn.Linear(64, 3), "o": nn.Linear(3, 2)}
    return Toy(lambda m, x: m.o(m.l(m.a(x).flatten(1)).relu()), **layers)


def shared():
    """A convolution and a BatchNorm that are called twice stay whole, with what they read and make."""
    layers = {"a": conv(3, 4), "c": conv(4, 4), "d": conv(4, 3), "n": nn.BatchNorm2d(3), "e": conv(3, 3)}
    twice = lambda m, x: m.n(m.e(m.n(m.d(m.c(m.c(m.a(x)))))))  # noqa: E731
    return Toy(lambda m, x: m.o(m.f(twice(m, x)).relu()), **layers, f=conv(3, 3), o=conv(3, 2))


def optional():
    operators = Sum({"conv": conv(3, 3), "pool": nn.MaxPool2d(3, 1, 1)}, optional=True)
    return Toy(lambda m, x: m.o((y := m.a(x)) + m.s(y)), a=conv(3, 3), s=operators, o=conv(3, 2))


def required():
    """Deep in a block; one of three stays."""
    operators = {"deep": nn.Sequential(conv(3, 2), nn.ReLU(), conv(2, 3)), "skip": nn.Identity(), "conv": conv(3, 3)}
    return Toy(lambda m, x: m.o(m.b(m.a(x))), a=conv(3, 3), b=nn.Sequential(Sum(operators)), o=conv(3, 2))


def tokens():
    """Operators that are linear across each row and that call one convolution twice; no group."""
    c = conv(2, 2)
    operators = Sum({"rows": nn.Linear(4, 4), "again": nn.Sequential(c, nn.ReLU(), c)}, optional=True)
    return Toy(lambda m, x: m.o((y := m.a(x)) + m.s(y)), a=conv(3, 2), s=operators, o=conv(2, 2))


# Of each toy its groups as (size, producers, consumers, carriers, starts), and by hand what it costs, parameters and
# MACs, with so many channels in each group and so many of each operator.
TOYS = {
    plain: ([(4, "a", "o", "", {})], lambda n: (28 * n + 2 * n + 2, AREA * 29 * n)),
    depthwise: (
        [(3, "a", "o", "d n", {})],
        lambda n: (3 * n + 10 * n + 2 * n + 2 * n + 2, AREA * (3 * n + 9 * n + 2 * n)),
    ),
    residual: (
        [(4, "a b", "b o", "", {})],
        lambda n: (4 * n + 9 * n * n + n + 2 * n + 2, AREA * (3 * n + 9 * n * n + 2 * n)),
    ),
    joined: (
        [(3, "a", "o", "n d", {"n": [0], "d": [0], "o": [0]}), (2, "b", "o", "n d", {"n": [6], "d": [6], "o": [6]})],
        lambda n, m: (4 * (n + m) + (2 + 10 + 2) * (n + 3 + m) + 2, AREA * (3 * (n + m) + 11 * (n + 3 + m))),
    ),
    joined_twice: (
        [
            (3, "a", "b o", "n d", {"n": [0, 5], "d": [0, 5], "o": [0, 5]}),
            (2, "b", "o", "n d", {"n": [3], "d": [3], "o": [3]}),
        ],
        lambda n, m: (4 * n + n * m + m + 14 * (2 * n + m) + 2, AREA * (3 * n + n * m + 11 * (2 * n + m))),
    ),
    own: (
        [(3, "a p", "p o", "", {"p": [0, 3]})],
        lambda n: (4 * n + 2 * n * n + n + 2 * n + 2, AREA * (3 * n + 2 * n * n + 2 * n)),
    ),
    tied_later: (
        [(4, "a b", "o q r", "", {"o": [0, 4], "q": [0, 7]})],
        lambda n: (8 * n + 4 * n + 2 + 2 * (2 * n + 3) + 2 + 2 * n + 2, AREA * (6 * n + 4 * n + 4 * n + 6 + 2 * n)),
    ),
    squeeze: (
        [(3, "a s.fc2", "s.fc1 o", "", {}), (2, "s.fc1", "s.fc2", "", {})],
        lambda n, m: (4 * n + n * m + m + m * n + n + 2 * n + 2, AREA * 5 * n + 2 * n * m),
    ),
    grouped: (
        [(3, "c", "o", "", {})],
        lambda n: (16 + 4 * 2 * 9 + 4 + 5 * n + 2 * n + 2, AREA * (12 + 72 + 6 * n)),
    ),
    linear: (
        [(3, "a", "l", "", {}), (3, "l", "o", "", {})],
        lambda n, m: (4 * n + n * m + m + 2 * m + 2, AREA * 3 * n + n * m + 2 * m),
    ),
    places: ([(3, "l", "o", "", {})], lambda n: (16 + 65 * n + 2 * n + 2, AREA * 12 + 66 * n)),
    shared: (
        [(3, "f", "o", "", {})],
        lambda n: (16 + 20 + 15 + 6 + 12 + 4 * n + 2 * n + 2, AREA * (12 + 2 * 16 + 12 + 9 + 5 * n)),
    ),
    optional: (
        [(3, "a s.operators.conv", "s.operators.conv o", "", {})],
        lambda n, conv, pool: (4 * n + conv * (n * n + n) + 2 * n + 2, AREA * (5 * n + conv * n * n)),
    ),
    required: (
        [
            (
                3,
                "a b.0.operators.deep.2 b.0.operators.conv",
                "b.0.operators.deep.0 b.0.operators.conv o",
                "",
                {},
            ),
            (2, "b.0.operators.deep.0", "b.0.operators.deep.2", "", {}),
        ],
        lambda n, m, deep, skip, conv: (
            4 * n + deep * (2 * n * m + m + n) + conv * (n * n + n) + 2 * n + 2,
            AREA * (5 * n + deep * 2 * n * m + conv * n * n),
        ),
    ),
    tokens: ([], lambda rows, again: (8 + rows * 20 + again * 6 + 6, AREA * (6 + again * 2 * 4 + 4) + rows * 8 * 16)),
}
# Where no layer reads and makes the same channels, the expected cost is the mean over all masks.
APART = (plain, depthwise, joined, joined_twice, squeeze, grouped, linear, places, shared, tokens)


def gated(toy):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    network = speaking(toy(), x)
    return network, x, Gates(CostModel(network, x))


def needed(gates):
    """Sets of gates, by place, of each of which one has to live."""
    sets = [set(range(gates.model.slots[name].start, gates.model.slots[name].stop)) for name in gates.model.groups]
    for path, part in gates.model.sums.items():
        if not part.optional:
            sets.append({gates.model.slots[f"{path}.operators.{name}"].start for name in part.operators})
    return sets


def masks(gates):
    """Every allowed set of living gates."""
    places = range(len(gates.log_odds))
    every = (set(some) for size in range(len(places) + 1) for some in itertools.combinations(places, size))
    return [some for some in every if all(some & one for one in needed(gates))]


def numbers(gates, living):
    return [sum(place in living for place in range(slot.start, slot.stop)) for slot in gates.model.slots.values()]


every_toy = pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)


@every_toy
def test_groups_are_found(toy):
    network, x = toy().eval(), torch.zeros(1, 3, 4, 4)
    found = [
        (g.size, *(" ".join(paths) for paths in (g.producers, g.consumers, g.carriers)), g.starts)
        for g in channel_groups(network, x)
    ]
    assert found == TOYS[toy][0]


@every_toy
def test_every_slim_network_is_the_gated_one_and_costs_what_hand_counts_say(toy):
    network, x, gates = gated(toy)
    assert len(masks(gates)) > 1
    for living in masks(gates):
        sign = torch.tensor([1.0 if place in living else -1.0 for place in range(len(gates.log_odds))])
        gates.log_odds.data.copy_(sign * (torch.rand(len(sign)) + 0.1))
        slim = gates.slim()
        with torch.no_grad():
            torch.testing.assert_close(slim(x), network(x), rtol=0, atol=1e-5)
        by_hand = Cost(*TOYS[toy][1](*numbers(gates, living)))
        assert cost(slim, x) == gates.model(gates.counts) == by_hand


def by_rule(gates, price, target):
    """What `keep_best` says that it keeps: as many of the most probable as cost no more, then what still fits."""
    order = gates.log_odds.argsort(descending=True).tolist()
    for size in range(len(order), -1, -1):
        living = set(order[:size])
        living |= {next(place for place in order if place in one) for one in needed(gates) if not one & living}
        if price(living) <= target:
            break
    else:
        return None
    for place in order:
        if price(living | {place}) <= target:
            living.add(place)
    return living


@every_toy
def test_fitting_follows_its_rule_and_leaves_no_room(toy):
    _, _, gates = gated(toy)
    refused = 0
    for column, metric in enumerate(("params", "macs")):
        prices = {frozenset(living): TOYS[toy][1](*numbers(gates, living))[column] for living in masks(gates)}
        price = lambda living, prices=prices: prices[frozenset(living)]  # noqa: E731
        spread = sorted({*prices.values(), *(price + 1 for price in prices.values() if price < max(prices.values()))})
        for seed, target in enumerate(spread[:: len(spread) // 8 + 1]):
            scores = torch.randn(len(gates.log_odds), generator=torch.Generator().manual_seed(seed))
            gates.log_odds.data.copy_(scores)
            if (expected := by_rule(gates, price, target)) is None:
                refused += 1
                with pytest.raises(ValueError, match="cannot be met with the operators that are kept"):
                    keep_best(gates.model, gates.scores, metric, target)
                continue
            gates.keep(keep_best(gates.model, gates.scores, metric, target))
            living = set(gates.lives().nonzero().flatten().tolist())
            assert living == expected and price(living) <= target
            assert all(more > target for other, more in prices.items() if other > living)
        for beyond in (min(prices.values()) - 1, max(prices.values()) + 1):
            with pytest.raises(ValueError, match=r"must lie between"):
                keep_best(gates.model, gates.scores, metric, beyond)
    assert (refused > 0) == (toy is required)


@every_toy
def test_the_expected_cost_is_that_of_the_expected_numbers_with_one_channel_at_least(toy):
    _, _, gates = gated(toy)
    for shift in (2.0, 0.0, -4.0):
        gates.log_odds.data.copy_(torch.randn(len(gates.log_odds)) + shift)
        p = {name: odds.sigmoid() for name, odds in gates.scores.items()}
        expected = [
            p[name].sum().item() if name not in gates.model.groups else max(p[name].sum().item(), 1) for name in p
        ]
        found = [gates.expected_cost(metric).item() for metric in ("params", "macs")]
        assert found == pytest.approx(TOYS[toy][1](*expected), rel=1e-5)


@pytest.mark.parametrize("toy", APART, ids=lambda toy: toy.__name__)
def test_the_expected_cost_is_the_mean_over_all_masks(toy):
    _, _, gates = gated(toy)
    gates.log_odds.data.copy_(torch.rand(len(gates.log_odds)) * 2)  # so that no group is expected to have less than 1
    p, mean = torch.sigmoid(gates.log_odds.detach()).tolist(), [0.0, 0.0]
    for lives in itertools.product((False, True), repeat=len(p)):
        chance = torch.tensor([one if live else 1 - one for one, live in zip(p, lives, strict=True)]).prod().item()
        price = TOYS[toy][1](*numbers(gates, {place for place, live in enumerate(lives) if live}))
        mean = [total + chance * value for total, value in zip(mean, price, strict=True)]
    assert [gates.expected_cost(metric).item() for metric in ("params", "macs")] == pytest.approx(mean, rel=1e-5)


def slope(gates, metric):
    """The gradient of the expected cost, over that of each probability."""
    (gradient,) = torch.autograd.grad(gates.expected_cost(metric), [gates.log_odds])
    p = torch.sigmoid(gates.log_odds.detach())
    return (gradient / (p * (1 - p))).tolist()


def test_gradients_by_hand():
    _, _, gates = gated(squeeze)
    gates.log_odds.data.copy_(torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0]))
    n, m = (odds.sigmoid().sum().item() for odds in gates.scores.values())
    assert slope(gates, "macs") == pytest.approx([80 + 2 * m] * 3 + [2 * n] * 2, rel=1e-5)
    assert slope(gates, "params") == pytest.approx([7 + 2 * m] * 3 + [2 * n + 1] * 2, rel=1e-5)
    gates.log_odds.data[3:] = -1.0  # 0.54 channels are expected: counted as one, and nothing is to be gained
    assert slope(gates, "params") == pytest.approx([7 + 2.0] * 3 + [0.0] * 2, rel=1e-5)
    _, _, gates = gated(optional)
    gates.log_odds.data.copy_(torch.tensor([0.0, 1.0, 2.0, -2.0, 1.0]))
    n, one = (gates.scores[name].sigmoid().sum().item() for name in ("a", "s.operators.conv"))
    by_hand = [6 + one * (2 * n + 1)] * 3 + [n * n + n, 0.0]  # an operator's part is not clamped
    assert slope(gates, "params") == pytest.approx(by_hand, rel=1e-5)


def test_an_operator_within_an_operator_costs_nothing_without_it():
    inner = nn.Sequential(conv(3, 4), Sum({"x": conv(4, 4, bias=False), "y": nn.Identity()}), conv(4, 3))
    network, x = Toy(lambda m, x: x + m.s(x), s=Sum({"n": inner}, optional=True)), torch.zeros(1, 3, 4, 4)
    names = ["s.operators.n", "s.operators.n.1.operators.x", "s.operators.n.1.operators.y"]
    model = CostModel(network, x)
    assert list(model.sizes) == ["s.operators.n.0", *names]
    for n, outer, first, second in itertools.product((1, 3, 4), (0, 1), (0, 1), (0, 1)):
        found = model(dict(zip(model.sizes, (n, outer, first, second), strict=True)))
        assert found == Cost(outer * (4 * n + first * n * n + 3 * n + 3), outer * AREA * (6 * n + first * n * n))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batchnorms_of_any_kind_carry_channels_and_score_them(norm):
    net = nn.Sequential(nn.Linear(3, 8), norm(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, -8, 2, 3, 7, 0, 6, -5]))
    model = CostModel(net, torch.randn(2, 3))
    assert model(model.sizes) == Cost(3 * 8 + 8 + 2 * 8 + 8 * 2 + 2, 3 * 8 + 8 * 2)
    slim = prune(model, score_by_scale(model), "params", 3 * 4 + 4 + 2 * 4 + 4 * 2 + 2)
    assert slim.kept["0"].tolist() == [1, 4, 6, 7] and slim.cost == Cost(34, 3 * 4 + 4 * 2)
    assert slim.network[1].weight.tolist() == [-8, 7, 6, -5] and slim.network(torch.ones(2, 3)).shape == (2, 2)


def test_layers_of_unknown_cost_are_named_and_stay_whole():
    """A transposed convolution, a layer norm over rows, and a layer that no example reaches."""

    def run(m, x):
        return m.o(m.n(m.t(m.a(x).relu())))

    layers = {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 2, 1), "n": nn.LayerNorm(4), "o": conv(2, 2)}
    network, x = Toy(run, **layers, unused=nn.Linear(5, 2)), torch.zeros(2, 3, 4, 4)
    model = CostModel(network, x)
    assert model.uncounted == {"t": Cost(4 * 2 + 2, AREA * 4 * 2), "n": Cost(8, 0), "unused": Cost(12, 0)}
    assert model.rest == {"params": 10 + 8 + 12, "macs": AREA * 8} and model(model.sizes) == cost(network, x)


class Attention(nn.Module):
    """Two products without a layer of their own, beside a convolution."""

    def __init__(self):
        super().__init__()
        self.c = conv(3, 3)

    def forward(self, x):
        y = self.c(x)
        return y @ y.transpose(2, 3) @ y


def test_products_without_a_layer_are_named_by_the_module_that_computes_them():
    network, x = Toy(lambda m, x: m.o(m.s(m.a(x))), a=conv(3, 3), s=Attention(), o=conv(3, 2)), torch.zeros(1, 3, 4, 4)
    model = CostModel(network, x)
    assert model.uncounted == {"s": Cost(0, 2 * 3 * 4 * 4 * 4)} and model(model.sizes) == cost(network, x)
    optional = Toy(lambda m, x: x + m.s(x), s=Sum({"attention": Attention()}, optional=True))
    with pytest.raises(
        ValueError, match=r"operator 's.operators.attention' has a part 's.operators.attention' \(Atten"
    ):
        CostModel(optional, x)


def test_an_operator_with_a_layer_of_unknown_cost_is_refused():
    operators = Sum({"t": nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.ReLU())}, optional=True)
    network = Toy(lambda m, x: m.o((y := m.a(x)) + m.s(y)), a=conv(3, 3), s=operators, o=conv(3, 2))
    with pytest.raises(
        ValueError, match=r"'s.operators.t' has a part 's.operators.t.0' \(ConvTranspose2d\) whose cost"
    ):
        CostModel(network, torch.zeros(1, 3, 4, 4))


def test_layers_whose_weights_are_shared_or_computed_stay_whole_and_are_counted_once():
    layers, x = {"a": conv(3, 4), "b": conv(4, 4), "c": conv(4, 4), "o": conv(4, 2)}, torch.zeros(1, 3, 4, 4)
    network = Toy(lambda m, x: m.o(m.c(m.b(m.a(x)).relu())), **layers)
    network.c.weight = network.b.weight
    model = CostModel(network, x)
    assert not model.sizes and model({}) == cost(network, x) == Cost(16 + 20 + 4 + 10, AREA * (12 + 16 + 16 + 8))
    network = plain()
    nn.utils.parametrizations.weight_norm(network.a)  # 4 lengths more
    model = CostModel(network, x)
    assert not model.sizes and model({}) == cost(network, x) == Cost(112 + 4 + 10, AREA * (108 + 8))


def test_operators_that_share_weights_are_refused():
    operators = Sum({"conv": nn.Sequential(conv(3, 3)), "pool": nn.MaxPool2d(3, 1, 1)}, optional=True)
    network = Toy(lambda m, x: m.o((y := m.a(x)) + m.s(y)), a=conv(3, 3), s=operators, o=conv(3, 2))
    network.a.bias = network.s.operators.conv[0].bias
    with pytest.raises(ValueError, match=r"layers 'a' and 's.operators.conv.0' share a weight; give each a copy"):
        CostModel(network, torch.zeros(1, 3, 4, 4))


def without(*names, fixed=()):
    """A BatchNorm of six channels that lacks some of its tensors, or holds them as buffers."""
    norm = nn.BatchNorm2d(6)
    for name in (*names, *fixed):
        value = getattr(norm, name).detach()
        delattr(norm, name)
        norm.register_buffer(name, value) if name in fixed else norm.register_parameter(name, None)
    return norm


@pytest.mark.parametrize(
    ("norm", "learned"),
    [
        (without("bias"), 1),
        (without("weight"), 1),
        (without("weight", "bias"), 0),
        (without(fixed=["weight"]), 1),
        (nn.BatchNorm2d(6, bias=False), 1),
    ],
)
def test_parameters_that_a_layer_lacks_are_not_counted(norm, learned):
    network, x = nn.Sequential(conv(3, 6), norm, nn.ReLU(), conv(6, 2)).eval(), torch.zeros(1, 3, 4, 4)
    for filters in (nn.ReLU(), depthwise := nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False)):
        network[2] = filters
        model = CostModel(network, x)
        by_hand = 4 * (3 + 1 + learned + 2 + 9 * (filters is depthwise)) + 2
        assert model({"0": 4}).params == by_hand == cost(rebuild(network, x, {"0": 4}), x).params
    if norm.weight is None:
        with pytest.raises(ValueError, match="'0' makes pass no BatchNorm with a scale"):
            score_by_scale(model)
