"""A network that a library can put together, and what it will be worth, said before it is built.

Student Search (Shao et al., arXiv 2010.01189) adds local errors up; so do both extensions here.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import kendalltau
from torch import Tensor, nn

from nkdlib.neighbourhoods.candidates import Known
from nkdlib.neighbourhoods.select import Selection
from nkdlib.neighbourhoods.split import recompose
from nkdlib.neighbourhoods.tables import Tabled
from nkdlib.networks.latency import Latency
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

    The network has any candidates in the other places. Logits (B, classes) are compared on the first `holdout` images
    of (N, C, H, W), BatchNorm is measured on others. Returns by label the Kullback-Leibler divergence, mean nats.
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


@dataclass(frozen=True, repr=False)
class Composition(Tabled, Selection):
    """What was chosen, what that predicts, and how to build it; prints itself as a table."""

    rows: pd.DataFrame = field(compare=False)  # the library's rows of these candidates
    accuracy: float | None  # predicted, in percent, where the library is calibrated
    make: Callable[[int | None], nn.Module] = field(compare=False)
    time: Callable[[nn.Module], Latency] = field(compare=False)

    def build(self, bn_images: int | None = None) -> nn.Module:
        """The recomposed network in evaluation mode, its weights its own: to be saved, loaded and fine-tuned.

        Args:
            bn_images: of the library's inputs, on which the running statistics of BatchNorm are measured again where
                a neighbourhood was replaced; the recipe's where omitted, 0 leaves them.
        """
        return self.make(bn_images)

    def latency(self) -> Latency:
        """Measured on the built network as on its parts, to be held against `costs["latency_ms"]`."""
        return self.time(self.build())

    def table(self) -> pd.DataFrame:
        """Local errors and costs of what was chosen, a row a neighbourhood."""
        return self.rows

    def caption(self) -> str:
        """Predictions in one line."""
        units = {"params": "{:,} parameters", "macs": "{:,} MACs", "latency_ms": "{:.3g} ms"}
        costs = ", ".join(units[cost].format(value) for cost, value in self.costs.items())
        accuracy = "" if self.accuracy is None else f"accuracy {self.accuracy:.1f} %, "
        return f"predicted: {accuracy}sum of errors {self.error:.4f}, {costs}"
