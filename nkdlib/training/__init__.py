"""End-to-end training, and the end-to-end distillation that Neighbourhood Distillation is compared with."""

from nkdlib.training.batchnorm import mismatch, reestimate_batchnorm
from nkdlib.training.distributed import Checkpoints
from nkdlib.training.end_to_end import distill_end_to_end, fit
from nkdlib.training.evaluate import accuracy, predict
from nkdlib.training.loop import Schedule
from nkdlib.training.store import Store

__all__ = [
    "Checkpoints",
    "Schedule",
    "Store",
    "accuracy",
    "distill_end_to_end",
    "fit",
    "mismatch",
    "predict",
    "reestimate_batchnorm",
]
