"""A library of distilled candidates, which puts a network together for any budget without training.

Student Search (Shao et al., arXiv 2010.01189). Two differences: candidates are solved before they are trained, and
chosen exactly instead of locally.
"""

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn

from nkdlib.neighbourhoods.candidates import Candidate, SameImages, Timing, measure
from nkdlib.neighbourhoods.capture import capture, first_batch, passes
from nkdlib.neighbourhoods.distill import Executor, seed_of
from nkdlib.neighbourhoods.local import Recipe
from nkdlib.neighbourhoods.select import Budget, Menu, Option, Selection, select
from nkdlib.neighbourhoods.split import Student, recompose, split
from nkdlib.neighbourhoods.students import check_student, narrow
from nkdlib.neighbourhoods.tables import Tabled
from nkdlib.networks.cost import cost
from nkdlib.networks.latency import Latency
from nkdlib.networks.module import check_float32, copied, device_of, in_evaluation
from nkdlib.tasks.cache import Cache
from nkdlib.tasks.keys import fingerprint, sha256
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.loop import Schedule

TEACHER, IDENTITY = "teacher", "identity"  # labels of candidates that no user gives; the second if shapes allow


class Library(Tabled):
    """Candidates for the neighbourhoods of a teacher, each distilled once; prints itself as a table.

    Args:
        teacher: copied.
        candidates: by neighbourhood name, widths (labeled by their number), or widths and modules by label. The
            teacher's own part is always a candidate (`teacher`), and so is leaving it out if shapes allow (`identity`).
        inputs: batches of images, or one tensor (N, C, H, W), all of which are captured; labels are not used.
        recipe: start, steps and rates; by default the closed form alone. `front_to_back` is never used.
        cache: keeps the candidates; processes can share it. `Cache()` by default.

    Raises:
        ValueError: names, widths or shapes that do not fit; images that come in another order in every pass.

    >>> import tempfile
    >>> from nkdlib.networks import resnet
    >>> from nkdlib.training import Schedule
    >>> teacher, images = resnet(8, 10, seed=0).eval(), torch.randn(96, 3, 16, 16)
    >>> library = Library(
    ...     teacher, {"layer1.0": [0.25, 0.5], "layer2.0": [0.5]}, images, Recipe(Schedule(0), holdout=32),
    ...     Cache(tempfile.mkdtemp()))
    >>> library.fill()  # doctest: +ELLIPSIS
    ranking the channels...
    [('layer1.0', 'identity'), ('layer1.0', '0.25'), ('layer1.0', '0.5'), ('layer2.0', '0.5')]
    >>> library.fill()  # everything is there
    []
    >>> smaller = library.best(params=72_000)
    >>> smaller.labels, cost(smaller.build(), images[:1]).params == smaller.costs["params"]
    ({'layer1.0': 'teacher', 'layer2.0': '0.5'}, True)
    """

    def __init__(
        self,
        teacher: nn.Module,
        candidates: Mapping[str, Iterable[float] | Mapping[str, Student]],
        inputs: Iterable,
        recipe: Recipe | None = None,
        cache: Cache | None = None,
    ):
        self.recipe, self.cache = recipe or Recipe(Schedule(0)), cache or Cache()
        check_float32(teacher, "teacher")
        self.teacher = in_evaluation(copied(teacher))
        self.inputs = SameImages(inputs)
        examples = first_batch(self.inputs)[:2].to(device_of(self.teacher))
        self.example = examples[:1]
        if self.inputs.count < self.recipe.holdout + 2:
            raise ValueError(
                f"inputs holds {self.inputs.count} images, recipe.holdout (={self.recipe.holdout}) leaves fewer than 2 "
                "to learn from; give more images or a smaller holdout"
            )
        self._source = sha256([fingerprint(self.teacher), self.inputs.fingerprint])
        self.neighbourhoods = split(self.teacher, list(candidates), examples)
        maps = [p for p in self.teacher.parameters() if p.dim() == 4 and not p.is_contiguous()]
        channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in maps)
        self.timing = Timing(channels_last=channels_last)
        self.latency: Latency | None = None  # of the teacher, from `measure_latency` on
        self.candidates: dict[str, dict[str, Candidate]] = {}
        for piece in self.neighbourhoods:
            own = Candidate(piece, TEACHER, None, piece.module, self.recipe, 0, piece.cost)
            self.candidates[piece.name] = {TEACHER: own}
            if piece.input_shape == piece.output_shape and not piece.read:
                self.add(piece.name, IDENTITY, nn.Identity(), Recipe(Schedule(0), start="given"))
        for name, students in candidates.items():
            labeled = students if isinstance(students, Mapping) else {f"{width:g}": width for width in students}
            for label, student in labeled.items():
                self.add(name, label, student)

    def add(self, name: str, label: str, student: Student, recipe: Recipe | None = None) -> None:
        """Add a candidate, which the next `fill` distills.

        Args:
            name, label: of the neighbourhood and of the candidate.
            student: an inner width or a module, which is copied.
            recipe: the library's by default; images, `holdout`, `dtype` and `adapt` are always the library's.

        Raises:
            ValueError: a label that is taken, or a student that does not fit.
        """
        piece, recipe = self.neighbourhoods[name], recipe or self.recipe
        if label in self.candidates[name]:
            raise ValueError(f"label (={label!r}) is taken in {name!r}; choose another one")
        student = check_student(piece, student, recipe.start, f"students[{name!r}][{label!r}]")
        module = student if isinstance(student, nn.Module) else narrow(piece.module, piece.example, student)
        shared = {field: getattr(self.recipe, field) for field in ("holdout", "dtype", "adapt")}
        recipe = dataclasses.replace(recipe, front_to_back=False, memory_limit_gb=Recipe.memory_limit_gb, **shared)
        seed, price = seed_of(recipe.seed, name, "library"), cost(module, piece.example)
        self.candidates[name][label] = Candidate(piece, label, student, module, recipe, seed, price)

    def fill(self, executor: Executor | None = None) -> list[tuple[str, str]]:
        """Distill the candidates that are not in the cache yet.

        Args:
            executor: distills candidates; this process by default.

        Returns:
            (neighbourhood, label) of the candidates that this call distilled.

        Raises:
            ValueError: boundaries of one neighbourhood above `recipe.memory_limit_gb`, or other images than before.
        """
        missing = []
        for candidate in self._every:
            if candidate.student is not None:
                candidate.artefact = self.cache.find(candidate.task(self._source))
                missing += [] if candidate.artefact else [candidate]
        if missing:
            self._distill(missing, executor)
        return [(candidate.piece.name, candidate.label) for candidate in missing]

    def _distill(self, missing: list[Candidate], executor: Executor | None) -> None:
        """Distill candidates, with one pass of the teacher, or several if boundaries do not fit into memory."""
        pieces = split(self.teacher, list(dict.fromkeys(c.piece.name for c in missing)), self.example)
        how = {"dtype": self.recipe.dtype, "adapt": self.recipe.adapt}
        sets, how["images"] = passes(pieces, self.inputs, memory_limit_gb=self.recipe.memory_limit_gb, **how)
        for number, members in enumerate(sets, start=1):
            several = executor is not None and executor.jobs > 1
            boundaries = capture(self.teacher, members, self.inputs, **how, shared=several)
            candidates = [c for c in missing if c.piece.name in boundaries.names]
            tasks = [c.ranking_task(self._source, boundaries) for c in candidates if c.ranked]  # equal ones run once
            rankings = iter(self.cache.run(tasks, executor, "ranking the channels of neighbourhoods") if tasks else ())
            tasks = [c.task(self._source, boundaries, next(rankings) if c.ranked else None) for c in candidates]
            said = f"{boundaries}, pass {number} of {len(sets)}" if len(sets) > 1 else repr(boundaries)
            artefacts = self.cache.run(tasks, executor, f"distilling {len(tasks)} candidates ({said})")
            for candidate, artefact in zip(candidates, artefacts, strict=True):
                candidate.artefact = artefact
            del boundaries, tasks  # before the next set is captured

    def measure_latency(self, threads: int = 1, batch: int = 1, repeats: int = 50) -> Latency:
        """Time the teacher and all candidates in this process, which nothing else may keep busy meanwhile.

        Args:
            threads: of a CPU.
            batch: images of a timed forward pass.
            repeats: timed passes, at least 6.

        Returns:
            The teacher's latency.
        """
        timing = dataclasses.replace(self.timing, threads=threads, batch=batch, repeats=repeats)
        modules = [(self.teacher, self.example), *((c.module, c.piece.example) for c in self._every)]
        self.latency, *latencies = measure(self.cache, modules, timing)
        self.timing = timing
        for candidate, latency in zip(self._every, latencies, strict=True):
            candidate.latency = latency
        return self.latency

    @property
    def _every(self) -> list[Candidate]:
        return [candidate for family in self.candidates.values() for candidate in family.values()]

    @property
    def menu(self) -> Menu:
        """Errors and costs of all candidates, for `select` and its rivals; ValueError before they are distilled."""
        if waiting := sum(c.error is None for c in self._every):
            raise ValueError(f"{waiting} of {len(self._every)} candidates have not been distilled; call fill()")
        base = dict(vars(self.neighbourhoods.total))
        if timed := all(c.latency for c in self._every):
            base["latency_ms"] = self.latency.ms
        options = {}
        for name, family in self.candidates.items():
            usable = {label: c for label, c in family.items() if c.error < math.inf}
            costs = {k: vars(c.cost) | ({"latency_ms": c.latency.ms} if timed else {}) for k, c in usable.items()}
            options[name] = {label: Option(c.error, costs[label]) for label, c in usable.items()}
            base = {cost: value - costs[TEACHER][cost] for cost, value in base.items()}
        return Menu(options, base)

    def best(
        self,
        *,
        params: int | None = None,
        macs: int | None = None,
        latency_ms: float | None = None,
        rule: Callable[[Menu, Budget], Selection] = select,
    ) -> "Composition":
        """The best network within one or several budgets, without any training.

        Args:
            params, macs, latency_ms: limits of the whole network: parameters, multiply-accumulates of one image,
                predicted milliseconds of a batch (after `measure_latency`).
            rule: `select`, which is exact, or another one that takes a menu and a budget.

        Raises:
            ValueError: no budget, one that cannot be met (the smallest possible is named), or an unfilled library.
        """
        budget = {"params": params, "macs": macs, "latency_ms": latency_ms}
        budget = {name: limit for name, limit in budget.items() if limit is not None}
        return Composition(**vars(rule(self.menu, budget)), library=self)

    def compose(self, labels: Mapping[str, str]) -> "Composition":
        """The network with these candidates, by neighbourhood; ValueError if one is missing or unknown."""
        return Composition(**vars(self.menu.selection(labels)), library=self)

    def sample(self, count: int, seed: int = 0) -> list["Composition"]:
        """Networks of random candidates, each candidate of a neighbourhood as likely as the others."""
        draw, options = random.Random(seed), self.menu.options
        return [self.compose({n: draw.choice(list(c)) for n, c in options.items()}) for _ in range(count)]

    @property
    def device_s(self) -> float:
        """Device-seconds that the candidates took, without the teacher's pass: rankings, closed forms and steps."""
        families = [[c.artefact.info for c in family.values() if c.artefact] for family in self.candidates.values()]
        own = sum(info["start_s"] + info["device_s"] for infos in families for info in infos)
        return own + sum(max((info["ranking_s"] for info in infos), default=0.0) for infos in families)

    @property
    def size(self) -> int:
        """The number of networks that can be composed."""
        return math.prod(map(len, self.candidates.values()))

    def table(self) -> pd.DataFrame:
        """Local errors and costs, a row a candidate; measured latencies with 95 % intervals."""
        rows = []
        for c in self._every:
            row = {"neighbourhood": c.piece.name, "candidate": c.label, "local error": c.error}
            row |= {"params": c.cost.params, "MACs": c.cost.macs}
            if c.latency:
                row |= {"latency [ms]": c.latency.ms, "95 %": f"{c.latency.low_ms:.3g} to {c.latency.high_ms:.3g}"}
            rows.append(row)
        return pd.DataFrame(rows)

    def caption(self) -> str:
        """The library's content in a line."""
        waiting = sum(c.error is None for c in self._every)
        said = f"{len(self._every)} candidates of {len(self.candidates)} neighbourhoods, {self.size:,} networks"
        said += f"; {waiting} not distilled yet, call fill()" if waiting else ""
        return said + (f"; latency of the teacher {self.latency}" if self.latency else "")


