"""Gates on channels: masks by hand, costs against counts, slim against gated networks, a search to its target.

Behind claims FG-1 and FG-3.
"""

import copy
import math

import pytest
import torch
import torchvision.models as zoo
from conftest import speaking
from torch import nn

from nkdlib.figs import (
    CostModel,
    Gates,
    Search,
    keep_best,
    rebuild,
    score_at_random,
    score_by_magnitude,
    score_by_scale,
    score_evenly,
    search,
)
from nkdlib.networks import Sum, cost, mixed_space, resnet
from nkdlib.training import Schedule


def separable():
    depthwise = [nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)]
    return nn.Sequential(nn.Conv2d(3, 6, 1), *depthwise, nn.ReLU(), nn.Conv2d(8, 2, 1))


def grouped():
    """A grouped convolution is left alone, and what it reads and makes."""
    first = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)]
    return nn.Sequential(*first, nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))


EXAMPLES = {
    "resnet": (lambda: resnet(8, 10, seed=0), 16),  # tied by residual sums
    "mobilenet_v2": (lambda: zoo.mobilenet_v2(num_classes=10), 32),  # by depthwise convolutions
    "mobilenet_v3": (lambda: zoo.mobilenet_v3_small(num_classes=10), 32),  # squeeze-excite
    "separable": (separable, 5),
    "grouped": (grouped, 5),
}


def example(name):
    """A network whose BatchNorms say something, and an input."""
    torch.manual_seed(0)
    make, size = EXAMPLES[name]
    network, x = make(), torch.randn(2, 3, size, size)
    with torch.no_grad():
        return speaking(network, x), x


def scatter(gates, seed=0):
    """Log-odds on both sides of zero."""
    draw = torch.Generator().manual_seed(seed)
    gates.log_odds.data.copy_(torch.randn(gates.log_odds.shape, generator=draw))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_slim_network_is_the_gated_one_and_costs_what_was_predicted(name):
    network, x = example(name)
    own = copy.deepcopy(network.state_dict())
    gates = Gates(CostModel(network, x))
    assert gates.model(gates.model.sizes) == cost(network, x)
    for seed in range(3):
        scatter(gates, seed)
        slim = gates.slim()
        with torch.no_grad():
            y = network.eval()(x)
            assert (slim(x) - y).abs().max() < 1e-5 * y.abs().max().clamp_min(1) and (y[0] - y[1]).abs().max() > 1e-4
        assert cost(slim, x) == gates.model(gates.counts)
        assert not any("parametriz" in key for key in slim.state_dict()) and not slim.training
    assert network is gates.remove()
    assert all(torch.equal(own[key], value) for key, value in network.state_dict().items())


def test_masks_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False))
    gates = Gates(CostModel(network, torch.zeros(1, 1, 1, 1)), temperature=0.5)
    network[0].weight.data.fill_(1.0)
    network[1].parametrizations.weight.original.data.copy_(torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1))
    gates.log_odds.data.copy_(torch.tensor([1.0, -1.0, 0.5]))
    x = torch.ones(1, 1, 1, 1)
    p = torch.sigmoid(torch.tensor([1.0, -1.0, 0.5]))
    assert network.eval()(x).item() == pytest.approx(p[0].item() + 100 * p[2].item(), rel=1e-6)
    network.train()
    gates.use(torch.tensor([-2.0, 2.0, 0.0]))  # sums -1, 1 and 0.5
    assert network(x).item() == 110.0  # straight through: the second and the third
    (gradient,) = torch.autograd.grad(network(x).sum(), [gates.log_odds])
    soft = torch.sigmoid(torch.tensor([-1.0, 1.0, 0.5]) / 0.5)
    assert torch.allclose(gradient, soft * (1 - soft) / 0.5 * torch.tensor([1.0, 10.0, 100.0]))
    gates.opened = True
    assert network(x).item() == gates(x).item() == 111.0
    gates.opened = False
    gates.hard = False
    gates.use(torch.tensor([-2.0, 2.0, 0.0]))
    assert network(x).item() == pytest.approx((soft * torch.tensor([1.0, 10.0, 100.0])).sum().item(), rel=1e-5)


