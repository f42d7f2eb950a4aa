"""A module as a graph of operations whose nodes know the shapes of their outputs."""

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nkdlib.networks.module import evaluating


def trace(module: nn.Module, example: Tensor, tracer: fx.Tracer | None = None) -> fx.GraphModule:
    """Trace a module by torch.fx in evaluation mode and run an example through the graph.

    Args:
        module: its own mode, weights and buffers stay as they are.
        example: (B, ...), an input of the module.
        tracer: decides which submodules stay as they are; torch.fx's own by default.

    Raises:
        ValueError: a module that cannot be traced, or that does not take the example.

    >>> [shape_of(node) for node in trace(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3)).graph.nodes]
    [(4, 3), (4, 2), (4, 2)]
    """
    name = type(module).__name__
    with evaluating(module), torch.no_grad():  # tracing writes the mode into calls such as stochastic depth
        try:
            graph = fx.GraphModule(module, (tracer or fx.Tracer()).trace(module), name)
        except Exception as error:
            raise ValueError(
                f"module (={name}) cannot be traced by torch.fx ({error}); its forward must not depend on values; "
                "for neighbourhoods, give students as modules instead"
            ) from error
        try:
            ShapeProp(graph.eval()).propagate(example.clone())  # the module may begin by working in place
        except Exception as error:
            raise ValueError(f"module (={name}) does not take an input {tuple(example.shape)}: {error}") from error
    return graph


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a traced node's output; empty if that is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()
