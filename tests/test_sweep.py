"""Sweeps: one row a run in the order of cases and grid, kept, parallel; mistakes are named before anything runs."""

import sys
import types

import pytest
import torch

from nkdlib.compendium.sweep import experiment, sweep
from nkdlib.tasks import Cache
from nkdlib.tasks.executors import InProcess

CELL = """
import math
from nkdlib.compendium.sweep import experiment
steps = 3

def inner(x):
    return x + steps

@experiment
def direct(x):
    return {"y": x + steps}

@experiment
def behind(x):
    return {"y": inner(x)}

@experiment
def clean(x):
    return {"y": math.sqrt(x) + 1}
"""
calls = []


def count(seed, share):
    """Note a run of `noted`; behind a function, since an experiment reads no variable itself."""
    calls.append((seed, share))


@experiment
def noted(seed, share, data=None, scale=1):
    """Note the call, and return plain values and a tensor."""
    count(seed, share)
    return {"value": scale * seed * share, "curve": [seed, share], "weights": torch.full((2,), float(seed))}


@pytest.fixture(autouse=True)
def no_calls():
    """Forget earlier runs."""
    calls.clear()


def test_rows_follow_cases_and_grid():
    runs = sweep(noted, seed=range(2), share=[0.5, 1.0], fixed={"scale": 10})
    assert list(runs.columns) == ["seed", "share", "value", "curve", "run"]
    assert runs.drop(columns=["curve", "run"]).values.tolist() == [[0, 0.5, 0], [0, 1, 0], [1, 0.5, 5], [1, 1, 10]]
    cases = [{"seed": 3, "data": ["an object"]}, {"seed": 1, "data": ["another"]}]
    runs = sweep(noted, cases, share=[2.0])
    assert runs[["seed", "share", "value"]].values.tolist() == [[3, 2, 6], [1, 2, 2]] and "data" not in runs
    assert runs.run[0].tensors["weights"].tolist() == [3, 3]


def test_a_dict_names_the_values_of_an_argument():
    runs = sweep(noted, seed=[1], share={"half": 0.5, "whole": 1})
    assert runs[["share", "value"]].values.tolist() == [["half", 0.5], ["whole", 1]]


def test_a_run_is_made_once_and_a_sweep_goes_on_where_it_ended(runs):
    first = sweep(noted, seed=range(2), share=[1.0])
    more = sweep(noted, seed=range(3), share=[1.0])
    assert calls == [(0, 1), (1, 1), (2, 1)] and list(more.run[:2]) == list(first.run)
    sweep(noted, seed=[0], share=[1.0], cache=Cache(runs / "other"))
    assert len(calls) == 4


def test_runs_go_through_the_executor():
    class Counted(InProcess):
        def submit(self, fn, *args, **kwargs):
            submitted.append(fn)
            return super().submit(fn, *args, **kwargs)

    submitted = []
    sweep(noted, seed=range(3), share=[0.5], executor=Counted())
    assert len(submitted) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": [0], "shares": [1]}, r"noted\(seed, share, .*\) gets seed, shares from .*: missing"),
        ({"seed": [0]}, "gets seed from cases, grid and `fixed`: missing .* 'share'"),
        ({"seed": [0], "share": [1], "fixed": {"steps": 1}}, "unexpected keyword argument 'steps'"),
        ({"seed": [0], "share": [1], "fixed": {"share": 1}}, "multiple values for keyword argument 'share'"),
        ({"cases": [{"seed": 1}], "seed": [0], "share": [1]}, "multiple values for keyword argument 'seed'"),
        ({"seed": 3, "share": [1]}, r"seed \(=3\) must be a list of values"),
        ({"seed": [0], "share": "half"}, r"share \(='half'\) must be a list"),
        ({"seed": [], "share": [1]}, "seed is empty"),
        ({"cases": [], "share": [1]}, "cases is empty"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(noted, **given)
    assert not calls


def test_only_experiments_are_swept():
    def plain(seed):
        return {}

    def hungry(seed, **rest):
        return {}

    with pytest.raises(TypeError, match="plain is no experiment; mark it with @experiment"):
        sweep(plain, seed=[0])
    with pytest.raises(TypeError, match=r"hungry takes \*\*rest"):
        experiment(hungry)


def test_a_result_named_as_an_argument_is_an_error():
    @experiment
    def clash(seed):
        return {"seed": seed}

    with pytest.raises(ValueError, match="clash returns seed"):
        sweep(clash, seed=[0])


def test_a_variable_of_the_notebook_is_refused_where_it_hides(monkeypatch):
    cell = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", cell)
    exec(CELL, vars(cell))
    with pytest.raises(
        TypeError, match=r"direct reads `steps`, a variable of the notebook or script; make it an argument"
    ):
        sweep(cell.direct, x=[1])
    with pytest.raises(TypeError, match="inner reads `steps`"):
        sweep(cell.behind, x=[1])
    assert sweep(cell.clean, x=[4]).y.tolist() == [3]
