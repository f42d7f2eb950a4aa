"""Where images come from, how they reach the device, and noise in their place."""

from nkdlib.data.crops import Crops
from nkdlib.data.decode import DataDamaged
from nkdlib.data.images import Batches, Images, random_shift_flip
from nkdlib.data.load import DataNotFound, load
from nkdlib.data.noise import DeadLeaves, GaussianImages, Mixture, NoiseImages, SmoothImages, SpectrumImages

__all__ = [
    "Batches",
    "Crops",
    "DataDamaged",
    "DataNotFound",
    "DeadLeaves",
    "GaussianImages",
    "Images",
    "Mixture",
    "NoiseImages",
    "SmoothImages",
    "SpectrumImages",
    "load",
    "random_shift_flip",
]
