"""Which channels of a module belong together, and the module that is left when some of them are cut out.

`torch.fx` traces the module; the channels of each value (dimension 1) form a group; a convolution or linear layer reads
one group and makes another; depthwise convolutions, BatchNorm and element-wise operations carry a group on; sums and
products tie two groups into one. Groups that touch the module's input or output, or an operation that is not known
here, stay whole. (Our own; MorphNet's OpRegularizerManager plays this role for TensorFlow graphs.)
"""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nkdlib.models.modes import evaluating

CARRIERS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
)
CARRYING = {
    *("relu", "relu_", "relu6", "silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "dropout", "stochastic_depth"),
    *("adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "boolean_dispatch", "contiguous"),
}
TYING = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}


@dataclass(eq=False)
class ChannelGroup:
    """Channels that live or die together, and the layers that know them, by submodule path in forward order."""

    size: int
    producers: list[str] = field(default_factory=list)  # convolutions and linear layers that make them
    consumers: list[str] = field(default_factory=list)  # and that read them
    carriers: list[str] = field(default_factory=list)  # depthwise convolutions and BatchNorms, one entry a channel
    inner: bool = True  # can be cut without changing the module's input or output

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.producers[0]


def trace(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """The module as a graph whose nodes know their shapes; ValueError where torch.fx cannot trace it."""
    with evaluating(module):  # before tracing, which writes the mode into calls such as stochastic depth
        try:
            graph = fx.symbolic_trace(module)
        except Exception as error:
            raise ValueError(
                f"module (={type(module).__name__}) cannot be traced by torch.fx ({error}); "
                "give students as modules and train them instead of narrowing or solving"
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
    groups: dict[fx.Node, ChannelGroup] = {}  # of each node's output
    for node in graph.graph.nodes:
        shape, sources = _shape(node), [source for source in node.all_input_nodes if source in groups]
        if node.op == "output" or shape is None or len(shape) < 2:
            for source in sources:
                groups[source].inner = False
        else:
            groups[node] = _visit(node, shape, sources, groups, graph)
    return [g for g in dict.fromkeys(groups.values()) if g.inner and g.producers and g.consumers]


def _visit(
    node: fx.Node,
    shape: tuple[int, ...],
    sources: list[fx.Node],
    groups: dict[fx.Node, ChannelGroup],
    graph: fx.GraphModule,
) -> ChannelGroup:
    """The group of one node's output; records the layer at the groups that it makes, carries or reads."""
    layer = graph.get_submodule(node.target) if node.op == "call_module" else None
    before = groups[sources[0]] if sources else None
    channels_last = isinstance(layer, nn.Linear) and len(shape) > 2  # tokens: not in dimension 1
    if isinstance(layer, nn.Conv2d | nn.Linear) and len(sources) == 1 and not channels_last:
        grouped = getattr(layer, "groups", 1)
        if grouped == 1 and before.size == layer.weight.shape[1]:
            before.consumers.append(node.target)
            return ChannelGroup(shape[1], producers=[node.target])
        if grouped == layer.weight.shape[0] == before.size:  # depthwise
            before.carriers.append(node.target)
            return before
    elif isinstance(layer, nn.BatchNorm2d):
        before.carriers.append(node.target)
        return before
    elif isinstance(layer, CARRIERS) or _named(node) in CARRYING:
        return before
    elif node.op == "call_function" and node.target in TYING and sources and len(sources) == len(node.all_input_nodes):
        return _tie(before, groups[sources[-1]], groups)
    elif (_named(node) == "flatten" or isinstance(layer, nn.Flatten)) and _shape(sources[0])[1] == shape[1]:
        return before  # (B, C, 1, 1) -> (B, C)
    for source in sources:
        groups[source].inner = False
    return ChannelGroup(shape[1], inner=False)


def _tie(a: ChannelGroup, b: ChannelGroup, groups: dict[fx.Node, ChannelGroup]) -> ChannelGroup:
    """Make two groups one, the earlier of them."""
    first = next(group for group in groups.values() if group in (a, b))
    second = b if first is a else a
    if first is second:
        return first
    if first.size != second.size:  # broadcast over channels: nothing to cut on either side
        first.inner = second.inner = False
        return first
    for name in ("producers", "consumers", "carriers"):
        getattr(first, name).extend(getattr(second, name))
    first.inner &= second.inner
    groups.update({node: first for node, group in groups.items() if group is second})
    return first


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
    for name, index in keep.items():
        if name not in known:
            raise ValueError(f"keep names {name!r}, which is no inner channel group; choose from {list(known)}")
        if len(index) == 0:
            raise ValueError(f"keep[{name!r}] is empty; leave at least one channel")
        group = known[name]
        index = torch.as_tensor(index).sort().values
        for path in (*group.producers, *group.carriers):
            _slice(slim.get_submodule(path), index, dim=0)
        for path in group.consumers:
            _slice(slim.get_submodule(path), index, dim=1)
    return slim


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
