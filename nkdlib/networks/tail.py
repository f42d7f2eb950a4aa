"""How a traced module ends: output = activation(scale * layer(z) + rest), the rest being free of that layer.

The layer is the deepest convolution or linear layer. Between it and the activation lie BatchNorm, sums, products with
constants and what passes values on, as modules, functions or methods, in place or not.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from nkdlib.networks.cutting import TENSORS
from nkdlib.networks.module import NORMS
from nkdlib.networks.trace import layer_class, shape_of

ACTIVATIONS = {"relu", "relu6", "silu", "gelu", "hardswish", "leakyrelu", "elu", "clamp", "clampmin"}
PASSING = {"identity", "dropout", "dropout2d", "stochasticdepth", "contiguous"}
SUMS = {"add", "iadd", "sub", "isub"}
PRODUCTS = {"mul", "imul", "div", "truediv", "itruediv"}  # with constants
Spot = tuple[fx.Node, fx.Node]  # a value, and the node just before which it is read


@dataclass(frozen=True)
class Tail:
    """The nodes at a traced module's end."""

    layer: fx.Node
    norm: fx.Node | None  # the BatchNorm behind it, if that has weights and statistics that are its own
    end: fx.Node  # the activation, or the output where there is none

    @property
    def before(self) -> Spot:
        """The value before the activation."""
        return read_by(self.end)


def read_by(node: fx.Node) -> Spot:
    """The first value that a node takes, as it is then."""
    return node.all_input_nodes[0], node


def read_after(node: fx.Node) -> Spot:
    """The value that a node gives, as it is then."""
    return node, node.next


def output_of(graph: fx.GraphModule) -> fx.Node:
    """The output node."""
    return next(node for node in graph.graph.nodes if node.op == "output")


