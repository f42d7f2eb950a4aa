"""Cut a network into neighbourhoods by the names of its submodules, and replace them by students.

ND (arXiv 2010.01189): T = T_N o ... o T_1. A neighbourhood here is one submodule (`layer2.0`) or a run of consecutive
children (`features.3:features.5`, both ends included); the layers between neighbourhoods stay the teacher's.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn

from nkdlib.networks.cost import Cost, cost
from nkdlib.networks.module import check_example, check_plain, copied, evaluating, in_evaluation, tensors_of
from nkdlib.training.store import check_finite, layout_for

Student = nn.Module | float | int  # a module, or an inner width of the teacher's own layers
PLAIN = bool | int | float | str | torch.dtype | torch.device | None  # attributes that a student can have too


@dataclass(frozen=True)
class Neighbourhood:
    """One part of a teacher, which takes one tensor and returns one."""

    name: str  # as given: a submodule path, or first:last
    paths: tuple[str, ...]  # the submodules that it consists of, in the order in which they run
    module: nn.Module = field(repr=False)  # the teacher's own part, weights shared with it
    example: Tensor = field(repr=False, compare=False)  # an input, (1, *input_shape)
    output_shape: tuple[int, ...]  # without the batch
    chained: bool  # its input is the output of the neighbourhood before it, with nothing between
    layout: torch.memory_format  # of its inputs from a store: channels last, if it takes feature maps so
    read: dict[str, object] = field(default_factory=dict, repr=False, compare=False)  # by other layers, as `seen`

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of its input, without the batch."""
        return tuple(self.example.shape[1:])

    @cached_property
    def cost(self) -> Cost:
        """Its parameters, and MACs of one example."""
        return cost(self.module, self.example)


class Neighbourhoods(Sequence[Neighbourhood]):
    """Neighbourhoods of a model in the order in which they run; `[name]` or `[index]`; prints itself as a table."""

    def __init__(self, members: Sequence[Neighbourhood], model: nn.Module, example: Tensor):
        self.members, self.model, self.example = tuple(members), model, example

    @property
    def names(self) -> list[str]:
        """Their names, front to back."""
        return [member.name for member in self.members]

    @cached_property
    def total(self) -> Cost:
        """Cost of the whole model."""
        return cost(self.model, self.example)

    def __getitem__(self, key: int | str) -> Neighbourhood:
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"{key!r} is no neighbourhood here; choose from {self.names}")
            return self.members[self.names.index(key)]
        return self.members[key]

    def __len__(self) -> int:
        return len(self.members)

    def table(self) -> pd.DataFrame:
        """Names, shapes, parameters, MACs and their share of the whole network's."""
        return pd.DataFrame(
            {
                "neighbourhood": self.names,
                "input": ["x".join(map(str, n.input_shape)) for n in self],
                "output": ["x".join(map(str, n.output_shape)) for n in self],
                "params": [n.cost.params for n in self],
                "MACs": [n.cost.macs for n in self],
                "share of MACs": [n.cost.macs / max(self.total.macs, 1) for n in self],
            }
        )

    def __repr__(self) -> str:
        return self.table().to_string(index=False)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)


