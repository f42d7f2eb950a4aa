"""Where images come from, how they reach the device, and noise in their place."""

from nkdlib.data.augment import random_shift_flip
from nkdlib.data.decode import DataDamaged
from nkdlib.data.images import Batches, Images
from nkdlib.data.load import DataNotFound, load
from nkdlib.data.noise import GaussianImages

__all__ = ["Batches", "DataDamaged", "DataNotFound", "GaussianImages", "Images", "load", "random_shift_flip"]
