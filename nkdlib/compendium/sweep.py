"""From a grid to a table: one experiment, run for every combination of arguments.

An experiment is a plain function of a notebook or module that takes all it uses as arguments and returns a dict.
Its runs are kept in the artefact cache, so a sweep that was interrupted goes on where it ended.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import InProcess, Processes
from nkdlib.tasks.keys import Ingredients

PLAIN = bool | int | float | str | None


def experiment(function: Callable[..., dict]) -> Callable[..., dict]:
    """Mark a function as an experiment, which `sweep` runs; calling it stays a plain call.

    It has named arguments only, reads no variable from outside (see `sweep`) and returns a dict of plain JSON values,
    which become columns, and of tensors to keep. Raises TypeError for `*args` and `**kwargs`.
    """
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__} takes {parameter}; an experiment names each of its arguments")
    function.is_experiment = True
    return function


def sweep(
    function: Callable[..., dict],
    cases: Iterable[Mapping[str, object]] = ({},),
    *,
    fixed: Mapping[str, object] | None = None,
    executor: InProcess | Processes | None = None,
    cache: Cache | None = None,
    title: str = "",
    **grid: Iterable | Mapping[str, object],
) -> pd.DataFrame:
    """Run an experiment for every combination of arguments, and return one row a run.

    Runs that the cache holds are read; the others are made, the longest first, and kept one by one. The key of a run
    is its arguments and its code, with the code of the functions and classes that it names.

    Args:
        cases: arguments that vary together, each a dict; rows follow their order, the grid within each case.
        fixed: arguments that all runs share; they get no column.
        executor: from `make_executor`; None runs in this process.
        cache: None is the default one.
        title: shown with the progress; default the function's name.
        grid: values of an argument; all combinations are run, the last named argument varies fastest. A dict gives
            values names, which its column shows in their place.

    Returns:
        A column for each argument of cases and grid whose values are numbers, strings, booleans or None (others have
        no column), then one for each plain value that the experiment returned, then `run`, the artefact, with the
        returned tensors in `run.tensors`.

    Raises:
        TypeError: an unknown, missing or doubly given argument; an experiment, or a function that it names, that
            reads a variable of the notebook or script: it must be an argument.
        ValueError: no cases, or no values of an argument; a returned value named as an argument.

    >>> import tempfile
    >>> @experiment
    ... def power(base, exponent):
    ...     return {"value": base**exponent}
    >>> sweep(power, base=[2, 3], exponent=[1, 2], cache=Cache(tempfile.mkdtemp())).drop(columns="run")
    power: 4/4 tasks, done after 00:00
       base  exponent  value
    0     2         1      2
    1     2         2      4
    2     3         1      3
    3     3         2      9
    """
    if not getattr(function, "is_experiment", False):
        raise TypeError(f"{function.__name__} is no experiment; mark it with @experiment")
    (found := Ingredients()).canonical(function, function.__name__)
    for variable, reader in found.variables.items():
        raise TypeError(f"{reader} reads `{variable}`, a variable of the notebook or script; make it an argument")
    axes = [[(name, shown, value) for shown, value in _named(name, values)] for name, values in grid.items()]
    rows, tasks = [], []
    for case, point in itertools.product(_listed("cases", cases), itertools.product(*axes)):
        varied = {name: value for name, _, value in point}
        try:
            arguments = inspect.signature(function).bind(**case, **varied, **(fixed or {})).arguments
        except TypeError as error:
            given, takes = ", ".join([*case, *varied, *(fixed or {})]), inspect.signature(function)
            raise TypeError(f"{function.__name__}{takes} gets {given} from cases, grid and `fixed`: {error}") from None
        row = {**case, **{name: shown for name, shown, _ in point}}
        rows.append({name: value for name, value in row.items() if isinstance(value, PLAIN)})
        tasks.append(Task(function, arguments, ", ".join(f"{name} {value}" for name, value in rows[-1].items())))
    runs = (cache or Cache()).run(tasks, executor, title or function.__name__)
    for row, run in zip(rows, runs, strict=True):
        if twice := (row.keys() | {"run"}) & run.info.keys():
            raise ValueError(
                f"{function.__name__} returns {', '.join(sorted(twice))}, the name of an argument or `run`"
            )
        row |= {**run.info, "run": run}
    return pd.DataFrame(rows)


def at_the_edge(tried: pd.DataFrame, best: pd.DataFrame, by: Sequence[str], settings: Sequence[str]) -> list[str]:
    """List in words the best settings that are the lowest or highest of those tried: a better one may lie beyond.

    Args:
        tried: a row a trial, with the columns `by` and `settings`.
        best: a row each choice, with the same columns.
        by: columns that name whose choice it is; each has a grid of its own.
        settings: columns of numbers that were chosen from; one value alone has no edge.

    >>> tried = pd.DataFrame({"method": ["ND"] * 3 + ["end to end"], "lr": [0.1, 0.2, 0.4, 0.1]})
    >>> at_the_edge(tried, tried[2:], ["method"], ["lr"])
    ['ND (lr 0.4, the highest of 3)']
    """
    said = []
    for _, row in best.iterrows():
        grid = tried[(tried[[*by]] == row[[*by]]).all(axis=1)]
        for setting in settings:
            values = sorted(grid[setting].unique())
            sides = {values[0]: "lowest", values[-1]: "highest"} if len(values) > 1 else {}
            if side := sides.get(row[setting]):
                name = ", ".join(map(str, row[[*by]]))
                said.append(f"{name} ({setting} {row[setting]:g}, the {side} of {len(values)})")
    return said


def _listed(name: str, values: Iterable) -> list:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} (={values!r}) must be a list of values; give one value for all runs in `fixed`")
    if not (values := list(values)):
        raise ValueError(f"{name} is empty, so that there is nothing to run")
    return values


def _named(name: str, values: Iterable | Mapping[str, object]) -> list[tuple[object, object]]:
    """Return pairs of what a column shows for a value, and the value."""
    return _listed(name, values.items()) if isinstance(values, Mapping) else [(v, v) for v in _listed(name, values)]
