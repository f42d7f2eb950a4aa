"""The algorithms that the search spaces came with: penalties and mixtures by hand, choices on toy data.

Behind claim FG-3.
"""

import pytest
import torch
from torch import nn

from nkdlib.compendium.rivals.searches import Mixture, mix, scale_penalty, score_by_mixture, shrink, weigh
from nkdlib.figs import CostModel, keep_best, score_by_scale
from nkdlib.networks import CellNetwork, Sum
from nkdlib.training import Schedule


def two_layers():
    """3x3 from 2 to 4 channels, 1x1 to 6, each with BatchNorm, then 1x1 to 3."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
    )


def batches(steps, channels=2, seed=0):
    """Two classes that the first channel tells apart."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.randint(2, (32,), generator=draw)
        x = torch.randn(32, channels, 6, 6, generator=draw)
        x[:, 0] += (2.0 * labels - 1).view(-1, 1, 1)
        yield x, labels


def test_the_penalty_on_scales_by_hand():
    network = two_layers()
    network[1].weight.data.copy_(torch.tensor([1.0, -2.0, 0.5, 0.001]))  # three live
    network[4].weight.data.fill_(0.25)
    model = CostModel(network, torch.zeros(1, 2, 6, 6))
    # One more channel of the first group: 9 * 2 + 2 of BatchNorm + 6 readers; of the second: 3 that live + 2 + 3.
    paid = 3.501 * (18 + 2 + 6) + 6 * 0.25 * (3 + 2 + 3)
    whole = 9 * 2 * 4 + 8 + 4 * 6 + 12 + 6 * 3
    assert scale_penalty(model, "params").item() == pytest.approx(paid / whole, rel=1e-5)
    (gradient,) = torch.autograd.grad(scale_penalty(model, "params"), network[1].weight)
    assert torch.allclose(gradient, torch.tensor([1.0, -1.0, 1.0, 1.0]) * 26 / whole)


def test_shrinking_leaves_what_the_loss_needs():
    kept = {}
    for strength in (0.0, 3.0):
        torch.manual_seed(0)
        network = two_layers()
        model = CostModel(network, torch.zeros(1, 2, 6, 6))
        losses = shrink(model, batches(60), "macs", strength, Schedule(60, 32, lr=2e-2))
        assert len(losses) == 60 and losses[0] < 1.2 and not network.training  # log 3, without a penalty of about 3
        kept[strength] = torch.cat([network[1].weight, network[4].weight]).detach().abs()
    assert kept[3.0].mean() < 0.5 * kept[0.0].mean()
    scores = score_by_scale(model)
    assert (
        torch.equal(scores["0"], network[1].weight.abs()) and model(keep_best(model, scores, "params", 60)).params <= 60
    )


def test_the_authors_penalty_closes_the_more_gates_the_more_it_weighs():
    alive = {}
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        model = CostModel(two_layers(), torch.zeros(1, 2, 6, 6))
        scores, losses = weigh(model, batches(40), "params", weight, Schedule(40, 32, lr=2e-2), seed=0)
        assert len(losses) == 40 and losses[0] < 1.2 and not model.network.training
        assert {name: len(score) for name, score in scores.items()} == {"0": 4, "3": 6}
        alive[weight] = sum(int((score > 0).sum()) for score in scores.values())
    assert alive[0.0] == 10 and alive[3.0] <= 5  # every gate starts open


class Weak(nn.Module):
    """An operator that says nothing."""

    def forward(self, x):
        return 0 * x


def chooser():
    """A network that may read its input well, or not at all."""
    return nn.Sequential(
        Sum({"weak": Weak(), "good": nn.Identity()}), nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    )


def test_a_mixture_by_hand():
    network, x = chooser(), torch.randn(2, 2, 6, 6)
    mixture = Mixture(network)
    assert mixture.edges == {("0", ""): ["0.operators.weak", "0.operators.good"]}
    mixture.logits[0].data.copy_(torch.tensor([0.0, 1.0, 2.0]).log_softmax(0))
    share = torch.tensor([0.0, 1.0, 2.0]).softmax(0)  # the last is for no operator
    torch.testing.assert_close(network[0](x), share[1] * x)
    (weights,) = mixture.weights.values()
    assert weights == pytest.approx({"0.operators.weak": share[0].item(), "0.operators.good": share[1].item()})
    mixture.remove()
    assert torch.equal(network[0](x), x)


def test_darts_prefers_the_operator_that_helps():
    torch.manual_seed(0)
    network = chooser()
    weights, losses = mix(network, batches(80), batches(80, seed=1), Schedule(80, 32, lr=2e-2), rate=3e-2)
    assert len(losses) == 80 and losses[-1] < 0.5 * losses[0]
    (found,) = weights.values()
    assert found["0.operators.good"] > 2 * found["0.operators.weak"] and not network.training


def test_a_cell_keeps_the_strongest_operators_of_its_two_strongest_edges():
    network, x = (
        CellNetwork(4, channels=4, cells="n", nodes=2, operators=("skip", "sep_conv_3x3")),
        torch.zeros(1, 3, 8, 8),
    )
    edges = Mixture(network).edges
    assert [key for key in edges if key[0] == "cells.0.nodes.1"] == [("cells.0.nodes.1", str(k)) for k in range(3)]
    strength = {("cells.0.nodes.0", "0"): (0.2, 0.5), ("cells.0.nodes.0", "1"): (0.6, 0.1)}
    strength |= {("cells.0.nodes.1", k): v for k, v in {"0": (0.3, 0.1), "1": (0.2, 0.4), "2": (0.1, 0.5)}.items()}
    weights = {key: dict(zip(names, strength[key], strict=True)) for key, names in edges.items()}
    model = CostModel(network, x)
    counts = keep_best(model, score_by_mixture(model, weights), "params", 600)
    kept = [path.partition("nodes.")[2] for path in model.operators if counts[path]]
    assert kept == [
        *("0.operators.0_sep_conv_3x3", "0.operators.1_skip"),
        *("1.operators.1_sep_conv_3x3", "1.operators.2_sep_conv_3x3"),
    ]
    assert model(counts).params <= 600
