"""Images: data sets by name or folder, batches on the device, synthetic images, published weights."""

from nkdlib.data.images import Images, random_shift_flip
from nkdlib.data.load import DataNotFound, load
from nkdlib.data.noise import DeadLeaves, GaussianImages, SmoothImages, SpectrumImages
from nkdlib.data.readers import DataDamaged
from nkdlib.data.weights import mobilenet_v2

__all__ = [
    "DataDamaged",
    "DataNotFound",
    "DeadLeaves",
    "GaussianImages",
    "Images",
    "SmoothImages",
    "SpectrumImages",
    "load",
    "mobilenet_v2",
    "random_shift_flip",
]