def test_noise_is_logistic_and_from_its_generator():
    network = nn.Sequential(nn.Conv2d(1, 20_000, 1), nn.Conv2d(20_000, 1, 1))
    gates = Gates(CostModel(network, torch.zeros(1, 1, 1, 1)))
    gates.hard = False
    drawn = []
    for seed in (0, 1, 0):
        gates.draw(torch.Generator().manual_seed(seed))
        drawn.append(gates.mask("0").detach().logit() * gates.temperature - 2.5)
    noise = drawn[0][drawn[0].isfinite()]  # a mask of one has none
    assert abs(noise.mean()) < 0.1 and noise.std().item() == pytest.approx(math.pi / 3**0.5, rel=0.05)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_costs_by_hand():
    # 3x3 from 2 to a group of 4, BatchNorm, 1x1 to 3: at 6 x 6 and after a stride of 2 at 3 x 3.
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    ).eval()
    gates = Gates(CostModel(network, torch.zeros(1, 2, 6, 6)))
    for count in (1, 3, 4):
        found = gates.model({"0": count})
        assert found.params == 9 * 2 * count + 2 * count + count * 3 + 3
        assert found.macs == 9 * (9 * 2 * count + count * 3)
    p = torch.sigmoid(torch.tensor(2.5)).item()
    assert gates.expected_cost("params").item() == pytest.approx((9 * 2 + 2 + 3) * 4 * p + 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(gates.expected_cost("params"), [gates.log_odds])
    assert torch.allclose(gradient, torch.full((4,), 23 * p * (1 - p)))


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_fitting_fills_a_target_with_the_most_probable_channels(metric):
    network, x = example("resnet")
    gates = Gates(CostModel(network, x))
    scatter(gates)
    scores = gates.log_odds.detach().clone()
    whole = getattr(cost(network, x), metric)
    for share in (0.05, 0.3, 0.9, 1.0):
        gates.log_odds.data.copy_(scores)
        counts = keep_best(gates.model, gates.scores, metric, share * whole)
        gates.keep(counts)
        assert gates.counts == counts
        counted = getattr(gates.model(counts), metric)
        assert 0.98 * share * whole < counted <= share * whole
        for name, index in gates.alive.items():
            score = scores[gates.model.slots[name]]
            assert set(index.tolist()) == set(score.topk(counts[name]).indices.tolist())  # within a group, the best
            more = getattr(gates.model({**counts, name: counts[name] + 1}), metric)
            assert counts[name] == gates.model.sizes[name] or more > share * whole  # nothing fits any more


def test_no_group_ends_empty():
    network, x = example("resnet")
    gates = Gates(CostModel(network, x))
    gates.log_odds.data.fill_(-3.0)
    for slot in gates.model.slots.values():
        gates.log_odds.data[slot.start + 2] = -1.0
    assert set(gates.counts.values()) == {1} and all(index.tolist() == [2] for index in gates.alive.values())
    with torch.no_grad():
        assert torch.allclose(gates.slim()(x), network.eval()(x), atol=1e-5)


def batches(steps, seed=0):
    """Two classes that one of three channels tells apart."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.randint(2, (32,), generator=draw)
        x = torch.randn(32, 3, 8, 8, generator=draw)
        x[:, 1] += (2.0 * labels - 1).view(-1, 1, 1)
        yield x, labels


@pytest.mark.parametrize(("metric", "share"), [("params", 0.3), ("macs", 0.3)])
def test_a_search_ends_at_its_target_with_a_network_that_works(metric, share):
    x, recipe = torch.zeros(1, 3, 8, 8), Search(Schedule(steps=60, batch_size=32, lr=5e-3), gate_lr=0.1)
    network, twin = (resnet(8, 2, seed=0, widths=(8, 8, 8)) for _ in range(2))
    whole = getattr(cost(network, x), metric)
    found = search(network, x, batches(60), share * whole, metric, recipe)
    assert found.cost == cost(found.network, x)
    assert 0.95 * share * whole < getattr(found.cost, metric) <= share * whole  # groups of 8 channels only
    assert not any("parametriz" in key for key in network.state_dict())
    losses, counted = found.history.loss, found.history.counted
    assert len(losses) == 48 and losses.iloc[-10:].mean() < 0.6 * losses.iloc[:10].mean()
    assert 0.15 * whole < counted.iloc[-1] < 0.6 * whole  # the penalty did it, not the last fit alone
    with torch.no_grad():
        right = [found.network(images).argmax(1) == labels for images, labels in batches(4, seed=1)]
    assert torch.cat(right).float().mean() > 0.85  # as it is, without training anew
    assert search(twin, x, batches(60), share * whole, metric, recipe).counts == found.counts


NAN = torch.full((4, 3, 8, 8), math.nan), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"target": 10}, ValueError, r"target \(=10\) must lie between [\d,]+ and [\d,]+ params"),
        ({"target": 10**9}, ValueError, r"target \(=1,000,000,000\) must lie between"),
        ({"metric": "flops"}, ValueError, r"metric \(='flops'\) must be one of params, macs"),
        ({"batches": []}, ValueError, r"batches ended after 0, recipe.schedule.steps asks for 5 or more"),
        (
            {"batches": [(torch.full((4, 3, 8, 8), math.nan), torch.zeros(4).long())] * 5},
            FloatingPointError,
            "a search for 20,000 params is not finite at step 0 of 4 with lr",
        ),
        ({"network": nn.Conv2d(3, 2, 1)}, ValueError, r"\(=Conv2d\) has no inner channels to gate; in the way: conv2d"),
    ],
)
def test_what_cannot_be_searched_is_named(change, error, match):
    given = {"network": resnet(8, 2, seed=0), "batches": list(batches(5)), "target": 20_000, **change}
    with pytest.raises(error, match=match):
        search(example=torch.zeros(1, 3, 8, 8), recipe=Search(Schedule(steps=5)), **given)
    assert not any("parametriz" in key for key in given["network"].state_dict())


def frozen():
    """A network of which nothing is to be trained."""
    return resnet(8, 2, seed=0).requires_grad_(False)


def normalizing():
    """A network with a BatchNorm over single values."""
    layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)


@pytest.mark.parametrize(
    ("network", "count", "single", "message"),
    [
        (frozen, 10, None, r"network \(=ResNet\) has no parameters to train, all are frozen; .*finetune_share=0"),
        (normalizing, 9, None, r"batches ended after 9, recipe.schedule.steps asks for 10 or more; give more batches"),
        (normalizing, 10, 3, r"batch 3 of batches, images \(1, 3, 8, 8\), is too small for BatchNorm .*drop_last"),
        (normalizing, 10, 9, r"batch 9 of batches, images \(1, 3, 8, 8\), is too small for BatchNorm .*drop_last"),
    ],
)
def test_what_would_end_a_search_late_is_named(network, count, single, message, capsys):
    given = [(x[:1], y[:1]) if step == single else (x, y) for step, (x, y) in enumerate(batches(count))]
    network, x = network(), torch.zeros(1, 3, 8, 8)
    target = 0.7 * cost(network, x).params
    with pytest.raises(ValueError, match=message):
        search(network, x, given, target, recipe=Search(Schedule(steps=10)))
    assert ("searching" in capsys.readouterr().out) == (single is not None)  # before any step, if it can be known


def test_a_frozen_network_is_searched_for_channels_alone():
    network, x = frozen(), torch.zeros(1, 3, 8, 8)
    recipe, target = Search(Schedule(steps=10), finetune_share=0.0), 0.7 * cost(network, x).params
    found = search(network, x, iter(list(batches(10))), target, recipe=recipe)
    assert 0.5 * target < found.cost.params <= target and not any(p.requires_grad for p in found.network.parameters())


def test_both_parts_of_a_search_have_its_settings():
    shared = {"batch_size": 7, "lr": 0.3, "warmup": 0.2, "weight_decay": 0.4, "max_grad_norm": 2.0, "amp": True}
    recipe = Search(Schedule(steps=50, **shared, ema=0.5))
    assert recipe.finetuning == Schedule(steps=10, **shared, ema=0.5)
    assert recipe.searching == Schedule(steps=40, **shared)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"temperature \(=0\) must be positive"):
        Gates(CostModel(resnet(8, 2, seed=0), torch.zeros(1, 3, 8, 8)), temperature=0)
    network, x = resnet(8, 2, seed=0), torch.zeros(1, 3, 8, 8)
    gates = Gates(CostModel(network, x))
    with pytest.raises(ValueError, match=r"network \(=ResNet\) has gates already; call their remove"):
        Gates(CostModel(network, x))
    Gates(CostModel(gates.remove(), x))
    with pytest.raises(ValueError, match=r"cost_model is of another network"):
        search(resnet(8, 2, seed=0), x, [], 1_000, cost_model=gates.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"open_share": 1.0}, r"open_share \(=1.0\) must be a finite number of at least 0 and below 1"),
        ({"path_share": math.nan}, r"path_share \(=nan\) must be a finite number"),
        ({"finetune_share": -0.1}, r"finetune_share \(=-0.1\) must be a finite number of at least 0"),
        ({"open_share": 0.5, "finetune_share": 0.5}, r"open_share \(=0.5\) and finetune_share \(=0.5\) leave no steps"),
        ({"gate_lr": 0.0}, r"gate_lr \(=0.0\) must be a finite number above 0"),
        ({"temperature": math.inf}, r"temperature \(=inf\) must be a finite number above 0"),
        ({"penalty": math.nan}, r"penalty \(=nan\) must be a finite number of at least 0"),
        ({"log_odds": math.nan}, r"log_odds \(=nan\) must be a finite number"),
        ({"gate_betas": (0.9, 1.0)}, r"gate_betas \(=1.0\) must be a finite number of at least 0 and below 1"),
        ({"gate_betas": (0.9,)}, r"gate_betas \(=\(0.9,\)\) are the two decays"),
    ],
)
def test_every_number_of_a_search_is_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Search(**change)


def test_rivals_answer_the_same_target():
    network, x = example("resnet")
    model, target = CostModel(network, x), 0.4 * cost(network, x).params
    sizes = model.sizes
    even = keep_best(model, score_evenly(model), "params", target)
    assert max(abs(even[n] / sizes[n] - even["stem.0"] / sizes["stem.0"]) for n in sizes) < 0.07
    drawn = [keep_best(model, score_at_random(model, seed), "params", target) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for counts in (even, *drawn):
        assert 0.95 * target < model(counts).params <= target
    scores, block = score_by_scale(model), network.layer1[0]
    assert torch.equal(scores["layer1.0.conv1"], block.bn1.weight.abs())
    assert torch.equal(scores["stem.0"], torch.maximum(network.stem[1].weight, block.bn2.weight))  # tied: the larger
    norms = block.conv1.weight.flatten(1).norm(dim=1)
    assert torch.equal(score_by_magnitude(model)["layer1.0.conv1"], norms / norms.mean())
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1))
    nn.init.zeros_(plain[0].weight)
    assert not score_by_magnitude(CostModel(plain, torch.zeros(1, 1, 2, 2)))["0"].any()
    with pytest.raises(ValueError, match=r"the channels that '0' makes pass no BatchNorm"):
        score_by_scale(CostModel(plain, torch.zeros(1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r"scores and the groups and operators of the network differ in \['layer1"):
        keep_best(model, {"stem.0": scores["stem.0"]}, "params", target)


class Beside(nn.Module):
    """An input and a part's output, added."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return x + self.part(x)


def test_a_dead_operator_goes_with_those_within_it():
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), Sum({"x": nn.Conv2d(4, 4, 1), "y": nn.Identity()}), nn.Conv2d(4, 3, 1))
    network, x = Beside(Sum({"n": inner}, optional=True)), torch.randn(2, 3, 4, 4)
    gates = Gates(CostModel(network, x))
    gates.log_odds.data.fill_(1.0)
    for path in ("part.operators.n", "part.operators.n.1.operators.x"):
        gates.log_odds.data[gates.model.slots[path]] = -1.0
    slim = gates.slim()
    assert torch.equal(slim(x), x) and cost(slim, x).params == gates.model(gates.counts).params == 0


