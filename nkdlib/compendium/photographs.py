"""Photographs and drawn images for ImageNet networks, divided into those to learn from and those to judge."""

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from nkdlib.compendium.crops import Crops
from nkdlib.data import DeadLeaves, GaussianImages, Images, SmoothImages, SpectrumImages, load, weights
from nkdlib.training.evaluate import predict

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's networks, white being 1
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


def open_mobilenet(name: str, device: str = "cpu") -> nn.Module:
    """MobileNetV2 with published weights ("imagenet") or, where only the code is tried, random ones ("random")."""
    if name == "imagenet":
        network = weights.mobilenet_v2()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = mobilenet_v2(weights=None).eval()
    return network.to(device, memory_format=torch.channels_last)


def divide(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of photographs to learn from and to judge; those that settings were chosen on are never judged."""
    order, half = torch.randperm(count, generator=torch.Generator().manual_seed(0)), count // 2
    tuned, others = order[half : half + half // 5], torch.cat([order[:half], order[half + half // 5 :]])
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))]
    return torch.cat([tuned, others[half:]]), others[:half]


def classes_of(network: nn.Module, images: Images, size: int, device: str) -> Tensor:
    """The class that a network sees in the center of each image, (N,)."""
    return predict(network, Crops(images, size, batch_size=BATCH, device=device)).argmax(1).cpu()


def judge_student(student: nn.Module, teacher: nn.Module, images: Images, size: int, device: str) -> dict[str, float]:
    """Agreement with the teacher's class, and top-1, in percent of the images."""
    found, wanted = (classes_of(network, images, size, device) for network in (student, teacher))
    rates = {"agreement": found == wanted, "top_1": found == images.labels}
    return {name: 100 * right.double().mean().item() for name, right in rates.items()}
