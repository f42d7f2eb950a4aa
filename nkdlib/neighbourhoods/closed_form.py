"""A student neighbourhood solved instead of trained: which channels to keep, and the weights that read them.

Given the features z that a neighbourhood's last linear layer reads and the value t that the teacher has before its last
activation, the best weights solve a ridge regression, W = (Z'Z + r)^-1 Z'T, and the error that a channel's removal adds
is known exactly, tr(W_c' [G^-1]_cc^-1 W_c) with G = Z'Z + r. (Our extension. Layer-wise reconstruction as in He, Zhang
and Sun 2017, arXiv 1707.06168; backward elimination as in optimal brain surgeon, Hassibi and Stork 1993.)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from nkdlib.networks.channels import channel_groups, inner_groups, width_of
from nkdlib.networks.cutting import ChannelGroup, channel_dim, cut
from nkdlib.networks.least_squares import Normal, columns, normal_equations, outputs
from nkdlib.networks.module import evaluating, in_evaluation
from nkdlib.networks.tail import (
    activate,
    check_settable,
    find_end,
    find_tail,
    layer_of,
    output_of,
    read_after,
    read_by,
    tap,
    write,
)
from nkdlib.networks.trace import trace

Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # batches of (the teacher's input, the student's input)


def elimination_order(normal: Normal, ridge: float, count: int | None = None) -> Tensor:
    """The order in which backward elimination drops channels, (C,), so that n channels are the last n.

    The channel whose removal raises the regularized least-squares error least goes, then G^-1 is downdated; after
    `count` of them it ends, and the others follow as they come.
    """
    k = normal.channel_features
    channels = (len(normal.gram) - normal.intercept) // k
    gram, cross = normal.regularized(ridge)
    inverse = torch.linalg.inv(gram)
    weights = inverse @ cross
    alive, order = torch.ones(channels, dtype=torch.bool, device=inverse.device), []
    one = torch.eye(k, dtype=inverse.dtype, device=inverse.device)
    for _ in range(channels if count is None else count):
        blocks = inverse[: channels * k, : channels * k].reshape(channels, k, channels, k)
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (C, k, k), [G^-1]_cc
        w = weights[: channels * k].reshape(channels, k, -1)  # (C, k, O)
        safe = torch.where(alive[:, None, None], blocks, one)
        raised = (w * (w / safe if k == 1 else torch.linalg.solve(safe, w))).sum((1, 2))
        raised[~alive] = torch.inf
        drop = int(raised.argmin())
        rows = slice(drop * k, drop * k + k)
        gain = torch.linalg.solve(inverse[rows, rows], inverse[rows])  # (k, F)
        weights.addmm_(gain.T, weights[rows].clone(), alpha=-1)
        inverse.addmm_(inverse[:, rows].clone(), gain, alpha=-1)
        alive[drop] = False
        order.append(drop)
    return torch.tensor([*order, *alive.nonzero()[:, 0].tolist()])


@dataclass(frozen=True)
class Ranking:
    """What students of every width share: the equations of the first inner group's reader, and who goes first."""

    normal: Normal
    order: Tensor  # of the group's channels, see `elimination_order`


@torch.no_grad()
def rank_channels(piece: nn.Module, pairs: Pairs, ridge: float, to_own: bool = False) -> Ranking:
    """The ranking of a neighbourhood's first inner channel group; arguments as for `solve_neighbourhood`."""
    example = next(iter(pairs()))[0][:1]
    normal = pose_least_squares(piece, piece, pairs, example, inner_groups(piece, example, joined=False)[0]).normal(
        to_own
    )
    return Ranking(normal, elimination_order(normal, ridge))


