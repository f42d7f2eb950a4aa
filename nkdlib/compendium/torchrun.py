"""Training, search and detection on several GPUs or machines, for ImageNet and COCO.

    torchrun --nproc-per-node=8 -m ...torchrun search --data imagenet --target 2.6e6 --amp --out runs/found
    torchrun --nproc-per-node=8 -m ...torchrun classify --data imagenet --counts runs/found/counts.json ...
    torchrun --nproc-per-node=8 -m ...torchrun detect --data coco --counts ... --weights ...

The same command resumes an interrupted run; without torchrun it is one process. Nothing has been run at the size of
ImageNet or COCO yet: the defaults are guesses.
"""

import argparse
import json
import os
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from nkdlib.compendium.pictures import Pictures, open_pictures, training_batches, validation_batches
from nkdlib.detection import CocoImages, SquareImages, detect, evaluate, ssd_augmentation, ssdlite, train_detector
from nkdlib.detection.batches import augmented
from nkdlib.figs import Search, rebuild, search
from nkdlib.networks import Cost, cost, mixed_space, reset
from nkdlib.training import Checkpoints, Schedule, accuracy, fit
from nkdlib.training.distributed import data_parallel, gather, mean_over_processes, process_group, rank_and_size

MAY_CHANGE = ("out", "device", "workers", "checkpoint_s")  # when a training is resumed


def arguments() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        "nkdlib.compendium.torchrun", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tasks, shown = parser.add_subparsers(dest="task", required=True), argparse.ArgumentDefaultsHelpFormatter
    for task in TASKS:
        add, boxes = tasks.add_parser(task, formatter_class=shown).add_argument, task == "detect"
        add("--data", required=True, help="folder in COCO's layout" if boxes else "name, or folder of train/ and val/")
        add("--out", type=Path, required=True, help="folder of checkpoints, metrics.jsonl and results, this run's own")
        add("--space", type=json.loads, default={}, help="JSON: arguments of mixed_space that differ from ImageNet's")
        add("--counts", type=Path, help="counts.json of a search: the network that it found, in place of a space")
        add("--steps", type=int, default=406_000 if boxes else 375_000, help="660 epochs of COCO, 300 of ImageNet")
        add("--batch-size", type=int, default=192 if boxes else 1024, help="images of a step, over all processes")
        add("--pixels", type=int, default=320 if boxes else 224, help="sides of images in a folder")
        add("--lr", type=float, default=2e-3, help="the highest learning rate")
        add("--warmup", type=float, default=0.02, help="share of the steps in which the rate rises")
        add("--weight-decay", type=float, default=0.02, help="as in AdamW, or added to the gradient of SGD")
        add("--momentum", type=float, default=0.0, help="of SGD; 0 is AdamW")
        add("--ema", type=float, default=0.9999, help="decay of the averages of the weights, 0 for none")
        add("--amp", action="store_true", help="bfloat16 where autocast allows it")
        add("--augment", action=argparse.BooleanOptionalAction, default=True)
        add("--seed", type=int, default=0, help="of weights, order, augmentation and noise")
        add("--workers", type=int, default=8, help="of each process, that read images")
        add("--device", default="cuda", choices=("cuda", "cpu"))
        add("--checkpoint-s", type=float, default=600.0, help="seconds between checkpoints; 0 keeps every step")
        if boxes:
            add("--weights", type=Path, help="weights.safetensors of classify")
            add("--extra", type=int, nargs="+", default=[512, 256, 256, 128], help="widths of the head's own maps")
        else:
            add("--label-smoothing", type=float, default=0.1, help="share of a label spread over all classes")
        if task == "search":
            add("--target", type=float, required=True, help="what the slim network may cost")
            add("--metric", default="params", choices=("params", "macs"), help="in what the target counts")
    return parser


def main(given: list[str] | None = None) -> dict[str, float]:
    """Run the command; return the content of result.json, which the first process writes."""
    args = arguments().parse_args(given)
    settings = json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in MAY_CHANGE}, default=str))
    with process_group(args.device) as device:
        first = rank_and_size()[0] == 0
        if not first:
            os.environ["NKD_PROGRESS"] = os.devnull  # only the first process shows progress
        checkpoints = Checkpoints(args.out, args.checkpoint_s, settings)
        schedule = Schedule(
            **{field.name: getattr(args, field.name) for field in fields(Schedule) if field.name in args}
        )
        network, spent, result, files = TASKS[args.task](args, schedule, checkpoints, device)
        result |= {"params": spent.params, "macs": spent.macs, "task": args.task, "seed": args.seed}
        if first:
            weights = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
            safetensors.torch.save_file(weights, args.out / "weights.safetensors")
            for name, content in {**files, "result": result}.items():
                (args.out / f"{name}.json").write_text(json.dumps(content, indent=1))
            print(json.dumps(result))
    return result


def build(args: argparse.Namespace, classes: int, channels: int) -> tuple[nn.Sequential, dict]:
    """A network with weights from the seed, and its description: the arguments of its space, and its counts."""
    about = json.loads(args.counts.read_text()) if args.counts else {"space": args.space, "counts": None}
    network = mixed_space(classes, in_channels=channels, **about["space"])
    if about["counts"] is not None:
        network = rebuild(network, torch.zeros(1, channels, 32, 32), about["counts"])
    return reset(network, args.seed), about