def test_a_choice_that_leaves_nothing_open_is_only_checked():
    network, x = (
        Beside(Sum({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 3, padding=1)}, optional=True)),
        torch.ones(1, 3, 4, 4),
    )
    model = CostModel(network, x)
    scores = {"part.operators.a": torch.tensor([torch.inf]), "part.operators.b": torch.tensor([-torch.inf])}
    assert keep_best(model, scores, "params", 50) == {"part.operators.a": 1, "part.operators.b": 0}
    with pytest.raises(ValueError, match=r"target \(=5\) cannot be met with the operators that are kept"):
        keep_best(model, scores, "params", 5)


def test_an_operator_is_scored_by_what_only_it_makes():
    network, x = mixed_space(4, stem=4, stages=((2, 6, 1, 1),), head=8, kernels=(3, 5)), torch.zeros(1, 3, 8, 8)
    for kernel in ("3x3", "5x5"):  # the paths' common output
        network.get_submodule(f"2.paths.operators.{kernel}.5.1").weight.data.fill_(0.01)
    model = CostModel(network, x)
    scores = score_by_scale(model)
    assert [scores[path].item() for path in model.operators] == [1.0, 1.0]


def test_counts_of_another_network_are_refused_and_finetuning_may_be_left_out():
    x, network = torch.zeros(1, 3, 8, 8), resnet(8, 2, seed=0, widths=(8, 8, 8))
    found = search(network, x, batches(20), 2_000, recipe=Search(Schedule(20, 32), finetune_share=0.0))
    assert len(found.history) == 20 and found.cost.params <= 2_000
    rebuild(network, x, found.counts).load_state_dict(found.network.state_dict())
    with pytest.raises(ValueError, match=r"counts and the groups and operators of network differ in \['layer1.1"):
        rebuild(resnet(14, 2, seed=0, widths=(8, 8, 8)), x, found.counts)


