"""Predictions of a network, and how many of them are right."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nkdlib.networks.module import device_of
from nkdlib.training.store import images_of


@torch.no_grad()
def predict(model: nn.Module, inputs: Iterable) -> Tensor:
    """Logits for all batches, (N, classes), float32 on the CPU; the model is left in evaluation mode."""
    model, device = model.eval(), device_of(model)
    logits = [model(images_of(batch).to(device)).float().cpu() for batch in inputs]
    if not logits:
        raise ValueError("inputs holds no batch; give at least one")
    return torch.cat(logits)


def check_shapes(predictions: Tensor, wanted: Tensor, names: str) -> None:
    """Raise ValueError unless two tensors have one shape, since those of different shapes may broadcast."""
    if predictions.shape != wanted.shape:
        raise ValueError(f"{names} must have one shape; they have {tuple(predictions.shape)} and {tuple(wanted.shape)}")


def accuracy(model: nn.Module, inputs: Iterable) -> float:
    """Top-1 accuracy in percent over batches of (images, labels), labels being integers (B,).

    Raises:
        ValueError: no batch, or labels of another shape than the predictions.

    >>> accuracy(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    75.0
    """
    device, right = device_of(model.eval()), []
    with torch.no_grad():
        for images, labels in inputs:
            predicted = model(images.to(device)).argmax(1).cpu()
            check_shapes(predicted, labels, "predictions and labels")
            right.append(predicted == labels.cpu())
    if not right:
        raise ValueError("inputs holds no batch; give at least one")
    right = torch.cat(right)
    return 100 * right.sum().item() / right.numel()
