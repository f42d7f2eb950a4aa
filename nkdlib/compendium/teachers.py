"""The teachers of the notebooks: residual networks on small images, trained here or kept in `teachers/`.

    python -m nkdlib.compendium.teachers cifar10-resnet20 --seed 0

trains a kept one, resumes where it was interrupted, and writes teachers/cifar10-resnet20-0.safetensors (float16) with
its provenance beside it.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from nkdlib.compendium.provenance import provenance
from nkdlib.data.images import Images, random_shift_flip
from nkdlib.data.load import load
from nkdlib.networks.resnet import ResNet, resnet
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.executors import InProcess, Processes
from nkdlib.tasks.places import checkout, runs_root, write_atomically
from nkdlib.training.distributed import Checkpoints
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


VALIDATION, VALIDATION_SEED = 5000, 0  # training images that no kept teacher learned from


@dataclass(frozen=True)
class Kept:
    """A teacher whose weights are kept in `teachers/`: a ResNet with option-A shortcuts, as He et al. had on CIFAR-10.

    The recipe is our choice: one cycle of SGD with Nesterov's momentum, shifts by four pixels and flips.
    """

    data: str
    depth: int
    epochs: int
    lr: float = 0.2
    warmup: float = 0.2  # share of the steps
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128

    def build(self, classes: int, seed: int = 0) -> ResNet:
        """The network with random weights, in channels-last layout."""
        return resnet(self.depth, classes, seed=seed, shortcut="padding").to(memory_format=torch.channels_last)

    def schedule(self, images: int) -> Schedule:
        """Its steps in bfloat16 on so many training images."""
        names = ("lr", "warmup", "momentum", "weight_decay", "batch_size")
        settings = {name: getattr(self, name) for name in names}
        return Schedule(steps=self.epochs * images // self.batch_size, amp=True, **settings)


KEPT = {f"cifar10-resnet{depth}": Kept("cifar10", depth, epochs=35) for depth in (20, 32, 56)}


def train_kept(name: str, seed: int, out: Path, runs: Path, kept: Kept, device: str = "cpu") -> dict[str, object]:
    """Train a teacher, or go on with its training, and write its weights and provenance to `out`.

    Args:
        seed: of the weights, of the order of images and of their augmentation.
        runs: folder of checkpoints, one a minute.

    Returns:
        The provenance that is written, with accuracies in percent of the weights as they are written.
    """
    images, validation = load(kept.data).hold_out(VALIDATION, VALIDATION_SEED)
    network, schedule = kept.build(images.num_classes, seed).to(device), kept.schedule(len(images))
    settings = {"name": name, "seed": seed, **asdict(kept)}
    checkpoints = Checkpoints(runs / f"{name}-{seed}", every_s=60, settings=settings)
    options = {"augment": random_shift_flip(pad=4), "device": device, "channels_last": True}
    batches = images.batches(kept.batch_size, steps=schedule.steps, seed=seed, **options)
    fit(network, itertools.islice(batches, checkpoints.start, None), schedule, seed=seed, checkpoints=checkpoints)
    halves = {
        key: (t.half() if t.is_floating_point() else t).contiguous() for key, t in network.cpu().state_dict().items()
    }
    network.load_state_dict(halves)  # what is written is what is judged
    scores = {
        "validation": accuracy(network, validation.in_order()),
        "test": accuracy(network, load(kept.data, "test").in_order()),
    }
    about = provenance(settings, images.fingerprint)
    about |= {
        "command": f"python -m nkdlib.compendium.teachers {name} --seed {seed}",
        "accuracy": scores,
        "classes": images.num_classes,
    }
    about["normalization"] = {"mean": images.mean, "std": images.std}
    write_atomically(out / f"{name}-{seed}.safetensors", safetensors.torch.save(halves))
    write_atomically(out / f"{name}-{seed}.json", (json.dumps(about, indent=1) + "\n").encode())
    return about


def main(given: list[str] | None = None) -> None:
    """Train teachers that are kept in teachers/."""
    parser = argparse.ArgumentParser("nkdlib.compendium.teachers", description=main.__doc__)
    parser.add_argument("name", choices=KEPT)
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one teacher each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=(checkout() or Path()) / "teachers")
    parser.add_argument("--runs", type=Path, default=runs_root() / "teachers", help="folder of checkpoints")
    args = parser.parse_args(given)
    for seed in args.seed:
        about = train_kept(args.name, seed, args.out, args.runs, KEPT[args.name], args.device)
        scores = ", ".join(f"{split} {percent:.2f} %" for split, percent in about["accuracy"].items())
        print(f"{args.name}, seed {seed}: {scores}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
