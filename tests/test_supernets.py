"""Supernets as notebooks search them and train what was found: equal starts, kept plans, budgets."""

import torch

from nkdlib.compendium.supernets import Supernet, by_figs, trained_anew
from nkdlib.data import load
from nkdlib.networks import residual_space
from nkdlib.tasks.executors import make_executor
from nkdlib.training import Schedule

LAYERS = {"in_channels": 1, "stem_stride": 1, "widths": [4, 4, 4], "blocks": (1, 1, 1)}
SPACES = {"small": Supernet("small", residual_space, LAYERS)}
SHARED = {"spaces": SPACES, "augment": False, "device": "cpu"}


def test_a_search_keeps_within_its_share_and_a_seed_repeats_it():
    train = load("digits", "train").subset(128)
    model = SPACES["small"].cost_model(train)
    given = {**SHARED, "train": train, "schedules": {"small": Schedule(6, 32)}}
    runs = [by_figs(space="small", metric="params", share=0.5, seed=seed, **given) for seed in (0, 0, 1)]
    for run in runs:
        assert model(run["counts"]).params <= 0.5 * model(model.sizes).params and len(run["loss"]) == 6
    same, other = ([torch.equal(runs[0]["log_odds"], run["log_odds"]) for run in runs[k:]] for k in (1, 2))
    assert same[0] and not other[0] and runs[0]["loss"] == runs[1]["loss"]


def test_networks_trained_anew_come_in_the_order_of_their_plan():
    train, judge = load("digits", "train").subset(96), load("digits", "test").subset(32)
    model = SPACES["small"].cost_model(train)
    thin = {name: min(count, 2) for name, count in model.sizes.items()}
    plan = [
        {"space": "small", "seed": seed, "method": method, "counts": counts}
        for seed in (1, 0)
        for method, counts in (("whole", model.sizes), ("thin", thin))
    ]
    fixed = {**SHARED, "train": train, "judge": judge, "schedules": {"small": Schedule(2, 32)}}
    found = trained_anew(plan, fixed, make_executor(), "training")
    assert list(zip(found.seed, found.method, strict=True)) == [(row["seed"], row["method"]) for row in plan]
    assert list(found.parameters) == [model(row["counts"]).params for row in plan]
    assert "counts" not in found and found.accuracy.between(0, 100).all()
