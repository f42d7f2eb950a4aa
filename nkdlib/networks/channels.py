"""Groups of channels that can be cut only together, and cutting them out of a module.

`torch.fx` traces the module; the channels of each value (dimension 1, of tokens the last one) form a group; a
convolution or linear layer reads one group and makes another; depthwise convolutions, BatchNorm and element-wise
operations carry a group on; sums and products tie two groups into one; a concatenation sets groups side by side. Groups
that touch the module's input or output, a layer that is called twice, or an operation that is not known here, stay
whole; so do those that cannot be cut as this graph says, as one trial of them shows: weights that are shared,
computed, or read outside their layer, and values that only training reads. (Our own; MorphNet's OpRegularizerManager
plays this role for TensorFlow graphs.)
"""

import operator

import torch
from torch import Tensor, fx, nn

from nkdlib.networks.cutting import NOTHING, ChannelGroup, Trial
from nkdlib.networks.module import NORMS
from nkdlib.networks.trace import shape_of, trace

CARRIERS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d),
)
CARRYING = {
    *("relu", "relu_", "relu6", "silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "dropout", "stochastic_depth"),
    *("adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "boolean_dispatch", "contiguous"),
}
TYING = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
OUTSIDE = "a tensor outside a layer"
JOINING = {torch.cat, torch.concat, torch.concatenate}


Value = tuple[ChannelGroup, ...]  # the channels of one node's output: one group, or several side by side


def channel_groups(module: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """Inner channel groups of a module, in the order in which they are made.

    Args:
        module: traceable by torch.fx, with channels in dimension 1, or behind a linear layer in the last.
        example: (B, C, ...), an input of the module.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> [group] = channel_groups(net, torch.zeros(1, 3, 4, 4))
    >>> group.size, group.producers, group.carriers, group.consumers
    (8, ['0'], ['1'], ['3'])
    """
    return _find(module, example)[0]


def inner_groups(module: nn.Module, example: Tensor, joined: bool = True) -> list[ChannelGroup]:
    """The inner channel groups of a module, on request without concatenated ones; ValueError if there is none."""
    groups = [group for group in channel_groups(module, example) if joined or not group.starts]
    if not groups:
        raise ValueError(
            f"width was given for a neighbourhood ({type(module).__name__}) that has no inner channels to leave "
            f"out; in the way: {obstacles(module, example)}; give a student module instead"
        )
    return groups


def obstacles(module: nn.Module, example: Tensor) -> str:
    """What keeps channels whole, an uninformative example and the most frequent first, and where it comes first."""
    way = _find(module, example)[1]
    if len(way) > 1:
        way.pop(OUTSIDE, None)  # an operation says more
    most = sorted(way.items(), key=lambda item: (not item[0].startswith(NOTHING), -len(item[1])))[:3]
    said = [
        f"{what} ({places[0] or 'itself'}{f' and {len(places) - 1} more' * (len(places) > 1)})" for what, places in most
    ]
    return ", ".join(said) or "nothing is both made and read inside"


def _find(module: nn.Module, example: Tensor) -> tuple[list[ChannelGroup], dict[str, list[str]]]:
    """The groups that can be cut; what keeps others whole, and where."""
    graph = trace(module, example)
    values: dict[fx.Node, Value] = {}  # of each node's output
    way: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        shape, sources = shape_of(node), [values[source] for source in node.all_input_nodes if source in values]
        if node.op == "output" or len(shape) < 2:
            _keep_whole(*sources)
        elif (value := _visit(node, sources, values, graph)) is not None:
            values[node] = value
        else:
            _keep_whole(*sources)
            values[node] = (_begun(node, graph),)
            if node.op != "placeholder":
                way.setdefault(_describe(node, graph), []).append([*node.meta.get("nn_module_stack", ()), ""][-2:][0])
    found = dict.fromkeys(group for value in values.values() for group in value)
    inner = [group for group in found if group.inner and group.producers and group.consumers]
    return _proven(Trial(module, example), inner, way), way


def _proven(trial: Trial, groups: list[ChannelGroup], way: dict[str, list[str]]) -> list[ChannelGroup]:
    """The groups that can be cut without harm; the others are noted with what was in the way before."""
    if not groups or not (fault := trial.fault(groups)):
        return groups
    if len(groups) == 1:
        way.setdefault(fault, []).append(groups[0].name)
        return []
    middle = len(groups) // 2
    return [group for half in (groups[:middle], groups[middle:]) for group in _proven(trial, half, way)]


def width_of(group: ChannelGroup, width: float) -> int:
    """The number of a group's channels that a width leaves: a width up to 1 is a share, others are numbers."""
    if not width > 0 or (width > 1 and width % 1):
        raise ValueError(
            f"width (={width}) must be a share above 0 and up to 1, or a whole number of channels "
            f"of layer {group.name!r}, 1 to {group.size}"
        )
    channels = round(group.size * width) if width <= 1 else int(width)
    return min(max(channels, 1), group.size)


def _visit(node: fx.Node, sources: list[Value], values: dict[fx.Node, Value], graph: fx.GraphModule) -> Value | None:
    """The channels of one node's output, if known; records the layer at the groups that it makes, carries or reads."""
    layer = graph.get_submodule(node.target) if node.op == "call_module" else None
    shape, before = shape_of(node), sources[0] if sources else ()
    size = sum(group.size for group in before)
    tokens = _makes_tokens(node, graph)
    fits, once = all(group.tokens == tokens for group in before), layer is None or _once(node)
    only_values = len(sources) == len(node.all_input_nodes)
    if isinstance(layer, nn.Conv2d | nn.Linear) and len(sources) == 1 and once:
        grouped = getattr(layer, "groups", 1)
        if grouped == 1 and fits and size == layer.weight.shape[1]:
            _record("consumers", node.target, before)
            return (ChannelGroup(shape[-1 if tokens else 1], producers=[node.target], tokens=tokens),)
        if fits and grouped == layer.weight.shape[0] == size:  # depthwise
            _record("carriers", node.target, before)
            return before
    elif isinstance(layer, NORMS) and once and fits:
        _record("carriers", node.target, before)
        return before
    elif isinstance(layer, CARRIERS):
        if once:
            _record("passers", node.target, before)
        return before
    elif _called(node) in CARRYING:
        return before
    elif node.op == "call_function" and node.target in TYING and sources and only_values:
        return _tie(before, sources[-1], values)
    elif (_called(node) == "flatten" or isinstance(layer, nn.Flatten)) and shape_of(node.all_input_nodes[0])[
        1
    ] == shape[1]:
        return before  # (B, C, 1, 1) -> (B, C)
    elif node.target in JOINING and only_values and _dim(node) == 1:
        return tuple(group for source in (node.args or (node.kwargs["tensors"],))[0] for group in values[source])
    return None


def _makes_tokens(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether a node is a linear layer whose channels are in the last dimension, not in dimension 1."""
    linear = node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Linear)
    return linear and len(shape_of(node)) > 2


def _once(node: fx.Node) -> bool:
    """Whether the graph calls a node's layer nowhere else."""
    return len(node.graph.find_nodes(op="call_module", target=node.target)) == 1


def _begun(node: fx.Node, graph: fx.GraphModule) -> ChannelGroup:
    """The group of a value that nothing is known about but the layer that makes it."""
    if _makes_tokens(node, graph) and _once(node):
        return ChannelGroup(shape_of(node)[-1], producers=[node.target], tokens=True)
    return ChannelGroup(shape_of(node)[1], inner=False)


def _describe(node: fx.Node, graph: fx.GraphModule) -> str:
    """An operation past which channels cannot be followed, without the place."""
    if node.op != "call_module":
        return _called(node) or OUTSIDE
    layer = graph.get_submodule(node.target)
    times = len(node.graph.find_nodes(op="call_module", target=node.target))
    tokens = " on the last dimension" * _makes_tokens(node, graph)
    return type(layer).__name__ + tokens + f" that is called {times} times" * (times > 1)


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    if node.op == "call_method":
        return node.target
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _dim(node: fx.Node) -> int:
    """The dimension of a concatenation."""
    return (*node.args[1:], *(node.kwargs[name] for name in ("dim", "axis") if name in node.kwargs), 0)[0]


def _keep_whole(*values: Value) -> None:
    for value in values:
        for group in value:
            group.inner = False


def _record(role: str, path: str, value: Value) -> None:
    """Note a layer at each group of its input, and the group's first channel in a concatenation."""
    start = 0
    for group in value:
        layers = getattr(group, role)
        if path not in layers:
            layers.append(path)
        if len(value) > 1:
            group.starts.setdefault(path, []).append(start)
        start += group.size


def _tie(a: Value, b: Value, values: dict[fx.Node, Value]) -> Value:
    """Merge the groups of two values pair by pair, the later into the earlier; returns those of `a`."""
    kinds = [[(group.size, group.tokens) for group in value] for value in (a, b)]
    if kinds[0] != kinds[1]:  # broadcast over channels, or set apart otherwise
        _keep_whole(a, b)
        return a
    order = list(dict.fromkeys(group for value in values.values() for group in value))
    merged: dict[ChannelGroup, ChannelGroup] = {}

    def now(group: ChannelGroup) -> ChannelGroup:
        while group in merged:
            group = merged[group]
        return group

    for pair in zip(a, b, strict=True):
        first, second = sorted(map(now, pair), key=order.index)
        if first is not second:
            _absorb(first, second)
            merged[second] = first
    values.update({node: tuple(map(now, value)) for node, value in values.items()})
    return tuple(map(now, a))


def _absorb(first: ChannelGroup, second: ChannelGroup) -> None:
    """Tie the second group to the first."""
    for path, starts in second.starts.items():
        first.starts[path] = sorted({*first.starts.get(path, []), *starts})
    for name in ("producers", "consumers", "carriers", "passers"):
        layers = getattr(first, name)
        layers.extend(path for path in getattr(second, name) if path not in layers)
    first.inner &= second.inner
