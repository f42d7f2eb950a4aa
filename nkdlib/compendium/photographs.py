"""Photographs and drawn images for ImageNet networks: those to learn from, and others to judge on."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from nkdlib.compendium.teachers import IMAGENET
from nkdlib.data import DeadLeaves, GaussianImages, Images, SmoothImages, SpectrumImages, load, weights
from nkdlib.networks.module import device_of
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.evaluate import predict
from nkdlib.training.kernels import autocast
from nkdlib.training.store import Store

PIXEL_MEAN, PIXEL_STD = IMAGENET
SOURCES = {"white": GaussianImages, "smooth": SmoothImages, "spectrum": SpectrumImages, "leaves": DeadLeaves}
BATCH = 16  # images at a time: a CPU is faster with few, and needs less memory


def draw(source: str, count: int, size: int, seed: int, device: str = "cpu") -> list[Tensor]:
    """Batches of a synthetic source, (B, 3, size, size), with the marginal distribution of ImageNet's pixels."""
    settings = {"batch_size": BATCH, "device": device, "channels_last": True}
    return list(SOURCES[source]((3, size, size), count, seed, PIXEL_MEAN, PIXEL_STD, **settings))


def open_photographs(name: str, size: int, count: int) -> Images:
    """At most `count` photographs, squares a little larger than the crops of `size` pixels.

    Args:
        name: a folder of `<class>/*`, by its path or by its name in NKD_DATA; "drawn" gives dead leaves in ten classes,
            which stand in for photographs where only the code is tried.
    """
    side = round(size * 256 / 224)
    if name != "drawn":
        images = load(name, "all", image_size=side, resize=side).renormalized(PIXEL_MEAN, PIXEL_STD)
        return images.subset(min(count, len(images)), seed=0)
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (PIXEL_STD, PIXEL_MEAN))
    pixels = (torch.cat(draw("leaves", count, side, 0)) * scale + shift).mul(255).round().clamp(0, 255).byte()
    classes = tuple(map(str, range(10)))
    return Images("drawn", "all", pixels.contiguous(), torch.arange(count) % 10, classes, PIXEL_MEAN, PIXEL_STD)


def open_judged(names: Sequence[str], size: int, count: int, classes: Sequence[str]) -> tuple[Images, Tensor]:
    """Photographs of several folders, at most `count` of each, and the number of the folder that each is from.

    Labels are the places of classes, named as folders, in `classes`.

    Raises:
        ValueError: a folder with a class that `classes` lacks, which would have no label.
    """
    sets, places = [open_photographs(name, size, count) for name in names], {c: n for n, c in enumerate(classes)}
    for name, images in zip(names, sets, strict=True):
        if unknown := sorted({*images.classes} - {*places}):
            raise ValueError(
                f"judged holds {name!r} with the class {unknown[0]!r}, which is no folder of photos; "
                "give photos a folder for every class, named alike (docs/data.md)"
            )
    labels = [torch.tensor([places[c] for c in images.classes])[images.labels] for images in sets]
    pixels = torch.cat([images.pixels for images in sets])
    judged = Images(" and ".join(names), "all", pixels, torch.cat(labels), tuple(classes), PIXEL_MEAN, PIXEL_STD)
    return judged, torch.repeat_interleave(torch.tensor([len(images) for images in sets]))


def open_mobilenet(name: str, device: str = "cpu") -> nn.Module:
    """MobileNetV2 with published weights ("imagenet") or, where only the code is tried, random ones ("random")."""
    if name == "imagenet":
        network = weights.mobilenet_v2()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = reestimate_batchnorm(mobilenet_v2(weights=None), draw("leaves", 32, 64, seed=0))
    return network.to(device, memory_format=torch.channels_last)


def cut_before(network: nn.Module, block: int) -> tuple[nn.Module, nn.Module]:
    """MobileNetV2 in two, weights shared: the layers before `features.<block>`, and the rest under their old names."""
    features, classifier = network.features, network.classifier
    rest = OrderedDict(
        features=features[block:], pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), classifier=classifier
    )
    return features[:block].eval(), nn.Sequential(rest).eval()


@torch.no_grad()
def pass_on(front: nn.Module, inputs: Iterable, amp: bool = False) -> Tensor:
    """What `front` makes of batches of images, float16 and channels last as in a `Store`: (N, H, W, C)."""
    device, parts = device_of(front), []
    with autocast(device, amp):
        for batch in inputs:
            x = batch if isinstance(batch, Tensor) else batch[0]
            parts.append(front(x.to(device)).permute(0, 2, 3, 1).half().contiguous())
    return torch.cat(parts)


class Kept:
    """What `pass_on` gave, (N, H, W, C), as batches of float32 (B, C, H, W)."""

    def __init__(self, x: Tensor):
        self.store = Store({"x": x})

    def __iter__(self) -> Iterator[Tensor]:
        return (rows["x"] for rows in self.store.chunks(BATCH))


def judge_student(student: nn.Module, inputs: Iterable, answers: Mapping[str, Tensor]) -> dict[str, float]:
    """Agreement with the teacher's class, of each set by itself too, and top-1, in percent of the photographs.

    Args:
        student: a network or the rest of one, see `cut_before`.
        inputs: batches of what it takes.
        answers: for each photograph the class that the teacher sees (teacher), its own (labels), and the number of
            its set (set).
    """
    found = predict(student, inputs).argmax(1)
    agree = found == answers["teacher"]
    rates = {"agreement": agree, "top_1": found == answers["labels"]}
    rates |= {f"agreement_{n + 1}": agree[answers["set"] == n] for n in answers["set"].unique().tolist()}
    return {name: 100 * right.double().mean().item() for name, right in rates.items()}
