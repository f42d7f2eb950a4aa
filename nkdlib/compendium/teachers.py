"""Teachers trained here: small residual networks on small images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nkdlib.data.images import Images, random_shift_flip
from nkdlib.networks.resnet import ResNet, resnet
from nkdlib.tasks.cache import Artefact
from nkdlib.training.end_to_end import fit
from nkdlib.training.evaluate import accuracy
from nkdlib.training.loop import Schedule


@dataclass(frozen=True)
class Architecture:
    """A ResNet for small images, see `nkdlib.networks.resnet`."""

    depth: int = 14  # 6n + 2, or 18 or 34
    width: int = 16  # channels of the first stage; each further stage doubles them
    stem_stride: int = 1  # 2 halves the resolution at once and quarters the MACs

    def build(self, images: Images, seed: int, device: str = "cpu") -> ResNet:
        """The network with random weights, in channels-last layout."""
        network = resnet(
            self.depth,
            images.num_classes,
            seed=seed,
            in_channels=images.shape[0],
            width=self.width,
            stem_stride=self.stem_stride,
        )
        return network.to(device, memory_format=torch.channels_last)


def train_teacher(
    images: Images,
    held_out: Images,
    architecture: Architecture,
    schedule: Schedule,
    augment: bool,
    seed: int,
    device: str,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a teacher from labels; a task for the cache.

    Args:
        augment: shift by up to an eighth of the width and flip.
        seed: of the weights and of the order of images.

    Returns:
        Its state; accuracy in percent on `held_out`.

    >>> from nkdlib.data import load
    >>> images, held_out = load("digits").hold_out(200, seed=0)
    >>> recipe = Architecture(8, 4), Schedule(steps=2, batch_size=16)
    >>> state, info = train_teacher(images, held_out, *recipe, augment=False, seed=0, device="cpu")
    >>> 0 <= info["accuracy"] <= 100
    True
    """
    network = architecture.build(images, seed, device)
    change = random_shift_flip(pad=max(images.shape[-1] // 8, 1)) if augment else None
    batches = images.batches(
        schedule.batch_size, steps=schedule.steps, seed=seed, augment=change, device=device, channels_last=True
    )
    fit(network, batches, schedule)
    return network.state_dict(), {"accuracy": accuracy(network, held_out.in_order(device))}


def load_teacher(artefact: Artefact, images: Images, architecture: Architecture, device: str = "cpu") -> nn.Module:
    """The network that `train_teacher` left, in evaluation mode.

    >>> import tempfile
    >>> from nkdlib.data import load
    >>> from nkdlib.tasks import Cache, Task
    >>> images, held_out = load("digits").hold_out(200, seed=0)
    >>> given = {"images": images, "held_out": held_out, "augment": False, "seed": 0, "device": "cpu"}
    >>> given |= {"architecture": Architecture(8, 4), "schedule": Schedule(steps=2)}
    >>> [made] = Cache(tempfile.mkdtemp()).run([Task(train_teacher, given, "teacher")])  # doctest: +ELLIPSIS
    teacher: 1/1 task...
    >>> load_teacher(made, images, Architecture(8, 4)).block_names
    ['layer1.0', 'layer2.0', 'layer3.0']
    """
    network = architecture.build(images, 0, device)
    network.load_state_dict(artefact.tensors)
    return network.eval()
