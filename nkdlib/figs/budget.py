"""The best channels and operators within a budget, by any scores, and plain scores that a search is compared with.

Scores are one number for each channel of a group, and one for each operator, by name; infinity always stays, minus
infinity never.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nkdlib.figs.cost_model import CostModel
from nkdlib.networks.module import NORMS

Scores = dict[str, Tensor]  # (size,) of each group, (1,) of each operator


def check_target(model: CostModel, metric: str, target: float) -> None:
    """Raise ValueError for an unknown cost, or a target below the smallest or above the largest network."""
    if metric not in model.metrics:
        raise ValueError(f"metric (={metric!r}) must be one of {', '.join(model.metrics)}")
    smallest = {name: int(name in model.groups) for name in model.sizes}
    for path, part in model.sums.items():
        names = part.paths(path)
        if names and not part.optional:
            smallest[min(names, key=lambda name: model.total(smallest | {name: 1}, metric))] = 1
    least, most = (model.total(counts, metric) for counts in (smallest, model.sizes))
    if not least <= target <= most:
        raise ValueError(f"target (={target:,}) must lie between {least:,.6g} and {most:,.6g} {metric} of this network")


def living(model: CostModel, scores: Tensor) -> Tensor:
    """Channels and operators with a score above 0, bool of the scores' shape; of those that need one, the best."""
    lives = scores > 0
    for slot in model.needed:
        if not lives[slot].any():
            lives[slot.start + int(scores[slot].argmax())] = True
    return lives


def counts_above(model: CostModel, scores: Mapping[str, Tensor], edge: float) -> dict[str, int]:
    """Numbers of channels and operators with scores above `edge`, by name."""
    lives = living(model, _joined(model, scores) - edge)
    return {name: int(lives[slot].sum()) for name, slot in model.slots.items()}


@torch.no_grad()
def keep_best(model: CostModel, scores: Mapping[str, Tensor], metric: str, target: float) -> dict[str, int]:
    """Keep the channels and operators with the highest scores that a target has room for.

    All above the lowest score with which the cost does not exceed the target stay; then those that still fit are let
    in, the best first.

    Args:
        model: of the network.
        scores: of its channels and operators, see above.
        metric: a cost that the model knows.
        target: the largest cost allowed.

    Returns:
        How many channels stay in each group, and whether (0 or 1) each operator does, by name.

    Raises:
        ValueError: scores of another network or NaN, an unknown cost, or a target that no choice meets.

    >>> from nkdlib.networks import residual_space
    >>> model = CostModel(residual_space(10, blocks=(1,), widths=(8,)), torch.zeros(1, 3, 8, 8))
    >>> keep_best(model, score_evenly(model), "params", 800)
    {'0.0': 5, '2.body.operators.3x3.0.0': 6, '2.body.operators.3x3': 1}
    """
    check_target(model, metric, target)
    flat = _joined(model, scores)
    owner = torch.arange(len(model.sizes))
    owner = owner.repeat_interleave(torch.tensor(list(model.sizes.values())))

    def numbers_above(edge: float) -> Tensor:
        return torch.bincount(owner[living(model, flat - edge)], minlength=len(model.sizes)).double()

    def fits(numbers: Tensor) -> bool:
        return model.expected(numbers, metric).item() <= target

    every = flat[flat.isfinite()].double().unique()
    edges = torch.cat([every[:1] - 1, (every[1:] + every[:-1]) / 2, every[-1:] + 1]).tolist() or [0.0]
    low, high = 0, len(edges) - 1  # too much lives above edges[low], little enough above edges[high]
    if fits(numbers_above(edges[low])):
        high = low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(numbers_above(edges[middle])) else (middle, high)
    numbers, lives = numbers_above(edges[high]), living(model, flat - edges[high])
    if not fits(numbers):
        raise ValueError(
            f"target (={target:,}) cannot be met with the operators that are kept: with one channel in each group "
            f"they cost {model.expected(numbers, metric).item():,.6g} {metric}"
        )
    for place in flat.argsort(descending=True).tolist():
        if not lives[place] and flat[place] != -torch.inf:
            numbers[owner[place]] += 1
            if not fits(numbers):
                numbers[owner[place]] -= 1
    return dict(zip(model.sizes, map(int, numbers.tolist()), strict=True))


