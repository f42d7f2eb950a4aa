"""Cache keys: everything that decides a result counts, prose and formatting do not."""

import enum
import functools
import sys
import time
import types
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.models import efficientnet_b0

from nkdlib.tasks import keys
from nkdlib.tasks.keys import Ingredients, fingerprint

LIBRARY = {
    "house/__init__.py": '"""Top."""\n',
    "house/shapes/__init__.py": "from .square import side\n",
    "house/shapes/square.py": "import garden\n\ndef side(a):\n    return a * a\n",
    "house/area.py": "PI = 3\n\ndef area(r):\n    return PI * r * r\n",
    "garden.py": "TREES = 3\n",
    "street.py": "",
}
AREA = "from house.area import area as disc\n\ndef area(r):\n    return disc(r)\n"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A user's packages; returns a function that writes one of their files, as before Python was started."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        monkeypatch.setattr(keys, "_LOADED", dict(loaded))
        keys._files.cache_clear()

    loaded = dict(keys._LOADED)
    monkeypatch.syspath_prepend(tmp_path)
    for name in list(sys.modules):
        if name.partition(".")[0] in ("house", "garden"):
            monkeypatch.delitem(sys.modules, name)
    for name, text in LIBRARY.items():
        write(name, text)
    return write


@pytest.fixture
def cell(monkeypatch):
    """Return a function that runs source as a notebook's cell would be, and returns its names."""

    def run(source):
        module = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(compile(source, "<cell>", "exec"), vars(module))
        return module

    return run


def code_of(*values):
    """The names of the code behind values."""
    found = Ingredients()
    for value in values:
        found.canonical(value, "value")
    return set(found.code)


def test_a_package_of_the_user_counts_whole_with_those_that_it_imports(library, cell):
    assert code_of(cell(AREA).area) == {"house", "garden"}
    inside = cell("def area(r):\n    from house.shapes import side\n    return side(r)\n").area
    assert code_of(inside) == {"house", "garden"}


@pytest.mark.parametrize(
    ("name", "old", "new", "counts"),
    [
        ("house/area.py", "PI = 3", "PI = 4", True),
        ("house/area.py", "PI = 3", "\nPI = (3)  # why", False),
        ("house/area.py", "    return", '    """Area."""\n    return', False),
        ("house/area.py", "r * r", "r**2", True),
        ("house/shapes/square.py", "a * a", "a", True),
        ("garden.py", "TREES = 3", "TREES = 4", True),
        ("street.py", "", "changed = True\n", False),
    ],
)
def test_an_edit_counts_where_the_package_is_used(library, cell, name, old, new, counts):
    before = fingerprint(cell(AREA).area)
    library(name, LIBRARY[name].replace(old, new))
    assert (fingerprint(cell(AREA).area) != before) == counts


def test_code_edited_after_it_was_loaded_is_an_error(library, cell, tmp_path):
    area = cell(AREA).area
    fingerprint(area)
    path = tmp_path / "house" / "area.py"
    path.write_text(f'"""Prose."""\n{path.read_text()}')
    fingerprint(area)
    path.write_text("PI = 5\n")
    with pytest.raises(RuntimeError, match=r"area.py was edited .* restart"):
        fingerprint(area)


def test_the_library_counts_as_one_and_the_compendium_by_module():
    from nkdlib.compendium import plots
    from nkdlib.compendium.teachers import train_teacher
    from nkdlib.data import Images
    from nkdlib.tasks import Cache

    assert code_of(Images) == code_of(Cache) == {"nkdlib"}
    found = code_of(train_teacher)
    assert {"nkdlib", "nkdlib.compendium.teachers"} <= found and "nkdlib.compendium" not in found
    assert code_of(plots, torch.relu, F.relu, pytest.fixture) == set()
    counted = {path.relative_to(keys.PACKAGE).parts[0] for path in keys._files("nkdlib")}
    assert {"data", "networks", "figs"} <= counted and not counted & {"tasks", "compendium"}


CELL = """
import math
import torch
from dataclasses import dataclass, field
FACTOR = 2
UNUSED = 3

class Base(torch.nn.Module):
    def forward(self, x):
        return self.scaled(x) * self.size

    @staticmethod
    def scaled(x):
        return x * FACTOR

    @property
    def size(self):
        return 1

class Net(Base):
    pass

@dataclass(frozen=True)
class Recipe:
    steps: int = 1
    rates: list = field(default_factory=lambda: [5])

@torch.no_grad()
def scale(x):
    return Net()(x) * math.pi * torch.ones(1)

def again(x):
    return scale(x) + Net.scaled(x)

def task(x, recipe=Recipe(), *, power=2):
    # a comment
    try:
        return [scale(y) + again(y) for y in x], math.inf
    except ValueError:
        return Recipe().steps in {7, 8}
"""


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("FACTOR = 2", "FACTOR = 4", True),
        ("UNUSED = 3", "UNUSED = 4", False),
        ("x * FACTOR", "FACTOR * x", True),
        ("return 1", "return 2", True),
        ("steps: int = 1", "steps: int = 2", True),
        ("[5]", "[6]", True),
        ("{7, 8}", "{7, 9}", True),
        ("power=2", "power=3", True),
        ("@torch.no_grad()", "@torch.enable_grad()", True),
        ("except ValueError", "except KeyError", True),
        ("# a comment", '"""A docstring."""', False),
        ("    return Net", '    """A docstring."""\n\n    return Net', False),
        ("Net()(x)", "Base()(x)", True),
        ("Net.scaled(x)", "Base.scaled(x)", True),
    ],
)
def test_a_change_in_a_notebook_counts_where_it_is_reached(cell, old, new, counts):
    before = fingerprint(cell(CELL).task)
    assert fingerprint(cell(CELL).task) == before
    assert CELL.count(old) == 1 and (fingerprint(cell(CELL.replace(old, new)).task) != before) == counts


