"""A library of distilled candidates, from which a network for any budget is put together without training.

Student Search (Shao et al., arXiv 2010.01189). What differs: candidates are solved before they are trained, and
chosen exactly instead of locally.
"""

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
from torch import nn

from nkdlib.neighbourhoods.candidates import (
    Candidate,
    Known,
    Timing,
    distill_candidate,
    look_at,
    ranking_task,
    time_together,
)
from nkdlib.neighbourhoods.capture import capture, repeatable
from nkdlib.neighbourhoods.distill import Executor
from nkdlib.neighbourhoods.local import Recipe
from nkdlib.neighbourhoods.prediction import Composition, Forecast, shift_of_predictions
from nkdlib.neighbourhoods.select import Menu, Option, Selection, select
from nkdlib.neighbourhoods.split import recompose, split
from nkdlib.neighbourhoods.starts import Student, check_student, seed_of, shape_of
from nkdlib.neighbourhoods.tables import Tabled
from nkdlib.networks.cost import cost
from nkdlib.networks.latency import Latency
from nkdlib.networks.module import device_of
from nkdlib.tasks.cache import Artefact, Cache, Task
from nkdlib.tasks.keys import fingerprint, sha256
from nkdlib.tasks.progress import progress
from nkdlib.training.batchnorm import reestimate_batchnorm
from nkdlib.training.evaluate import accuracy
from nkdlib.training.store import first_images

TEACHER, IDENTITY = "teacher", "identity"  # labels that every library has, the second where shapes allow


