"""Training, search and detection on several GPUs or machines, for ImageNet and COCO.

    torchrun --nproc-per-node=8 -m ...torchrun search --data imagenet --target 2.6e6 --amp --out runs/found
    torchrun --nproc-per-node=8 -m ...torchrun classify --data imagenet --counts runs/found/counts.json ...
    torchrun --nproc-per-node=8 -m ...torchrun detect --data coco --counts ... --weights ...

The same command goes on where it was cut off. Without torchrun it is one process. Nothing has been run at the size of
ImageNet or COCO yet: the defaults are guesses.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkdlib.compendium.pictures import Order, Pictures, loader, once
from nkdlib.detection import CocoImages, SquareImages, SSDAugmentation, detect, evaluate, ssdlite, train_detector
from nkdlib.figs import Search, rebuild, search
from nkdlib.networks import Cost, cost, mixed_space, reset
from nkdlib.training import Schedule, accuracy, fit
from nkdlib.training.parallel import Parallel, joined

HERE = ("out", "device", "workers", "checkpoint_s")  # what may change when a training goes on


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
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
        add("--part", type=int, default=24 if boxes else 128, help="of them that BatchNorm and memory see at once")
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
    """Run the command; returns what the first process writes into result.json."""
    args = arguments().parse_args(given)
    if args.batch_size % args.part:
        raise ValueError(f"batch_size (={args.batch_size}) must be a multiple of part (={args.part})")
    settings = json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in HERE}, default=str))
    with joined(args.device) as device:
        keeping = {"folder": args.out, "every_s": args.checkpoint_s, "settings": settings}
        parallel = Parallel(args.batch_size // args.part, **keeping)
        if parallel.rank:
            os.environ["NKD_PROGRESS"] = os.devnull  # only the first process shows how far it is
        schedule = (Search if args.task == "search" else Schedule)(
            args.steps,
            args.batch_size,
            args.lr,
            args.warmup,
            args.weight_decay,
            args.momentum,
            amp=args.amp,
            ema=args.ema,
        )
        network, spent, result, files = TASKS[args.task](args, schedule, parallel, device)
        result |= {"params": spent.params, "macs": spent.macs, "task": args.task, "seed": args.seed}
        result["found"] = args.counts is not None and json.loads(args.counts.read_text())["counts"] is not None
        if not parallel.rank:
            weights = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
            safetensors.torch.save_file(weights, args.out / "weights.safetensors")
            for name, content in {**files, "result": result}.items():
                (args.out / f"{name}.json").write_text(json.dumps(content, indent=1))
            print(json.dumps(result))
    return result


def built(args: argparse.Namespace, classes: int, channels: int) -> tuple[nn.Sequential, dict]:
    """A network with weights from the seed, and what describes it: the arguments of its space, and its counts."""
    about = json.loads(args.counts.read_text()) if args.counts else {"space": args.space, "counts": None}
    network = mixed_space(classes, in_channels=channels, **about["space"])
    if about["counts"] is not None:
        network = rebuild(network, torch.zeros(1, channels, 32, 32), about["counts"])
    return reset(network, args.seed), about


def validated(network: nn.Module, pictures: Pictures, parallel: Parallel, device: torch.device, workers: int) -> float:
    """Accuracy in percent on the images for validation, each process judging its share."""
    share = len(range(parallel.rank, len(pictures.held_out), parallel.size))
    right = accuracy(network, pictures.validation(parallel, device, workers)) * share
    sums = torch.tensor([right, share], dtype=torch.float64, device=device)
    parallel.average([sums])
    return (sums[0] / sums[1]).item()


def size_of(pictures: Pictures) -> dict[str, int]:
    """What an accuracy is of."""
    return {"classes": pictures.num_classes, "images": len(pictures.held_out)}


Outcome = tuple[nn.Module, Cost, dict[str, float], dict[str, object]]  # network, cost, scores, further JSON files


def classify(args: argparse.Namespace, schedule: Schedule, parallel: Parallel, device: torch.device) -> Outcome:
    """Train a network from scratch."""
    pictures = Pictures.open(args.data, args.pixels, args.augment)
    network, about = built(args, pictures.num_classes, pictures.shape[0])
    network = network.to(device, memory_format=torch.channels_last)
    batches = pictures.batches(schedule, parallel, args.seed, device, args.workers)
    fit(network, batches, schedule, label_smoothing=args.label_smoothing, seed=args.seed, parallel=parallel)
    scores = {"accuracy": validated(network, pictures, parallel, device, args.workers), **size_of(pictures)}
    return network, cost(network, torch.zeros(1, *pictures.shape, device=device)), scores, {"counts": about}


def find(args: argparse.Namespace, schedule: Search, parallel: Parallel, device: torch.device) -> Outcome:
    """Search a network by FiGS; its accuracy is that of the search's own weights."""
    pictures = Pictures.open(args.data, args.pixels, args.augment)
    network, about = built(args, pictures.num_classes, pictures.shape[0])
    network = network.to(device, memory_format=torch.channels_last)
    batches, example = pictures.batches(schedule, parallel, args.seed, device, args.workers), (1, *pictures.shape)
    loss = partial(F.cross_entropy, label_smoothing=args.label_smoothing)
    asked = args.target, args.metric, schedule, loss
    found = search(network, torch.zeros(example, device=device), batches, *asked, args.seed, parallel=parallel)
    scores = {"accuracy": validated(found.network, pictures, parallel, device, args.workers), **size_of(pictures)}
    files = {"counts": about | {"counts": found.counts}, "history": found.history.to_dict("list")}
    return found.network, found.cost, scores, files


