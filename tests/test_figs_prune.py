"""Networks pruned by scores and healed: least squares by hand, exactness if nothing is lost, steps that only help.

Behind claim FG-1.
"""

import copy

import pytest
import torch
import torchvision.models as zoo
from conftest import speaking
from torch import nn

from nkdlib.figs import CostModel, input_moments, mimic, prune, score_by_magnitude, score_evenly
from nkdlib.networks import cost
from nkdlib.training import Schedule, predict


def twins(reader, channels=4):
    """A network whose second half of channels repeats the first, so that half of them are enough."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), *reader).eval()
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias):
            tensor[channels // 2 :] = tensor[: channels // 2]
    return net


READERS = {
    "1x1 with a bias": lambda: [nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)],
    "3x3, strided and padded": lambda: [nn.Conv2d(4, 2, 3, 2, 1)],
    "before a BatchNorm": lambda: [nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)],
    "linear": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 2)],
}


@pytest.mark.parametrize("reader", READERS)
def test_what_other_channels_repeat_is_cut_without_harm(reader):
    net, x = twins(READERS[reader]()), torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    model = CostModel(net, x[:1])
    scores = {name: torch.arange(group.size, 0.0, -1) for name, group in model.groups.items()}
    scores |= {name: scores[name] + 100 for name in scores if name != "0"}  # only the twins are in question
    target = model.total(model.sizes | {"0": 2}, "params")
    plain = prune(model, scores, "params", target)
    solved = prune(model, scores, "params", target, input_moments(model, [x]), ridge=1e-9)
    assert plain.kept["0"].tolist() == solved.kept["0"].tolist() == [0, 1]
    with torch.no_grad():
        wanted = net(x)
        assert torch.allclose(solved.network(x), wanted, atol=1e-4)
        assert not torch.allclose(plain.network(x), wanted, atol=1e-2)


def test_a_reader_solved_by_hand():
    # Inputs 1, 2 and 3 of two channels, the second one twice the first plus 1; the reader gives their sum, 3 z + 1.
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([0.0, 1.0]))
        net[1].weight.fill_(1.0)
        net[1].bias.fill_(5.0)
    x = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    model = CostModel(net, x[:1])
    moments = input_moments(model, [x])
    assert (3 * moments["1"]).tolist() == [[14, 34, 6], [34, 83, 15], [6, 15, 3]]
    slim = prune(model, {"0": torch.tensor([2.0, 1.0])}, "params", 4, moments, ridge=0.0).network
    assert slim[1].weight.item() == pytest.approx(3) and slim[1].bias.item() == pytest.approx(5 + 1)
    assert net[1].weight.flatten().tolist() == [1, 1] and net[1].bias.item() == 5  # the network stays as it is


def test_a_constant_goes_into_the_batchnorm_behind():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([1.0, 3.0]))  # constants: the reader gives 4, whatever it sees
        net[1].weight.fill_(1.0)
    x = torch.randn(4, 1, 2, 2)
    model = CostModel(net, x[:1])
    pruned = prune(model, {"0": torch.tensor([2.0, 1.0])}, "params", 5, input_moments(model, [x]), ridge=0.5)
    # The ridge, half of the mean square (1 + 9) / 2, pulls the weight to its own 1, and the constant makes up for 3.
    assert pruned.network[1].weight.item() == pytest.approx(1)
    assert pruned.network[2].running_mean.item() == pytest.approx(-3)
    assert torch.allclose(pruned.network(x), net(x), atol=1e-6)


class TwoReaders(nn.Module):
    """Two layers behind which one BatchNorm stands."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.norm(self.b(self.a(x))) + self.norm(self.c(x))


def test_a_batchnorm_that_serves_two_layers_takes_no_constant():
    net, x = TwoReaders().eval(), torch.randn(4, 1, 2, 2)
    with torch.no_grad():
        net.a.weight.zero_()
        net.a.bias.copy_(torch.tensor([1.0, 3.0]))  # constants: b gives 4, whatever it sees
        net.b.weight.fill_(1.0)
    model = CostModel(net, x[:1])
    pruned = prune(model, {"a": torch.tensor([2.0, 1.0])}, "params", 6, input_moments(model, [x]), ridge=0.0)
    assert pruned.network.b.weight.item() == pytest.approx(4) and pruned.network.norm.running_mean.item() == 0
    assert torch.allclose(pruned.network(x), net(x), atol=1e-6)