class Library(Tabled):
    """Candidates for the neighbourhoods of a teacher, distilled once; prints itself as a table.

    Args:
        teacher: copied.
        candidates: by neighbourhood name, widths (labeled by their number), or widths and modules by label. The
            teacher's own part is always a candidate (`teacher`), and leaving it out where shapes allow (`identity`).
        inputs: batches of images, or one tensor (N, C, H, W), all of which are captured; labels are not used.
        recipe: start, steps and rates; by default the closed form alone. `front_to_back` is never used.
        cache: where candidates are kept, `Cache()` where omitted; processes can share it.

    Raises:
        ValueError: names, widths or shapes that do not fit; images that come in another order in every pass.

    >>> import tempfile
    >>> from nkdlib.networks import resnet
    >>> teacher, images = resnet(8, 10, seed=0).eval(), torch.randn(96, 3, 16, 16)
    >>> library = Library(
    ...     teacher, {"layer1.0": [0.25, 0.5], "layer2.0": [0.5]}, images, Recipe(steps=0, holdout=32),
    ...     Cache(tempfile.mkdtemp()))
    >>> library.fill()  # doctest: +ELLIPSIS
    ranking the channels...
    [('layer1.0', 'identity'), ('layer1.0', '0.25'), ('layer1.0', '0.5'), ('layer2.0', '0.5')]
    >>> library.fill()  # everything is there
    []
    >>> found = library.best(params=72_000)
    >>> found.labels, cost(found.build(), images[:1]).params == found.costs["params"]
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
        self.recipe, self.cache = recipe or Recipe(steps=0), cache or Cache()
        self.teacher = copy.deepcopy(teacher).eval()
        self.inputs = repeatable(inputs)
        images, digest = look_at(self.inputs)
        drawn = repr(self.inputs) if hasattr(self.inputs, "boundaries") else ""  # noise says there what it is
        self._determined = [fingerprint(self.teacher), digest, drawn]
        self.measure, self.forecast = "local error", None  # what errors are, and what they mean for accuracy
        self.example = images[:1].to(device_of(self.teacher))
        self.neighbourhoods = split(self.teacher, list(candidates), self.example)
        maps = [p for p in self.teacher.parameters() if p.dim() == 4 and not p.is_contiguous()]
        channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in maps)
        self.timing, self.whole = Timing(channels_last=channels_last), None  # the latter: latency of the teacher
        self.candidates: dict[str, dict[str, Candidate]] = {}
        for here in self.neighbourhoods:
            self.candidates[here.name] = {TEACHER: Candidate(None, self.recipe, here.cost, error=0.0)}
            if here.input_shape == here.output_shape:
                self.add(here.name, IDENTITY, nn.Identity(), Recipe(start="given", steps=0))
        for name, mine in candidates.items():
            for label, student in (mine if isinstance(mine, Mapping) else {f"{w:g}": w for w in mine}).items():
                self.add(name, label, student)

    def add(self, name: str, label: str, student: Student, recipe: Recipe | None = None) -> None:
        """One more candidate, which the next `fill` distills; ValueError for a taken label or one that does not fit."""
        here, recipe = self.neighbourhoods[name], recipe or self.recipe
        if label in self.candidates[name]:
            raise ValueError(f"label (={label!r}) is taken in {name!r}; choose another one")
        module = student = copy.deepcopy(student)
        if isinstance(student, nn.Module):
            check_student(here, label, student.to(here.example.device), recipe)
        else:
            module = shape_of(here.module, student, here.example)
        same = {field: getattr(self.recipe, field) for field in ("holdout", "dtype", "adapt")}  # one yardstick for all
        recipe = dataclasses.replace(recipe, front_to_back=False, memory_limit_gb=Recipe.memory_limit_gb, **same)
        self.candidates[name][label] = Candidate(student, recipe, cost(module, here.example))

    def fill(self, executor: Executor | None = None, threads: int = 0, batch: int = 1, repeats: int = 50) -> list:
        """Distill the candidates that nobody has distilled yet, and measure latencies where asked for.

        Args:
            executor: where candidates are distilled; this process where omitted.
            threads: to measure latencies with, in this process while nothing else runs; 0 measures none.
            batch, repeats: images of a timed forward pass, and passes.

        Returns:
            (neighbourhood, label) of what was distilled now.

        Raises:
            ValueError: too few images, or boundaries above `recipe.memory_limit_gb`.
        """
        tasks = {(n, k): self._task(n, k) for n, mine in self.candidates.items() for k in mine if k != TEACHER}
        artefacts = {place: self.cache.find(task) for place, task in tasks.items()}
        missing = [place for place, artefact in artefacts.items() if artefact is None]
        if missing:
            artefacts |= dict(zip(missing, self._distill([tasks[place] for place in missing], executor), strict=True))
        for (name, label), artefact in artefacts.items():
            candidate = self.candidates[name][label]
            candidate.artefact, candidate.error = artefact, artefact.info["local_error"]
        if threads:
            self.timing = dataclasses.replace(self.timing, threads=threads, batch=batch, repeats=repeats)
            parts = [(name, label) for name, mine in self.candidates.items() for label in mine]
            modules = [(self._module(name, label), self.neighbourhoods[name].example) for name, label in parts]
            self.whole, *found = time_together(self.cache, [(self.teacher, self.example), *modules], self.timing)
            for (name, label), measured in zip(parts, found, strict=True):
                self.candidates[name][label].latency = measured
        return missing

    def _distill(self, tasks: list[Task], executor: Executor | None) -> list[Artefact]:
        """Capture what the tasks need in one pass of the teacher, share what widths share, and run them."""
        recipe, limit = self.recipe, self.recipe.memory_limit_gb
        parts = split(self.teacher, list({task.kwargs["name"]: None for task in tasks}), self.example)
        how = {"memory_limit_gb": limit, "dtype": recipe.dtype, "adapt": recipe.adapt, "keep": 0}
        boundaries = capture(self.teacher, parts, self.inputs, **how)
        if not boundaries.complete or len(boundaries.store) < recipe.holdout + 2:
            raise ValueError(
                f"{boundaries}; a library needs all of them in memory, and more images than recipe.holdout "
                f"(={recipe.holdout}) + 1: change inputs or recipe.memory_limit_gb (={limit})"
            )
        for task in tasks:
            task.kwargs["boundary"].value = boundaries.of(task.kwargs["name"])
        if solved := [task for task in tasks if task.kwargs["ranking"]]:
            rankings = map(ranking_task, solved)  # equal ones are made once
            found = self.cache.run(rankings, executor, "ranking the channels of neighbourhoods")
            for task, artefact in zip(solved, found, strict=True):
                task.kwargs["ranking"].value = artefact
        return self.cache.run(tasks, executor, f"distilling {len(tasks)} candidates ({boundaries})")

    def _task(self, name: str, label: str) -> Task:
        """The task that makes a candidate; its boundary and what widths share, `ranking`, become known later."""
        student, recipe = self.candidates[name][label].student, self.candidates[name][label].recipe
        width = not isinstance(student, nn.Module)
        kwargs = {
            "name": name,
            "piece": self.neighbourhoods[name].module,
            "student": student,
            "boundary": Known(sha256([*self._determined, name, str(recipe.dtype), recipe.adapt])),
            "ranking": Known("follows from the rest") if recipe.start == "solved" and width else None,
            "recipe": recipe,
            "seed": seed_of(recipe.seed, name, "library"),
        }
        return Task(distill_candidate, kwargs, f"{name} {label}")

    def _module(self, name: str, label: str, learned: bool = False) -> nn.Module:
        """A candidate's module, a copy, with or without what it has learned."""
        here, candidate = self.neighbourhoods[name], self.candidates[name][label]
        student = here.module if candidate.student is None else candidate.student
        module = copy.deepcopy(shape_of(here.module, student, here.example)).requires_grad_(True)
        if learned:
            module.load_state_dict(candidate.artefact.tensors)
        return module.to(here.example.device).eval()

    @property
    def _every(self) -> list[Candidate]:
        return [candidate for mine in self.candidates.values() for candidate in mine.values()]

    @property
    def menu(self) -> Menu:
        """Errors and costs of all candidates, for `select` and its rivals; ValueError before they are distilled."""
        if waiting := sum(c.error is None for c in self._every):
            raise ValueError(f"{waiting} of {len(self._every)} candidates have not been distilled; call fill()")
        base = dict(vars(self.neighbourhoods.total))
        if timed := all(c.latency for c in self._every):
            base["latency_ms"] = self.whole.ms

        def option(candidate: Candidate) -> Option:
            costs = vars(candidate.cost) | ({"latency_ms": candidate.latency.ms} if timed else {})
            return Option(candidate.error, costs)

        options = {name: {label: option(c) for label, c in mine.items()} for name, mine in self.candidates.items()}
        for mine in options.values():
            base = {cost: value - mine[TEACHER].costs[cost] for cost, value in base.items()}
        return Menu(options, base)

    def best(
        self,
        *,
        params: int | None = None,
        macs: int | None = None,
        latency_ms: float | None = None,
        rule: Callable[..., Selection] = select,
        **options: object,
    ) -> Composition:
        """The best network within one or several budgets, without any training.

        Args:
            params, macs, latency_ms: limits of the whole network: parameters, multiply-accumulates of one image,
                predicted milliseconds of a batch (needs `fill(threads=...)`).
            rule, options: how to choose: `select`, which is exact, or one of its rivals, and its own arguments.

        Raises:
            ValueError: no budget, one that cannot be met (the smallest possible is named), or an unfilled library.
        """
        budget = {"params": params, "macs": macs, "latency_ms": latency_ms}
        return self._compose(rule(self.menu, {k: v for k, v in budget.items() if v is not None}, **options))

    def compose(self, labels: Mapping[str, str]) -> Composition:
        """The network with these candidates, by neighbourhood; ValueError where one is missing or unknown."""
        return self._compose(self.menu.selection(labels))

    def sample(self, count: int, seed: int = 0) -> list[Composition]:
        """Networks whose candidates are drawn at random, each candidate of a neighbourhood as likely as the others."""
        draw = random.Random(seed)
        return [self.compose({n: draw.choice(list(mine)) for n, mine in self.candidates.items()}) for _ in range(count)]

    def calibrate(self, inputs: Iterable, networks: int = 16, metric: str = "params", seed: int = 0) -> Forecast:
        """Measure the best networks under random budgets, so that those to come have a predicted accuracy.

        Args:
            inputs: batches of (images, labels) that nothing else is decided by.
            networks: to measure, beside the teacher.
            metric: the cost that the budgets are in, log-uniformly from the smallest network to the teacher.
            seed: of the budgets.
        """
        inputs, menu, draw = list(inputs), self.menu, random.Random(seed)
        least = menu.base[metric] + sum(min(o.costs[metric] for o in mine.values()) for mine in menu.options.values())
        whole = self.compose(dict.fromkeys(self.candidates, TEACHER))
        budgets = [least * (whole.costs[metric] / least) ** draw.random() for _ in range(networks - 1)]
        chosen = [whole, *(self._compose(select(menu, {metric: budget})) for budget in [*budgets, least])]
        measured = [accuracy(c.build(), inputs) for c in progress(chosen, "calibrating", unit="networks")]
        self.forecast = Forecast([c.error for c in chosen], measured)
        return self.forecast

    def in_context(self, around: Composition, executor: Executor | None = None) -> "Library":
        """The same candidates with errors measured within a network that is about as small as the wanted ones.

        A candidate's error is how much further the network's predictions move away from the teacher's with it than
        with the teacher's own part in this one place: Kullback-Leibler divergence in nats on the held-out images,
        BatchNorm measured again. (Our own: local errors do not know what the later layers forgive.)

        Args:
            around: the network, such as `best` gives for a middle budget.
            executor: where this is measured; this process where omitted.
        """
        how = {"holdout": self.recipe.holdout, "bn_images": self.recipe.bn_images}
        images = torch.cat(list(first_images(self.inputs, sum(how.values())))).to(self.example.device)
        how |= {"teacher": self.teacher, "network": around.build(bn_images=0)}
        how |= {"images": Known(self._determined[1], images)}
        tasks = []
        for name, mine in self.candidates.items():
            students = {label: self._module(name, label, learned=label != TEACHER) for label in mine}
            tasks.append(Task(shift_of_predictions, {"name": name, "students": students, **how}, name))
        shifts = self.cache.run(tasks, executor, "measuring candidates in context")
        other = copy.copy(self)
        other.measure, other.forecast, other.candidates = "error in context", None, {}
        for (name, mine), shift in zip(self.candidates.items(), (artefact.info for artefact in shifts), strict=True):
            own = shift[TEACHER]
            other.candidates[name] = {k: dataclasses.replace(c, error=shift[k] - own) for k, c in mine.items()}
        return other

    def _compose(self, chosen: Selection) -> Composition:
        def make(bn_images: int | None) -> nn.Module:
            students = {n: self._module(n, k, learned=True) for n, k in chosen.labels.items() if k != TEACHER}
            network = recompose(self.teacher, students) if students else copy.deepcopy(self.teacher)
            network = network.to(memory_format=torch.channels_last) if self.timing.channels_last else network
            count = self.recipe.bn_images if bn_images is None else bn_images
            if students and count:
                reestimate_batchnorm(network, self.inputs, count)
            return network

        def time(network: nn.Module) -> Latency:
            return time_together(self.cache, [(network, self.example)], self.timing)[0]

        table, predicted = self.table(), self.forecast.accuracy(chosen.error) if self.forecast else None
        rows = [chosen.labels[row.neighbourhood] == row.candidate for row in table.itertuples()]
        return Composition(**vars(chosen), rows=table[rows], accuracy=predicted, make=make, time=time)

    @property
    def device_s(self) -> float:
        """Device-seconds that the candidates took, without the teacher's pass: rankings, closed forms and steps."""
        families = [[c.artefact.info for c in mine.values() if c.artefact] for mine in self.candidates.values()]
        own = sum(info["start_s"] + info["device_s"] for infos in families for info in infos)
        return own + sum(max((info["ranking_s"] for info in infos), default=0.0) for infos in families)

    @property
    def size(self) -> int:
        """How many networks can be composed."""
        return math.prod(map(len, self.candidates.values()))

    def table(self) -> pd.DataFrame:
        """Local errors and costs, a row a candidate; latencies where measured, with 95 % intervals."""
        rows = []
        for name, mine in self.candidates.items():
            for label, c in mine.items():
                row = {"neighbourhood": name, "candidate": label, self.measure: c.error}
                row |= {"params": c.cost.params, "MACs": c.cost.macs}
                if c.latency:
                    row |= {"latency [ms]": c.latency.ms, "95 %": f"{c.latency.low_ms:.3g} to {c.latency.high_ms:.3g}"}
                rows.append(row)
        return pd.DataFrame(rows)

    def caption(self) -> str:
        """What the library holds, in a line."""
        waiting = sum(c.error is None for c in self._every)
        said = f"{len(self._every)} candidates of {len(self.candidates)} neighbourhoods, {self.size:,} networks"
        said += f"; {waiting} not distilled yet, call fill()" if waiting else ""
        return said + (f"; latency of the teacher {self.whole}" if self.whole else "")
