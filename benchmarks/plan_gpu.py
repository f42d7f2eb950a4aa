"""The tier gpu before it has met a GPU: its steps are counted and its seconds computed; on a GPU, steps are timed too.

    python benchmarks/plan_gpu.py            # counts on this CPU, two minutes, and writes the tables of docs/gpu.md
    python benchmarks/plan_gpu.py cuda       # times the same steps on a GPU and prints both

An operator is a launch, the backward pass of a convolution two. It keeps the GPU busy for the longest of the shortest
kernel, its memory and its arithmetic. Worker processes share the launching; the GPU takes their kernels in turn.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from roofline import Roofline, best_s

from nkdlib import figs
from nkdlib.compendium.records import markdown
from nkdlib.compendium.rivals.searches import mix, shrink
from nkdlib.compendium.supernets import Supernet, training_batches
from nkdlib.compendium.teachers import TeacherRecipe, build
from nkdlib.compendium.tiers import TIERS
from nkdlib.data.images import Images, random_shift_flip
from nkdlib.neighbourhoods import Recipe, capture, distill, solve, split
from nkdlib.networks import CellNetwork, mixed_space, residual_space
from nkdlib.training import Schedule, distill_end_to_end, fit

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "gpu.md", ROOT / "teachers"
LAUNCH_S, KERNEL_S = 8e-6, 3e-6  # of the process that launches; of the shortest kernel
BYTES_PER_S, MACS_PER_S = 0.6 * 3.35e12, 0.1 * 494e12  # of an H100's data sheet, the shares that small layers reach
START_S, WORKERS_S, DRAW_S = 6, 10, 15  # of a notebook's kernel, of its worker processes, of its figures and tables
LEAVES_S = 2.1  # to draw 3,072 images of dead leaves, which a core of the CPU does
CONTEXT_GB = 1.5  # of a process on the GPU: its context, and what torch keeps
TEACHERS, LIMIT_S = {20: 5, 56: 2}, 540
CLIPPING = 8  # launches to clip all gradients on a GPU; a CPU takes them one by one, so they are not counted
NOT_LAUNCHED = ("empty", "new_empty", "_local_scalar", "_unsafe_view")
SHORT, LONG = 2, 6  # steps; what does not grow with them is the run's


class Launches(Roofline):
    """Within it, `launches` are counted, and `seconds` grow by what keeps a GPU busy."""

    def __init__(self):
        super().__init__(MACS_PER_S, BYTES_PER_S)
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before, result = self.seconds, super().__torch_dispatch__(func, types, args, kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name.startswith(NOT_LAUNCHED):
            self.seconds = before
            return result
        count = 2 if name == "convolution_backward" else 1
        self.launches += count
        self.seconds = max(self.seconds, before + count * KERNEL_S)
        return result


def random_images(count: int) -> Images:
    """Images of noise, of CIFAR-10's size."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    marks = (0.5,) * 3, (0.25,) * 3
    return Images("random", "train", pixels, torch.arange(count) % 10, tuple("abcdefghij"), *marks)


class Runs:
    """What the notebooks run, on random images: a method for each kind, which takes its steps of 128 images."""

    def __init__(self, depth: int, device: str):
        self.images = random_images(1024)
        self.depth, self.device = depth, device
        self.teacher = build(depth, 10, 3, TeacherRecipe(), seed=0).to(device).eval()
        self.batches = [x for x, _ in self.images.in_order(device, batch_size=256)]
        self.students = dict.fromkeys(self.teacher.block_names, 0.5)
        self.schedule = partial(Schedule, amp=True, max_grad_norm=5.0 if device == "cuda" else None)

    def train(self, steps: int) -> None:
        """A teacher, from labels."""
        change = {"seed": 0, "augment": random_shift_flip(), "device": self.device, "channels_last": True}
        network = build(self.depth, 10, 3, TeacherRecipe(), seed=0).to(self.device)
        fit(network, self.images.batches(128, steps=steps, **change), self.schedule(steps, momentum=0.9))

    def end_to_end(self, steps: int) -> None:
        """A student of half the width, from the teacher's logits."""
        started = distill(self.teacher, self.students, self.batches, Recipe(Schedule(0), start="random"))
        distill_end_to_end(self.teacher, started.recompose(self.teacher), self.batches, self.schedule(steps))

    def apart(self, steps: int) -> None:
        """The same student, every block alone; a step is a step of each."""
        distill(self.teacher, self.students, self.batches, Recipe(self.schedule(steps), start="random"))

    def closed_form(self, steps: int) -> None:
        """The same student without steps."""
        solve(self.teacher, self.students, self.batches, Recipe(solve_images=512))

    def boundary_gb(self) -> float:
        """Memory of all boundaries of an image."""
        parts = split(self.teacher, self.teacher.block_names, self.batches[0][:2])
        return capture(self.teacher, parts, [self.batches[0][:2]]).store.nbytes / 2e9


