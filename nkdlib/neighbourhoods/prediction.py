"""What a network will be worth, said before it is built: from errors to accuracy, and errors measured in context.

Student Search (Shao et al., arXiv 2010.01189) adds local errors up; so do both extensions here.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import kendalltau
from torch import Tensor, nn

from nkdlib.neighbourhoods.candidates import Known
from nkdlib.neighbourhoods.recompose import recompose
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.end_to_end import soft_targets


@dataclass(frozen=True)
class Forecast:
    """Accuracy as a falling function of the sum of errors, fitted to networks that were measured.

    >>> forecast = Forecast((0.0, 0.1, 0.2, 0.4), (90.0, 88.0, 89.0, 70.0))
    >>> forecast.accuracy(0.15), forecast.accuracy(0.3), round(forecast.tau, 2)
    (88.5, 79.25, -0.67)
    """

    errors: Sequence[float]  # sums of errors of the measured networks
    accuracies: Sequence[float]  # percent

    def accuracy(self, error: float) -> float:
        """The expected accuracy in percent: isotonic regression, linear between what was measured, flat beyond."""
        order = np.lexsort((np.negative(self.accuracies), self.errors))
        fitted = isotonic_regression(np.array(self.accuracies, float)[order], increasing=False).x
        return float(np.interp(error, np.array(self.errors, float)[order], fitted))

    @property
    def tau(self) -> float:
        """Kendall's tau between errors and accuracies: -1 where the sum of errors ranks them without a mistake."""
        return float(kendalltau(self.errors, self.accuracies).statistic)


def shift_of_predictions(
    teacher: nn.Module,
    network: nn.Module,
    name: str,
    students: dict[str, nn.Module],
    images: Known,
    holdout: int,
    bn_images: int,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """How far a network's predictions lie from the teacher's with each candidate in one place; a task for the cache.

    Args:
        teacher, network: with logits (B, classes); the network has any candidates in the other places.
        name: the neighbourhood.
        students: its candidates by label.
        images: (N, C, H, W); predictions are compared on the first `holdout`, BatchNorm is measured on others.

    Returns:
        Nothing, and by label the Kullback-Leibler divergence in nats, mean over images.
    """
    held_out, others = images.value[:holdout], images.value[holdout : holdout + bn_images]
    found = {}
    with torch.no_grad():
        wanted = teacher(held_out)
        if wanted.dim() != 2:
            raise ValueError(f"in_context needs a teacher with logits (B, classes), not {tuple(wanted.shape)}")
        for label, student in students.items():
            candidate = recompose(network, {name: copy.deepcopy(student)})
            reestimate_batchnorm(candidate, others.split(256), bn_images)
            found[label] = soft_targets(candidate(held_out), wanted, 1.0).item()
    return {}, found
