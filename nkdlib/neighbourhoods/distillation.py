"""What distilling gives: students with their local errors and their costs.

Shao et al., arXiv 2010.01189.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
from torch import nn

from nkdlib.models.cost import Cost
from nkdlib.neighbourhoods.recompose import recompose
from nkdlib.neighbourhoods.tables import html, text


@dataclass
class Distilled:
    """One student neighbourhood, how well it imitates its teacher's part, and what it cost."""

    name: str  # of the neighbourhood
    label: str  # of the candidate, "" where there is one
    module: nn.Module = field(repr=False)
    local_error: float  # on held-out inputs, see `local_error`
    cost: Cost
    device_s: float  # of its own gradient steps
    losses: list[float] = field(default_factory=list, repr=False)  # of every step


@dataclass
class Distillation(Mapping[str, Distilled | dict[str, Distilled]]):
    """What `distill` returns: by neighbourhood, a `Distilled`, or several by label where candidates were given."""

    students: dict[str, Distilled | dict[str, Distilled]]
    teacher_s: float  # device-seconds of the teacher's one pass
    start_s: dict[str, float]  # device-seconds of each neighbourhood's start (the closed form, mostly)
    sequential_start: bool  # starts waited for each other (front to back)
    boundaries: str  # whether and how they were kept, in words

    def __getitem__(self, name: str) -> Distilled | dict[str, Distilled]:
        return self.students[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.students)

    def __len__(self) -> int:
        return len(self.students)

    def every(self) -> Iterator[Distilled]:
        """All students, front to back."""
        for value in self.students.values():
            yield from value.values() if isinstance(value, dict) else (value,)

    @property
    def device_s(self) -> float:
        """Device-seconds on one worker: the teacher's pass, the starts and every student's steps."""
        return self.teacher_s + sum(self.start_s.values()) + sum(d.device_s for d in self.every())

    def critical_path_s(self, workers: int | None = None) -> float:
        """Seconds until the last student is done with one worker for each neighbourhood; boundaries take no time.

        Args:
            workers: that share the teacher's pass; the number of neighbourhoods where omitted.
        """
        # DEVIATION D6: computed from measured tasks, not run on as many machines.
        workers = len(self) if workers is None else workers
        steps = {name: sum(d.device_s for d in self.every() if d.name == name) for name in self}
        if self.sequential_start:
            longest = sum(self.start_s.values()) + max(steps.values())
        else:
            longest = max(self.start_s[name] + steps[name] for name in self)
        return self.teacher_s / workers + longest

    def recompose(self, teacher: nn.Module, **chosen: str) -> nn.Module:
        """The teacher with these students in place, see `recompose`; where there are candidates, `name=label`."""
        labels = {name: list(value) for name, value in self.students.items() if isinstance(value, dict)}
        for name in labels.keys() | chosen.keys():
            if chosen.get(name) not in labels.get(name, ()):
                raise ValueError(
                    f"chosen[{name!r}] (={chosen.get(name)!r}) is no candidate; choose one for each of {labels}"
                )
        students = {n: v[chosen[n]] if isinstance(v, dict) else v for n, v in self.students.items()}
        return recompose(teacher, {name: student.module for name, student in students.items()})

    def table(self) -> pd.DataFrame:
        """Local errors and costs, a row a student."""
        return pd.DataFrame(
            [
                {
                    "neighbourhood": d.name,
                    **({"candidate": d.label} if d.label else {}),
                    "local error": d.local_error,
                    "params": d.cost.params,
                    "MACs": d.cost.macs,
                    "start [s]": self.start_s[d.name],
                    "steps [s]": d.device_s,
                }
                for d in self.every()
            ]
        )

    def __repr__(self) -> str:
        return text(self.table(), self.boundaries)

    def _repr_html_(self) -> str:
        return html(self.table(), f"{self.boundaries}; teacher's pass {self.teacher_s:.2f} device-seconds")
