"""Latency as a cost: rates by hand from an invented clock, what stays as it was, one real measurement.

Behind claim FG-3.
"""

import copy
import math

import pytest
import torch
from torch import nn

import nkdlib.figs.latency_model as timing
from nkdlib.figs import CostModel, Gates, keep_best, measure_latency, score_evenly
from nkdlib.figs.budget import counts_above
from nkdlib.networks.latency import Latency
from nkdlib.networks.spaces import CellNetwork, mixed_space, residual_space

EACH = {nn.ReLU: 0.5, nn.MaxPool2d: 0.25, nn.AdaptiveAvgPool2d: 0.125}  # for each channel and example


def milliseconds(layer, x):
    """An invented machine: 2 for each pair, 3 for each output, 5 for each input, 7 a call; all for each example.

    A depthwise convolution takes 10 for each channel, and so with one channel what another convolution takes.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return len(x) * layer.kernel_size[0] * (10 * layer.groups + 7)
    if isinstance(layer, nn.Conv2d):
        inputs, outputs = layer.in_channels, layer.out_channels
        return len(x) * layer.kernel_size[0] * (2 * inputs * outputs + 3 * outputs + 5 * inputs + 7)
    if isinstance(layer, nn.Linear):
        return len(x) * (2 * layer.in_features + 7)
    if isinstance(layer, nn.Identity | nn.Flatten):
        return 0.25
    return len(x) * (EACH.get(type(layer), 3) * x.shape[1] + 7)


def clock(factor=1.5, constant=11.0, extra=lambda network: 0.0):
    """In place of `latencies`: layers take what they take, networks `factor` times their layers' sum and a constant."""

    def one(module, x):
        taken = []
        leaves = [part for part in module.modules() if not list(part.children())]
        handles = [part.register_forward_pre_hook(lambda p, x: taken.append(milliseconds(p, x[0]))) for part in leaves]
        with torch.no_grad():
            module(x)
        for handle in handles:
            handle.remove()
        return sum(taken) if leaves == [module] else factor * sum(taken) + constant + extra(module)

    def invented(models, repeats, hardware=""):
        times = [one(module, x) for module, x in models]
        return [Latency(ms, ms, ms, len(x), 1, hardware) for ms, (_, x) in zip(times, models, strict=True)]

    return invented


def test_layers_behind_token_ids_are_timed_on_numbers(monkeypatch):
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    seen = []
    monkeypatch.setattr(timing, "latencies", lambda jobs, repeats: seen.extend(jobs) or clock()(jobs, repeats))
    measure_latency(CostModel(net, torch.zeros(1, 2, dtype=torch.int64)), networks=5, rounds=1)
    kinds = {(type(layer), x.dtype) for layer, x in seen}
    assert kinds == {(nn.Linear, torch.float32), (nn.ReLU, torch.float32), (nn.Sequential, torch.int64)}


def chain():
    """Two inner groups, one of them carried by BatchNorm, a depthwise convolution, an activation and pools."""
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 6, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(6, 3),
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_rates_by_hand(monkeypatch, batch):
    monkeypatch.setattr(timing, "latencies", clock())
    model = CostModel(chain(), torch.zeros(2, 2, 4, 4))
    table = measure_latency(model, batch)
    assert model.metrics == ["params", "macs", "latency_ms"]
    rest = 11.0 + 1.5 * 0.25  # Flatten is no term
    assert model.rest["latency_ms"] == pytest.approx(rest)
    for a, b in ((8, 6), (3, 6), (8, 1), (5, 2)):
        first, norm, relu = 3 * (2 * 2 * a + 3 * a + 5 * 2 + 7), 3 * a + 7, 0.5 * a + 7
        deep, pool, second = 3 * (10 * a + 7), 0.25 * a + 7, 2 * a * b + 3 * b + 5 * a + 7
        last = (0.5 * b + 7) + (0.125 * b + 7) + (2 * b + 7)
        by_hand = 1.5 * batch * (first + norm + relu + deep + pool + second + last) + rest
        assert model.total({"0": a, "5": b}, "latency_ms") == pytest.approx(by_hand)
    assert len(table) == 16 and table.measured_ms.to_numpy() == pytest.approx(table.predicted_ms.to_numpy())
    assert table.measured_ms[0] == table.measured_ms.max()


def test_operators_and_concatenations_on_the_invented_machine(monkeypatch):
    """Every network that can be cut out is predicted: what an operator is made of goes with it."""
    monkeypatch.setattr(timing, "latencies", clock())
    spaces = (
        (mixed_space(4, stem=6, stages=((6, 6, 2, 1),), head=12, kernels=(3, 5)), 8),
        (CellNetwork(4, channels=4, cells="r", nodes=2, operators=("max_pool_3x3", "skip", "sep_conv_3x3")), 8),
    )
    for network, size in spaces:
        model = CostModel(network, torch.zeros(1, 3, size, size))
        table, gates = measure_latency(model, networks=8, rounds=1), Gates(model)
        assert table.predicted_ms.to_numpy() == pytest.approx(table.measured_ms.to_numpy(), rel=0.02)
        draw = torch.Generator().manual_seed(5)
        for _ in range(4):
            gates.log_odds.data.copy_(torch.randn(gates.log_odds.shape, generator=draw))
            (true,) = clock()([(gates.slim(), gates.model.example)], 6)
            assert gates.model.total(gates.counts, "latency_ms") == pytest.approx(true.ms, rel=0.02)