Outcome = tuple[nn.Module, Cost, dict[str, float], dict[str, object]]  # network, cost, scores, further JSON files


def classify(args: argparse.Namespace, schedule: Schedule, checkpoints: Checkpoints, device: torch.device) -> Outcome:
    """Train a network from scratch."""
    train, val = open_pictures(args.data, args.pixels, args.augment)
    network, about = build(args, train.num_classes, train.shape[0])
    network = network.to(device, memory_format=torch.channels_last)
    batches = images_to_train_on(train, args, checkpoints, device)
    options = {"label_smoothing": args.label_smoothing, "seed": args.seed, "checkpoints": checkpoints}
    fit(data_parallel(network), batches, schedule, **options)
    scores = validate(network, val, args.workers, device)
    return network, cost(network, torch.zeros(1, *train.shape, device=device)), scores, {"counts": about}


def find(args: argparse.Namespace, schedule: Schedule, checkpoints: Checkpoints, device: torch.device) -> Outcome:
    """Search for a network by FiGS; its accuracy is that of the search's own weights."""
    train, val = open_pictures(args.data, args.pixels, args.augment)
    network, about = build(args, train.num_classes, train.shape[0])
    network = network.to(device, memory_format=torch.channels_last)
    batches, example = images_to_train_on(train, args, checkpoints, device), torch.zeros(1, *train.shape, device=device)
    loss = partial(F.cross_entropy, label_smoothing=args.label_smoothing)
    options = {"recipe": Search(schedule), "loss": loss, "seed": args.seed, "checkpoints": checkpoints}
    found = search(network, example, batches, args.target, args.metric, wrap=data_parallel, **options)
    scores = validate(found.network, val, args.workers, device)
    files = {"counts": about | {"counts": found.counts}, "history": found.history.to_dict("list")}
    return found.network, found.cost, scores, files


def images_to_train_on(train: Pictures, args: argparse.Namespace, checkpoints: Checkpoints, device: torch.device):
    """Normalized batches (images, labels) from the step on at which the training is resumed."""
    batches = training_batches(train, args.batch_size, args.steps, args.seed, checkpoints.start, args.workers)
    return train.normalized(batches, device)


def validate(network: nn.Module, val: Pictures, workers: int, device: torch.device) -> dict[str, float]:
    """Accuracy in percent over the images for validation, each process judging its share; classes and images."""
    rank, size = rank_and_size()
    share = len(range(rank, len(val), size))
    right = share * accuracy(network, val.normalized(validation_batches(val, workers=workers), device))
    right, share = mean_over_processes(torch.tensor([right, share], dtype=torch.float64, device=device)).tolist()
    return {"accuracy": right / share, "classes": val.num_classes, "images": len(val)}


@dataclass(frozen=True)
class Boxes(Dataset):
    """Images with targets, as `train_detector` takes them."""

    images: SquareImages
    augment: v2.Transform | None = None  # draws from torch's generator

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, dict]:
        pixels, target = self.images.images.read(row, self.images.size), self.images.target(row)
        return augmented(pixels, target, self.augment) if self.augment else (pixels, target)


def stack(examples: list[tuple[Tensor, dict]]) -> tuple[Tensor, list[dict]]:
    """A batch of images of one size and their targets."""
    images, targets = zip(*examples, strict=True)
    return torch.stack(images), list(targets)


def find_boxes(args: argparse.Namespace, schedule: Schedule, checkpoints: Checkpoints, device: torch.device) -> Outcome:
    """Train a detector on a network with the weights of `classify`, or from scratch."""
    train, val = (
        SquareImages(CocoImages.load(args.data, part, drop=part == "train"), args.pixels) for part in ("train", "val")
    )
    classes = len(train.images.classes)
    network, about = build(args, classes, 3)
    if args.weights:
        classifier = f"{len(network) - 1}."  # of other classes; a detector leaves it out
        own = {name: value for name, value in network.state_dict().items() if name.startswith(classifier)}
        network.load_state_dict(safetensors.torch.load_file(args.weights) | own)
    detector = ssdlite(network, classes, args.pixels, extra=args.extra, seed=args.seed).to(device)
    changed = Boxes(train, ssd_augmentation(args.pixels) if args.augment else None)
    batches = training_batches(
        changed, args.batch_size, args.steps, args.seed, checkpoints.start, args.workers, collate=stack
    )
    train_detector(data_parallel(detector), batches, schedule, seed=args.seed, checkpoints=checkpoints)
    found = gather(detect(detector, validation_batches(Boxes(val), 24, args.workers, collate=stack)))
    precision = evaluate(val.on_disk(found), val.images.to_coco())
    scores = {"map": 100 * precision.ap, "ap50": 100 * precision.ap50, "classes": classes, "images": len(val)}
    return detector, detector.cost(), scores, {"counts": about}


TASKS = {"classify": classify, "search": find, "detect": find_boxes}

if __name__ == "__main__":
    main()
