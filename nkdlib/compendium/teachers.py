"""Train the teachers of the notebooks: small residual networks on small images."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from nkdlib.data.images import Images, random_shift_flip
from nkdlib.networks.resnet import ResNet, resnet
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.executors import InProcess, Processes
from nkdlib.training.end_to_end import fit
from nkdlib.training.evaluate import accuracy
from nkdlib.training.loop import Schedule


@dataclass(frozen=True)
class Architecture:
    """A ResNet for small images, see `nkdlib.networks.resnet`."""

    depth: int = 14  # 6n + 2
    width: int = 16  # channels of the first stage; each further stage doubles them
    stem_stride: int = 1  # 2 halves the resolution at once and quarters the MACs

    def build(self, classes: int, channels: int, seed: int, device: str = "cpu") -> ResNet:
        """The network with random weights, in channels-last layout."""
        settings = {"in_channels": channels, "width": self.width, "stem_stride": self.stem_stride}
        return resnet(self.depth, classes, seed=seed, **settings).to(device, memory_format=torch.channels_last)


def train_teacher(
    images: Images,
    held_out: Images,
    architecture: Architecture,
    schedule: Schedule,
    augment: bool,
    seed: int,
    device: str,
) -> dict[str, object]:
    """Train a teacher from labels, a task for the cache.

    Args:
        augment: shift by up to an eighth of the width, and flip.
        seed: of the weights and of the order of images.

    Returns:
        Its state; its accuracy in percent on `held_out`, and how `load_teacher` builds it.

    >>> from nkdlib.data import load
    >>> images, held_out = load("digits").hold_out(200, seed=0)
    >>> given = {"images": images, "held_out": held_out, "augment": False, "seed": 0, "device": "cpu"}
    >>> made = train_teacher(architecture=Architecture(8, 4), schedule=Schedule(steps=2, batch_size=16), **given)
    >>> made["built"]
    {'depth': 8, 'width': 4, 'stem_stride': 1, 'classes': 10, 'channels': 1}
    """
    classes, channels = images.num_classes, images.shape[0]
    network = architecture.build(classes, channels, seed, device)
    change = random_shift_flip(pad=max(images.shape[-1] // 8, 1)) if augment else None
    batches = images.batches(
        schedule.batch_size, steps=schedule.steps, seed=seed, augment=change, device=device, channels_last=True
    )
    fit(network, batches, schedule)
    built = {**asdict(architecture), "classes": classes, "channels": channels}
    return {**network.state_dict(), "accuracy": accuracy(network, held_out.in_order(device)), "built": built}


def train_teachers(
    seeds: Iterable[int], cache: Cache | None = None, executor: InProcess | Processes | None = None, **common: object
) -> list[Artefact]:
    """Train one teacher a seed, or find it in the cache; `common` is what else `train_teacher` takes."""
    tasks = [Task(train_teacher, {"seed": seed, **common}, f"teacher {seed}") for seed in seeds]
    return (cache or Cache()).run(tasks, executor, "training teachers")


def load_teacher(artefact: Artefact, device: str = "cpu") -> nn.Module:
    """The network that `train_teacher` left, in evaluation mode and channels-last layout."""
    built = dict(artefact.info["built"])
    size = built.pop("classes"), built.pop("channels")
    network = Architecture(**built).build(*size, seed=0, device=device)
    network.load_state_dict(artefact.tensors)
    return network.eval()
