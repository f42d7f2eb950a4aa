"""Images that nobody took: the same from the same seed, with the marginal and the correlations that they promise.

Behind claim ND-3.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from nkdlib.data import DeadLeaves, GaussianImages, SmoothImages, SpectrumImages
from nkdlib.data.noise import NoiseImages, field

SOURCES = (GaussianImages, SmoothImages, SpectrumImages, DeadLeaves)


def lag(x):
    """Correlation of horizontal neighbors over all images."""
    x = x - x.mean()
    return ((x[..., 1:] * x[..., :-1]).mean() / x.square().mean()).item()


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_the_same_from_the_same_seed_whatever_the_batches(source):
    noise = source((2, 9, 12), count=150, seed=0, mean=(0.3, 0.5), std=(0.3, 0.2), batch_size=64)
    batches = list(noise)
    assert [len(b) for b in batches] == [64, 64, 22] and len(noise) == 3
    assert batches[0].shape[1:] == (2, 9, 12) and batches[0].dtype == torch.float32
    again = torch.cat(list(dataclasses.replace(noise, batch_size=50, channels_last=True)))
    assert torch.equal(torch.cat(batches), again)
    other = torch.cat(list(dataclasses.replace(noise, seed=1)))
    assert not torch.equal(again, other)


@pytest.mark.parametrize("source", SOURCES)
def test_pixels_have_the_mean_and_deviation_that_the_normalization_names(source):
    mean, std = (0.29,), (0.35,)
    x = torch.cat(list(source((1, 16, 16), 1500, 0, mean, std)))
    assert abs(x.mean()) < 0.1 and x.std() == pytest.approx(1, abs=0.1)
    pixels = x * std[0] + mean[0]
    assert -1e-4 < pixels.min() < 0.01 and 0.99 < pixels.max() < 1 + 1e-4


def test_gaussian_pixels_without_a_normalization():
    x = torch.cat(list(GaussianImages((1, 8, 8), 1000, 0)))
    assert abs(x.mean()) < 0.02 and x.std() == pytest.approx(1, abs=0.02) and x.max() > 3
    assert abs(lag(x)) < 0.02


def test_fields_have_unit_deviation_and_the_spectrum_that_is_asked_for():
    draw = torch.Generator().manual_seed(0)
    x = field(torch.full((4000,), 1.0), (1, 16, 16), draw)
    assert x.std() == pytest.approx(1, abs=0.03) and abs(x.mean()) < 0.03
    # Power by distance from the middle of the spectrum, on the canvas of twice the size that fields are cut from.
    frequencies = torch.fft.fftfreq(32, 1 / 32)
    power = 1 / (frequencies[:, None] ** 2 + frequencies[None] ** 2).clamp_min(1)
    covariance = torch.fft.ifft2(power).real
    assert lag(x) == pytest.approx((covariance[0, 1] / covariance[0, 0]).item(), abs=0.03)
    white = field(torch.zeros(500), (1, 16, 16), draw)
    assert abs(lag(white)) < 0.02


def test_sources_differ_in_how_alike_neighbors_are():
    lags = [lag(torch.cat(list(source((1, 16, 16), 256, 0)))) for source in SOURCES]
    assert abs(lags[0]) < 0.03 and all(value > 0.3 for value in lags[1:])


def test_channels_of_leaves_have_most_in_common():
    x = torch.cat(list(DeadLeaves((3, 8, 8), 512, 0)))
    flat = x.transpose(0, 1).flatten(1)
    common = (0.9 + 0.3**2) / (1 + 0.3**2)  # the colors' share, and the texture that all channels share
    assert torch.corrcoef(flat)[0, 1].item() == pytest.approx(common, abs=0.04)


def test_a_source_like_a_data_set_does_not_look_at_its_images():
    said = SimpleNamespace(shape=(1, 6, 6), mean=(0.5,), std=(0.2,))  # all that it may ask for
    assert DeadLeaves.like(said, 3, seed=5) == DeadLeaves((1, 6, 6), 3, 5, (0.5,), (0.2,))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"count": 0}, r"count \(=0\) must be a whole number of at least 1"),
        ({"shape": (4, 4)}, r"shape \(=\(4, 4\)\) must be \(C, H, W\)"),
        ({"shape": (1, 0, 4)}, r"shape \(=0\) must be a whole number"),
        ({"seed": -1}, r"seed \(=-1\) must be a whole number of at least 0"),
        ({"device": "gpu"}, r"device \(='gpu'\) must be cpu, cuda or cuda:N"),
        ({"mean": (0.5,), "std": (0.5,)}, r"mean \(=0.5\) and std \(=0.5\) must be those of pixels"),
        ({"mean": (1.5,), "std": (0.1,)}, r"mean \(=1.5\)"),
        ({"mean": (0.5,)}, r"mean \(=\(0.5,\)\) and std \(=None\) must each have one value for each of the 1 channels"),
        ({"shape": (3, 4, 4), "mean": (0.5,), "std": (0.2,)}, "for each of the 3 channels"),
    ],
)
def test_what_cannot_be_drawn_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        GaussianImages(**{"shape": (1, 4, 4), "count": 4, "seed": 0, **options})


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        (SpectrumImages, {"exponents": (2.0, 1.0)}, r"exponents \(=\(2.0, 1.0\)\) must be two numbers, the lower"),
        (SpectrumImages, {"exponents": (1.0,)}, r"exponents .* two numbers"),
        (SmoothImages, {"cells": 0}, r"cells \(=0\) must be a whole number of at least 1"),
        (DeadLeaves, {"radius": (0.0, 0.5)}, r"radius \(=0.0\) must be a finite number above 0"),
        (DeadLeaves, {"leaves": (0, 4)}, r"leaves \(=0\) must be a whole number of at least 1"),
        (DeadLeaves, {"gray": 1.5}, r"gray \(=1.5\) must be a finite number of at least 0 and at most 1"),
        (DeadLeaves, {"texture": -1.0}, r"texture \(=-1.0\)"),
    ],
)
def test_settings_of_a_source_are_named(source, options, match):
    with pytest.raises(ValueError, match=match):
        source((1, 4, 4), 4, 0, **options)


def test_the_base_draws_nothing():
    with pytest.raises(NotImplementedError, match="use one of its subclasses"):
        list(NoiseImages((1, 2, 2), 1, 0))