# DEVIATION D7: the paper trains by gradient steps; this is an extension, reported apart.
@torch.no_grad()
def solve_neighbourhood(
    piece: nn.Module,
    student: nn.Module | float,
    pairs: Pairs,
    ridge: float,
    ranking: Ranking | None = None,
    to_own: bool = False,
) -> nn.Module:
    """Solve one student neighbourhood.

    Args:
        piece: the teacher's neighbourhood.
        student: a module, whose last linear layer is solved on its own features, in place; or a width, for the
            teacher's own layers, each group of inner channels chosen by elimination and the layer that reads it solved.
        pairs: called anew for each pass; what teacher and student take differs when solved front to back.
        ridge: strength relative to the features' mean energy.
        ranking: from `rank_channels` with the same pairs and ridge; found anew where omitted.
        to_own: the ridge pulls to the weights that the layer has, for a width the teacher's, instead of to zero.

    Returns:
        The student, in evaluation mode.

    Raises:
        ValueError: a neighbourhood that cannot be traced or does not end in a linear layer.
    """
    example = next(iter(pairs()))[0][:1]
    if isinstance(student, nn.Module):
        whole = _whole(student)
        problem = pose_least_squares(_whole(piece), whole, pairs, example)
        _set_weights(whole, problem, problem.normal(to_own), ridge)
        return in_evaluation(student)
    width, student = student, piece
    kept: dict[str, Tensor] = {}  # by layer that makes them, the channels that stay
    for name in [group.name for group in inner_groups(piece, example, joined=False)]:
        group = next(g for g in channel_groups(student, example) if g.name == name)
        problem = pose_least_squares(piece, student, pairs, example, group, kept)
        if ranking is None:
            normal = problem.normal(to_own)
            ranking = Ranking(normal, elimination_order(normal, ridge, group.size - width_of(group, width)))
        channels = ranking.order[-width_of(group, width) :].sort().values
        kept |= dict.fromkeys(group.producers, channels)
        student = cut(student, [group], {group.name: channels})
        _set_weights(student, problem, ranking.normal, ridge, channels)
        ranking = None  # the next group is read from a student that is narrower already
    return in_evaluation(student)


@torch.no_grad()
def check_solvable(piece: nn.Module, student: nn.Module | float, example: Tensor) -> None:
    """Raise ValueError for what `solve_neighbourhood` cannot solve, as far as an example shows; arguments as there."""
    whole = _whole(student) if isinstance(student, nn.Module) else piece
    groups = [None] if isinstance(student, nn.Module) else inner_groups(piece, example, joined=False)
    for group in groups:
        pose_least_squares(_whole(piece) if group is None else piece, whole, lambda: iter(()), example, group)


def _whole(module: nn.Module) -> nn.Module:
    """The module such that torch.fx sees a layer as one."""
    return nn.Sequential(module) if isinstance(module, nn.Conv2d | nn.Linear) else module


@dataclass(frozen=True)
class LeastSquares:
    """A layer to solve, the BatchNorm behind it, and the least squares that the layer should meet."""

    path: str
    layer: nn.Module
    norm_path: str | None
    norm: nn.Module | None
    scale: Tensor  # (O,), that lies between the layer or its BatchNorm and the values
    rows: Pairs  # batches of (the features that it reads, the values that it should give)

    @property
    def intercept(self) -> bool:
        """Whether the layer or its BatchNorm adds a constant."""
        return self.layer.bias is not None or self.norm is not None

    def normal(self, to_own: bool) -> Normal:
        """Its normal equations, for a ridge that pulls to zero or to the layer's own weights."""
        equations = normal_equations(self.rows(), self.layer, self.intercept)
        return replace(equations, own=self.own() if to_own else None)

    def own(self) -> Tensor:
        """The weights that the layer has, its BatchNorm and the scale folded in, (features [+ 1], O)."""
        linear = self.layer.weight.detach().double().flatten(1).T
        shift = linear.new_zeros(linear.shape[1]) if self.layer.bias is None else self.layer.bias.detach().double()
        if self.norm is not None:
            scale = self.norm.weight.double() / (self.norm.running_var.double() + self.norm.eps).sqrt()
            linear, shift = linear * scale, (shift - self.norm.running_mean) * scale + self.norm.bias
        return (torch.cat([linear, shift[None]]) if self.intercept else linear) * self.scale

    def prove(self, features: Tensor, values: Tensor, noise: float) -> None:
        """Raise ValueError unless the layer's own weights give its own values, so that an exact copy stays exact."""
        own, z = self.own(), columns(features, self.layer).double()
        found = own[: len(z)].T @ z + (own[len(z) :].T if self.intercept else 0.0)
        if not (self.scale.all() and _close(found, outputs(values, self.layer), noise)):
            raise ValueError(
                f"layer {self.path!r} ({type(self.layer).__name__}) cannot be solved: what follows from it is not its "
                "input times its weights, scaled; remove hooks, own forward methods and scales of zero, or use "
                "start='given', 'random' or 'copied'"
            )


