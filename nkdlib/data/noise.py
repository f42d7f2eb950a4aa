"""Synthetic images for students when no data are at hand.

Every source is reproducible from its seed and uses no real image. It may use the teacher's input normalization, the
mean and deviation of the pixels; each class says what else it assumes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Generator, Tensor

from nkdlib.data.images import Images
from nkdlib.tasks.checks import check_number, check_seed, usable_device

BLOCK = 64  # images drawn at once; makes the images independent of the batch size


@dataclass(frozen=True)
class NoiseImages:
    """Batches of synthetic images, float32 (B, C, H, W), in normalized units; the base class of all sources.

    Iterating again gives the same images, whatever the batch size and the device. With the pixels' `mean` and `std`,
    values get the marginal distribution of real pixels: the Beta distribution on 0 to 1 with this mean and deviation,
    by its quantiles (our choice). Without them values stay Gaussian, so some lie outside the range of a pixel.
    """

    shape: tuple[int, int, int]  # of one image: (C, H, W)
    count: int  # images in all; the last batch may be smaller
    seed: int
    mean: tuple[float, ...] | None = None  # of the pixels in 0 to 1, by channel, as the teacher subtracts it
    std: tuple[float, ...] | None = None  # their deviation, as the teacher divides by it
    batch_size: int = 128
    device: str = "cpu"  # where batches are put; they are drawn on the CPU
    channels_last: bool = False

    def __post_init__(self):
        if len(self.shape) != 3:
            raise ValueError(f"shape (={self.shape}) must be (C, H, W), that of one image")
        for name, value in (
            ("count", self.count),
            ("batch_size", self.batch_size),
            *(("shape", n) for n in self.shape),
        ):
            check_number(name, value, 1, whole=True)
        check_seed(self.seed)
        usable_device(self.device)
        if self.mean is not None or self.std is not None:
            if not len(self.mean or ()) == len(self.std or ()) == self.shape[0]:
                raise ValueError(
                    f"mean (={self.mean}) and std (={self.std}) must each have one value for each of the "
                    f"{self.shape[0]} channels, or both be left out"
                )
            for mean, std in zip(self.mean, self.std, strict=True):
                if not (0 < mean < 1 and 0 < std**2 < mean * (1 - mean)):
                    raise ValueError(f"mean (={mean}) and std (={std}) must be those of pixels in 0 to 1, not constant")

    @classmethod
    def like(cls, images: Images, count: int, seed: int, **options: object) -> Self:
        """A source with the shape and the normalization of a data set; the images themselves are not used."""
        return cls(images.shape, count, seed, images.mean, images.std, **options)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = Generator().manual_seed(self.seed)
        drawn = torch.empty(0, *self.shape)
        for start in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - start)
            while len(drawn) < size:
                drawn = torch.cat([drawn, self._pixels(self._draw(generator))])
            batch, drawn = drawn[:size], drawn[size:]
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            yield batch.to(self.device).contiguous(memory_format=layout)

    def _draw(self, generator: Generator) -> Tensor:
        """The next images, (BLOCK, C, H, W), mean 0 and deviation 1 over many."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing; use one of its subclasses")

    def _pixels(self, z: Tensor) -> Tensor:
        """Map Gaussian values to normalized pixels whose marginal distribution has `mean` and `std`."""
        if self.mean is None:
            return z
        position = (z.clamp(-5, 5) + 5) * (_CELLS / 10)
        cell = position.long().clamp(max=_CELLS - 1)
        tables = torch.stack([_quantiles(m, s) for m, s in zip(self.mean, self.std, strict=True)])  # (C, _CELLS + 1)
        channel = torch.arange(len(tables)).view(1, -1, 1, 1)
        return torch.lerp(tables[channel, cell], tables[channel, cell + 1], position - cell)


_CELLS = 4000  # of the table between -5 and 5 deviations


@lru_cache(maxsize=16)
def _quantiles(mean: float, std: float) -> Tensor:
    """Normalized pixel values at Gaussian values -5 to 5, of the Beta distribution with this mean and deviation."""
    total = mean * (1 - mean) / std**2 - 1
    ranks = torch.special.ndtr(torch.linspace(-5, 5, _CELLS + 1, dtype=torch.float64)).numpy()
    pixels = torch.from_numpy(betaincinv(mean * total, (1 - mean) * total, ranks))
    return ((pixels - mean) / std).float()


@dataclass(frozen=True)
class GaussianImages(NoiseImages):
    """White noise: every pixel by itself."""

    def _draw(self, generator: Generator) -> Tensor:
        return torch.randn(BLOCK, *self.shape, generator=generator)


@dataclass(frozen=True)
class SpectrumImages(NoiseImages):
    """Random fields with the spectrum of photographs, an amplitude of 1 / frequency^a (Field 1987; there a is about 1).

    Every image has an exponent of its own between the two given; 0 is white, 2 and more is smooth.
    """

    exponents: tuple[float, float] = (0.5, 2.5)

    def __post_init__(self):
        super().__post_init__()
        _check_range("exponents", self.exponents, 0)

    def _draw(self, generator: Generator) -> Tensor:
        low, high = self.exponents
        return field(low + (high - low) * torch.rand(BLOCK, generator=generator), self.shape, generator)