def find_boxes(args: argparse.Namespace, schedule: Schedule, parallel: Parallel, device: torch.device) -> Outcome:
    """Train a detector on a network that was trained before, or from scratch."""
    learned, held_out = (
        SquareImages(CocoImages.load(args.data, part, drop=part == "train"), args.pixels) for part in ("train", "val")
    )
    classes, change = len(learned.images.classes), SSDAugmentation()
    network, about = built(args, classes, 3)
    if args.weights:
        classifier = f"{len(network) - 1}."  # of other classes; a detector leaves it out
        own = {name: value for name, value in network.state_dict().items() if name.startswith(classifier)}
        network.load_state_dict(safetensors.torch.load_file(args.weights) | own)
    detector = ssdlite(network, classes, args.pixels, extra=args.extra, seed=args.seed).to(device)

    def read(step: int, place: int) -> tuple[Tensor, dict]:
        pixels, target = learned.images.read(place, args.pixels), learned.target(place)
        if args.augment:
            draws = np.random.default_rng([args.seed, step, place])
            (pixels,), (target,) = change(pixels[None], [target], draws)
        return pixels, target

    def look(_: int, place: int) -> tuple[Tensor, dict]:
        return held_out.images.read(place, args.pixels), held_out.target(place)

    batches = loader(read, Order(len(learned), schedule, args.seed, parallel), args.workers, together)
    train_detector(detector, batches, schedule, seed=args.seed, parallel=parallel)
    found = detect(detector, loader(look, once(len(held_out), args.part, parallel), args.workers, together))
    precision = evaluate(held_out.on_disk(parallel.gather(found)), held_out.images.to_coco())
    scores = {"map": 100 * precision.ap, "ap50": 100 * precision.ap50, "classes": classes, "images": len(held_out)}
    return detector, detector.cost(), scores, {"counts": about}


def together(examples: list[tuple[Tensor, dict]]) -> tuple[Tensor, list[dict]]:
    """A batch of images of one size and their targets."""
    images, targets = zip(*examples, strict=True)
    return torch.stack(images), list(targets)


TASKS = {"classify": classify, "search": find, "detect": find_boxes}

if __name__ == "__main__":
    main()
