"""What a network predicts, how often it is right, and what that took."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nkdlib.networks.module import device_of
from nkdlib.training.store import images_of


@torch.no_grad()
def predict(model: nn.Module, inputs: Iterable) -> Tensor:
    """Logits for all batches, (N, classes), float32 on the CPU; the model is left in evaluation mode.

    >>> predict(nn.Identity(), [torch.eye(4), torch.eye(4)]).shape
    torch.Size([8, 4])
    """
    model, device = model.eval(), device_of(model)
    logits = [model(images_of(batch).to(device)).float().cpu() for batch in inputs]
    if not logits:
        raise ValueError("inputs holds no batch; give at least one")
    return torch.cat(logits)


def accuracy(model: nn.Module, inputs: Iterable) -> float:
    """Top-1 accuracy in percent over batches of (images, labels).

    >>> accuracy(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    75.0
    """
    device, right = device_of(model.eval()), []
    with torch.no_grad():
        for images, labels in inputs:
            right.append(model(images.to(device)).argmax(1).cpu() == labels.cpu())
    if not right:
        raise ValueError("inputs holds no batch; give at least one")
    right = torch.cat(right)
    return 100 * right.sum().item() / len(right)


def spent_at(quality: float, spent: Sequence[float], reached: Sequence[float]) -> float | None:
    """What has to be spent to reach a quality, read off a curve of separate runs, None where none gets there.

    Between the last run below the quality and the first run at it, the budget is interpolated on a logarithmic
    scale; a quality that the smallest run already reaches costs what that run cost.

    Args:
        quality: to reach.
        spent: of each run, positive (seconds, steps or images), in growing order.
        reached: quality of each run.

    >>> spent_at(85.0, [1.0, 4.0], [80.0, 90.0])
    2.0
    """
    for i, value in enumerate(reached):
        if value >= quality:
            if i == 0:
                return float(spent[0])
            share = (quality - reached[i - 1]) / (value - reached[i - 1])
            return math.exp(math.log(spent[i - 1]) * (1 - share) + math.log(spent[i]) * share)
    return None
