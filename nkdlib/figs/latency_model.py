"""Milliseconds on this machine as one more cost that a search can pay for.

FiGS (arXiv 2006.09581) counts MACs, which say little of a small network on a CPU, where each layer costs some
microseconds whatever it computes. Here the layers of slim networks are timed alone, and non-negative rates for each
kind of layer are fitted in its numbers of inputs and outputs, so that the expected latency has gradients; whole
networks then say how much longer they take than their layers. On other networks (one thread of a 2-core CPU, batch 1)
the relative error was 1 to 3 % in the median and 7 % at most, 14 % on a busier machine; of rates for MACs alone, 8 to
94 % at most.
"""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from nkdlib.figs.budget import counts_above, score_at_random, score_evenly
from nkdlib.figs.cost_model import CostModel, Rates
from nkdlib.figs.gates import rebuild
from nkdlib.networks.latency import latencies
from nkdlib.networks.module import in_evaluation
from nkdlib.tasks.progress import progress

METRIC = "latency_ms"
SHARES = (1.0, 0.7, 0.45, 0.2, 0.1)  # of channels that uniformly narrow networks keep; few come to a multiple of 8
PASSES = 10  # of each layer and network in a round
Call = tuple[str, torch.Size, torch.dtype]  # a layer, in words, and its input's shape and type
_Point = tuple[Rates, tuple[Call, ...]]  # the factors of a layer's rates, and how it is called


def measure_latency(model: CostModel, batch: int = 1, networks: int = 16, rounds: int = 8) -> pd.DataFrame:
    """Measure a network's layers on its device; from then on its cost model knows `latency_ms`.

    Args:
        model: of the network, which is not changed.
        batch: examples of one pass; all are the model's first example.
        networks: slim networks to measure: the whole one, four uniformly narrower, and others at random.
        rounds: of 10 timed passes of each layer and network. The least `low_ms` of the rounds counts: other programs
            can only add to it, and on a busy machine medians are up to twice as long.

    Returns:
        `measured_ms` and `predicted_ms` of the slim networks that the rates come from, the whole one first.

    Raises:
        ValueError: a number that is too small.
        RuntimeError: the networks' times do not grow with those of their layers.

    >>> from nkdlib.networks import residual_space
    >>> model = CostModel(residual_space(10), torch.zeros(1, 3, 16, 16))
    >>> table = measure_latency(model, networks=5, rounds=2)  # doctest: +ELLIPSIS
    timing layers: ...
    >>> len(table), model.total(model.sizes, "latency_ms") > 0
    (5, True)
    """
    for name, value, least in (("batch", batch, 1), ("networks", networks, len(SHARES)), ("rounds", rounds, 1)):
        if not value >= least or value % 1:
            raise ValueError(f"{name} (={value}) must be at least {least}, and whole")
    example = model.example[:1].expand(batch, *model.example.shape[1:]).contiguous()
    slim, layers = [], {}  # by call, each to be timed once
    found: list[dict[str, _Point]] = []  # by path, of each slim network
    for number in range(networks):
        counts = _some_counts(model, number)
        network = in_evaluation(rebuild(model.network, model.example, counts))
        calls = _calls(network, example, [term.path for term in model.terms])
        layers.update((call, network.get_submodule(path)) for path in calls for call in calls[path])
        numbers = zip(model.terms, *model.channels(torch.tensor([counts[name] for name in model.sizes])), strict=True)
        sizes = {term.path: (float(i * o), float(o), float(i), 1.0) for term, i, o in numbers}
        found.append({path: (sizes[path], calls[path]) for path in calls})
        slim.append(network)
    most = max(shape.numel() for _, shape, _ in layers)
    zeros = {dtype: torch.zeros(most, dtype=dtype, device=example.device) for _, _, dtype in layers}
    jobs = [(layer, zeros[dtype][: shape.numel()].view(shape)) for (_, shape, dtype), layer in layers.items()]
    jobs += [(network, example) for network in slim]
    turns = [latencies(jobs, PASSES) for _ in progress(range(rounds), "timing layers", unit="rounds")]
    best = [min(same, key=lambda turn: turn.low_ms) for same in zip(*turns, strict=True)]
    rates = _fitted(found, {call: turn.low_ms for call, turn in zip(layers, best, strict=False)})
    sums = np.array([sum(np.dot(rates[path], size) for path, (size, _) in parts.items()) for parts in found])
    times = np.array([turn.low_ms for turn in best[len(layers) :]])
    factor, rest = _non_negative(np.stack([sums, np.ones_like(sums)], 1), times)
    if not factor > 0:
        raise RuntimeError(f"the networks' times do not grow with their layers'; raise rounds (={rounds})")
    model.add(METRIC, {path: tuple(factor * rate for rate in each) for path, each in rates.items()}, rest)
    return pd.DataFrame({"measured_ms": times, "predicted_ms": factor * sums + rest})


def _some_counts(model: CostModel, number: int) -> dict[str, int]:
    """Numbers of channels and operators of one of the slim networks: first uniform widths, then random ones."""
    if number < len(SHARES):
        return counts_above(model, score_evenly(model), 1 - SHARES[number])
    share = torch.tensor(SHARES[1 + number % 3])
    return counts_above(model, score_at_random(model, seed=number), -share.logit())


@torch.inference_mode()
def _calls(network: nn.Module, example: Tensor, paths: Container[str]) -> dict[str, tuple[Call, ...]]:
    """How layers are called, by path; the hooks stay on until the network, which is a copy, has run."""
    calls: dict[str, tuple[Call, ...]] = {}

    def note(path: str, layer: nn.Module, x: tuple[Tensor]) -> None:
        calls[path] = (*calls.get(path, ()), (repr(layer), x[0].shape, x[0].dtype))

    handles = [
        layer.register_forward_pre_hook(lambda layer, x, path=path: note(path, layer, x))
        for path, layer in network.named_modules()
        if path in paths
    ]
    network(example)
    for handle in handles:
        handle.remove()
    return calls


def _fitted(networks: Sequence[Mapping[str, _Point]], alone: Mapping[Call, float]) -> dict[str, Rates]:
    """The rates of each layer by path, from networks of which the first is whole and the time of each call alone."""
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