@dataclass(frozen=True)
class SmoothImages(NoiseImages):
    """White noise on a coarse grid of `cells` x `cells`, made larger by bicubic interpolation."""

    cells: int = 7

    def __post_init__(self):
        super().__post_init__()
        check_number("cells", self.cells, 1, whole=True)

    def _draw(self, generator: Generator) -> Tensor:
        z = torch.randn(BLOCK, self.shape[0], self.cells, self.cells, generator=generator)
        z = F.interpolate(z, size=self.shape[1:], mode="bicubic", align_corners=False)
        return z / z.std()


@dataclass(frozen=True)
class DeadLeaves(NoiseImages):
    """Opaque shapes of many sizes that cover each other, with a little texture within.

    Images have edges, flat areas and occlusion as photographs have (Lee, Mumford and Huang 2001; as training data,
    Baradad et al. 2021, arXiv 2106.05963). Ellipses and boxes, radii by a power law; sizes and numbers are our choice.
    """

    leaves: tuple[int, int] = (3, 40)  # of one image, log-uniformly
    radius: tuple[float, float] = (0.06, 0.6)  # of the image's side, log-uniformly
    texture: float = 0.3  # deviation of the field within the leaves, of that between them
    gray: float = 0.9  # share of the variance that the channels have in common, as in photographs

    def __post_init__(self):
        super().__post_init__()
        _check_range("leaves", self.leaves, 1, whole=True)
        _check_range("radius", self.radius, 0, above=True)
        check_number("texture", self.texture, 0)
        check_number("gray", self.gray, 0, 1)

    def _draw(self, generator: Generator) -> Tensor:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        def between(limits: tuple[float, float], *shape: int) -> Tensor:
            low, high = map(math.log, limits)
            return (low + (high - low) * uniform(*shape)).exp()

        channels, height, width = self.shape
        y, x = torch.linspace(0, 1, height).view(1, -1, 1), torch.linspace(0, 1, width).view(1, 1, -1)
        z = self._colors(generator).expand(BLOCK, channels, height, width)
        wanted = between(self.leaves, BLOCK).round().view(-1, 1, 1)
        for leaf in range(self.leaves[1]):
            r, aspect = between(self.radius, BLOCK, 1, 1), between((0.45, 2.2), BLOCK, 1, 1)
            angle = math.pi * uniform(BLOCK, 1, 1)
            dy, dx = y - uniform(BLOCK, 1, 1), x - uniform(BLOCK, 1, 1)
            along = (dx * angle.cos() + dy * angle.sin()) / (r * aspect)
            across = (dy * angle.cos() - dx * angle.sin()) * aspect / r
            power = torch.where(uniform(BLOCK, 1, 1) < 0.5, 2.0, 8.0)  # an ellipse or a box
            inside = (along.abs() ** power + across.abs() ** power < 1) & (leaf < wanted)
            z = torch.where(inside[:, None], self._colors(generator), z)
        grain = field(0.5 + uniform(BLOCK), (1, height, width), generator)
        return (z + self.texture * grain) / (1 + self.texture**2) ** 0.5

    def _colors(self, generator: Generator) -> Tensor:
        """One color an image, (BLOCK, C, 1, 1)."""
        own = torch.randn(BLOCK, self.shape[0], 1, 1, generator=generator)
        common = torch.randn(BLOCK, 1, 1, 1, generator=generator)
        return common if self.shape[0] == 1 else self.gray**0.5 * common + (1 - self.gray) ** 0.5 * own


def _check_range(name: str, limits: tuple[float, float], least: float, **rules: bool) -> None:
    """Raise ValueError unless limits are two numbers, the lower one first."""
    for value in limits:
        check_number(name, value, least, **rules)
    if len(limits) != 2 or limits[0] > limits[1]:
        raise ValueError(f"{name} (={limits}) must be two numbers, the lower one first")


def field(exponents: Tensor, shape: tuple[int, int, int], generator: Generator) -> Tensor:
    """Gaussian random fields with an amplitude of 1 / frequency^a, (N, C, H, W); mean 0, deviation 1 over many.

    `exponents` holds the a of each image, (N,). Cut from fields of twice the size, so that opposite borders are not
    alike. The mean has the amplitude of the lowest frequency: images differ in brightness.
    """
    channels, height, width = shape
    y, x = torch.fft.fftfreq(2 * height, 1 / (2 * height)), torch.fft.fftfreq(2 * width, 1 / (2 * width))
    frequency = (y[:, None] ** 2 + x[None] ** 2).sqrt().clamp_min(1.0)
    amplitude = frequency ** -exponents.view(-1, 1, 1, 1)  # (N, 1, 2H, 2W)
    amplitude = amplitude / amplitude.square().mean((2, 3), keepdim=True).sqrt()
    noise = torch.randn(len(exponents), channels, 2 * height, 2 * width, generator=generator)
    return torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real[:, :, :height, :width].contiguous()
