"""Budgets: the same notebooks and the same code with other parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from joblib import cpu_count


@dataclass(frozen=True)
class Profile:
    """One budget."""

    name: str
    data: str  # the data set that every notebook gets, unless its own entry names another
    device: str
    seeds: int  # five are the fewest that a claim is judged on
    judged: bool  # False: its numbers are watermarked and judge nothing
    parameters: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # notebook stem -> values

    def for_notebook(self, stem: str, **overrides: object) -> dict[str, object]:
        """Return the parameters of the notebook `stem`; `overrides` that are not None win."""
        common = {
            "profile": self.name,
            "data": self.data,
            "seeds": self.seeds,
            "jobs": cpu_count(),
            "device": self.device,
            "executor": "local",
        }
        given = {name: value for name, value in overrides.items() if value is not None}
        return {**common, **self.parameters.get(stem, {}), **given}


_FASHION = {"depth": 14, "width": 16, "stem_stride": 4, "teacher_steps": 1200}  # 89 %, 18 s on one core
_CIFAR = {  # never run on a GPU yet: a guess
    "depth": 20,
    "width": 16,
    "stem_stride": 1,
    "teacher_steps": 32_000,
    "teacher_recipe": {"momentum": 0.9, "lr": 0.1, "weight_decay": 5e-4},
    "amp": True,
}
_IMAGES = {"validation": 5_000, "images": 12_800}  # a pass of 100 steps; boundaries take 0.4 GB on Fashion-MNIST
_SPEED = {
    "steps": [100, 200, 400, 800],  # at the end both methods have seen every image eight times
    "short_steps": [25, 50, 100, 200],
    "rates": [2e-3, 5e-3, 1.5e-2, 4e-2, 1e-1],
    "tune_steps": 200,
    "fine_tune_steps": 30,
    "solve_images": 512,  # more images change validation accuracy by less than 0.1 points
    "repeats": 3,
}
_REPLACE = {"steps": 1_200, "probe_images": 2_000}
_SEARCH = {
    "images": 4_096,
    "steps": 100,
    "combinations": 40,
    "budgets": [0.1, 0.15, 0.2, 0.3, 0.5],
    "latency_budgets": [0.4, 0.5, 0.6, 0.7, 0.8],
    "random_draws": 3,
    "tuned_budgets": [0.15, 0.3],
    "fine_tune_steps": 30,
    "rival_steps": [30, 120, 480],
    "rates": [5e-3, 1.5e-2, 4e-2],
    "repeats": 50,
}
_NOISE = {
    "validation": 5_000,
    "count": 3_072,
    "inverted": 1_024,
    "inversion_steps": 30,
    "steps": 150,
    "long_steps": 300,
    "short_steps": 50,
    "rates": [3e-3, 1.5e-2],
    "few": [10, 100, 1_000],
    "moments": 1_024,
}
_FIGS = {
    "validation": 5_000,
    "budgets": {"params": [0.1], "macs": [0.1]},
    "steps": 200,
    "batch_size": 64,
    "strengths": [0.01, 0.1, 1.0],
    "mixture_rates": [3e-3, 3e-2],
    "random_draws": 1,
    "candidates": 2,
    "imagenet_pixels": 224,
    "repeats": 15,
}
_SMALL_SPACES = {
    "stem_stride": 4,
    "width": 24,
    "mixed": [16, [[6, 16, 2, 2], [6, 24, 2, 2]], 64],
    "cells": "rn",
    "cell_channels": 8,
    "search_steps": 300,
    "imagenet_batch": 8,
}
_DETECTION = {
    "seeds": 3,  # each trains three detectors; the fewest that FG-2 is judged on
    "size": 128,
    "pictures": 2_000,
    "test_pictures": 500,
    "stages": [[1, 16, 1, 1], [3, 16, 2, 2], [3, 32, 2, 2], [6, 64, 3, 2], [6, 96, 2, 2]],
    "search_steps": 400,
    "crop_steps": 500,
    "steps": 600,
    "batch_size": 16,
    "extra": [64, 32],
    "crop_pictures": 2_000,
    "checkpoints": 5,
}
_IMAGENET_TEACHER = {
    "seeds": 3,
    "photographs": 1_000,
    "first_block": 6,
    "first_searched": 1,
    "counts": [32, 500],
    "views": 6,
    "steps": 120,
    "last_steps": 1_500,
    "last_crops": 9_600,
    "leaves": 320,
    "noise": 128,
    "few": 32,
    "latency_budgets": [0.7, 0.85],
    "latency_photos": 200,
    "search_steps": 60,
    "repeats": 50,
}
_LARGE_DETECTION = {  # never run yet: a guess
    "amp": True,
    "data": "bccd-coco",  # a folder in NKD_DATA, in COCO's layout
    "size": 320,
    "width": 0.5,
    "stages": [[1, 16, 1, 1], [6, 24, 3, 2], [6, 40, 3, 2], [6, 96, 6, 2], [6, 160, 3, 2]],
    "search_steps": 2_000,
    "crop_steps": 4_000,
    "steps": 4_000,
    "batch_size": 32,
    "extra": [256, 128, 128, 64],
    "crop_pictures": 10_000,
    "checkpoints": 5,
}
_LARGE_SPACES = {  # never run yet: a guess
    "amp": True,
    "width": 64,
    "mixed": [32, [[6, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 3, 2]], 256],
    "cells": "nrnrn",
    "cell_channels": 16,
    "nodes": 4,
    "search_steps": 4_000,
    "steps": 8_000,
    "batch_size": 128,
    "random_draws": 3,
    "candidates": 4,
    "budgets": {"params": [0.05, 0.1], "macs": [0.05, 0.1]},
    "imagenet_batch": 64,
}

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("smoke", data="digits", device="cpu", seeds=2, judged=False),
        Profile(
            "cpu",
            data="fashion-mnist",
            device="cpu",
            seeds=5,
            judged=True,
            parameters={
                "00_start_here": {**_FASHION, "teacher_steps": 400, "images": 3_000},
                "01_local_replacement": {**_FASHION, **_IMAGES, **_REPLACE},
                "02_distillation_speed": {**_FASHION, **_IMAGES, **_SPEED},
                "03_student_search": {**_FASHION, **_IMAGES, **_SEARCH, "depth": 20, "teacher_steps": 800},
                "04_synthetic_data": {**_FASHION, **_NOISE},
                "05_figs_classification": {**_FIGS, **_SMALL_SPACES},
                "06_figs_detection": _DETECTION,
                "08_imagenet_teacher": _IMAGENET_TEACHER,
            },
        ),
        Profile(
            "gpu",
            data="cifar10",
            device="cuda",
            seeds=5,
            judged=True,
            parameters={
                "00_start_here": {**_CIFAR, "teacher_steps": 2_000, "images": 3_000},
                "01_local_replacement": {**_CIFAR, **_IMAGES, **_REPLACE, "depth": 34, "width": 64, "augment": True},
                "02_distillation_speed": {**_CIFAR, **_IMAGES, **_SPEED, "augment": True},
                "03_student_search": {**_CIFAR, **_IMAGES, **_SEARCH, "depth": 56, "augment": True},
                "04_synthetic_data": {**_CIFAR, **_NOISE, "steps": 200, "long_steps": 400, "augment": True},
                "05_figs_classification": {**_FIGS, **_LARGE_SPACES, "augment": True},
                "06_figs_detection": _LARGE_DETECTION,
                "08_imagenet_teacher": {**_IMAGENET_TEACHER, "amp": True},
            },
        ),
        Profile("paper", data="imagenet", device="cuda", seeds=5, judged=True),
    )
}
