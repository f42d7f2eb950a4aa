"""End-to-end training, and the end-to-end distillation that Neighbourhood Distillation is compared with."""

from nkdlib.training.batchnorm import mismatch, reestimate_batchnorm
from nkdlib.training.distributed import Checkpoints
from nkdlib.training.end_to_end import EndToEnd, distill_end_to_end, fit
from nkdlib.training.evaluate import accuracy, predict
from nkdlib.training.loop import Schedule, minimize
from nkdlib.training.store import Store, images_of

__all__ = [
    "Checkpoints",
    "EndToEnd",
    "Schedule",
    "Store",
    "accuracy",
    "distill_end_to_end",
    "fit",
    "images_of",
    "minimize",
    "mismatch",
    "predict",
    "reestimate_batchnorm",
]