class Searches:
    """What 05 runs in one of its spaces, with the batches, images and share of the tier."""

    def __init__(self, space: str, device: str):
        self.p, self.space, self.device = TIERS["gpu"].protocol("05_figs_spaces"), space, device
        self.images, self.students = random_images(2 * self.p["batch_size"]), ()
        stem, stages, head = self.p["mixed"]
        common = {"in_channels": 3, "stem_stride": self.p["stem_stride"]}
        cells = {"channels": self.p["cell_channels"], "cells": self.p["cells"], "nodes": self.p["nodes"]}
        cells["operators"] = ("max_pool_3x3", "skip", "sep_conv_3x3")
        self.supernet = {
            "resnet_filters": Supernet("", residual_space, {**common, "blocks": (1, 1, 1), "widths": self.p["widths"]}),
            "mixed_kernel": Supernet("", mixed_space, {**common, "stem": stem, "stages": stages, "head": head}),
            "darts_cell": Supernet("", CellNetwork, {**common, **cells}),
        }[space]

    def given(self, steps: int) -> tuple[figs.CostModel, Schedule, Iterable]:
        """A supernet, the schedule of its search, and batches."""
        clip = 5.0 if self.device == "cuda" else None
        schedule = Schedule(steps, self.p["batch_size"], self.p["lr"], weight_decay=1e-3, amp=True, max_grad_norm=clip)
        batches = training_batches(self.images, schedule, 0, self.p["augment"], self.device)
        return self.supernet.cost_model(self.images, 0, self.device), schedule, batches

    def gated(self, steps: int) -> None:
        """A search by FiGS; that with its authors' settings costs as much."""
        model, schedule, batches = self.given(steps)
        recipe, target = figs.Search(schedule, finetune_share=0.0), self.share * model.total(model.sizes, "params")
        figs.search(model.network, model.example, batches, target, recipe=recipe, cost_model=model)

    def original(self, steps: int) -> None:
        """A search by the space's own algorithm; to train the supernet alone costs less."""
        model, schedule, batches = self.given(steps)
        if self.space == "darts_cell":
            mix(model.network, batches, batches, schedule, self.p["mixture_rates"][0])
        else:
            shrink(model, batches, "params", self.p["strengths"][self.space][0], schedule)

    def narrow(self, steps: int) -> None:
        """A network of the share, from new weights."""
        model, schedule, batches = self.given(steps)
        target = self.share * model.total(model.sizes, "params")
        counts = figs.keep_best(model, figs.score_evenly(model), "params", target)
        fit(self.supernet.slim(self.images, counts, 0, self.device), batches, schedule)

    @property
    def share(self) -> float:
        """The largest share that a network may have."""
        return max(self.p["budgets"].values())


KINDS = {"teacher": "train", "end to end": "end_to_end", "ND": "apart"}
STEPLESS = {"closed form": "closed_form"}
SEARCHES = {"FiGS": "gated", "original search": "original", "narrow network": "narrow"}
SPACES = ("resnet_filters", "mixed_kernel", "darts_cell")


def costs(kind: str, run: Callable[[int], None], blocks: int) -> dict[str, float]:
    """Launches and busy milliseconds of a step, and the launches that a run has beside its steps."""
    (few, short), (many, long) = (count(partial(run, steps)) for steps in (SHORT, LONG))
    if kind in STEPLESS:
        return {"launches": 0.0, "launching_ms": 0.0, "busy_ms": 0.0, "a run": float(few)}
    clips, step = CLIPPING * (blocks if kind == "ND" else 1), (many - few) / (LONG - SHORT)
    busy_ms = 1e3 * ((long - short) / (LONG - SHORT) + clips * KERNEL_S)
    launching_ms = 1e3 * LAUNCH_S * (step + clips)
    return {"launches": step + clips, "launching_ms": launching_ms, "busy_ms": busy_ms, "a run": few - SHORT * step}


def count(run: Callable[[], None]) -> tuple[int, float]:
    """Launches and busy seconds of a call."""
    with Launches() as mode:
        run()
    return mode.launches, mode.seconds


