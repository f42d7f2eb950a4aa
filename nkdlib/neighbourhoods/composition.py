"""One network that a library can put together, before and after it is built."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from torch import nn

from nkdlib.models.latency import Latency
from nkdlib.neighbourhoods.select import Selection
from nkdlib.neighbourhoods.tables import Tabled


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