@dataclass(frozen=True, repr=False)
class Composition(Tabled, Selection):
    """A network that a library can build, with its predicted error and costs; prints itself as a table."""

    library: Library = field(compare=False)

    def build(self, bn_images: int | None = None) -> nn.Module:
        """The recomposed network in evaluation mode, its weights its own: to be saved, loaded and fine-tuned.

        Args:
            bn_images: of the library's inputs, on which BatchNorm's running statistics are measured again if a
                neighbourhood was replaced; the recipe's by default, 0 leaves them.
        """
        library = self.library
        students = {n: library.candidates[n][k].build() for n, k in self.labels.items() if k != TEACHER}
        network = recompose(library.teacher, students) if students else copy.deepcopy(library.teacher)
        network = network.to(memory_format=torch.channels_last) if library.timing.channels_last else network
        count = library.recipe.bn_images if bn_images is None else bn_images
        return reestimate_batchnorm(network, library.inputs, count) if students and count else network

    def latency(self) -> Latency:
        """Latency of the built network, measured like that of its parts, to compare with `costs["latency_ms"]`."""
        return measure(self.library.cache, [(self.build(), self.library.example)], self.library.timing)[0]

    def table(self) -> pd.DataFrame:
        """Local errors and costs of the chosen candidates, a row a neighbourhood."""
        table = self.library.table()
        return table[[self.labels[row.neighbourhood] == row.candidate for row in table.itertuples()]]

    def caption(self) -> str:
        """Predictions in one line."""
        units = {"params": "{:,} parameters", "macs": "{:,} MACs", "latency_ms": "{:.3g} ms"}
        costs = ", ".join(units[cost].format(value) for cost, value in self.costs.items())
        return f"predicted: sum of errors {self.error:.4f}, {costs}"