def work() -> Iterator[tuple[str, str, int | str, float, float]]:
    """Yield notebook, kind, depth or space, steps and runs, from the parameters of the tier."""
    of = {stem: TIERS["gpu"].protocol(stem) for stem in TIERS["gpu"].notebooks}
    p = of[stem := "01_local_replacement"]
    seeds, widths, most = p["seeds"], len(p["shares"]), max(p["steps"])
    tried, pairs = len(p["rates"]) * p["tune_steps"], len(p["temperatures"])
    missing = max(seeds - len([*KEPT.glob(f"cifar10-resnet{p['depth']}-*.safetensors")]), 0)
    yield stem, "teacher", p["depth"], missing * TeacherRecipe().schedule(45_000).steps, missing
    apart, runs = seeds * (sum(p["steps"]) + (widths - 1) * most), seeds * (len(p["steps"]) + widths)
    yield stem, "ND", p["depth"], tried + apart, len(p["rates"]) + runs
    whole, runs = seeds * sum(p["steps"]), seeds * len(p["steps"])
    yield stem, "end to end", p["depth"], tried * pairs + whole, len(p["rates"]) * pairs + runs
    yield stem, "closed form", p["depth"], 0, seeds * widths
    known, p = set(p["steps"]), of[stem := "02_distillation_speed"]  # it reads 01's runs and tuning
    clock, solved = p["repeats"] * max(p["steps"]), seeds * sum(p["solved_steps"])
    for kind, name in (("ND", "steps"), ("end to end", "rival_steps")):
        new = [steps for steps in p[name] if steps not in known]
        yield stem, kind, p["depth"], seeds * sum(new) + solved + clock, seeds * len(new)
    yield stem, "closed form", p["depth"], 0, seeds * (2 * len(p["solved_steps"]) - 1)
    for depth in p["deeper"]:
        for kind, name in (("ND", "steps"), ("end to end", "rival_steps")):
            yield stem, kind, depth, sum(n for n in p[name] if n <= p["deeper_steps"]), len(p[name])
    p = of[stem := "03_student_search"]
    tried, rivals = len(p["rates"]) * len(p["temperatures"]), p["rival_steps"]
    yield stem, "ND", p["depth"], seeds * (len(p["widths"]) + 1) * p["steps"], seeds * (len(p["widths"]) + 1)
    whole = seeds * (p["fine_tune_steps"] + sum(rivals)) + tried * (p["fine_tune_steps"] + rivals[len(rivals) // 2])
    measured = seeds * (p["combinations"] + len(p["budgets"]) * (3 + p["random_draws"]))
    yield stem, "end to end", p["depth"], whole, measured / 3  # to measure a network is a third of what a run has
    p = of[stem := "04_synthetic_data"]
    ways, coarse, few = 2 * len(p["sources"]), 2 * len(p["split_sources"]), 2 * len(p["few"])
    rates, pairs, tried = len(p["rates"]), len(p["temperatures"]), len(p["rates"]) * p["tune_steps"]
    yield stem, "ND", p["depth"], seeds * p["steps"] * (ways + few) + tried * ways, seeds * (ways + few) + rates * ways
    whole = seeds * p["steps"] * (ways + coarse) + tried * (ways * pairs + coarse)
    yield stem, "end to end", p["depth"], whole, seeds * (ways + coarse) + rates * (ways * pairs + coarse)
    yield stem, "leaves", p["depth"], 0, (seeds + rates) * (4 + len(p["split_sources"]) + len(p["few"])) + rates * pairs
    p = of[stem := "05_figs_spaces"]
    places, seeds, other = len(p["budgets"]), p["seeds"], min(p["other_seeds"], p["seeds"])
    for space in SPACES:
        offered = {"original": p["strengths"].get(space, p["mixture_rates"]), "authors": p["weights"]}
        tuned = {name: len(v) for name, v in offered.items() if name in p["rivals"] and len(v) > 1}
        extra = {name: other * (name in p["rivals"]) for name in ("authors", "magnitude", "uniform", "random")}
        searches = {"FiGS": seeds + extra["authors"] + tuned.get("authors", 0)}
        searches["original search"] = seeds + extra["magnitude"] + tuned.get("original", 0)
        for kind, number in searches.items():
            yield stem, kind, space, places * number * p["search_steps"], places * number
        networks = places * (2 * seeds + sum(extra.values()) + sum(tuned.values()))
        yield stem, "narrow network", space, (networks + 2) * p["steps"][space], networks + 1  # one takes twice as many
    p = of[stem := "10_figs_sizes"]
    searches, networks = p["seeds"] * len(p["sizes"]), p["seeds"] * (3 * len(p["sizes"]) + 1)
    yield stem, "FiGS", "resnet_filters", searches * p["search_steps"], searches
    yield stem, "narrow network", "resnet_filters", networks * p["steps"], networks


def planned(step: dict[tuple[int | str, str], dict[str, float]], boundary_gb: float) -> pd.DataFrame:
    """The tier's notebooks: steps, seconds of launching and of the GPU, seconds in all, gigabytes."""
    planned = [stem for stem in sorted([*TIERS["gpu"].notebooks, "09_claims"]) if stem[:2] not in ("06", "07", "08")]
    rows = {stem: {"steps": 0, "launching": 0.0, "busy": 0.0} for stem in planned}  # others need photographs
    for stem, kind, network, steps, runs in work():
        if kind == "leaves":
            rows[stem]["launching"] += runs * LEAVES_S
            continue
        launches = steps * step[network, kind]["launches"] + runs * step[network, kind]["a run"]
        rows[stem]["steps"] += steps
        rows[stem]["launching"] += launches * LAUNCH_S
        rows[stem]["busy"] += max(steps * step[network, kind]["busy_ms"] / 1e3, launches * KERNEL_S)
    plan = pd.DataFrame(rows).T.rename_axis("notebook")
    given = [TIERS["gpu"].for_notebook(stem) for stem in plan.index]
    alone = [stem[:2] in ("00", "09") for stem in plan.index]  # no tasks
    plan.insert(0, "processes", [1 if one else p["jobs"] for one, p in zip(alone, given, strict=True)])
    plan["launching"] /= plan.processes
    plan["start, figures"] = START_S + DRAW_S + WORKERS_S * (plan.processes > 1)
    plan["seconds"] = plan[["launching", "busy"]].max(axis=1) + plan["start, figures"]
    images = [p.get("images", p.get("count", 0)) for p in given]
    plan["GB"] = plan.processes * (CONTEXT_GB + boundary_gb * pd.Series(images, plan.index))
    whole = plan.round().astype(int).astype(object)
    whole.loc["all of these"] = whole.drop(columns=["processes", "GB"]).sum()
    return whole.fillna("")


def trained(step: dict[tuple[int | str, str], dict[str, float]]) -> pd.DataFrame:
    """The teachers, each in a process of its own, all at once: seconds of launching and of the GPU."""
    steps, rows = TeacherRecipe().schedule(45_000).steps, {}
    for depth, number in TEACHERS.items():
        each = step[depth, "teacher"]
        row = {"teachers": number, "steps": number * steps, "launching": steps * each["launching_ms"] / 1e3}
        rows[f"ResNet-{depth}"] = row | {"busy": number * steps * each["busy_ms"] / 1e3}
    return pd.DataFrame(rows).T.rename_axis("network").round().astype(int)


def quietly(function: Callable, *arguments: object) -> object:
    """Call a function that shows its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def main(device: str = "cpu") -> None:
    """Count, compute and write, or time on a GPU."""
    torch.backends.cpu.get_cpu_capability = lambda: "AVX512"  # operators of a GPU's steps, in bfloat16 on any CPU
    step, of = {}, {20: KINDS | STEPLESS, 56: KINDS} | dict.fromkeys(SPACES, SEARCHES)
    for network, kinds in of.items():
        here, there = ((Searches if network in SPACES else Runs)(network, where) for where in ("cpu", device))
        for kind, name in kinds.items():
            step[network, kind] = quietly(costs, kind, getattr(here, name), len(here.students))
            if device == "cuda":
                short, long = (quietly(best_s, partial(getattr(there, name), n), device, 3) for n in (20, 60))
                step[network, kind] |= {"measured_ms": 1e3 * (long - short) / 40, "20 steps, s": short}
    kinds = pd.DataFrame(step).T.rename_axis(["network", "what is trained"]).reset_index()
    kinds["network"] = [f"ResNet-{name}" if name in TEACHERS else name.replace("_", " ") for name in kinds.network]
    tables = {"steps": kinds, "teachers": trained(step).reset_index()}
    tables["plan"] = planned(step, Runs(20, "cpu").boundary_gb()).reset_index()
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        print(f"\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
        cells = [[f"{v:,.2f}".removesuffix(".00") if isinstance(v, float) else v for v in row] for row in table.values]
        new = f"\\1\n{markdown(list(table.columns), cells)}\n\\2"
        text = re.sub(f"(<!-- {name}:begin -->).*(<!-- {name}:end -->)", new, text, flags=re.DOTALL)
    if device == "cpu":
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
