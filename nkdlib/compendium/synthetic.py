"""Inputs that are no data, for claim ND-3, and how they are drawn."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nkdlib.compendium import plots
from nkdlib.compendium.criteria import Interval
from nkdlib.data import DeadLeaves, GaussianImages, Images, SpectrumImages
from nkdlib.tasks.cache import Artefact

REAL = "real images"
BATCH = 256


def batches_of(source: str | Artefact, like: Images, count: int, seed: int, device: str) -> list[Tensor]:
    """Batches of a source, (B, C, H, W), drawn once.

    Args:
        source: white, spectrum or leaves, REAL for none at all, or an artefact with `images`.
        like: the data set, of which only the shape and the teacher's input normalization are used, the latter not by
            white noise.
        count: images that are drawn.
        seed, device: of the images.
    """
    if isinstance(source, Artefact):
        return list(source.tensors["images"].to(device, memory_format=torch.channels_last).split(BATCH))
    options = {"batch_size": BATCH, "device": device, "channels_last": True}
    if source == "white":  # values as they are drawn, some outside of what a pixel can be
        return list(GaussianImages(like.shape, count, seed, **options))
    if source == REAL:
        return []
    return list({"spectrum": SpectrumImages, "leaves": DeadLeaves}[source].like(like, count, seed, **options))


def with_real(noise: list[Tensor], real: Images, device: str, count: int = 2304) -> list[Tensor]:
    """Batches of noise and real images in turn, all real ones equally often; `count` in all without noise."""
    images = torch.cat([x for x, _ in real.in_order(device)])
    total = sum(map(len, noise)) or count
    order = torch.arange(total) % len(images)
    images = images[order[torch.randperm(total, generator=torch.Generator().manual_seed(0))]]
    if not noise:
        return list(images.split(BATCH))
    mixed = torch.stack([images, torch.cat(noise)], 1).flatten(0, 1)
    return [batch.contiguous(memory_format=torch.channels_last) for batch in mixed.split(BATCH)]


def pixel_limits(like: Images) -> tuple[float, float]:
    """The lowest and the highest value of a normalized pixel."""
    mean, std = torch.tensor(like.mean), torch.tensor(like.std)
    return (-mean / std).min().item(), ((1 - mean) / std).max().item()


def gallery(images: Mapping[str, Tensor], like: Images, columns: int = 8) -> Figure:
    """Draw the first images of each source, (N, C, H, W), a row a source, its label beside it."""
    fig, axes = plt.subplots(len(images), columns, figsize=(plots.PAGE_WIDTH, 0.92 * len(images)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (like.mean, like.std))
    for row, (label, batch) in zip(axes, images.items(), strict=True):
        for ax, image in zip(row, batch.cpu() * std + mean, strict=False):
            ax.imshow(image.clamp(0, 1).permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    return fig


def draw_spans(ax: Axes, spans: Mapping[str, Mapping[str, Interval]], looks: Sequence[tuple[str, str]]) -> None:
    """Draw intervals side by side: a place on the horizontal axis for each inner label, a mark for each outer one.

    Args:
        ax: the axes.
        spans: outer label -> inner label -> interval; a missing one leaves its place empty.
        looks: (method of `plots.method_colors`, marker) of each outer label.
    """
    places = list(dict.fromkeys(label for found in spans.values() for label in found))
    for index, ((label, found), (method, marker)) in enumerate(zip(spans.items(), looks, strict=True)):
        x = [places.index(place) + 0.2 * (index - (len(spans) - 1) / 2) for place in found]
        color = plots.method_colors[method]
        ax.plot(x, [span.mean for span in found.values()], marker, color=color, label=label)
        for position, span in zip(x, found.values(), strict=True):
            if span.low is not None:
                ax.plot([position] * 2, [max(span.low, 0), min(span.high, 100)], color=color, linewidth=1)
    ax.set_xticks(range(len(places)), places, rotation=30, ha="right")
