"""Feature maps of any classification network, by torchvision's feature extraction."""

import copy
import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.models.feature_extraction import DualGraphModule, create_feature_extractor, get_graph_node_names

from nkdlib.networks.module import evaluating
from nkdlib.networks.trace import layer_class

Tap = int | str  # a stride, or the name of a submodule or of a node of the traced network


def feature_maps(network: nn.Module, example: Tensor, taps: Sequence[Tap]) -> fx.GraphModule:
    """Cut feature maps out of a copy of a network, without the layers that they do not need.

    It is torchvision's `create_feature_extractor`, which follows training and evaluation mode, with maps that are
    named by stride. A map that the next layer changes in place is returned changed.

    Args:
        network: any module that takes one tensor and that torch.fx can trace; not changed.
        example: (B, C, H, W), of which only shape and device matter.
        taps: each a stride, meaning the last map of that stride, before the global pooling, through which everything
            passes; or a submodule, meaning its output ("features.13.block.0"); or a node, as torchvision names them.
            Parts of torchvision's own operators, such as `Conv2dNormActivation`, are no nodes.

    Returns:
        A module from images to a dictionary of maps (B, channels, height, width) by tap, in the order in which the
        network makes them.

    Raises:
        ValueError: a network that cannot be traced or does not take the example; a tap that is no feature map, or the
            same as another; hooks, or layers under `torch.no_grad()`, that the copy would lose.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> feature_maps(network, images := torch.zeros(1, 3, 32, 32), taps=[2])(images)["2"].shape
    torch.Size([1, 8, 16, 16])
    """
    name, network = type(network).__name__, copy.deepcopy(network)
    leaves = [type(layer) for layer in network.modules() if layer_class(layer) not in (None, type(layer))]
    how = {"tracer_kwargs": {"leaf_modules": leaves}, "suppress_diff_warning": True}
    try:
        train, evaluation = get_graph_node_names(network, **how)
    except Exception as error:
        raise ValueError(
            f"network (={name}) cannot be traced by torch.fx ({error}); "
            "rewrite its forward without branches on the values of tensors"
        ) from error
    whole = create_feature_extractor(network, None, train, evaluation, **how).eval()
    try:
        with torch.no_grad():
            values = whole(example.clone())  # by node; the network may begin by working in place
    except Exception as error:
        raise ValueError(
            f"network (={name}) does not take images {tuple(example.shape)}: {error}; give others (to ssdlite: "
            "channels or size)"
        ) from error
    shapes = {node: tuple(getattr(value, "shape", ())) for node, value in values.items()}
    strides = _strides(whole.graph, shapes, example.shape[-1])
    chosen = {_node(tap, strides, shapes): str(tap) for tap in taps}
    if len(chosen) < len(taps):
        raise ValueError(f"taps (={taps}) name one feature map twice; give each once")
    maps = create_feature_extractor(network, chosen, **how)
    graphs = (fx.GraphModule(maps, graph) for graph in (maps.train_graph, maps.eval_graph))
    maps = _joined(maps, *graphs, maps.training, {})
    _check_kept(network, set(maps.modules()), example)
    maps.contrary = _contrary(network, maps)
    return maps


class FeatureMaps(DualGraphModule):
    """Torchvision's module with a graph for each mode, pickled and copied with both and with the layers' modes.

    Its own pickle keeps one graph, and its own copy is in training mode.
    """

    contrary: Mapping[bool, Sequence[str]] = {}  # by mode, layers that the network's own `train` leaves in the other
    __deepcopy__ = None  # copied by what it is pickled as

    def train(self, mode: bool = True) -> "FeatureMaps":
        super().train(mode)
        for path in self.contrary.get(mode, ()):
            self.get_submodule(path).training = not mode
        return self

    def __reduce__(self) -> tuple:
        parts = nn.Module()
        for kind in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            getattr(parts, kind).update(getattr(self, kind))
        graphs = (fx.GraphModule(self, graph) for graph in (self.train_graph, self.eval_graph))
        return _joined, (parts, *graphs, self.training, self.contrary)


def _joined(
    parts: nn.Module, train: fx.GraphModule, evaluation: fx.GraphModule, mode: bool, contrary: Mapping
) -> FeatureMaps:
    with evaluating(parts):  # layers get their own modes back
        maps = FeatureMaps(parts, train.graph, evaluation.graph)
        maps.contrary = contrary
        return maps.train(mode)


def _contrary(network: nn.Module, maps: FeatureMaps) -> dict[bool, list[str]]:
    """By mode, the layers of maps that a network's own `train` leaves in the other one, such as frozen BatchNorms."""
    found = {}
    with evaluating(network), evaluating(maps):
        for mode in (True, False):
            network.train(mode)
            modes = {part: part.training for part in network.modules()}
            maps.train(mode)
            found[mode] = [
                path for path, part in maps.named_modules() if modes.get(part, part.training) != part.training
            ]
    return found


def _strides(graph: fx.Graph, shapes: dict[str, tuple[int, ...]], size: int) -> dict[int, str]:
    """By stride, the last map that no connection passes by, so that all of the network up to it takes part in it."""
    *nodes, output = graph.nodes
    name_of = {node: name for name, node in output.args[0].items()}
    place = {node: index for index, node in enumerate(nodes)}
    found, furthest, reached = {}, 0, set()
    for node in nodes:
        image, shape = node.op == "placeholder", shapes.get(name_of.get(node), ())
        if not shape or not (image or reached.intersection(node.all_input_nodes)):
            continue  # no tensor, or a constant
        reached.add(node)
        if len(shape) == 4 and not image and furthest <= place[node] and shape[-1] > 1:
            halvings = [2**k for k in range(12) if -(-size // 2**k) == shape[-1]]
            found[halvings[0] if halvings else round(size / shape[-1])] = name_of[node]
        furthest = max([furthest, *(place[user] for user in node.users if user is not output)])
    return found


def _node(tap: Tap, strides: dict[int, str], shapes: dict[str, tuple[int, ...]]) -> str:
    """Name of the node that makes the map which a tap means."""
    if isinstance(tap, int):
        if tap not in strides:
            raise ValueError(
                f"tap (={tap}) is no stride of a map through which everything passes; choose from {list(strides)}, "
                "or name a submodule"
            )
        return strides[tap]
    inside = [node for node in shapes if f"{node}.".startswith(f"{tap}.")]
    if not inside:
        close = difflib.get_close_matches(tap, shapes, 5, 0.3)
        raise ValueError(f"tap (={tap!r}) is no submodule or node that the network calls; close to it are {close}")
    if len(shapes[inside[-1]]) != 4:
        raise ValueError(f"tap (={tap!r}) gives {shapes[inside[-1]]}; name one that gives (B, channels, height, width)")
    return inside[-1]


def _check_kept(network: nn.Module, kept: set[nn.Module], example: Tensor) -> None:
    """Raise ValueError for hooks and for layers without gradients, of which a traced copy does not know."""
    path_of = {module: path for path, module in network.named_modules()}
    for module, path in path_of.items():
        if module not in kept and (module._forward_hooks or module._forward_pre_hooks):  # there is no public way
            raise ValueError(f"hooks of {path or 'the network'} would be lost; remove them before")

    def look(module: nn.Module, _: tuple) -> None:
        if module in kept and not torch.is_grad_enabled():
            raise ValueError(
                f"{path_of[module]} runs under torch.no_grad(), which would be lost; freeze its parameters"
            )

    with evaluating(network), torch.enable_grad(), register_module_forward_pre_hook(look):
        network(example.clone())
