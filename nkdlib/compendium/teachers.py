"""The teachers of the notebooks: residual networks on small images, kept in `teachers/` or trained where they are used.

    python -m nkdlib.compendium.teachers cifar10-resnet20 --seed 0

trains a teacher, resumes where it was interrupted, and writes teachers/cifar10-resnet20-0.safetensors (float16) with
its provenance beside it.
"""

import argparse
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.sweep import experiment, sweep
from nkdlib.data.images import Images, random_shift_flip
from nkdlib.data.load import DataNotFound, load, search_root
from nkdlib.data.readers import DataDamaged
from nkdlib.data.weights import check_digest
from nkdlib.networks.module import reset
from nkdlib.networks.resnet import ResNet, resnet
from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import InProcess, Processes
from nkdlib.tasks.places import checkout, data_root, runs_root, write_atomically
from nkdlib.training.distributed import Checkpoints
from nkdlib.training.end_to_end import fit
from nkdlib.training.evaluate import accuracy
from nkdlib.training.loop import Schedule


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained from labels: one cycle of SGD with Nesterov's momentum, in bfloat16. All our choice."""

    epochs: int = 35
    lr: float = 0.2
    warmup: float = 0.2  # share of the steps
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    augment: bool = True  # shift by up to an eighth of the width, and flip
    amp: bool = True
    width: int = 16  # channels of the first stage

    def schedule(self, images: int) -> Schedule:
        """Its steps on so many training images."""
        names = ("lr", "warmup", "momentum", "weight_decay", "batch_size", "amp")
        settings = {name: getattr(self, name) for name in names}
        return Schedule(steps=self.epochs * images // self.batch_size, **settings)


RECIPES = {  # by data set; others get the one of CIFAR-10
    "cifar10": TeacherRecipe(),
    "fashion-mnist": TeacherRecipe(epochs=10),
    "digits": TeacherRecipe(16, 1e-2, 0.1, 0.0, 1e-3, augment=False, amp=False, width=8),
}
KEPT = ("cifar10-resnet20", "cifar10-resnet32", "cifar10-resnet56")
# Published for CIFAR-10 by akamaster/pytorch_resnet_cifar10 (BSD-2); names carry the files' SHA-256.
PUBLISHED = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}
CIFAR10 = ("cifar10", "cifar10-webp95")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation by channel, white being 1


