"""Which channels of a module belong together, and the module that is left when some of them are cut out.

A channel can be cut where every layer that makes, carries or reads it is known. `torch.fx` traces the module; the
channels of each value (dimension 1) form a group; a convolution or linear layer reads one group and makes another;
depthwise convolutions, BatchNorm and element-wise operations carry a group on; sums and products tie two groups
into one. Groups that touch the module's input or output, or an operation that is not known here, are not inner and
stay whole. (Our own; MorphNet's OpRegularizerManager plays this role for TensorFlow graphs.)
"""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

CARRIERS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
)
CARRYING = {
    *("relu", "relu_", "relu6", "silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "dropout"),
    *(
        "adaptive_avg_pool2d",
        "avg_pool2d",
        "max_pool2d",
        "boolean_dispatch",
        "stochastic_depth",
        "contiguous",
    ),
}
TYING = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}


@dataclass
class ChannelGroup:
    """Channels that live or die together, and the layers that know them, by submodule path.

    `producers` make them (outputs of a convolution or linear layer), `consumers` read them, in the order of the
    forward pass; `carriers` are depthwise convolutions and BatchNorms with one entry per channel. `inner` is True
    where the group can be cut without changing the module's input or output.
    """

    size: int
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    carriers: list[str] = field(default_factory=list)
    inner: bool = True

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.producers[0]


class _Groups:
    """Union-find over the channel groups met while walking a traced graph."""

    def __init__(self) -> None:
        self.all: list[ChannelGroup] = []
        self.of: dict[fx.Node, int] = {}
        self.parent: list[int] = []

    def new(self, size: int, inner: bool = True) -> int:
        self.all.append(ChannelGroup(size, inner=inner))
        self.parent.append(len(self.parent))
        return self.parent[-1]

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def at(self, node: fx.Node) -> ChannelGroup:
        return self.all[self.root(self.of[node])]

    def tie(self, a: fx.Node, b: fx.Node) -> int:
        i, j = sorted((self.root(self.of[a]), self.root(self.of[b])))
        if i == j:
            return i
        first, second = self.all[i], self.all[j]
        if first.size != second.size:  # broadcast over channels: nothing to cut on either side
            first.inner = second.inner = False
            return i
        for name in ("producers", "consumers", "carriers"):
            getattr(first, name).extend(getattr(second, name))
        first.inner &= second.inner
        self.parent[j] = i
        return i


def trace(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """The module as a graph whose nodes know their shapes.

    Raises:
        ValueError: torch.fx cannot trace the module (its forward branches on values).
    """
    modes = {child: child.training for child in module.modules()}
    module.eval()  # before tracing, which writes the mode into calls of functions such as stochastic depth
    try:
        try:
            graph = fx.symbolic_trace(module)
        except Exception as error:
            raise ValueError(
                f"module (={type(module).__name__}) cannot be traced by torch.fx ({error}); "
                "give students as modules and train them instead of narrowing or solving"
            ) from error
        with torch.no_grad():
            ShapeProp(graph.eval()).propagate(example.clone())  # the module may begin by working in place
    finally:
        for child, mode in modes.items():
            child.training = mode
    return graph


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def channel_groups(module: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The inner channel groups of a module, in the order in which they are made.

    Args:
        module: takes and returns one tensor with channels in dimension 1.
        example: (B, C, H, W), an input of the right shape.

    Raises:
        ValueError: the module cannot be traced.
    """
    graph, groups = trace(module, example), _Groups()
    for node in graph.graph.nodes:
        shape = _shape(node)
        sources = [n for n in node.all_input_nodes if n in groups.of]
        if node.op == "output" or shape is None or len(shape) < 2:
            for source in sources:
                groups.at(source).inner = False
        else:
            groups.of[node] = _visit(node, shape, sources, groups, graph)
    roots = sorted({groups.root(i) for i in range(len(groups.all))})
    found = [groups.all[i] for i in roots]
    return [group for group in found if group.inner and group.producers and group.consumers]


def _visit(
    node: fx.Node, shape: tuple[int, ...], sources: list[fx.Node], groups: _Groups, graph: fx.GraphModule
) -> int:
    """The group of one node's output; records the layer at the groups that it makes, carries or reads."""
    layer = graph.get_submodule(node.target) if node.op == "call_module" else None
    channels_last = isinstance(layer, nn.Linear) and len(shape) > 2  # tokens: not in dimension 1
    if isinstance(layer, nn.Conv2d | nn.Linear) and len(sources) == 1 and not channels_last:
        source, grouped = sources[0], getattr(layer, "groups", 1)
        if grouped == 1 and groups.at(source).size == layer.weight.shape[1]:
            groups.at(source).consumers.append(node.target)
            made = groups.new(shape[1])
            groups.all[made].producers.append(node.target)
            return made
        if grouped == layer.weight.shape[0] == groups.at(source).size:  # depthwise
            groups.at(source).carriers.append(node.target)
            return groups.of[source]
    elif isinstance(layer, nn.BatchNorm2d):
        groups.at(sources[0]).carriers.append(node.target)
        return groups.of[sources[0]]
    elif isinstance(layer, CARRIERS) or _named(node) in CARRYING:
        return groups.of[sources[0]]
    elif node.op == "call_function" and node.target in TYING and sources and len(sources) == len(node.all_input_nodes):
        return groups.tie(sources[0], sources[-1])
    elif _named(node) == "flatten" or isinstance(layer, nn.Flatten):
        before = _shape(sources[0])
        if before is not None and before[1] == shape[1]:  # (B, C, 1, 1) -> (B, C)
            return groups.of[sources[0]]
    for source in sources:
        groups.at(source).inner = False
    return groups.new(shape[1], inner=False)


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

    Returns:
        A plain module without the other channels, its weights copied.

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
        for path in group.producers:
            _slice(slim.get_submodule(path), index, dim=0)
        for path in group.carriers:
            _slice(slim.get_submodule(path), index, dim=0)
        for path in group.consumers:
            _slice(slim.get_submodule(path), index, dim=1)
    return slim


def _slice(layer: nn.Module, index: Tensor, dim: int) -> None:
    """Keep the channels `index` of a layer: its outputs (dim 0) or its inputs (dim 1)."""
    index = index.to(layer.weight.device) if layer.weight is not None else index
    for name in ("weight",) if dim == 1 else ("weight", "bias", "running_mean", "running_var"):
        value = getattr(layer, name, None)
        if value is None:
            continue
        kept = value.detach().index_select(dim, index).clone()
        setattr(layer, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(index)
    else:
        unit = "features" if isinstance(layer, nn.Linear) else "channels"
        setattr(layer, f"{('out', 'in')[dim]}_{unit}", len(index))
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # depthwise: carried, one filter a channel
        layer.groups = layer.in_channels = len(index)