def test_variables_that_functions_of_a_notebook_read_are_listed_and_need_a_form(cell):
    def variables(source):
        found = Ingredients()
        found.canonical(cell(source).task, "task")
        return found.variables

    assert variables(CELL) == {"FACTOR": "scaled"} and variables(CELL.replace("x * FACTOR", "x")) == {}
    opened = cell("texts = open(__file__)\n\ndef task(x):\n    return texts\n".replace("__file__", repr(__file__)))
    with opened.texts, pytest.raises(TypeError, match=r"what task reads\['texts'\] \(a _io"):
        fingerprint(opened.task)


def test_functions_that_one_function_makes_are_told_apart():
    def make(factor):
        def task(x):
            return x * factor

        return task

    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))
    assert fingerprint([make(1), make(2)]) != fingerprint([make(2), make(1)]) != fingerprint([make(2), make(2)])
    assert fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)


def test_a_function_that_calls_itself_or_one_before_it_has_a_key(cell):
    source = "def even(n):\n    return n == 0 or odd(n - 1)\n\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    assert fingerprint(cell(source).even) == fingerprint(cell(source).even)
    assert fingerprint(cell(source).even) != fingerprint(cell(source.replace("n != 0", "n == 1")).even)


@dataclass
class Config:
    """Settings that are not frozen."""

    scale: float


class Layer(nn.Module):
    """A layer that holds something in an attribute."""

    def __init__(self, held):
        super().__init__()
        self.held = held


class Scaled(nn.Module):
    """Somebody's parametrization."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return weight * self.factor


class Act(enum.Enum):
    """A choice."""

    RELU = 1
    TANH = 2


class Named(str):
    """A name that holds more than it shows."""

    def __new__(cls, name, scale):
        made = super().__new__(cls, name)
        made.scale = scale
        return made


class Slotted:
    """An object without a dict."""

    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


def tensor(**attributes):
    value = torch.zeros(1)
    vars(value).update(attributes)
    return value


def linear(change=None):
    """A layer with equal weights every time, changed in place."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    if change:
        change(layer)
    return layer


def spread(factor):
    return lambda x: factor * x


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (F.relu, torch.tanh),
        (F.relu, F.gelu),
        (spread(1), spread(2)),
        (functools.partial(F.leaky_relu, negative_slope=0.1), functools.partial(F.leaky_relu, negative_slope=0.2)),
        (nn.ReLU, nn.GELU),
        (Config(1.0), Config(2.0)),
        ({1: "a"}, {1: "b"}),
        ({"a", "b"}, {"a", "c"}),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2).numpy(), torch.ones(2).numpy()),
        ([linear()], [nn.Linear(3, 3)]),
        (torch.Size([1]), torch.Size([2])),
        (slice(1), slice(2)),
        ("abc".join, "abd".join),
        (Config(1.0).__eq__, Config(2.0).__eq__),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
        ([1, 2], (1, 2)),
        (Act.RELU, Act.TANH),
        (Named("a", 1), Named("a", 2)),
        (Slotted(1), Slotted(2)),
        ({"a": [linear()]}, {"a": [nn.Linear(3, 3)]}),
        (tensor(scale=1), tensor(scale=2)),
    ],
    ids=lambda value: type(value).__name__,  # the same in every process
)
def test_every_attribute_of_a_module_counts(first, second):
    assert fingerprint(Layer(first)) == fingerprint(Layer(first)) != fingerprint(Layer(second))


