"""What a network predicts, and how often it is right."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nkdlib.training.store import images_of


def device_of(model: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer lies; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


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


def agreement(model: nn.Module, teacher: nn.Module, inputs: Iterable) -> float:
    """How often two networks predict the same class, in percent.

    >>> agreement(nn.Identity(), nn.Softmax(1), [torch.eye(4)])
    100.0
    """
    batches = [images_of(batch) for batch in inputs]
    return 100 * (predict(model, batches).argmax(1) == predict(teacher, batches).argmax(1)).float().mean().item()