def test_an_operator_whose_name_is_its_channels_is_refused():
    layers = Sum({"1x1": nn.Conv2d(4, 4, 1), "3x3": nn.Conv2d(4, 4, 3, padding=1)})
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), layers, nn.Conv2d(4, 2, 2))
    with pytest.raises(
        ValueError, match=r"'2\.operators\.1x1' is itself a layer with gated channels; put it into nn\.Sequential"
    ):
        CostModel(network, torch.zeros(1, 3, 4, 4))


def test_a_search_with_frozen_weights_moves_the_gates_alone():
    network, x = example("mobilenet_v2")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    recipe = Search(Schedule(12, freeze_batchnorm=True), gate_lr=1.0, open_share=0.0, finetune_share=0.0)
    model = CostModel(network, x[:1])
    target = 0.8 * model.total(model.sizes, "params")
    labels = network(x)
    given = {"recipe": recipe, "loss": nn.functional.mse_loss, "cost_model": model}
    found = search(network, x[:1], [(x, labels)] * 12, target, **given)
    assert all(map(torch.equal, before.values(), network.state_dict().values()))
    assert 0.9 * target < found.cost.params <= target
    assert found.counts == keep_best(model, found.scores, "params", target)


def test_even_shares_keep_the_channels_that_are_best_by_other_scores():
    model = CostModel(nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), torch.zeros(1, 1, 2, 2))
    assert score_evenly(model)["0"].tolist() == [0.875, 0.625, 0.375, 0.125]
    by = {"0": torch.tensor([1.0, 4.0, 2.0, 3.0])}
    assert score_evenly(model, by)["0"].tolist() == [0.125, 0.875, 0.375, 0.625]
    assert score_at_random(model, 0, by=by)["0"].argsort().tolist() == by["0"].argsort().tolist()