@pytest.mark.parametrize("held", [(x for x in ()), sys._getframe(), torch.eye(2).to_sparse()], ids=type)
def test_an_attribute_that_no_key_sees_is_refused_by_its_name(held):
    network = nn.Sequential(nn.ReLU(), Layer(held))
    with pytest.raises(TypeError, match=r"^argument teacher\.1\.held .* (cannot be pickled|contents cannot be read)"):
        Ingredients().canonical(network, "argument teacher")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: torch.jit.trace(nn.ReLU(), torch.zeros(2)), r"teacher\._actual_script_module\._c"),
        (lambda: nn.LazyLinear(3), r"teacher\.weight"),
        (lambda: nn.Sequential(nn.Linear(3, 3, device="meta")), r"teacher\.0\.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_network_that_no_key_sees_is_refused_by_the_name_of_what_it_hides(make, name):
    with pytest.raises(TypeError, match=rf"^{name} .* cannot be part of a cache key"):
        Ingredients().canonical(make(), "teacher")


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: nn.Sequential(OrderedDict([("a", nn.ReLU()), ("b", nn.Tanh())][:: 3 - 2 * scale])),
        lambda scale: nn.LSTM(3, 3, 2, dropout=scale / 10),
        lambda scale: nn.TransformerEncoderLayer(4, 2, 8, activation=(F.relu, F.gelu)[scale - 1]),
        lambda scale: nn.DataParallel(Layer(scale)),
        lambda scale: torch.compile(Layer(scale)),
        lambda scale: compiled_in_place(Layer(scale)),
        lambda scale: parametrizations.weight_norm(linear(), dim=scale - 1),
    ],
)
def test_networks_of_every_kind_count_by_what_they_compute(make):
    def key(scale):
        torch.manual_seed(0)
        return fingerprint(make(scale))

    assert key(1) == key(1) != key(2)


def compiled_in_place(layer):
    layer.compile()
    return layer


def test_a_method_that_somebody_replaced_counts(monkeypatch):
    before = fingerprint(nn.ReLU())
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x)
    first = fingerprint(nn.ReLU())
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: 2 * x)
    assert len({before, first, fingerprint(nn.ReLU())}) == 3


def test_five_million_parameters_have_a_key_in_a_tenth_of_a_second():
    network, seconds = efficientnet_b0(), []
    for _ in range(5):
        start = time.process_time()
        fingerprint(network)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.register_forward_hook(spread(2)),
        lambda layer: layer.register_forward_pre_hook(spread(2)),
        lambda layer: layer.register_full_backward_hook(spread(2)),
        lambda layer: layer.register_buffer("mean", torch.ones(1), persistent=False),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: parametrize.register_parametrization(layer, "weight", Scaled(1.0)),
        lambda layer: setattr(layer, "forward", types.MethodType(Layer.forward, layer)),
        lambda layer: layer.weight.requires_grad_(False),
        lambda layer: nn.init.ones_(layer.bias),
        lambda layer: setattr(layer, "bias", None),
        lambda layer: layer.weight.register_hook(spread(2)),
        lambda layer: layer.eval(),
    ],
)
def test_everything_that_changes_a_layer_counts(change):
    assert fingerprint(linear(change)) == fingerprint(linear(change)) != fingerprint(linear())


def test_hooks_and_parametrizations_count_by_what_they_hold():
    assert fingerprint(linear(lambda layer: layer.register_forward_hook(spread(2)))) != fingerprint(
        linear(lambda layer: layer.register_forward_hook(spread(3)))
    )
    one, two = Scaled(1.0), Scaled(2.0)
    assert fingerprint(linear(lambda layer: parametrize.register_parametrization(layer, "weight", one))) != fingerprint(
        linear(lambda layer: parametrize.register_parametrization(layer, "weight", two))
    )


def test_shared_parts_differ_from_equal_ones():
    shared = linear()
    assert fingerprint(nn.Sequential(shared, shared)) != fingerprint(nn.Sequential(linear(), linear()))
    tied = nn.Sequential(linear(), linear())
    tied[1].weight = tied[0].weight
    assert fingerprint(tied) != fingerprint(nn.Sequential(linear(), linear()))
    owner = Layer(None)
    owner.held = [owner]
    assert fingerprint(owner) == fingerprint(owner)


def test_a_traced_network_counts_by_its_graph():
    def traced(act):
        network = nn.Sequential(linear(), nn.ReLU())
        network.forward = lambda x: act(network[0](x))
        return torch.fx.GraphModule(network, torch.fx.symbolic_trace(nn.Sequential(act)).graph)

    assert fingerprint(traced(nn.ReLU())) == fingerprint(traced(nn.ReLU()))
    one, two = (torch.fx.symbolic_trace(Both(act)) for act in (torch.relu, torch.tanh))
    assert fingerprint(one) == fingerprint(torch.fx.symbolic_trace(Both(torch.relu))) != fingerprint(two)


class Both(nn.Module):
    """A network whose graph shows its function."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x)


def test_the_mode_of_every_layer_counts():
    network = nn.Sequential(linear(), nn.Dropout(0.1))
    keys_of = [fingerprint(network.train()), fingerprint(network.eval())]
    network[1].train()
    assert len({*keys_of, fingerprint(network)}) == 3


def test_what_torchs_compiler_puts_into_torchs_classes_does_not_count(monkeypatch):
    key, patched = fingerprint(linear()), lambda self: ""
    monkeypatch.setattr(nn.Linear, "extra_repr", patched)
    assert fingerprint(linear()) != key  # anyone else's does
    patched.__module__ = "torch._dynamo.mutation_guard"
    assert fingerprint(linear()) == key