def test_a_module_that_runs_twice_goes_to_the_whole_networks(monkeypatch):
    monkeypatch.setattr(timing, "latencies", clock())
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(2, 8, 1), relu, nn.Conv2d(8, 4, 1), relu, nn.Conv2d(4, 2, 1))
    model = CostModel(network, torch.zeros(1, 2, 4, 4))
    table = measure_latency(model)
    assert [term.path for term in model.terms] == ["0", "2", "4"]
    assert table.predicted_ms.to_numpy() == pytest.approx(table.measured_ms.to_numpy(), rel=0.1)


def test_measuring_changes_nothing(monkeypatch):
    monkeypatch.setattr(timing, "latencies", clock())
    network = residual_space(4, widths=(6, 6), blocks=(1, 1)).train()
    network[1].eval()
    model = CostModel(network, torch.zeros(1, 3, 8, 8))
    before = copy.deepcopy(network.state_dict())
    modes, own = [part.training for part in network.modules()], [id(p) for p in network.parameters()]
    random = torch.get_rng_state()
    measure_latency(model, rounds=1)
    assert torch.equal(random, torch.get_rng_state())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert modes == [part.training for part in network.modules()] and own == [id(p) for p in network.parameters()]


def test_the_cost_has_gradients_and_can_be_fitted(monkeypatch):
    monkeypatch.setattr(timing, "latencies", clock())
    model = CostModel(chain(), torch.zeros(1, 2, 4, 4))
    measure_latency(model)
    gates = Gates(model)
    gates.log_odds.data.zero_()  # every gate lives with 1/2: 4 and 3 channels are expected
    expected = gates.expected_cost("latency_ms")
    assert expected.item() == pytest.approx(model.total({"0": 4, "5": 3}, "latency_ms"))
    (gradient,) = torch.autograd.grad(expected, [gates.log_odds])
    # A channel of the second group: an output of 4 inputs, in its activation and pool, an input of the last layer.
    second = 1.5 * ((2 * 4 + 3) + 0.5 + 0.125 + 2) * 0.25
    assert torch.allclose(gradient[model.slots["5"]], torch.full((6,), second))
    whole = model.total(model.sizes, "latency_ms")
    counts = keep_best(model, score_evenly(model), "latency_ms", 0.6 * whole)
    assert 0.5 * whole < model.total(counts, "latency_ms") <= 0.6 * whole
    with pytest.raises(ValueError, match=r"target \(=1.0\) must lie between [\d.]+ and [\d,.]+ latency_ms"):
        keep_best(model, score_evenly(model), "latency_ms", 1.0)


def test_the_quickest_round_counts(monkeypatch):
    delays = iter([0.0, 100.0, 50.0])

    def disturbed(models, repeats):
        late = next(delays)
        return [Latency(t.ms + 2 * late, t.ms + late, t.ms + 3 * late, 1, 1, "") for t in clock()(models, repeats)]

    monkeypatch.setattr(timing, "latencies", disturbed)
    model = CostModel(chain(), torch.zeros(1, 2, 4, 4))
    measure_latency(model, rounds=3)
    assert model.rest["latency_ms"] == pytest.approx(11.0 + 1.5 * 0.25)


def test_what_cannot_be_measured_is_named(monkeypatch):
    model = CostModel(chain(), torch.zeros(1, 2, 4, 4))
    for change, least in (({"batch": 0}, 1), ({"networks": 4}, 5), ({"rounds": 0}, 1), ({"rounds": math.nan}, 1)):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=rf"{name} \(={value}\) must be at least {least}, and whole"):
            measure_latency(model, **change)
    with pytest.raises(ValueError, match=r"rates \(of 'joules'\) and the terms differ in \['0', '1', .*very network"):
        model.add("joules", {})
    small_are_slow = clock(0.0, 0.0, lambda network: 1.0 / sum(p.numel() for p in network.parameters()))
    monkeypatch.setattr(timing, "latencies", small_are_slow)
    with pytest.raises(RuntimeError, match=r"do not grow with their layers'; raise rounds \(=8\)"):
        measure_latency(model)
    assert model.metrics == ["params", "macs"]


def test_on_this_machine():
    network = residual_space(10, in_channels=1, widths=(24, 24, 24), stem_stride=2).eval()
    model = CostModel(network, torch.zeros(1, 1, 28, 28))
    table = measure_latency(model, networks=8, rounds=2)
    assert model.rest["latency_ms"] >= 0
    ratio = table.predicted_ms / table.measured_ms
    assert 0.5 < ratio.median() < 2
    totals = []
    for share in (0.9, 0.5, 0.2):
        totals.append(model.total(counts_above(model, score_evenly(model), 1 - share), "latency_ms"))
    assert totals == sorted(totals, reverse=True) and totals[-1] > 0
