"""Predictions of a network, and how many of them are right."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nkdlib.networks.module import device_of, in_evaluation
from nkdlib.training.store import first_images, images_of, labeled


@torch.no_grad()
def predict(model: nn.Module, inputs: Iterable) -> Tensor:
    """Logits for all batches, (N, classes), float32 on the CPU; the model is left in evaluation mode."""
    model, device = in_evaluation(model), device_of(model)
    logits = [logits_of(model, images.to(device)).float().cpu() for images in first_images(inputs)]
    if not logits:
        raise ValueError("inputs holds no batch; give at least one")
    return torch.cat(logits)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs of a model for images; ValueError unless they are one tensor (B, classes, ...)."""
    outputs = model(images.clone())  # it may begin by working in place
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or len(outputs) != len(images):
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(
            f"model (={type(model).__name__}) must return logits (B, classes) for {len(images)} images, it returned "
            f"{given}; wrap it in a module that does, or leave out its auxiliary outputs"
        )
    return outputs


def check_labels(labels: Tensor, outputs: Tensor) -> None:
    """Raise ValueError unless labels are positions of classes (B, ...) for outputs (B, classes, ...)."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels (a {type(labels).__name__}) must be a tensor of integers, one for each of the outputs")
    wanted = (*outputs.shape[:1], *outputs.shape[2:])
    if labels.shape != wanted or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels (={labels.dtype}, {tuple(labels.shape)}) must be integers {wanted}, one for each of the outputs "
            f"{tuple(outputs.shape)}, (B, classes)"
        )
    if labels.numel() and labels.device.type == "cpu" and not 0 <= labels.min() <= labels.max() < outputs.shape[1]:
        found = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"labels (={found}) must be 0 to {outputs.shape[1] - 1}; the model tells that many classes")


def accuracy(model: nn.Module, inputs: Iterable) -> float:
    """Top-1 accuracy in percent over batches of (images, labels), labels being integers (B,).

    Raises:
        ValueError: no batch, NaN in images, or labels that are not one class (B,) for each output (B, classes).

    >>> accuracy(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    75.0
    """
    device, right = device_of(in_evaluation(model)), []
    with torch.no_grad():
        for number, batch in enumerate(inputs):
            images, labels = labeled(batch, "inputs")
            outputs = logits_of(model, images_of(images, number).to(device))
            check_labels(labels, outputs)
            right.append(outputs.argmax(1).cpu() == labels.cpu())
    if not sum(map(len, right)):
        raise ValueError("inputs holds no batch; give at least one")
    right = torch.cat(right)
    return 100 * right.sum().item() / right.numel()
