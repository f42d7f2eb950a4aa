"""Milliseconds on this machine as one more cost that a search can pay for.

FiGS (arXiv 2006.09581) counts MACs, which say little of a small network on a CPU, where each layer costs some
microseconds whatever it computes. Here the layers of slim networks are timed alone, and what a kind of layer takes is
fitted by its numbers of inputs and outputs, so that the expected latency has gradients; whole networks then say how
much longer they take than their layers.

What to expect, for 24 other networks of random widths and operators, timed in the same rounds (one thread of a 2-core
CPU that others used too, batch 1): a relative error of 2 % in the median and 3 % at most for a residual space of 0.2 to
0.5 ms, 1 % and 3 % for a mixed space of 0.3 to 1 ms, 3 % and 7 % for MobileNetV2 at 96 pixels, 2 to 5 ms; with fewer
calibrating networks or a busier machine up to 6 %, 6 % and 14 %. Medians on that machine were 2 to 20 % above the
prediction, under heavy load two to three times as long. From the same timings of 31 networks, layers had largest errors
of 3, 5 and 8 %, least squares on the networks' MACs, outputs and numbers of layers 12, 11 and 8 %, on MACs alone 49, 94
and 8 %.
"""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from nkdlib.figs.cost import Rates
from nkdlib.figs.gates import Gates
from nkdlib.figs.rivals import score_at_random, score_evenly
from nkdlib.networks.latency import Latency, latencies
from nkdlib.tasks.progress import progress

METRIC = "latency_ms"
SHARES = (1.0, 0.7, 0.45, 0.2, 0.1)  # of channels that uniformly narrow networks keep; few come to a multiple of 8
PASSES = 10  # of each layer and network in a round
Call = tuple[str, torch.Size]  # a layer, in words, and the shape of its input
_Point = tuple[Rates, tuple[Call, ...]]  # what a layer's rates are multiplied with, and how it is called


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """What was measured; `gates.model.add("latency_ms", found.rates, found.rest)` tells other gates of the network."""

    rates: dict[str, Rates] = field(repr=False)  # ms for each pair of input and output, output, input, and once
    rest: float  # ms that a network takes beside its layers
    factor: float  # by which layers take longer within a network than alone; in `rates` already
    networks: pd.DataFrame = field(repr=False)  # measured_ms and predicted_ms of the slim networks, the whole one first
    whole: Latency  # of the whole network, in its least disturbed round


def measure_latency(
    gates: Gates, batch: int = 1, networks: int = 16, rounds: int = 8, hardware: str = ""
) -> LatencyModel:
    """Measure a network's layers on its device; from then on its gates know the cost `latency_ms`.

    Args:
        gates: of the network, which stays as it is, as do the log-odds.
        batch: examples of one pass; all are the gates' first example.
        networks: slim networks to measure: the whole one, four uniformly narrower, and others at random.
        rounds: of 10 timed passes of each layer and network. The least `low_ms` of the rounds counts: what else the
            machine does can only add to it, and on a busy one medians are up to twice as long.
        hardware: the processor's name, for the record.

    Returns:
        The rates, and how well they describe the networks that they come from.

    Raises:
        ValueError: a number that is too small.
        RuntimeError: the networks' times do not grow with those of their layers.

    >>> import torch
    >>> from nkdlib.figs import Gates
    >>> from nkdlib.networks import residual_space
    >>> gates = Gates(residual_space(10), torch.zeros(1, 3, 16, 16))
    >>> measured = measure_latency(gates, networks=5, rounds=2)  # doctest: +ELLIPSIS
    timing layers: ...
    >>> gates.model.total(gates.counts, "latency_ms") > 0
    True
    """
    for name, value, least in (("batch", batch, 1), ("networks", networks, len(SHARES)), ("rounds", rounds, 1)):
        if value < least:
            raise ValueError(f"{name} (={value}) must be at least {least}")
    model = gates.model
    example = model.example[:1].expand(batch, *model.example.shape[1:]).contiguous()
    slim = _slim_networks(gates, networks)
    layers: dict[Call, nn.Module] = {}  # each to be timed once
    found: list[dict[str, _Point]] = []  # by path, of each slim network
    for network, counts in slim:
        calls = _calls(network, example, [term.path for term in model.terms])
        layers.update((call, network.get_submodule(path)) for path in calls for call in calls[path])
        numbers = zip(model.terms, *model.channels(torch.tensor([counts[name] for name in model.sizes])), strict=True)
        sizes = {term.path: (float(i * o), float(o), float(i), 1.0) for term, i, o in numbers}
        found.append({path: (sizes[path], calls[path]) for path in calls})
    blank = example.new_zeros(max(shape.numel() for _, shape in layers))  # activations that work in place leave it so
    jobs = [(layer, blank[: shape.numel()].view(shape)) for (_, shape), layer in layers.items()]
    jobs += [(network, example) for network, _ in slim]
    turns = [latencies(jobs, PASSES, hardware) for _ in progress(range(rounds), "timing layers", unit="rounds")]
    best = [min(same, key=lambda turn: turn.low_ms) for same in zip(*turns, strict=True)]
    alone, whole = {call: turn.low_ms for call, turn in zip(layers, best, strict=False)}, best[len(layers) :]

    rates = _rates(found, alone)
    sums = np.array([sum(np.dot(rates[path], size) for path, (size, _) in parts.items()) for parts in found])
    times = np.array([turn.low_ms for turn in whole])
    factor, rest = _non_negative(np.stack([sums, np.ones_like(sums)], 1), times)
    if not factor > 0:
        raise RuntimeError(f"the networks' times do not grow with their layers'; raise rounds (={rounds})")
    rates = {path: tuple(factor * rate for rate in each) for path, each in rates.items()}
    model.add(METRIC, rates, rest)
    table = pd.DataFrame({"measured_ms": times, "predicted_ms": factor * sums + rest})
    return LatencyModel(rates, rest, factor, table, whole[0])


