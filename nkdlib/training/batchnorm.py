"""BatchNorm's running statistics, measured anew.

A network that is put together from parts trained apart carries statistics of inputs that its layers no longer see.
"""

from collections.abc import Iterable

import torch
from torch import nn

from nkdlib.training.store import images_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# DEVIATION D4: the paper's abstract says nothing of BatchNorm in a recomposed network.
@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, inputs: Iterable, images: int = 1024) -> nn.Module:
    """Replace the running statistics by plain averages over the first `images` inputs, in place.

    Weights stay as they are; every layer is measured on what the layers before it produce with batch statistics.

    Args:
        model: left in evaluation mode; one without BatchNorm is left alone.
        inputs: batches of images, with or without labels.
        images: how many to use at most.

    Raises:
        ValueError: `inputs` holds no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
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
        for batch in inputs:
            x = images_of(batch)[: max(images - seen, 0)]
            if len(x) < 2:
                break
            for norm in norms:
                norm.momentum = len(x) / (seen + len(x))  # each image counts the same, whatever its batch
            model(x.to(device, torch.float32))
            seen += len(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    if seen == 0:
        raise ValueError("inputs holds no batch of at least 2 images; BatchNorm cannot be re-estimated")
    return model
