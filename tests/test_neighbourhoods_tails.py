"""How other people's blocks end: an exact copy stays exact under solving, or the block is refused by name.

Behind claims ND-1c and ND-1e.
"""

import copy
import importlib
import operator

import pytest
import torch
import torch.nn.functional as F
from conftest import speaking
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.ops import StochasticDepth, stochastic_depth
from torchvision.ops.misc import FrozenBatchNorm2d

from nkdlib.neighbourhoods import Library, Recipe, distill, solve
from nkdlib.training import Schedule

RECIPE = Recipe(holdout=16, solve_images=80, dtype=torch.float32, ridge=1e-6)
CUT = 0.75  # a width


class Block(nn.Module):
    """A residual block of a CIFAR ResNet; a test chooses how it ends and changes its layers."""

    def __init__(self, end, change=None, inner=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.end, self.gain = nn.ReLU(), end, nn.Parameter(torch.rand(1, 6, 1, 1) + 0.5)
        if change is not None:
            change(self)

    def forward(self, x):
        return self.end(self, self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))), x)


ENDS = {
    "F.relu": lambda self, y, x: F.relu(y + x),
    "torch.relu": lambda self, y, x: torch.relu(x + y),
    "x.relu()": lambda self, y, x: (y + x).relu(),
    "x.relu_()": lambda self, y, x: (y + x).relu_(),
    "F.relu_": lambda self, y, x: F.relu_(y.add_(x)),
    "F.relu, inplace": lambda self, y, x: F.relu(y + x, inplace=True),
    "F.leaky_relu": lambda self, y, x: F.leaky_relu(y + x, 0.2),
    "F.gelu": lambda self, y, x: F.gelu(input=torch.add(y, x), approximate="tanh"),
    "clamp": lambda self, y, x: torch.clamp(y + x, min=0.0, max=6.0),
    "module": lambda self, y, x: self.relu(y + x),
    "dropout behind": lambda self, y, x: F.dropout(F.relu(y + x), 0.3, training=self.training),
    "+=": lambda self, y, x: F.relu(operator.iadd(y, x)),
    "x.add": lambda self, y, x: F.relu(x.add(y)),
    "x.add_ of y": lambda self, y, x: F.relu(x.clone().add_(y, alpha=0.3)),
    "torch.add, alpha": lambda self, y, x: torch.add(x, y, alpha=0.1),
    "torch.add, alpha of x": lambda self, y, x: torch.add(y, x, alpha=0.1),
    "torch.sub": lambda self, y, x: torch.sub(x, y).relu(),
    "minus": lambda self, y, x: x - y,
    "scaled": lambda self, y, x: F.relu(x + 0.2 * y),
    "gained": lambda self, y, x: F.relu(x + self.gain * y / 3),
    "twice": lambda self, y, x: F.relu(y + x + y * 2),
    "three": lambda self, y, x: F.relu(x + (y + 1.5) + x * x),
    "function's shortcut": lambda self, y, x: F.relu(y + F.pad(x[:, ::2], (0, 0, 0, 0, 1, 2))),
    "stochastic depth": lambda self, y, x: F.relu(stochastic_depth(y, 0.2, "row", self.training) + x),
    "no sum": lambda self, y, x: F.relu(y),
}


def replaced(**layers):
    """A change of a block's layers."""
    return lambda block: [setattr(block, name, make()) for name, make in layers.items()]


def parametrized(name, how):
    """A change that has a layer compute its weight."""
    return lambda block: how(getattr(block, name))


