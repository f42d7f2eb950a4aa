"""BatchNorm's running statistics, measured anew.

A network that is put together from parts trained apart carries statistics of inputs that its layers no longer see.
"""

import copy
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from nkdlib.networks.module import device_of
from nkdlib.training.store import first_images

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# DEVIATION D4: the paper's abstract says nothing of BatchNorm in a recomposed network.
@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, inputs: Iterable, images: int = 1024, within: Iterable[str] = ("",)
) -> nn.Module:
    """Replace running statistics by averages over the first `images` inputs, in place, by batch statistics.

    Args:
        model: left in evaluation mode; one without BatchNorm is left alone.
        inputs: batches of images, with or without labels.
        images: how many to use at most.
        within: submodules whose statistics are replaced, by name; the others normalize by what they see meanwhile
            and then have their own again.

    Raises:
        ValueError: `inputs` holds no batch.

    >>> reestimate_batchnorm(nn.BatchNorm2d(1), [torch.full((4, 1, 2, 2), 3.0)]).running_mean
    tensor([3.])
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    replaced = {m for name in within for m in model.get_submodule(name).modules()}
    own = {norm: copy.deepcopy(norm.state_dict()) for norm in norms if norm not in replaced}
    model.eval()
    if not norms:
        return model
    device = norms[0].running_mean.device
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    try:
        for x in first_images(inputs, images):
            if len(x) < 2:
                break
            for norm in norms:
                norm.momentum = len(x) / (seen + len(x))  # each image counts the same, whatever its batch
            model(x.to(device, torch.float32))
            seen += len(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for norm, state in own.items():
            norm.load_state_dict(state)
        model.eval()
    if seen == 0:
        raise ValueError("inputs holds no batch of at least 2 images; BatchNorm cannot be re-estimated")
    return model


@torch.no_grad()
def mismatch(model: nn.Module, inputs: Iterable, images: int = 2048) -> dict[str, float]:
    """How far inputs are from those that a network was trained on, by nothing but what its BatchNorms remember.

    Kullback-Leibler divergence of a Gaussian with the mean and variance that are seen from one with those that are
    remembered, in nats, mean over channels: about 0 for images of the training data.

    Args:
        model: left in evaluation mode.
        inputs: batches of images, with or without labels.
        images: how many to use at most.

    Returns:
        By the name of each BatchNorm2d, front to back.

    Raises:
        ValueError: no BatchNorm2d with statistics, or no image.

    >>> from nkdlib.networks import resnet
    >>> list(mismatch(resnet(8, 10, seed=0), [torch.randn(32, 3, 8, 8)]))[:2]
    ['stem.1', 'layer1.0.bn1']
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats}
    if not norms:
        raise ValueError(f"model (={type(model).__name__}) has no BatchNorm2d that remembers anything")
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms.values()}

    def note(norm: nn.Module, taken: tuple[Tensor]) -> None:
        x = taken[0].double()
        count = torch.full((x.shape[1],), x.numel() / x.shape[1], device=x.device)
        sums[norm] += torch.stack([count, x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]).cpu()

    device = device_of(model.eval())
    with ExitStack() as hooks:
        for norm in norms.values():
            hooks.enter_context(norm.register_forward_pre_hook(note))
        for x in first_images(inputs, images):
            model(x.to(device, torch.float32))
    found = {}
    for name, norm in norms.items():
        count, total, squares = sums[norm]
        if not count.all():
            raise ValueError("inputs holds no image; the mismatch cannot be measured")
        mean, variance = total / count, squares / count - (total / count).square() + norm.eps
        memory = norm.running_var.cpu().double() + norm.eps
        shift = (mean - norm.running_mean.cpu()).square() / variance
        found[name] = (0.5 * (memory / variance + shift - 1 + (variance / memory).log())).mean().item()
    return found
