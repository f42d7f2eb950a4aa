"""Networks cut out of a trained one by any scores, and healed: readers solved, then steps on the network's own values.

What a layer reads of the channels that went can in part be made from those that stay: its weights solve a least-squares
problem that second moments of its input determine, once for every choice of channels. Steps then bring the values where
layers read cut channels, and the output, back to what they were. (Our extension. Layer-wise reconstruction as in He,
Zhang and Sun 2017, arXiv 1707.06168.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.figs.budget import Scores, keep_best
from nkdlib.figs.cost_model import CostModel
from nkdlib.figs.gates import cut_out
from nkdlib.networks.cost import Cost
from nkdlib.networks.cutting import channel_dim, stays
from nkdlib.networks.least_squares import Normal, columns
from nkdlib.networks.module import NORMS, device_of, evaluating
from nkdlib.networks.tail import layer_of
from nkdlib.networks.trace import shape_of, trace
from nkdlib.tasks.checks import check_number
from nkdlib.training.loop import Schedule, minimize
from nkdlib.training.store import first_images


@dataclass(frozen=True)
class Pruned:
    """A network with some channels and operators of another one left."""

    network: nn.Module = field(repr=False)
    cost: Cost
    counts: dict[str, int]  # channels that stay, by group; 0 or 1 for an operator, by its path
    kept: dict[str, Tensor] = field(repr=False)  # their indices, in ascending order


def prune(
    model: CostModel,
    scores: Scores,
    metric: str,
    target: float,
    moments: Mapping[str, Tensor] | None = None,
    ridge: float = 0.1,
) -> Pruned:
    """Cut the best-scored network within a budget out of a trained one.

    Args:
        model: of the network, which stays as it is.
        scores: as for `keep_best`, such as `SearchResult.scores`.
        metric: a cost that the model knows.
        target: the largest cost allowed.
        moments: of `input_moments`; layers that read cut channels are then solved to give what they gave. Without them
            all weights stay.
        ridge: relative to the mean energy of a layer's inputs; it pulls to the weights that the layer has.

    Raises:
        ValueError: see `keep_best`; moments of another network, a negative ridge.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    >>> model = CostModel(net, torch.zeros(1, 1, 4, 4))
    >>> prune(model, {"0": torch.tensor([1.0, 4.0, 2.0, 3.0])}, "params", 10).kept
    {'0': tensor([1, 3])}
    """
    check_number("ridge", ridge, 0)
    counts = keep_best(model, scores, metric, target)
    kept = {
        name: scores[name].detach().cpu().flatten().argsort(descending=True, stable=True)[:count].sort().values
        for name, count in counts.items()
    }
    slim = cut_out(model.network, list(model.groups.values()), kept)
    if moments is not None:
        _solve(slim, model, kept, moments, ridge)
    return Pruned(slim, model(counts), counts, kept)


@torch.no_grad()
def input_moments(
    model: CostModel, inputs: Iterable, images: int = 512, positions: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Measure the second moments of what every layer reads that reads a group of channels.

    Args:
        model: of the network, in whose evaluation mode they are measured.
        inputs: batches of images, with or without labels.
        images: how many to use at most.
        positions: of each image that are used at most, drawn at random.
        seed: of the positions.

    Returns:
        The mean of zz' for each of these layers, float64, (F + 1, F + 1): z has the F inputs that one output is made
        from, and a 1.

    Raises:
        ValueError: `inputs` holds no image.
    """
    network, device = model.network, device_of(model.network)
    random, found = torch.Generator().manual_seed(seed), {}

    def note(path: str, layer: nn.Module, given: tuple[Tensor]) -> None:
        z = columns(given[0].detach().float(), layer)  # (C k k, positions of all images)
        most = positions * len(given[0])
        if z.shape[1] > most:
            z = z[:, torch.randperm(z.shape[1], generator=random)[:most].to(device)]
        z = torch.cat([z, z.new_ones(1, z.shape[1])])
        found[path] = found.get(path, 0.0) + (z @ z.T).double()

    with evaluating(network), ExitStack() as hooks:
        for path in dict.fromkeys(path for group in model.groups.values() for path in group.consumers):
            hooks.enter_context(network.get_submodule(path).register_forward_pre_hook(partial(note, path)))
        for x in first_images(inputs, images):
            network(x.to(device, copy=True))
    if not found:
        raise ValueError("inputs holds no image; give a batch of images at least")
    return {path: total / total[-1, -1] for path, total in found.items()}