def _joined(model: CostModel, scores: Mapping[str, Tensor]) -> Tensor:
    """Scores as one vector, (channels and operators,)."""
    sizes = {name: score.numel() for name, score in scores.items()}
    if wrong := sorted(dict(sizes.items() ^ model.sizes.items())):
        raise ValueError(
            f"scores and the groups and operators of the network differ in {wrong[:9]}; score this network"
        )
    if unknown := [name for name, score in scores.items() if score.isnan().any()]:
        raise ValueError(f"scores of {unknown[0]!r} hold NaN; check the weights that they were made from")
    return torch.cat([scores[name].detach().cpu().reshape(-1) for name in model.sizes])


def score_evenly(model: CostModel, by: Scores | None = None) -> Scores:
    """Scores that keep the same share of every group and all operators: uniform width.

    by: scores of each group's channels, of which the best stay; by default the first.
    """
    even = {name: 1 - _ranks(name, group.size, by) for name, group in model.groups.items()}
    return even | {path: torch.tensor([torch.inf]) for path in model.operators}


def _ranks(name: str, size: int, by: Scores | None) -> Tensor:
    """Each channel's place in its group, the best first, as a share of the group: (size,), from 0 to 1."""
    order = torch.arange(size) if by is None else by[name].argsort(descending=True, stable=True)
    return torch.empty(size).scatter_(0, order.cpu(), (torch.arange(size) + 0.5) / size)


def score_at_random(model: CostModel, seed: int, spread: float = 1.0, by: Scores | None = None) -> Scores:
    """Scores of random widths and operators: random pruning of the same network.

    Our choice: every group keeps a random share around the same one (logit-normal with this spread), every operator
    stays with probability 1/2, and of a sum with no path around it at least one.

    by: see `score_evenly`.
    """
    draw, scores = torch.Generator().manual_seed(seed), {}
    for name, group in model.groups.items():
        scores[name] = torch.randn((), generator=draw) * spread - _ranks(name, group.size, by).logit()
    for path, part in model.sums.items():
        names = part.paths(path)
        stays = torch.rand(len(names), generator=draw) < 0.5
        if not part.optional and not stays.any():
            stays[int(torch.randint(len(names), (), generator=draw))] = True
        scores |= {
            name: torch.where(kept, torch.inf, -torch.inf)[None] for name, kept in zip(names, stays, strict=True)
        }
    return scores


def score_by_scale(model: CostModel) -> Scores:
    """BatchNorm's scales as scores, as AtomNAS (arXiv 1912.09640) and MorphNet (arXiv 1711.06798) prune.

    Raises:
        ValueError: a group that no BatchNorm carries.
    """
    return _with_operators(model, lambda name: scales(model, name).detach())


def score_by_magnitude(model: CostModel) -> Scores:
    """Norms of the weights that make a channel, as shares of the layer's mean (our reading of magnitude pruning).

    So channels of layers of any size are compared with each other.
    """

    def norms(name: str) -> Tensor:
        made = [
            model.network.get_submodule(path).weight.flatten(1).norm(dim=1) for path in model.groups[name].producers
        ]
        return (
            torch.stack([norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny) for norm in made]).amax(0).detach()
        )

    return _with_operators(model, norms)


def _with_operators(model: CostModel, score: Callable[[str], Tensor]) -> Scores:
    """Scores of groups, and of operators: the least of the best scores in those groups that only the operator makes."""
    scores = {name: score(name) for name in model.groups}
    for path in model.operators:
        own = [
            scores[name].max()
            for name, group in model.groups.items()
            if all(producer.startswith(f"{path}.") for producer in group.producers)
        ]
        scores[path] = torch.stack(own).min()[None] if own else torch.tensor([torch.inf])
    return scores


def scales(model: CostModel, name: str) -> Tensor:
    """|gamma| of each channel of a group, (size,), differentiable; the largest if several BatchNorms carry it."""
    group, found = model.groups[name], []
    for path in group.carriers:
        norm = model.network.get_submodule(path)
        if isinstance(norm, NORMS) and norm.weight is not None:
            found += [norm.weight[part].abs() for part in group.slices(path)]
    if not found:
        raise ValueError(f"the channels that {name!r} makes pass no BatchNorm with a scale; score them otherwise")
    return torch.stack(found).amax(0)