@torch.no_grad()
def _slim_networks(gates: Gates, number: int) -> list[tuple[nn.Module, dict[str, int]]]:
    """Networks of different widths and their counts; the log-odds are put back."""
    given, slim = gates.log_odds.clone(), []
    try:
        for k in range(number):
            if k < len(SHARES):
                score_evenly(gates).log_odds.sub_(1 - SHARES[k])
            else:
                score_at_random(gates, seed=k).log_odds.add_(torch.tensor(SHARES[1 + k % 3]).logit())
            slim.append((gates.slim(), gates.counts))
    finally:
        gates.log_odds.copy_(given)
    return slim


@torch.inference_mode()
def _calls(network: nn.Module, example: Tensor, paths: Container[str]) -> dict[str, tuple[Call, ...]]:
    """How layers are called, by path; hooks stay on until the network, which is ours, has run."""
    calls: dict[str, tuple[Call, ...]] = {}

    def note(path: str, layer: nn.Module, x: tuple[Tensor]) -> None:
        calls[path] = (*calls.get(path, ()), (repr(layer), x[0].shape))

    handles = [
        layer.register_forward_pre_hook(lambda layer, x, path=path: note(path, layer, x))
        for path, layer in network.named_modules()
        if path in paths
    ]
    network(example)
    for handle in handles:
        handle.remove()
    return calls


def _rates(networks: Sequence[Mapping[str, _Point]], alone: Mapping[Call, float]) -> dict[str, Rates]:
    """The rates of each layer by path, from networks of which the first is whole and what each call takes alone."""
    kinds = {path: calls for path, (_, calls) in networks[0].items()}
    points: dict[tuple[Call, ...], set[_Point]] = defaultdict(set)  # of layers that are alike in the whole network
    for parts in networks:
        for path, point in parts.items():
            points[kinds[path]].add(point)
    fits: dict[tuple[Call, ...], Rates] = {}
    for kind, same in points.items():
        sizes, calls = zip(*sorted(same), strict=True)
        times = [sum(alone[call] for call in each) for each in calls]
        fits[kind] = tuple(_non_negative(np.array(sizes), np.array(times)))
    return {path: fits[kind] for path, kind in kinds.items()}


def _non_negative(values: np.ndarray, times: np.ndarray) -> list[float]:
    """Non-negative weights of columns, (rows, columns), whose sums are near the times, (rows,), in relative error."""
    scale = values.max(0).clip(1e-300)
    return (nnls(values / scale / times[:, None], np.ones(len(times)))[0] / scale).tolist()