def divided(data: str) -> tuple[Images, Images, Images]:
    """Images to learn from, to choose on and to judge on; a tenth of the training images, at most 5,000, is held out.

    No teacher and no student learns from the second part, and nothing is chosen on the third.

    >>> [len(part) for part in divided("digits")]
    [1294, 143, 360]
    """
    train = load(data, "train")
    return *train.hold_out(min(len(train) // 10, 5000), seed=0), load(data, "test")


def build(depth: int, classes: int, channels: int, recipe: TeacherRecipe, seed: int) -> ResNet:
    """A ResNet with option-A shortcuts, as He et al. had on CIFAR-10, with random weights in channels-last layout."""
    network = resnet(depth, classes, seed=seed, in_channels=channels, width=recipe.width, shortcut="padding")
    return network.to(memory_format=torch.channels_last)


def train_teacher(
    train: Images, depth: int, recipe: TeacherRecipe, seed: int, device: str, checkpoints: Checkpoints | None = None
) -> dict[str, torch.Tensor]:
    """Train a teacher from labels, a task for the cache.

    Args:
        depth: of the ResNet, 6n + 2.
        seed: of the weights, the order of images and their augmentation.
        checkpoints: to resume from and to write to.

    Returns:
        Its state, floating-point values in float16.
    """
    network = build(depth, train.num_classes, train.shape[0], recipe, seed).to(device)
    schedule, start = recipe.schedule(len(train)), checkpoints.start if checkpoints else 0
    change = random_shift_flip(pad=max(train.shape[-1] // 8, 1)) if recipe.augment else None
    options = {"steps": schedule.steps, "seed": seed, "augment": change, "device": device, "channels_last": True}
    batches = itertools.islice(train.batches(recipe.batch_size, **options), start, None)
    fit(network, batches, schedule, seed=seed, checkpoints=checkpoints)
    state = network.cpu().state_dict()
    return {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in state.items()}


def open_teachers(
    data: str,
    depth: int,
    seeds: Iterable[int],
    *,
    device: str = "cpu",
    executor: InProcess | Processes | None = None,
    cache: Cache | None = None,
) -> list[ResNet]:
    """A teacher for each seed, in evaluation mode: from `teachers/` if it is kept there, else trained here once.

    Training one for CIFAR-10 takes an hour on a core; the cache keeps it.
    """
    train, _, _ = divided(data)
    recipe, seeds = RECIPES.get(data, TeacherRecipe()), list(seeds)
    kept = {seed: path for seed in seeds if (path := _kept(f"{data}-resnet{depth}", seed)).is_file()}
    given = {"train": train, "depth": depth, "recipe": recipe, "device": device}
    tasks = {seed: Task(train_teacher, given | {"seed": seed}, f"teacher {seed}") for seed in seeds if seed not in kept}
    trained = dict(zip(tasks, (cache or Cache()).run(list(tasks.values()), executor, "training teachers"), strict=True))
    networks = []
    for seed in seeds:
        network = build(depth, train.num_classes, train.shape[0], recipe, seed=0)
        network.load_state_dict(_read(kept[seed]) if seed in kept else trained[seed].tensors)
        networks.append(network.to(device).eval())
    return networks


def published_teacher(depth: int, root: str | Path | None = None) -> ResNet:
    """A published ResNet for CIFAR-10: 91.7 % (20 layers), 92.6 (32) or 93.4 (56), in evaluation mode.

    It takes images that are normalized by `IMAGENET`, see `Images.renormalized`.

    Args:
        depth: of `PUBLISHED`.
        root: the folder to search in place of NKD_DATA.

    Raises:
        DataNotFound: the file is not in that folder, nor in its folder `cifar10-resnets`.
        DataDamaged: the file is not the published one.
    """
    if depth not in PUBLISHED:
        raise ValueError(f"depth (={depth}) must be one of {', '.join(map(str, PUBLISHED))}")
    places = [
        place / folder for place in (search_root(root), data_root()) if place for folder in ("", "cifar10-resnets")
    ]
    path = next((path for place in places if (path := place / PUBLISHED[depth]).is_file()), None)
    if path is None:
        raise DataNotFound(f"{PUBLISHED[depth]} is not in NKD_DATA; docs/data.md says where it can be had")
    check_digest(path, path.stem.partition("-")[2])
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = build(depth, 10, 3, TeacherRecipe(), seed=0)
    names = network.state_dict().keys()  # in the same order, under other names
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    wanted = [name for name in names if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(wanted, values, strict=True)), strict=False)
    return network.eval()


def deeper_teacher(data: str, depth: int) -> tuple[str, ResNet, tuple[tuple[float, ...], tuple[float, ...]]]:
    """A teacher of another depth: the first of `teachers/`, else for CIFAR-10 the published one.

    Returns:
        "ours" or "published"; the network, in evaluation mode; mean and deviation that its images are normalized by.

    Raises:
        DataNotFound: neither is at hand.
    """
    train, _, _ = divided(data)
    if _kept(name := f"{data}-resnet{depth}", 0).is_file():
        return "ours", open_teachers(data, depth, [0])[0], (train.mean, train.std)
    try:
        if data not in CIFAR10:
            raise DataNotFound(f"no teacher of {depth} layers for {data} is published")
        return "published", published_teacher(depth), IMAGENET
    except DataNotFound as error:
        raise DataNotFound(f"{error}, or run: python -m nkdlib.compendium.teachers {name}") from None


def levels(
    data: str, teachers: Iterable[ResNet], device: str = "cpu", executor: InProcess | Processes | None = None
) -> tuple[list[float], float]:
    """Test accuracies in percent that frame all others: each teacher's, and a linear classifier's; measured once."""
    fixed = {"judge": divided(data)[2], "device": device}
    cases = [{"teacher": teacher} for teacher in teachers]
    reached = sweep(judged, cases, fixed=fixed, executor=executor, title="judging teachers").accuracy.to_list()
    return reached, linear_accuracy(data, executor)


@experiment
def judged(teacher: ResNet, judge: Images, device: str) -> dict[str, float]:
    """Return the accuracy in percent on images, an experiment."""
    return {"accuracy": accuracy(teacher, judge.in_order(device))}


def linear_accuracy(data: str, executor: InProcess | Processes | None = None) -> float:
    """Test accuracy in percent of a linear classifier on the pixels, which any network must be far above."""
    train, _, test = divided(data)
    fixed, title = {"train": train, "test": test}, "training a linear classifier"
    return sweep(train_linear, fixed=fixed, executor=executor, title=title).accuracy.item()


@experiment
def train_linear(train: Images, test: Images) -> dict[str, float]:
    """Train a linear classifier from labels, an experiment: 3,000 steps of Adam at 1e-3."""
    network = reset(nn.Sequential(nn.Flatten(), nn.Linear(train.pixels[0].numel(), train.num_classes)), seed=0)
    schedule = Schedule(3000, batch_size=min(128, len(train)), lr=1e-3)
    fit(network, train.batches(schedule.batch_size, steps=schedule.steps, seed=0), schedule)
    return {"accuracy": accuracy(network, test.in_order())}


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise DataDamaged(f"{path} is no file of weights ({error}); restore it by git, or make teachers") from error


def _kept(name: str, seed: int, out: Path | None = None) -> Path:
    return (out or (checkout() or Path()) / "teachers") / f"{name}-{seed}.safetensors"


def keep_teacher(name: str, seed: int, out: Path, runs: Path, device: str = "cpu") -> dict[str, object]:
    """Train a teacher, or go on with its training, and write its weights and provenance to `out`.

    Args:
        name: data set and network, as "cifar10-resnet20".
        runs: folder of checkpoints, one a minute.

    Returns:
        The provenance that is written, with accuracies in percent of the weights as they are written.
    """
    data, _, depth = name.rpartition("-resnet")
    if not data or not depth.isdecimal():
        raise ValueError(f"name (={name!r}) must be a data set and a depth, such as {KEPT[0]}")
    train, validation, test = divided(data)
    recipe = RECIPES.get(data, TeacherRecipe())
    settings = {"name": name, "seed": seed, **asdict(recipe)}
    checkpoints = Checkpoints(runs / f"{name}-{seed}", every_s=60, settings=settings)
    state = train_teacher(train, int(depth), recipe, seed, device, checkpoints)
    network = build(int(depth), train.num_classes, train.shape[0], recipe, seed=0)
    network.load_state_dict(state)
    network.to(device)
    about = provenance(settings, train.fingerprint, made="teachers") | {
        "command": f"python -m nkdlib.compendium.teachers {name} --seed {seed}",
        "accuracy": {
            "validation": accuracy(network, validation.in_order(device)),
            "test": accuracy(network, test.in_order(device)),
        },
    }
    path = write_atomically(_kept(name, seed, out), safetensors.torch.save(state))
    write_atomically(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
    return about


def main(given: list[str] | None = None) -> None:
    """Train teachers that are kept in teachers/."""
    parser = argparse.ArgumentParser("nkdlib.compendium.teachers", description=main.__doc__)
    parser.add_argument("name", help=f"{', '.join(KEPT)}, or another data set and depth")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one teacher each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=_kept("", 0).parent)
    parser.add_argument("--runs", type=Path, default=runs_root() / "teachers", help="folder of checkpoints")
    args = parser.parse_args(given)
    for seed in args.seed:
        about = keep_teacher(args.name, seed, args.out, args.runs, args.device)
        scores = ", ".join(f"{split} {percent:.2f} %" for split, percent in about["accuracy"].items())
        print(f"{args.name}, seed {seed}: {scores}", flush=True)


if __name__ == "__main__":
    main()
