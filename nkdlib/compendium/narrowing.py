"""MobileNetV2 narrowed from few photographs, by FiGS and by its rivals: what notebooks 06 and 07 share."""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from nkdlib import figs
from nkdlib.compendium.crops import Crops
from nkdlib.compendium.photographs import judge_student
from nkdlib.compendium.sweep import experiment
from nkdlib.data import Images
from nkdlib.figs.budget import Scores
from nkdlib.networks.channels import channel_groups
from nkdlib.tasks.measure import Stopwatch
from nkdlib.training import Schedule, predict
from nkdlib.training.kernels import autocast

STEP = 32  # crops
ENDS = [*(f"features.{n}.conv.0.0" for n in (4, 7, 11, 14, 17)), "features.18.0", "classifier.1"]  # read blocks' ends


def crops_of(images: Images, size: int, count: int, seed: int, device: str) -> Crops:
    """At least so many crops of photographs, in a seed's order: centers, then mirrored, then random parts, mixtures."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    views = -(-count // len(images)) + 1
    return Crops(images.subset(order), size, views, scale=0.35, mix=True, seed=seed, batch_size=STEP, device=device)


def cost_model(network: nn.Module, size: int, device: str = "cpu") -> figs.CostModel:
    """MobileNetV2's costs, with gates where AtomNAS and the paper have them: inside blocks, and before the classifier.

    What residual connections carry from block to block stays whole.
    """
    example = torch.zeros(1, 3, size, size, device=device)
    names = [group.name for group in channel_groups(network, example)]
    inner = [name for name in names if name.endswith(".conv.0.0") or name == "features.18.0"]
    return figs.CostModel(network, example, [name for name in names if name not in inner])


def with_answers(network: nn.Module, batches: Iterable, amp: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Images with the network's logits as labels."""
    for x, _ in batches:
        with torch.no_grad(), autocast(x.device, amp):
            answers = network(x.clone())
        yield x, answers.float()


def relative_error(output: Tensor, answers: Tensor) -> Tensor:
    """The squared error of logits relative to the variance of the answers."""
    return (output.float() - answers).square().mean() / answers.var()


@experiment
def searched(network, learn, metric, target, recipe, size, seed, device):
    """Search a copy of a network by its own answers: log-odds of all gates, and the search's course."""
    steps, student = recipe.schedule.steps, copy.deepcopy(network)
    crops = crops_of(learn, size, STEP * steps, seed, device)
    model = cost_model(student, size, device)
    batches = with_answers(network, crops, recipe.schedule.amp)
    with Stopwatch(device) as watch:
        given = {"loss": relative_error, "seed": seed, "cost_model": model}
        found = figs.search(student, model.example, batches, target, metric, recipe, **given)
    return {"course": found.history.to_dict("list"), "search_s": watch.device_s, **found.scores}


def rules(model: figs.CostModel, seed: int) -> dict[str, Scores]:
    """Scores of the rivals, by name."""
    by = figs.score_by_magnitude(model)
    even, last = figs.score_evenly(model, by), "features.18.0"
    read = model.network.classifier[1].weight.detach().norm(dim=0).cpu()  # how strongly the classifier reads each
    return {
        "last layer": {name: read if name == last else score + torch.inf for name, score in even.items()},
        "uniform": even,
        "magnitude": by,
        "BN scale": figs.score_by_scale(model),
        "random": figs.score_at_random(model, seed, by=by),
    }


def fits(model: figs.CostModel, scores: Scores, metric: str, target: float) -> bool:
    """Whether the channels that scores leave to be cut can meet a budget."""
    least = {name: model.sizes[name] if score.isinf().all() else 1 for name, score in scores.items()}
    return model.total(least, metric) <= target


@experiment
def moments_of(network, learn, crops, size, seed, device):
    """Second moments of what the layers read that read channels which may go."""
    model, inputs = cost_model(network, size, device), crops_of(learn, size, crops, seed, device)
    return figs.input_moments(model, inputs, crops, seed=seed)


@experiment
def looked_at(network, images, sets, size, device):
    """A network's classes for photographs, with their labels and sets."""
    inputs = Crops(images, size, batch_size=16, device=device)
    return {"teacher": predict(network, inputs).argmax(1), "labels": images.labels, "set": sets}


@experiment
def narrowed(network, learn, scores, metric, target, moments, ridge, heal, held, seen, stages, size, seed, device):
    """Cut, solve and heal a network: its state, and what is left of its answers, on request after each stage."""
    model, inputs = cost_model(network, size, device), Crops(held, size, batch_size=16, device=device)
    solved, reached = figs.prune(model, scores, metric, target, moments.tensors, ridge), {}
    between = {"cut": figs.prune(model, scores, metric, target), "solved": solved} if stages else {}
    for stage, pruned in between.items():
        found = judge_student(pruned.network, inputs, seen.tensors)
        reached |= {f"{stage}: {name}": share for name, share in found.items()}
    crops = crops_of(learn, size, STEP * heal.steps, seed + 1, device)
    losses = figs.mimic(solved, model, crops, heal, ENDS, seed)
    reached |= judge_student(solved.network, inputs, seen.tensors)
    about = {"parameters": solved.cost.params, "MACs": solved.cost.macs, "counts": solved.counts, "losses": losses}
    return {**reached, **about, **solved.network.state_dict()}


def healing(steps: int, lr: float, amp: bool) -> Schedule:
    """The steps after the cut: rates rise slowly, and BatchNorm keeps its statistics, so that they do no harm."""
    return Schedule(steps, STEP, lr, warmup=0.3, amp=amp, freeze_batchnorm=True)