def pose_least_squares(
    piece: nn.Module,
    student: nn.Module,
    pairs: Pairs,
    example: Tensor,
    group: ChannelGroup | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> LeastSquares:
    """The problem of the layer that reads `group` last, or of the last layer, with `kept` channels left so far.

    Raises:
        ValueError: a module that cannot be traced, or a layer that cannot be solved.
    """
    theirs, ours, kept = _trace(piece, example), _trace(student, example), kept or {}
    path, tail = group.consumers[-1] if group else None, find_tail(ours, strict=group is None)
    if tail and path in (None, tail.layer.target):
        layer, norm, given, wanted = tail.layer, tail.norm, tail.norm or tail.layer, tail.before
        end = find_end(theirs)
        (value,) = tap(theirs, [read_by(end)])(example.clone())
        span = value.abs().max().clamp_min(1.0)  # of the values at hand, of one image: others may have eight times more
        probe = torch.cat([torch.linspace(-8, 8, 999, device=example.device) * size for size in (1, span)])
        same = activate(theirs, end, probe).equal(activate(ours, tail.end, probe))
        target = read_by(end if same else output_of(theirs))
    else:  # an inner layer, which should give what the teacher's gives
        layer, norm, target = _node(ours, path), None, read_after(_node(theirs, path))
        given, wanted = layer, read_after(layer)
    reader, whole, oracle = tap(ours, [read_by(layer), wanted], given), tap(ours, [wanted]), tap(theirs, [target])

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for x_teacher, x_student in pairs():
            features, rest = reader(x_student, 0.0)
            (values,) = oracle(x_teacher)
            if layer.target in kept:  # a layer whose own outputs have been cut
                dim = channel_dim(layer_of(ours, layer))
                values = values.index_select(dim, kept[layer.target].to(values.device))
            yield features, values - rest

    check_settable(ours, layer)
    (features, rest), (values,) = reader(example.clone(), 0.0), whole(example.clone())
    size = values.abs().max().item() or 1.0
    slope = (reader(example.clone(), size)[1] - rest).double() / size
    scale = outputs(slope, layer_of(ours, layer)).mean(1)
    problem = LeastSquares(layer.target, layer_of(ours, layer), norm and norm.target, layer_of(ours, norm), scale, rows)
    problem.prove(features, values - rest, 1e-5 * size)
    return problem


def _trace(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """A module's graph; ValueError unless it gives for an image among others what the module gives for it alone."""
    graph = trace(module, example)
    both = torch.cat([example, example.flip(-1)])
    with evaluating(module):
        (found,), wanted = tap(graph, [read_by(output_of(graph))])(both), module(example.clone())
    if not _close(found[: len(wanted)], wanted, 0.0):
        raise ValueError(
            f"module (={type(module).__name__}) gives something else for one image than its operations give for it in "
            "a batch, or values that are not finite, and cannot be solved; remove hooks, random numbers and BatchNorm "
            "without running statistics, or use start='given', 'random' or 'copied'"
        )
    return graph


def _close(found: Tensor, wanted: Tensor, noise: float) -> bool:
    """Whether two tensors are equal up to rounding (TF32's at most) and some noise."""
    return bool((found - wanted).abs().max() <= 1e-2 * wanted.abs().max() + noise)


def _node(graph: fx.GraphModule, path: str) -> fx.Node:
    return next(n for n in graph.graph.nodes if n.op == "call_module" and n.target == path)


def _set_weights(
    student: nn.Module, problem: LeastSquares, normal: Normal, ridge: float, channels: Tensor | None = None
) -> None:
    """Solve a layer; a BatchNorm behind it is set to pass its outputs on, in both of its modes."""
    layer, weights = student.get_submodule(problem.path), normal.solve(ridge, channels) / problem.scale
    linear = weights[: len(weights) - normal.intercept]
    write(layer, "weight", linear.T.reshape(layer.weight.shape).to(layer.weight))
    if not normal.intercept:
        return
    if problem.norm_path is None:
        write(layer, "bias", weights[-1].to(layer.bias))
        return
    norm = student.get_submodule(problem.norm_path)
    rows = normal.rows_of(channels.to(normal.gram.device)) if channels is not None else slice(None)
    gram = normal.gram[rows][:, rows] / normal.count
    mean = gram[-1, :-1] @ linear
    spread = ((gram[:-1, :-1] @ linear) * linear).sum(0) - mean.square()
    if layer.bias is not None:
        write(layer, "bias", torch.zeros_like(layer.bias))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(spread.clamp_min(0))
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(mean + weights[-1])
