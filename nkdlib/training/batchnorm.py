"""Running statistics of BatchNorm: measured anew, and compared with those of other inputs.

A network that is put together from parts trained apart carries statistics of inputs that its layers no longer get.
"""

import copy
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from nkdlib.networks.module import NORMS, in_evaluation, in_training
from nkdlib.training.store import first_images


class _Population:
    """Mean and variance of all values that a BatchNorm with momentum 1 normalizes, over several batches.

    Fvcore's `_PopulationVarianceEstimator` (fvcore/nn/precise_bn.py; Wu and Johnson, "Rethinking 'Batch' in BatchNorm",
    arXiv 2105.07576): the spread of the batches' means is part of the variance. The mean of the batches' variances
    leaves it out, and is too small by more the smaller and the less alike the batches are. Here with Bessel's
    correction, as torch's own `running_var`.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        """Add the batch that `norm` has just normalized; a forward hook."""
        count = inputs[0].numel() // inputs[0].shape[1]
        total, shift = self.count + count, norm.running_mean.double() - self.mean
        within = norm.running_var.double() * (count - 1)
        self.squares = self.squares + within + shift.square() * (self.count * count / total)  # Chan et al. 1979
        self.mean, self.count = self.mean + shift * (count / total), total


def _as_weights(x: Tensor, model: nn.Module) -> Tensor:
    """A copy of inputs on a model's device: numbers in the type of its first weights, token ids as they are."""
    weights = next(tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return x.to(weights.device, weights.dtype if x.is_floating_point() else x.dtype, copy=True)


# DEVIATION D4: the paper's abstract says nothing of BatchNorm in a recomposed network.
@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, inputs: Iterable, images: int = 1024, within: Iterable[str] = ("",)
) -> nn.Module:
    """Replace BatchNorm's running statistics by those of the first `images` inputs, in place.

    Every layer normalizes by the statistics of the batch meanwhile. See `_Population` for the estimator.

    Args:
        model: left in evaluation mode; one without BatchNorm is left alone.
        inputs: batches of images, with or without labels.
        images: how many to use at most.
        within: names of the submodules whose statistics are replaced; all others keep theirs.

    Raises:
        ValueError: `inputs` holds no batch of two images.

    >>> batches = torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 3.0)
    >>> norm = reestimate_batchnorm(nn.BatchNorm2d(1), batches)
    >>> norm.running_mean, norm.running_var * 31 / 32
    (tensor([1.5000]), tensor([2.2500]))
    """
    norms = [m for m in in_evaluation(model).modules() if isinstance(m, NORMS) and m.track_running_stats]
    if not norms:
        return model
    replaced = {m for name in within for m in model.get_submodule(name).modules()}
    found, seen = {norm: _Population() for norm in norms if norm in replaced}, 0
    with ExitStack() as undo:
        undo.callback(model.eval)
        for norm in norms:
            undo.callback(norm.load_state_dict, copy.deepcopy(norm.state_dict()))
            undo.callback(setattr, norm, "momentum", norm.momentum)
            in_training(norm).momentum = 1.0
            if norm in found:
                undo.enter_context(norm.register_forward_hook(found[norm]))
        for x in first_images(inputs, images):
            if len(x) > 1:
                model(_as_weights(x, model))
                seen += len(x)
    if seen == 0:
        raise ValueError("inputs holds no batch of at least 2 images; BatchNorm cannot be re-estimated")
    for norm, population in found.items():
        if population.count:
            norm.running_mean.copy_(population.mean)
            norm.running_var.copy_(population.squares / (population.count - 1))
    return model


@torch.no_grad()
def mismatch(model: nn.Module, inputs: Iterable, images: int = 2048) -> dict[str, float]:
    """Distance of inputs from a network's training data, by its BatchNorms' running statistics alone.

    Kullback-Leibler divergence between Gaussians with the running statistics and with those of the inputs, in nats,
    mean over channels: about 0 for images of the training data.

    Args:
        model: left in evaluation mode.
        inputs: batches of images, with or without labels.
        images: how many to use at most.

    Returns:
        By the name of each BatchNorm that the network runs in evaluation mode, front to back.

    Raises:
        ValueError: no BatchNorm with running statistics, or fewer than two values of a channel.
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, NORMS) and m.track_running_stats}
    if not norms:
        raise ValueError(f"model (={type(model).__name__}) has no BatchNorm with running statistics")
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms.values()}

    def note(norm: nn.Module, taken: tuple[Tensor]) -> None:
        x = taken[0].double()
        count, others = torch.full((x.shape[1],), x.numel() / x.shape[1], device=x.device), (0, *range(2, x.dim()))
        sums[norm] += torch.stack([count, x.sum(others), x.square().sum(others)]).cpu()

    model.eval()
    with ExitStack() as hooks:
        for norm in norms.values():
            hooks.enter_context(norm.register_forward_pre_hook(note))
        for x in first_images(inputs, images):
            model(_as_weights(x, model))
    found, run = {}, {name: norm for name, norm in norms.items() if sums[norm].any()}
    for name, norm in (run or norms).items():
        count, total, squares = sums[norm]
        if count.min() < 2:
            found = f"{name!r} gets {count.min():.0f} values a channel"
            raise ValueError(f"inputs holds no image or too few: {found}; give more images, 2 at least")
        mean, variance = total / count, squares / count - (total / count).square() + norm.eps
        memory = norm.running_var.cpu().double() + norm.eps
        shift = (mean - norm.running_mean.cpu()).square() / variance
        found[name] = (0.5 * (memory / variance + shift - 1 + (variance / memory).log())).mean().item()
    return found