CHANGES = {
    "reflected": replaced(conv2=lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")),
    "around": replaced(conv2=lambda: nn.Conv2d(8, 6, (3, 5), padding=(1, 2), padding_mode="circular")),
    "same": replaced(conv2=lambda: nn.Conv2d(8, 6, (2, 3), padding="same", dilation=(2, 1))),
    "biases": replaced(conv2=lambda: nn.Conv2d(8, 6, 3, padding=1)),
    "norm without affine": replaced(bn2=lambda: nn.BatchNorm2d(6, affine=False)),
    "norm without affine, layer with bias": replaced(
        conv2=lambda: nn.Conv2d(8, 6, 1), bn2=lambda: nn.BatchNorm2d(6, affine=False)
    ),
    "inner norm without affine": replaced(bn1=lambda: nn.BatchNorm2d(8, affine=False)),
    "frozen norm": replaced(bn2=lambda: FrozenBatchNorm2d(6)),
    "SyncBatchNorm": replaced(bn2=lambda: nn.SyncBatchNorm(6)),
    "no norm": replaced(bn2=nn.Identity),
    "norm of zeros": lambda block: nn.init.zeros_(block.bn2.weight),
    "weight_norm": parametrized("conv2", parametrizations.weight_norm),
    "weight_norm by rows": parametrized("conv2", lambda layer: parametrizations.weight_norm(layer, dim=1)),
    "inner weight_norm": parametrized("conv1", parametrizations.weight_norm),
    "inner spectral_norm": parametrized("conv1", parametrizations.spectral_norm),
    "stochastic depth": replaced(bn2=lambda: nn.Sequential(nn.BatchNorm2d(6), StochasticDepth(0.2, "row"))),
    "frozen": lambda block: block.requires_grad_(False),
}


def copied(end=ENDS["F.relu"], change=None, size=1.0):
    """A teacher, its images, and a copy of its block whose last layer is disturbed."""
    torch.manual_seed(0)
    block, x = Block(end, change), torch.randn(96, 6, 5, 5) * size
    speaking(block, x)
    return nn.Sequential(nn.Identity(), block), x, copy.deepcopy(block)


@pytest.mark.parametrize("end", ENDS)
def test_an_exact_copy_stays_exact_however_its_block_ends(end):
    teacher, x, student = copied(ENDS[end])
    assert solve(teacher, {"1": student}, [x], RECIPE)["1"].local_error < 1e-6
    assert solve(teacher, {"1": 1.0}, [x], RECIPE)["1"].local_error < 1e-6
    torch.nn.init.normal_(student.conv2.weight)
    assert solve(teacher, {"1": student}, [x], RECIPE)["1"].local_error < 1e-6


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ridge_to", ["zero", "own"])
def test_an_exact_copy_stays_exact_whatever_its_layers_are(change, ridge_to):
    teacher, x, student = copied(change=CHANGES[change])
    recipe = Recipe(holdout=16, solve_images=80, dtype=torch.float32, ridge=1e-6, ridge_to=ridge_to)
    found = solve(teacher, {"1": student}, [x], recipe)["1"]
    assert found.local_error < 1e-6
    assert found.module.state_dict().keys() == student.state_dict().keys()


def test_a_weight_that_is_computed_is_solved_through_its_parametrization():
    teacher, x, student = copied(change=CHANGES["weight_norm"])
    plain = copied(change=CHANGES["weight_norm"])[2]  # deep copies share a class, from which torch removes the weight
    parametrize.remove_parametrizations(plain.conv2, "weight")
    found, wanted = (solve(teacher, {"1": here}, [x], RECIPE)["1"].module for here in (student, plain))
    assert parametrize.is_parametrized(found.conv2)
    torch.testing.assert_close(found.conv2.weight, wanted.conv2.weight)


def shared(block):
    """The last layer also has the weights of the first."""
    block.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
    block.conv1, block.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
    block.conv1.weight = block.conv2.weight


def reused(block):
    """The last layer and its norm are applied twice."""
    block.conv1, block.bn1 = block.conv2, block.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weights in its own forward method."""

    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias, padding=1)


class Reused(nn.Module):
    """Applies its last layer twice, and reads a weight beside."""

    def __init__(self, twice=True):
        super().__init__()
        self.conv, self.twice = nn.Conv2d(6, 6, 1), twice

    def forward(self, x):
        return self.conv(self.conv(x).relu()) if self.twice else self.conv(F.conv2d(x, self.conv.weight).relu())


def hooked(block):
    """The last layer's outputs are doubled by a hook."""
    block.conv2.register_forward_hook(lambda module, inputs, output: 2 * output)


def thrown_away(self, y, x):
    """Ends in an activation that works in place, whose result is not used."""
    F.relu_(z := y + x)
    return z


REFUSED = {
    "shared": (shared, r"layer 'conv2' shares weights with conv1 and cannot"),
    "reused": (reused, r"layer 'conv1' is applied 2 times and cannot be solved"),
    "spectral_norm": (
        parametrized("conv2", parametrizations.spectral_norm),
        r"layer 'conv2' computes its weight .*remove_parametrizations",
    ),
    "pruned": (parametrized("conv2", lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), r"'conv2' computes"),
    "pruned bias": (
        lambda block: prune.random_unstructured(
            setattr(block, "conv2", nn.Conv2d(8, 6, 1)) or block.conv2, "bias", 0.5
        ),
        r"'conv2' computes its bias",
    ),
    "old spectral_norm": (parametrized("conv2", nn.utils.spectral_norm), r"'conv2' computes its weight"),
    "subclass": (replaced(conv2=lambda: Standardized(8, 6, 3, bias=False)), r"ends in conv2d cannot be solved"),
    "layer's hook": (hooked, r"layer 'conv2' \(Conv2d\) cannot be solved"),
    "block's hook": (lambda block: block.register_forward_hook(lambda *given: given[2] + 1), r"remove hooks"),
    "always dropout": (lambda block: setattr(block, "end", lambda _, y, x: F.dropout(y + x)), r"'conv2'|random"),
    "norm without statistics": (
        replaced(bn2=lambda: nn.BatchNorm2d(6, track_running_stats=False)),
        r"module \(=Block\) .* BatchNorm without running statistics",
    ),
    "inner norm without statistics": (
        replaced(bn1=lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False)),
        r"module \(=Block\) .* BatchNorm without running statistics",
    ),
    "GroupNorm": (replaced(bn2=lambda: nn.GroupNorm(2, 6)), r"ends in GroupNorm \('bn2'\) cannot be solved"),
    "a result that is thrown away": (
        lambda block: setattr(block, "end", thrown_away),
        r"layer 'conv2' .* cannot be solved",
    ),
    "zero scale": (
        lambda block: setattr(block, "end", lambda _, y, x: 0.0 * y + x),
        r"layer 'conv2' .* scales of zero",
    ),
    "NaN": (lambda block: nn.init.constant_(block.conv1.weight, torch.nan), r"not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_stay_exact_is_refused_before_the_teacher_is_run(case, monkeypatch):
    change, message = REFUSED[case]
    torch.manual_seed(0)
    student = Block(ENDS["F.relu"], change)
    teacher, x = nn.Sequential(nn.Identity(), Block(ENDS["F.relu"]).eval()), torch.randn(96, 6, 5, 5)
    with torch.no_grad():
        student(x)  # so that hooks compute weights that can be copied
    before = {name: value.clone() for name, value in student.state_dict().items()}
    monkeypatch.setattr(importlib.import_module("nkdlib.neighbourhoods.distill"), "capture", None)
    for act in (solve, distill):
        with pytest.raises(ValueError, match=rf"students\['1'\]: .*({message})"):
            act(teacher, {"1": student}, [x], RECIPE)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("twice", [True, False])
def test_a_layer_that_is_read_twice_is_refused(twice):
    teacher, x = nn.Sequential(Reused(twice)), torch.randn(96, 6, 5, 5)
    with pytest.raises(ValueError, match=r"layer 'conv' (is applied 2 times|shares weights with conv.weight)"):
        solve(teacher, {"0": copy.deepcopy(teacher[0])}, [x], RECIPE)


def test_activations_with_other_settings_are_other_activations():
    torch.manual_seed(0)
    x, conv = torch.randn(96, 6, 5, 5), nn.Conv2d(6, 6, 1)
    teacher = nn.Sequential(nn.Sequential(conv, nn.LeakyReLU(0.5)))
    same, other = (
        solve(teacher, {"0": nn.Sequential(nn.Conv2d(6, 6, 1), nn.LeakyReLU(slope))}, [x], RECIPE)["0"]
        for slope in (0.5, 0.1)
    )
    torch.testing.assert_close(same.module[0].weight, conv.weight)
    with torch.no_grad():  # the best output before an activation of its own is the teacher's output
        z, t = x.transpose(0, 1).flatten(1)[:, 16 * 25 :], teacher(x).transpose(0, 1).flatten(1)[:, 16 * 25 :]
    best = torch.linalg.lstsq(torch.cat([z, torch.ones(1, z.shape[1])]).T.double(), t.T.double()).solution
    torch.testing.assert_close(other.module[0].weight[:, :, 0, 0], best[:6].T.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_solving_does_not_depend_on_the_unit(size):
    torch.manual_seed(0)
    x = torch.randn(96, 6, 5, 5)
    teacher = nn.Sequential(nn.Sequential(nn.Conv2d(6, 9, 3, bias=False), nn.ReLU(), nn.Conv2d(9, 4, 1, bias=False)))
    recipe = Recipe(holdout=16, solve_images=80, dtype=torch.float32, ridge=1e-2)
    one, other = (solve(teacher, {"0": 5}, [x * scale], recipe)["0"] for scale in (1.0, size))
    assert other.local_error == pytest.approx(one.local_error, rel=1e-3)
    torch.testing.assert_close(other.module[0].weight, one.module[0].weight)
    torch.testing.assert_close(other.module[2].weight, one.module[2].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [0, -1, 2.5, float("nan"), float("inf")])
@pytest.mark.parametrize("start", ["solved", "copied", "random"])
def test_a_width_that_cannot_be_is_named_with_its_neighbourhood(width, start, tmp_path):
    teacher, x, _ = copied()
    recipe = Recipe(Schedule(0), start=start, holdout=16)
    for act in (
        lambda: distill(teacher, {"1": width}, [x], recipe),
        lambda: Library(teacher, {"1": [width]}, x, recipe),
    ):
        with pytest.raises(ValueError, match=rf"students\['1'\].*: width \(={width}\) must be a share above 0"):
            act()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_in_other_types_are_refused_by_name(dtype):
    teacher, x, student = copied()
    said = str(dtype).removeprefix("torch.")
    for act in (
        lambda: solve(copy.deepcopy(teacher).to(dtype), {"1": 0.5}, [x.to(dtype)], RECIPE),
        lambda: Library(copy.deepcopy(teacher).to(dtype), {"1": [0.5]}, x.to(dtype), RECIPE),
    ):
        with pytest.raises(ValueError, match=rf"teacher holds '1.gain' in {said}, but .*; give teacher.float\(\)"):
            act()
    with pytest.raises(ValueError, match=rf"students\['1'\] holds 'gain' in {said}, but "):
        solve(teacher, {"1": copy.deepcopy(student).to(dtype)}, [x], RECIPE)


@pytest.mark.parametrize("how", [nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_block_with_a_weight_that_a_hook_computes_is_solved_behind_it(how):
    teacher, x, student = copied(change=lambda block: how(block.conv1))
    student(x)  # leaves a weight with its graph, which copy.deepcopy refuses
    teacher(x)
    found = solve(teacher, {"1": student}, [x], RECIPE)
    assert found["1"].local_error < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(found.recompose(teacher)(x), teacher(x), rtol=1e-3, atol=1e-3)