@pytest.mark.parametrize("tokens", [5, 2])  # as many as channels, or not
def test_a_batchnorm_over_tokens_takes_no_constant_of_a_layers_channels(tokens):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False), nn.BatchNorm1d(tokens)).eval()
    x = torch.randn(16, tokens, 3)
    model = CostModel(net, x[:1])
    pruned = prune(model, score_evenly(model), "params", model.total({"0": 2}, "params"), input_moments(model, [x]))
    assert not pruned.network[3].running_mean.any() and pruned.network(x).shape == (16, tokens, 2)


def test_tokens_are_cut_solved_and_mimicked():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval(), torch.randn(16, 5, 3)
    with torch.no_grad():
        net[0].weight[2:], net[0].bias[2:] = net[0].weight[:2], net[0].bias[:2]
    model = CostModel(net, x[:1])
    assert model.total({"0": 2}, "macs") == 5 * (3 * 2 + 2 * 2)  # five tokens
    assert all(isinstance(spent.macs, int) for spent in model.uncounted.values())
    scores, moments = {"0": torch.tensor([4.0, 3.0, 2.0, 1.0])}, input_moments(model, [x])
    pruned = prune(model, scores, "params", model.total({"0": 2}, "params"), moments, ridge=1e-9)
    assert torch.allclose(pruned.network(x), net(x), atol=1e-5) and pruned.cost == cost(pruned.network, x[:1])
    assert mimic(pruned, model, [x], Schedule(1)) == [pytest.approx(0, abs=1e-8)]


@pytest.mark.parametrize("make", [zoo.mobilenet_v2, zoo.resnet18, zoo.mobilenet_v3_small, zoo.squeezenet1_1])
def test_nothing_changes_if_everything_stays_and_solving_helps_if_not(make):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 64, 64)
    net = speaking(make(num_classes=10), x)
    model = CostModel(net, x[:1])
    moments, scores = input_moments(model, [x]), score_by_magnitude(model)
    with torch.no_grad():
        wanted = net(x)
        same = prune(model, scores, "params", model.total(model.sizes, "params"), moments)
        assert torch.equal(same.network(x), wanted)
        target = 0.8 * model.total(model.sizes, "macs")
        plain, solved = (prune(model, score_evenly(model), "macs", target, given) for given in (None, moments))
        errors = [(each.network(x) - wanted).square().mean() for each in (plain, solved)]
    assert errors[1] < errors[0] and solved.cost == cost(solved.network, x[:1]) == model(solved.counts)


def test_steps_bring_a_pruned_network_closer():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 32, 32)
    net = speaking(zoo.mobilenet_v2(num_classes=10), x)
    before, model = copy.deepcopy(net.state_dict()), CostModel(net, x[:1])
    target = 0.7 * model.total(model.sizes, "macs")
    pruned = prune(model, score_evenly(model), "macs", target, input_moments(model, [x]))
    distance = lambda: (predict(pruned.network, [x]) - predict(net, [x])).square().mean().item()  # noqa: E731
    start, schedule = distance(), Schedule(30, lr=1e-3, freeze_batchnorm=True)
    means = [norm.running_mean.clone() for norm in pruned.network.modules() if isinstance(norm, nn.BatchNorm2d)]
    losses = mimic(pruned, model, [(x[:32], None), x[32:]] * 15, schedule, ["features.18.0", "classifier.1"])
    assert losses[-1] < 0.8 * losses[0] and distance() < start
    now = [norm.running_mean for norm in pruned.network.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all(map(torch.equal, means, now)) and all(map(torch.equal, before.values(), net.state_dict().values()))


def test_errors_name_the_layer():
    net, x = twins(READERS["1x1 with a bias"]()), torch.randn(8, 1, 6, 6)
    model = CostModel(net, x[:1])
    with pytest.raises(ValueError, match="inputs holds no image"):
        input_moments(model, [])
    moments, scores = input_moments(model, [x]), score_evenly(model)
    with pytest.raises(ValueError, match=r"moments and the layers that read channels differ in \['2'\]"):
        prune(model, scores, "params", 40, {"4": moments["4"]})
    with pytest.raises(ValueError, match=r"ridge \(=-1\) must be a finite number of at least 0"):
        prune(model, scores, "params", 40, moments, ridge=-1)
    with pytest.raises(ValueError, match=r"moments of '2' have shape \(3, 3\), not \(5, 5\); measure this network's"):
        prune(model, scores, "params", 40, moments | {"2": torch.eye(3)})
    pruned = prune(model, scores, "params", 40, moments)
    with pytest.raises(ValueError, match="pruned and model differ in the group '2'; give the model behind it"):
        mimic(pruned, CostModel(net, x[:1], ["2"]), [x], Schedule(1))
    with pytest.raises(ValueError, match="layers holds '9', which the pruned network lacks; name layers"):
        mimic(pruned, model, [x], Schedule(1), ["9"])