def resolve(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Submodule paths by name; ValueError for names that do not exist or overlap, and modules with a second name."""
    check_plain(model, "model")
    known, paths = dict(model.named_modules(remove_duplicate=False)), {}
    if isinstance(names, str) or not names:
        raise ValueError(f"names (={names!r}) must be a list of at least one submodule path")
    for name in names:
        ends = name.split(":")
        for end in ends:
            if end not in known or not end:
                near = difflib.get_close_matches(end, [n for n in known if n], n=3, cutoff=0.4)
                advice = f"did you mean {', '.join(near)}?" if near else "see model.named_modules()"
                raise ValueError(f"names holds {name!r}, but the model has no submodule {end!r}; {advice}")
        if len(ends) == 1:
            paths[name] = (name,)
            continue
        parents = {end.rpartition(".")[0] for end in ends}
        if len(ends) != 2 or len(parents) != 1:
            raise ValueError(f"names holds {name!r}; a run is 'first:last' of two children of one module")
        parent = parents.pop()
        children = [f"{parent}.{c}" if parent else c for c, _ in known[parent].named_children()]
        first, last = (children.index(end) for end in ends)
        if first >= last:
            raise ValueError(f"names holds {name!r}; {ends[0]!r} must stand before {ends[1]!r} in {children}")
        paths[name] = tuple(children[first : last + 1])
    for (owner, others), (name, members) in itertools.combinations(paths.items(), 2):
        for other, path in itertools.product(others, members):
            if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                both = max(path, other, key=len)
                raise ValueError(f"names overlap: {name!r} and {owner!r} share {both!r}; each part can belong to one")
    if len(paths) != len(names):
        raise ValueError(f"names (={list(names)}) names a neighbourhood twice; name each once")
    for name, path in ((name, path) for name, members in paths.items() for path in members):
        if aliases := [other for other, module in known.items() if module is known[path] and other != path]:
            raise ValueError(
                f"names holds {name!r}, but {path!r} is the same module as {', '.join(map(repr, aliases))}, and would "
                "be replaced under one name only; register it under one name"
            )
    return paths


def _check_own(model: nn.Module, paths: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ValueError for a neighbourhood with a parameter of a layer outside it: a student would part the two."""
    homes: dict[Tensor, dict[str, str]] = {}  # by parameter: a layer that holds it in each neighbourhood, and outside
    for path, layer in model.named_modules(remove_duplicate=False):
        home = next((name for name, run in paths.items() for part in run if f"{path}.".startswith(f"{part}.")), "")
        for parameter in layer.parameters(recurse=False):
            homes.setdefault(parameter, {}).setdefault(home, path)
    for layers in homes.values():
        if len(layers) > 1:
            name = next(filter(None, layers))
            inside, outside = layers.pop(name), next(iter(layers.values()))
            raise ValueError(
                f"names holds {name!r}, whose layer {inside!r} shares a weight with {outside!r} outside it; give each "
                "a copy of its own, or name a part that holds both"
            )


@dataclass
class _Call:
    """One call of a submodule; it keeps the tensors, so that `is` compares live ones."""

    order: int
    inputs: tuple
    kwargs: dict
    output: object
    versions: tuple[int, int]  # of the first input before, and of the output after; work in place raises them
    example: Tensor | None  # of the first input before, copied
    result: Tensor | None  # the output after, copied


@torch.no_grad()
def split(model: nn.Module, names: Sequence[str], example_inputs: Tensor) -> Neighbourhoods:
    """Find neighbourhoods in any network, by submodule names.

    Args:
        model: the teacher; run twice in evaluation mode, otherwise left alone.
        names: submodule paths (`layer2.0`) and runs of consecutive children (`features.3:features.5`).
        example_inputs: images of the right shape, (B, C, H, W), B at least 1. On them, and only on them, it is proven
            that the model put together from these neighbourhoods is the model, so real ones are better than zeros.

    Raises:
        ValueError: a name that does not exist, overlaps another, is not run exactly once in a forward pass on one
            tensor that gives one tensor, shares weights with layers outside it, or does more than to give its output;
            examples that are not finite.

    >>> from nkdlib.networks import resnet
    >>> split(resnet(8, 10, seed=0), ["layer1.0", "layer2.0"], torch.zeros(1, 3, 32, 32)).names
    ['layer1.0', 'layer2.0']
    """
    _check_own(model, paths := resolve(model, names))
    check_example(example_inputs, "example_inputs")
    check_finite(example_inputs, "example_inputs")
    with evaluating(model):
        calls, output = _observe(model, [path for run in paths.values() for path in run], example_inputs)
        members, previous = [], None  # previous: the last call of the neighbourhood before
        for name in sorted(paths, key=lambda name: calls[paths[name][0]].order):
            run = paths[name]
            for a, b in itertools.pairwise(run):
                if not _follows(calls[a], calls[b]):
                    raise ValueError(
                        f"names holds {name!r}, but {b!r} does not take what {a!r} returns and nothing else; "
                        "name the parts one by one"
                    )
            first, last, parts = calls[run[0]], calls[run[-1]], [model.get_submodule(path) for path in run]
            module = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
            chained = previous is not None and _follows(previous, first)
            shape, layout = tuple(last.output.shape[1:]), layout_for(module, first.example)
            members.append(Neighbourhood(name, run, module, first.example, shape, chained, layout))
            previous = last
        results = {here.name: calls[here.paths[-1]].result for here in members}
        read = _prove(model, results, example_inputs, output)
    return Neighbourhoods([replace(here, read=read[here.name]) for here in members], model, example_inputs[:1])


def _follows(a: _Call, b: _Call) -> bool:
    """Whether b takes the output of a, which nothing has changed in place in between."""
    return b.inputs[0] is a.output and b.versions[0] == a.versions[1]


def _observe(model: nn.Module, paths: list[str], example_inputs: Tensor) -> tuple[dict[str, _Call], object]:
    """Run the model once; the one call of each path, and the model's output."""
    modules = {path: model.get_submodule(path) for path in paths}
    calls: dict[nn.Module, list[_Call]] = {module: [] for module in modules.values()}
    versions: dict[nn.Module, int] = {}
    examples: dict[nn.Module, Tensor | None] = {}

    def version(value: object) -> int:
        return value._version if isinstance(value, Tensor) and not value.is_inference() else 0

    def before(module: nn.Module, inputs: tuple) -> None:
        versions[module] = version(inputs[0]) if inputs else 0
        examples[module] = inputs[0][:1].clone() if inputs and isinstance(inputs[0], Tensor) else None

    def after(module: nn.Module, inputs: tuple, kwargs: dict, output: object) -> None:
        order = sum(map(len, calls.values()))
        both, result = (versions[module], version(output)), output.clone() if isinstance(output, Tensor) else None
        calls[module].append(_Call(order, inputs, kwargs, output, both, examples[module], result))

    with ExitStack() as hooks:
        for module in calls:
            hooks.enter_context(module.register_forward_pre_hook(before, prepend=True))  # others may change inputs
            hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
        result = model(example_inputs.clone())
    for path, module in modules.items():
        seen = calls[module]
        if len(seen) != 1:
            raise ValueError(
                f"names holds {path!r}, which is run {len(seen)} times in one forward pass; "
                "a neighbourhood must be run exactly once: name a part that is"
            )
        call = seen[0]
        single = len(call.inputs) == 1 and not call.kwargs
        if not (single and isinstance(call.inputs[0], Tensor) and isinstance(call.output, Tensor)):
            raise ValueError(
                f"names holds {path!r}, which takes {len(call.inputs)} arguments and {len(call.kwargs)} "
                f"keywords and returns {type(call.output).__name__}; a neighbourhood must take one tensor and "
                "return one: name a larger or smaller part"
            )
    return {path: calls[module][0] for path, module in modules.items()}, result


def seen(value: object) -> object:
    """What layers outside a neighbourhood may know of its attributes: plain values, and types and shapes of tensors."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape)
    parts = value if isinstance(value, tuple) else [value]
    return value if all(isinstance(part, PLAIN) for part in parts) else type(value)


class _Replay(nn.Module):
    """Gives a known output in the place of a module, and its attributes, of tensors without their numbers."""

    def __init__(self, module: nn.Module, output: Tensor, read: dict[str, object]):
        super().__init__()
        self.__dict__.update(original=module, output=output, read=read)

    def __getattr__(self, name: str) -> object:
        value = getattr(self.__dict__["original"], name)
        self.read[name] = known = seen(value)
        if isinstance(known, type):
            raise AttributeError(f"{name!r} is a part of a neighbourhood, which a student need not have")
        return value.to("meta") if isinstance(value, Tensor) else value

    def forward(self, _: Tensor) -> Tensor:
        return self.output.clone()


def _prove(
    model: nn.Module, results: Mapping[str, Tensor], example_inputs: Tensor, output: object
) -> dict[str, dict[str, object]]:
    """Raise ValueError unless the model is the same with outputs in the place of neighbourhoods.

    Images are in reverse order, so that nothing left from before helps. Returns what other layers read, as `seen`.
    """
    wanted, read = tensors_of(output), {name: {} for name in results}
    alike = all(len(result) == len(example_inputs) for result in results.values())

    def turned(value: Tensor) -> Tensor:
        return value.flip(0) if alike and value.dim() and len(value) == len(example_inputs) else value

    def failure(names: Iterable[str]) -> bool:
        first = {name: model.get_submodule(name.split(":")[0]) for name in names}
        replays = {name: _Replay(first[name], turned(results[name]), read[name]) for name in names}
        try:
            found = recompose(model, replays)(turned(example_inputs.clone()))
            for ours, theirs in zip(tensors_of(found), wanted, strict=True):
                near = 1e-3 * theirs.nan_to_num().abs().max().item()
                torch.testing.assert_close(turned(ours), theirs, rtol=1e-3, atol=near, equal_nan=True)
        except Exception:  # a layer may also fail on another shape, or miss an attribute
            return True
        return False

    if failure(results):
        name = next((name for name in results if failure([name])), ", ".join(results))
        values = ", ".join(map(repr, read.get(name, ())))
        raise ValueError(
            f"names holds {name!r}, but with its output in its place the model gives another one: a layer outside "
            f"reads a value inside it{f' ({values})' * bool(values)} or skips a part, it changes its input, or a copy "
            "of the model is not the model (random numbers, hooks on the original); name smaller parts, or a larger "
            "one that holds both"
        )
    return read


def recompose(teacher: nn.Module, students: Mapping[str, nn.Module]) -> nn.Module:
    """A network with student neighbourhoods in the teacher's place.

    Args:
        teacher: copied, not changed.
        students: by neighbourhood name, as for `split`; used as they are, not copied. In a run of children the
            first place takes the student and the others an identity.

    Returns:
        A plain network of the teacher's class, in evaluation mode.

    Raises:
        ValueError: names that do not exist or overlap.

    >>> from nkdlib.networks import resnet
    >>> teacher = resnet(8, 10, seed=0)
    >>> network = recompose(teacher, {"layer1.0": nn.Identity()})
    >>> network.layer1[0], teacher.layer1[0].conv1.in_channels
    (Identity(), 16)
    """
    paths = resolve(teacher, list(students))
    network = copied(teacher, without=[path for members in paths.values() for path in members])
    for name, (first, *others) in paths.items():
        network.set_submodule(first, students[name])
        for path in others:
            network.set_submodule(path, nn.Identity())
    return in_evaluation(network)
