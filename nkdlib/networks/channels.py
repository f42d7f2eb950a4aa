"""Which channels of a module belong together, and the module that is left when some of them are cut out.

`torch.fx` traces the module; the channels of each value (dimension 1) form a group; a convolution or linear layer reads
one group and makes another; depthwise convolutions, BatchNorm and element-wise operations carry a group on; sums and
products tie two groups into one; a concatenation sets groups side by side. Groups that touch the module's input or
output, a layer that is called twice, or an operation that is not known here, stay whole. (Our own; MorphNet's
OpRegularizerManager plays this role for TensorFlow graphs.)
"""

import copy
import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nkdlib.networks.module import evaluating

CARRIERS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d),
)
CARRYING = {
    *("relu", "relu_", "relu6", "silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "dropout", "stochastic_depth"),
    *("adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "boolean_dispatch", "contiguous"),
}
TYING = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
JOINING = {torch.cat, torch.concat, torch.concatenate}


@dataclass(eq=False)
class ChannelGroup:
    """Channels that live or die together, and the layers that know them, by submodule path in forward order."""

    size: int
    producers: list[str] = field(default_factory=list)  # convolutions and linear layers that make them
    consumers: list[str] = field(default_factory=list)  # and that read them
    carriers: list[str] = field(default_factory=list)  # depthwise convolutions and BatchNorms, one entry a channel
    passers: list[str] = field(default_factory=list)  # activations and pooling that are called once
    starts: dict[str, list[int]] = field(default_factory=dict)  # places in layers that take a concatenation
    inner: bool = True  # can be cut without changing the module's input or output

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.producers[0]

    def places(self, path: str) -> list[slice]:
        """Where its channels lie among those that a layer reads or carries; 0 to size unless it is concatenated."""
        return [slice(start, start + self.size) for start in self.starts.get(path, [0])]


Value = tuple[ChannelGroup, ...]  # the channels of one node's output: one group, or several side by side


def trace(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """The module as a graph whose nodes know their shapes; ValueError where torch.fx cannot trace it."""
    with evaluating(module):  # before tracing, which writes the mode into calls such as stochastic depth
        try:
            graph = fx.symbolic_trace(module)
        except Exception as error:
            raise ValueError(
                f"module (={type(module).__name__}) cannot be traced by torch.fx ({error}); "
                "its forward must not depend on values; for neighbourhoods, give students as modules instead"
            ) from error
        with torch.no_grad():
            ShapeProp(graph.eval()).propagate(example.clone())  # the module may begin by working in place
    return graph


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def channel_groups(module: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The inner channel groups of a module, in the order in which they are made; `example` is (B, C, H, W)."""
    graph = trace(module, example)
    values: dict[fx.Node, Value] = {}  # of each node's output
    for node in graph.graph.nodes:
        shape, sources = _shape(node), [source for source in node.all_input_nodes if source in values]
        if node.op == "output" or shape is None or len(shape) < 2:
            _keep_whole(*(values[source] for source in sources))
        else:
            values[node] = _visit(node, shape, sources, values, graph)
    found = dict.fromkeys(group for value in values.values() for group in value)
    return [g for g in found if g.inner and g.producers and g.consumers]


def inner_groups(module: nn.Module, example: Tensor, joined: bool = True) -> list[ChannelGroup]:
    """The inner channel groups of a module, on request without concatenated ones; ValueError if there is none."""
    groups = [group for group in channel_groups(module, example) if joined or not group.starts]
    if not groups:
        raise ValueError(
            f"width was given for a neighbourhood ({type(module).__name__}) that has no inner channels to leave "
            "out; give a student module instead"
        )
    return groups


def width_of(group: ChannelGroup, width: float) -> int:
    """The number of a group's channels that a width leaves: a width up to 1 is a share, others are numbers."""
    if not width > 0 or (width > 1 and width % 1):
        raise ValueError(f"width (={width}) must be a share above 0 and up to 1, or a whole number of channels")
    channels = round(group.size * width) if width <= 1 else int(width)
    return min(max(channels, 1), group.size)


def _visit(
    node: fx.Node,
    shape: tuple[int, ...],
    sources: list[fx.Node],
    values: dict[fx.Node, Value],
    graph: fx.GraphModule,
) -> Value:
    """The channels of one node's output; records the layer at the groups that it makes, carries or reads."""
    layer = graph.get_submodule(node.target) if node.op == "call_module" else None
    before = values[sources[0]] if sources else ()
    size = sum(group.size for group in before)
    channels_last = isinstance(layer, nn.Linear) and len(shape) > 2  # tokens: not in dimension 1
    once = layer is None or len(node.graph.find_nodes(op="call_module", target=node.target)) == 1
    if isinstance(layer, nn.Conv2d | nn.Linear) and len(sources) == 1 and once and not channels_last:
        grouped = getattr(layer, "groups", 1)
        if grouped == 1 and size == layer.weight.shape[1]:
            _record("consumers", node.target, before)
            return (ChannelGroup(shape[1], producers=[node.target]),)
        if grouped == layer.weight.shape[0] == size:  # depthwise
            _record("carriers", node.target, before)
            return before
    elif isinstance(layer, nn.BatchNorm2d) and once:
        _record("carriers", node.target, before)
        return before
    elif isinstance(layer, CARRIERS):
        if once:
            _record("passers", node.target, before)
        return before
    elif _named(node) in CARRYING:
        return before
    elif node.op == "call_function" and node.target in TYING and sources and len(sources) == len(node.all_input_nodes):
        return _tie(before, values[sources[-1]], values)
    elif (_named(node) == "flatten" or isinstance(layer, nn.Flatten)) and _shape(sources[0])[1] == shape[1]:
        return before  # (B, C, 1, 1) -> (B, C)
    elif node.target in JOINING and len(sources) == len(node.all_input_nodes) and 1 in (*node.args[1:], *_dim(node)):
        return tuple(group for source in (node.args or (node.kwargs["tensors"],))[0] for group in values[source])
    _keep_whole(*(values[source] for source in sources))
    return (ChannelGroup(shape[1], inner=False),)


def _dim(node: fx.Node) -> list[int]:
    return [value for name, value in node.kwargs.items() if name in ("dim", "axis")]


def _keep_whole(*values: Value) -> None:
    for value in values:
        for group in value:
            group.inner = False


def _record(role: str, path: str, value: Value) -> None:
    """Note a layer at each group of its input, and where a concatenation puts the group."""
    start = 0
    for group in value:
        layers = getattr(group, role)
        if path not in layers:
            layers.append(path)
        if len(value) > 1:
            group.starts.setdefault(path, []).append(start)
        start += group.size


def _tie(a: Value, b: Value, values: dict[fx.Node, Value]) -> Value:
    """Make the groups of two values one, each pair the earlier of the two; returns what `a` is then."""
    if [group.size for group in a] != [group.size for group in b]:  # broadcast over channels, or set apart otherwise
        _keep_whole(a, b)
        return a
    order = list(dict.fromkeys(group for value in values.values() for group in value))
    renamed: dict[ChannelGroup, ChannelGroup] = {}
    for pair in zip(a, b, strict=True):
        first, second = sorted((_now(group, renamed) for group in pair), key=order.index)
        if first is not second:
            _absorb(first, second)
            renamed[second] = first
    values.update({node: tuple(_now(group, renamed) for group in value) for node, value in values.items()})
    return tuple(_now(group, renamed) for group in a)


def _now(group: ChannelGroup, renamed: Mapping[ChannelGroup, ChannelGroup]) -> ChannelGroup:
    while group in renamed:
        group = renamed[group]
    return group


def _absorb(first: ChannelGroup, second: ChannelGroup) -> None:
    """Tie the second group to the first."""
    for path, starts in second.starts.items():
        first.starts[path] = sorted({*first.starts.get(path, []), *starts})
    for name in ("producers", "consumers", "carriers", "passers"):
        layers = getattr(first, name)
        layers.extend(path for path in getattr(second, name) if path not in layers)
    first.inner &= second.inner


def _named(node: fx.Node) -> str:
    if node.op == "call_method":
        return node.target
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def cut(module: nn.Module, groups: list[ChannelGroup], keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with only some channels of some groups left.

    Args:
        module: what `groups` were found in.
        groups: from `channel_groups`.
        keep: for a group's name, the indices (int64) of the channels that stay; other groups stay whole.

    Raises:
        ValueError: a name that is no inner group, or no channel left in one.
    """
    known = {group.name: group for group in groups}
    slim = copy.deepcopy(module)
    kept: dict[tuple[str, int], list[tuple[slice, Tensor]]] = defaultdict(list)  # by layer and dimension
    for name, index in keep.items():
        if name not in known:
            raise ValueError(f"keep names {name!r}, which is no inner channel group; choose from {list(known)}")
        if len(index) == 0:
            raise ValueError(f"keep[{name!r}] is empty; leave at least one channel")
        group = known[name]
        for path in group.producers:
            kept[path, 0].append((slice(0, group.size), torch.as_tensor(index)))
        for dim, paths in enumerate((group.carriers, group.consumers)):
            for path in paths:
                kept[path, dim].extend((place, torch.as_tensor(index)) for place in group.places(path))
    for (path, dim), parts in kept.items():
        layer = slim.get_submodule(path)
        stays = torch.ones(_channels(layer, dim), dtype=torch.bool)
        for place, index in parts:
            stays[place] = False
            stays[place.start + index.cpu()] = True
        _slice(layer, stays.nonzero()[:, 0], dim)
    return slim


def _channels(layer: nn.Module, dim: int) -> int:
    """How many outputs (dim 0) or inputs (dim 1) a layer has."""
    return layer.num_features if isinstance(layer, nn.BatchNorm2d) else layer.weight.shape[dim]


def _slice(layer: nn.Module, index: Tensor, dim: int) -> None:
    """Keep the channels `index` of a layer: its outputs (dim 0) or its inputs (dim 1)."""
    for name in ("weight",) if dim == 1 else ("weight", "bias", "running_mean", "running_var"):
        if (value := getattr(layer, name, None)) is None:
            continue
        kept = value.detach().index_select(dim, index.to(value.device))
        setattr(layer, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(index)
    else:
        unit = "features" if isinstance(layer, nn.Linear) else "channels"
        setattr(layer, f"{('out', 'in')[dim]}_{unit}", len(index))
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # depthwise: carried, one filter a channel
        layer.groups = layer.in_channels = len(index)