def mimic(
    pruned: Pruned,
    model: CostModel,
    batches: Iterable,
    schedule: Schedule,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> list[float]:
    """Train a pruned network, in place, to have the values of the network that it was cut out of.

    The loss is the sum over layers, and over the output, of the squared error relative to the variance of the batch.

    Args:
        pruned: from `prune`.
        model: that it was pruned from.
        batches: of images, with or without labels, at least `schedule.steps`.
        schedule: with `freeze_batchnorm` the network keeps the statistics that it has.
        layers: whose inputs are compared, in the channels that stay; by default all that read a group of channels.
        seed: of dropout.

    Returns:
        The loss of every step.

    Raises:
        ValueError: a network pruned from another model, a layer that it lacks, an output that is no tensor.
    """
    teacher, device = model.network, device_of(pruned.network)
    if other := sorted(pruned.counts.keys() ^ model.sizes.keys()):
        raise ValueError(f"pruned and model differ in the group {other[0]!r}; give the model behind it")
    present = {path for path, _ in pruned.network.named_modules()}
    inputs = {path: kept for (path, dim), kept in stays(teacher, [*model.groups.values()], pruned.kept).items() if dim}
    layers = [path for path in inputs if path in present] if layers is None else list(layers)
    if unknown := [path for path in layers if path not in present]:
        raise ValueError(f"layers holds {unknown[0]!r}, which the pruned network lacks; name layers that it has")
    dims = {path: channel_dim(teacher.get_submodule(path)) for path in inputs}
    inputs = {path: kept.nonzero()[:, 0].to(device) for path, kept in inputs.items()}

    def values(network: nn.Module, x: Tensor) -> list[Tensor]:
        seen: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for path in layers:
                note = lambda _, given, path=path: seen.update({path: given[0]})  # noqa: E731
                hooks.enter_context(network.get_submodule(path).register_forward_pre_hook(note))
            output = network(x)
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ValueError(f"model's network gives a {kind}; wrap it so that it gives one tensor")
        return [*(seen[path] for path in layers), output]

    def loss(batch: Tensor | Sequence) -> Tensor:
        x = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
        with torch.no_grad(), evaluating(teacher):
            wanted = values(teacher, x.clone())
        wanted = [
            y.index_select(dims[path], inputs[path]) if path in inputs else y
            for path, y in zip([*layers, ""], wanted, strict=True)
        ]
        found = values(pruned.network, x.clone())
        return sum(_relative(y.float(), t.float()) for y, t in zip(found, wanted, strict=True))

    return minimize(pruned.network, batches, loss, schedule, "the pruned network", seed)


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """The squared error of values relative to their variance, both means over the batch."""
    return (found - wanted).square().mean() / wanted.var().clamp_min(torch.finfo(wanted.dtype).tiny)


def _constants(network: nn.Module, example: Tensor) -> dict[str, str | None]:
    """Layers to whose output a constant can be added: the path of the BatchNorm that takes it, None for an own bias."""
    graph, found = trace(network, example), {}
    times = Counter(layer_of(graph, node) for node in graph.graph.nodes)
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        layer, users = graph.get_submodule(node.target), [*node.users]
        if getattr(layer, "bias", None) is not None:
            found[node.target] = None
        elif len(users) == 1 and users[0].op == "call_module" and channel_dim(layer) in (1, 1 - len(shape_of(node))):
            norm = graph.get_submodule(users[0].target)
            if isinstance(norm, NORMS) and norm.running_mean is not None and times[norm] == 1:  # it serves this layer
                found[node.target] = users[0].target
    return found


@torch.no_grad()
def _solve(
    slim: nn.Module, model: CostModel, kept: Mapping[str, Tensor], moments: Mapping[str, Tensor], ridge: float
) -> None:
    """Give the layers that read cut channels the weights, and constants, that make up for them best."""
    left, constants = stays(model.network, [*model.groups.values()], kept), _constants(model.network, model.example)
    inputs = {path: channels for (path, dim), channels in left.items() if dim}
    if wrong := sorted(moments.keys() ^ inputs):
        raise ValueError(f"moments and the layers that read channels differ in {wrong[:9]}")
    present = {path for path, _ in slim.named_modules()}
    for path in [path for path, channels in inputs.items() if path in present and not channels.all()]:
        whole = model.network.get_submodule(path)
        own = F.pad(whole.weight.double().flatten(1), (0, 1)).T  # (F + 1, outputs), no constant beside the bias
        if (shape := tuple(moments[path].shape)) != (len(own), len(own)):
            raise ValueError(f"moments of {path!r} have shape {shape}, not {2 * (len(own),)}; measure this network's")
        size = len(own) - (path not in constants)
        gram = moments[path].to(own.device)[:size, :size]
        normal = Normal(gram, gram @ own[:size], 1, whole.weight[0, 0].numel(), path in constants, own[:size])
        layer, weights = slim.get_submodule(path), normal.solve(ridge, inputs[path].nonzero()[:, 0])
        if (path, 0) in left:  # outputs of it may have gone as well
            weights = weights[:, left[path, 0].to(weights.device)]
        linear = weights[: len(weights) - normal.intercept]
        layer.weight.copy_(linear.T.reshape(layer.weight.shape))
        if not normal.intercept:
            continue
        if constants[path] is None:
            layer.bias += weights[-1]
        else:  # it subtracts its mean from what it gets
            slim.get_submodule(constants[path]).running_mean -= weights[-1]