def layer_of(graph: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return graph.get_submodule(node.target) if node is not None and node.op == "call_module" else None


def _named(graph: fx.GraphModule, node: fx.Node) -> str:
    """What a node calls: the name of a module's class (of torch.nn, if it runs that), of a function or a method."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    layer = layer_of(graph, node)
    return node.target if layer is None else (layer_class(layer) or type(layer)).__name__


def _kind(graph: fx.GraphModule, node: fx.Node) -> str:
    """`_named` for comparisons: `F.leaky_relu_`, `torch.nn.LeakyReLU` are "leakyrelu"; "" where nothing is called."""
    calls = node.op in ("call_function", "call_method", "call_module")
    return _named(graph, node).lower().replace("_", "") if calls else ""


def find_end(graph: fx.GraphModule) -> fx.Node:
    """The last activation of a traced module, or its output where it does not end in one."""
    end = node = output_of(graph)
    while len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
        if _kind(graph, node) in ACTIVATIONS and len(node.all_input_nodes) == 1:
            return node
        if _kind(graph, node) not in PASSING:
            break
    return end


def find_tail(graph: fx.GraphModule, strict: bool = True) -> Tail | None:
    """The tail of a traced module; where its last layer cannot be solved a ValueError, if `strict`, or None."""
    try:
        return _find_tail(graph)
    except ValueError:
        if strict:
            raise
        return None


def _find_tail(graph: fx.GraphModule) -> Tail:
    depth, fixed, end = {}, set(), find_end(graph)  # how many layers lie on the longest way to a node; constants
    for node in graph.graph.nodes:
        here = isinstance(layer_of(graph, node), nn.Conv2d | nn.Linear)
        depth[node] = here + max((depth[n] for n in node.all_input_nodes), default=0)
        if node.op != "placeholder" and not here and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
    layer, way = end.all_input_nodes[0], [end]
    while not isinstance(layer_of(graph, layer), nn.Conv2d | nn.Linear):
        if depth[layer] == 0:
            raise _unsolvable(graph, layer)
        way.append(layer)
        layer = max(layer.all_input_nodes, key=depth.get)
    if getattr(layer_of(graph, layer), "groups", 1) != 1:
        raise _unsolvable(graph, layer)
    norm = way[-1] if _settable(graph, layer, way[-1]) else None
    given, wanted = norm or layer, end.all_input_nodes[0]
    used, touched, odd = {wanted}, {given}, []
    for node in reversed(graph.graph.nodes):
        used.update(node.all_input_nodes if node in used else ())
    for node in graph.graph.nodes:
        if node in used and node is not given and touched.intersection(node.all_input_nodes):
            touched.add(node)
            kind, module = _kind(graph, node), layer_of(graph, node)
            scaled = kind in PRODUCTS and sum(n not in fixed for n in node.args if isinstance(n, fx.Node)) == 1
            normed = isinstance(module, NORMS) and module.running_mean is not None
            odd += [] if scaled or normed or kind in SUMS | PASSING else [node]
    if odd or shape_of(wanted) != shape_of(given):
        raise _unsolvable(graph, odd[-1] if odd else wanted)
    return Tail(layer, norm, end)


def _settable(graph: fx.GraphModule, layer: fx.Node, node: fx.Node) -> bool:
    """Whether a node is a BatchNorm of the layer's channels that nothing else depends on."""
    norm = layer_of(graph, node)
    if not isinstance(norm, NORMS) or len(layer.users) != 1 or any(getattr(norm, name) is None for name in TENSORS):
        return False
    channels = isinstance(layer_of(graph, layer), nn.Conv2d) or len(shape_of(layer)) == 2
    return channels and readers(graph, norm) == [node] and _writable(norm, "weight") and _writable(norm, "bias")


def _unsolvable(graph: fx.GraphModule, node: fx.Node) -> ValueError:
    """The error that names the node in the way."""
    what, module = node.op, layer_of(graph, node)
    if _kind(graph, node):
        what = _named(graph, node) + (f" ({node.target!r})" if module else "")
    if isinstance(module, NORMS) and module.running_mean is None:
        what += " without running statistics, whose outputs depend on the other images of a batch,"
    if getattr(module, "groups", 1) != 1:
        what += f" of groups (={module.groups})"
    return ValueError(
        f"a neighbourhood that ends in {what} cannot be solved; it must end in a convolution or linear layer, then "
        "BatchNorm, sums, products with constants and an activation, each optional. "
        "Use start='given', 'random' or 'copied'"
    )


def readers(graph: fx.GraphModule, module: nn.Module) -> list[fx.Node]:
    """The nodes that read a module's parameters, by calling it or another one that shares them, or by themselves."""
    own, found = {id(p) for p in module.parameters()}, []
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            read = [getattr(graph.get_submodule(owner), name, None)]
        else:
            read = called.parameters() if (called := layer_of(graph, node)) is not None else ()
        if own.intersection(map(id, read)):
            found.append(node)
    return found


def write(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module's weight or bias values, through its parametrization if it has one."""
    if nn.utils.parametrize.is_parametrized(module, name):
        setattr(module, name, value)
    else:
        getattr(module, name).copy_(value)


def _writable(module: nn.Module, name: str) -> bool:
    """Whether a weight or bias holds any value that it is given."""
    value = getattr(module, name)
    if value is None or isinstance(value, nn.Parameter):
        return True
    if not nn.utils.parametrize.is_parametrized(module, name):
        return False
    copied = copy.deepcopy(module)
    wanted = (
        value.flip(0) + torch.linspace(0.5, 1.5, value.numel(), device=value.device).reshape(value.shape) * value.std()
    )
    write(copied, name, wanted)
    return torch.allclose(getattr(copied, name), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def check_settable(graph: fx.GraphModule, node: fx.Node) -> None:
    """Raise ValueError for a layer that cannot be given weights, or shares them."""
    path, layer = node.target, layer_of(graph, node)
    if len(reading := readers(graph, layer)) > 1:
        others = sorted({str(node.target) for node in reading} - {path})
        what = f"shares weights with {', '.join(others)}" if others else f"is applied {len(reading)} times"
        raise ValueError(f"layer {path!r} {what} and cannot be solved; use start='given', 'random' or 'copied'")
    for name in ("weight", "bias"):
        if not _writable(layer, name):
            raise ValueError(
                f"layer {path!r} computes its {name} (spectral or weight normalization, pruning), and holds no other; "
                f"remove that (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm), "
                "or use start='given', 'random' or 'copied'"
            )


def tap(graph: fx.GraphModule, spots: Sequence[Spot], filled: fx.Node | None = None) -> fx.GraphModule:
    """The traced module up to some values, giving copies of them, since layers work in place.

    With `filled`, it takes a second input, a number, and each element of that node's value is replaced by it.
    """
    again, copied, found = fx.Graph(), {}, {}
    for node in graph.graph.nodes:
        for spot in spots:
            if spot[1] is node:
                found[spot] = again.call_method("clone", (copied[spot[0]],))
        if len(found) == len(set(spots)):
            break
        copied[node] = again.node_copy(node, copied.__getitem__)
        if node.op == "placeholder" and filled is not None:
            fill = again.placeholder("fill")
        if node is filled:
            copied[node] = again.call_function(torch.full_like, (copied[node], fill))
    again.output([found[spot] for spot in spots])
    return fx.GraphModule(graph, again).eval()


def activate(graph: fx.GraphModule, end: fx.Node, value: Tensor) -> Tensor:
    """The last activation of a value."""
    if end.op == "output":
        return value
    single = fx.Graph()
    x = single.placeholder("x")
    single.output(single.node_copy(end, lambda _: x))
    return fx.GraphModule(graph, single)(value.clone())
