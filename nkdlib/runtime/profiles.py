"""Budgets: the same notebooks and the same code with other parameters."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


def available_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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
            "jobs": available_cores(),
            "device": self.device,
            "executor": "local",
        }
        given = {name: value for name, value in overrides.items() if value is not None}
        return {**common, **self.parameters.get(stem, {}), **given}


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("smoke", data="digits", device="cpu", seeds=2, judged=False),
        Profile("cpu", data="fashion-mnist", device="cpu", seeds=5, judged=True),
        Profile("gpu", data="cifar10", device="cuda", seeds=5, judged=True),
        Profile("paper", data="imagenet", device="cuda", seeds=5, judged=True),
    )
}
