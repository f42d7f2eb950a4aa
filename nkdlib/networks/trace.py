"""A module as a graph of operations whose nodes know the shapes of their outputs."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nkdlib.networks.module import check_example, check_plain, evaluating


def layer_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn whose forward pass a layer runs, as a subclass too; None of other modules.

    >>> class Small(nn.Conv2d):
    ...     pass
    >>> layer_class(Small(1, 1, 1)).__name__, layer_class(nn.Sequential())
    ('Conv2d', None)
    """
    kind = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))
    own = any(getattr(type(module), name, 0) is not getattr(kind, name, 0) for name in ("forward", "_conv_forward"))
    return None if own or "forward" in vars(module) or kind in (nn.Module, nn.Sequential) else kind


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or layer_class(m) is not None


def trace(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace a module by torch.fx in evaluation mode and run an example through the graph.

    Args:
        module: it stays as it is.
        example: (B, ...), an input of the module.

    Raises:
        ValueError: a module that cannot be traced, that wraps the real one, or that does not take the example.

    >>> [shape_of(node) for node in trace(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3)).graph.nodes]
    [(4, 3), (4, 2), (4, 2)]
    """
    name = type(module).__name__
    check_plain(module)
    check_example(example)
    with evaluating(module), _unchanged(module), torch.no_grad():  # tracing writes the mode into stochastic depth
        try:
            graph = fx.GraphModule(module, _Tracer().trace(module), name)
        except Exception as error:
            raise ValueError(
                f"module (={name}) cannot be traced by torch.fx ({error}); its forward must not depend on values; "
                "for neighbourhoods, give students as modules instead"
            ) from error
        try:
            with redirect_stderr(io.StringIO()):  # it prints what it raises
                ShapeProp(graph.eval()).propagate(example.clone())  # the module may begin by working in place
        except Exception as error:
            given = f"{tuple(example.shape)}, {example.dtype} on {example.device}"
            raise ValueError(f"module (={name}) does not take an input {given}: {error.__cause__ or error}") from error
    return graph


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back all attributes after the block: torch.fx keeps constants among them, a forward pass what it likes."""
    held = {part: dict(vars(part)) for part in module.modules()}
    try:
        yield
    finally:
        for part, attributes in held.items():
            vars(part).clear()
            vars(part).update(attributes)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a traced node's output; empty if that is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()
