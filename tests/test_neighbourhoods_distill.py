"""Distillation of neighbourhoods: held-out images, determinism, memory, the cache and the errors.

Behind claims ND-0 and ND-1.
"""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from nkdlib.neighbourhoods import Library, Recipe, distill, recompose, solve
from nkdlib.neighbourhoods.distill import Distillation, Distilled
from nkdlib.neighbourhoods.local import squared_error, train_local
from nkdlib.networks import BasicBlock, cost, resnet
from nkdlib.tasks import Cache, make_executor
from nkdlib.training import Schedule, reestimate_batchnorm
from nkdlib.training.kernels import bfloat16_pays
from nkdlib.training.store import Store

RECIPE = Recipe(Schedule(6, batch_size=16, lr=2e-3), holdout=16, solve_images=64)
DROPPING = nn.Sequential(nn.Dropout(0.3), BasicBlock(8, 8, stride=2))
COPIED = Recipe(Schedule(6, batch_size=16, lr=2e-3), start="copied", holdout=16)
UNTRAINED = replace(COPIED, schedule=Schedule(0))


@pytest.fixture(scope="module")
def given():
    """A small teacher whose BatchNorms fit its images, and 96 images."""
    torch.manual_seed(0)
    images = torch.einsum("oc,bchw->bohw", torch.randn(3, 3), torch.randn(96, 3, 8, 8))
    return reestimate_batchnorm(resnet(8, 5, seed=0, widths=(8, 8, 12)), [images]), images


def bits(distillation):
    """By name, what must repeat: errors, losses and weights."""
    return {
        name: (d.local_error, d.losses, {k: v.tolist() for k, v in d.module.state_dict().items()})
        for name, d in distillation.items()
    }


def test_students_learn_and_are_measured_on_held_out_images(given):
    teacher, x = given
    students, recipe = {"layer1.0": 0.5, "layer3.0": 0.25}, replace(COPIED, schedule=Schedule(60, 32, lr=5e-3))
    untrained, result = (distill(teacher, students, [x], r) for r in (UNTRAINED, recipe))
    assert list(result) == ["layer1.0", "layer3.0"] and len(result) == 2
    for name, found in result.items():
        assert (found.name, len(found.losses)) == (name, 60)
        assert found.local_error < 0.8 * untrained[name].local_error and found.losses[-1] < found.losses[0]
        assert found.device_s > 0 and not any(module.training for module in found.module.modules())
    with torch.no_grad():
        h = teacher.layer2(teacher.layer1(teacher.stem(x[:16])))
        y, student = teacher.layer3(h), result["layer3.0"].module
        error = (student(h) - y).square().mean() / (y - y.mean(0)).square().mean()
    assert result["layer3.0"].local_error == pytest.approx(error.item(), rel=0.02)  # boundaries are kept in float16
    assert result["layer3.0"].cost == cost(student, h) and student.conv1.out_channels == 3
    network = result.recompose(teacher)
    assert network.layer1[0] is result["layer1.0"].module and network.layer2[0] is not teacher.layer2[0]


class View(nn.Module):
    """Flattens by `view`, which needs channels first."""

    def forward(self, x):
        return x.view(x.shape[0], -1)


def flattening(flatten):
    """A convolution, and a part that flattens what its own convolutions make."""
    torch.manual_seed(0)
    body = nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1), flatten, nn.Linear(48, 5)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Sequential(*body)).eval()


@pytest.mark.parametrize("start", ["solved", "given", "copied"])
def test_parts_that_view_feature_maps_learn_like_those_that_reshape_them(start):
    found, x = [], torch.randn(96, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for net in (flattening(View()), flattening(nn.Flatten())):
        students = {"0:1": copy.deepcopy(net[:2]), "2": copy.deepcopy(net[2]) if start == "given" else 3}
        students = {"2": 3} if start == "copied" else students  # in sequence if solved, of which the first keeps maps
        found.append(distill(net, students, [x], replace(RECIPE, start=start))["2"])
    view, reshape = found
    assert view.local_error == pytest.approx(reshape.local_error, rel=1e-3) and 0 < view.local_error < 1
    torch.testing.assert_close(view.module(view.example), reshape.module(view.example), rtol=1e-3, atol=1e-4)


def test_a_student_that_views_what_the_teacher_does_not_is_refused_before_it_is_trained():
    net, x = flattening(nn.Flatten()), torch.randn(96, 3, 4, 4)
    message = r"students\['2'\] cannot take the neighbourhood's input of shape \(4, 4, 4\): view size is not .*reshape"
    with pytest.raises(ValueError, match=message):
        distill(net, {"2": nn.Sequential(View(), nn.Linear(64, 5))}, [x], replace(RECIPE, start="given"))


def test_the_teacher_and_the_given_students_stay_as_they_were(given):
    teacher, x = copy.deepcopy(given[0]).train(), given[1]
    teacher.layer2.eval()
    student, recipe = BasicBlock(8, 8, inner=2).train(), Recipe(Schedule(2, 8), holdout=8)
    before = {part: copy.deepcopy(part.state_dict()) for part in (teacher, student)}
    modes = [module.training for part in before for module in part.modules()]
    state = torch.get_rng_state()
    for act in (distill, solve):
        result = act(teacher, {"layer1.0": student, "layer3.0": 0.5}, x.split(24), recipe)
        result.recompose(teacher)
    with pytest.raises(FloatingPointError) as caught:
        distill(teacher, {"layer1.0": 0.5}, x.split(24), Recipe(Schedule(3, lr=1e30, batch_size=8), holdout=8))
    assert caught.value.__notes__ == ["in task 'layer1.0'"]
    assert modes == [module.training for part in before for module in part.modules()]
    for part, states in before.items():
        assert all(torch.equal(states[name], value) for name, value in part.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in part.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in part.parameters())
    assert result["layer1.0"].module is not student and torch.equal(state, torch.get_rng_state())


def test_students_of_a_frozen_teacher_can_be_trained(given):
    teacher = copy.deepcopy(given[0]).requires_grad_(False)
    for start in ("copied", "random", "solved"):
        recipe = Recipe(Schedule(1, batch_size=8, lr=2e-3), start=start, holdout=16)
        module = distill(teacher, {"layer3.0": 0.5}, [given[1]], recipe)["layer3.0"].module
        assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("start", ["copied", "random", "solved"])
def test_a_fixed_filter_stays_fixed_and_all_else_is_trained(start):
    torch.manual_seed(0)
    fixed = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False).requires_grad_(False)
    fixed.weight.fill_(1 / 9)
    teacher = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 1), fixed, nn.ReLU(), nn.Conv2d(6, 3, 1))).eval()
    x, recipe = torch.randn(48, 3, 5, 5), Recipe(Schedule(3, batch_size=8), start=start, holdout=16)
    library = Library(teacher, {"0": [0.5]}, x, recipe)
    library.fill()
    for student in (distill(teacher, {"0": 0.5}, [x], recipe)["0"].module, library.candidates["0"]["0.5"].build()):
        assert [value.requires_grad for value in student.parameters()] == [True, True, False, True, True]
        assert student[1].weight.shape[0] == 3 and student[1].weight.eq(1 / 9).all()
    library.add("0", "given", copy.deepcopy(teacher[0]), replace(recipe, start="given"))
    flags = [value.requires_grad for value in library.candidates["0"]["given"].build().parameters()]
    assert flags == [value.requires_grad for value in teacher.parameters()]


class Drifting(nn.Module):
    """A convolution less a mean that `state_dict` leaves out, and a weight named like a result."""

    def __init__(self):
        super().__init__()
        self.conv, self.losses = nn.Conv2d(8, 8, 3, padding=1), nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(1), persistent=False)

    def forward(self, x):
        y = self.conv(x) * self.losses
        if self.training:
            self.mean.mul_(0.5).add_(0.5 * y.detach().mean() - 1)
        return y - self.mean


@pytest.mark.parametrize("steps", [0, 4])
def test_the_error_of_a_student_is_that_of_all_that_it_holds(given, steps):
    (teacher, x), student = given, Drifting()
    student.mean += 0.3
    recipe = Recipe(Schedule(steps, batch_size=8), start="given", holdout=16, bn_images=0)
    made = [distill(teacher, {"layer1.0": student}, [x], recipe, cache=cache)["layer1.0"] for cache in [Cache()] * 2]
    library = Library(teacher, {"layer1.0": {"drifting": student}}, x, recipe)
    library.fill()
    candidate = library.candidates["layer1.0"]["drifting"]
    with torch.no_grad():
        y = teacher.layer1(h := teacher.stem(x[:16]))
        for module, error in [
            *((part.module, part.local_error) for part in made),
            (candidate.build(), candidate.error),
        ]:
            wanted = (module(h) - y).square().mean() / (y - y.mean(0)).square().mean()
            assert error == pytest.approx(wanted.item(), rel=0.02)
            assert (module.mean == student.mean) == (module.losses == 1) == (steps == 0)


class Spy(nn.Module):
    """A convolution that notes the first pixel of every image that it learns from."""

    seen: list[list[float]] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        if torch.is_grad_enabled():
            Spy.seen.append(x[:, 0, 0, 0].tolist())
        return self.conv(x)


def numbered(count, batch):
    """Images that carry their number in the first pixel, and a teacher that learns nothing of it."""
    x = torch.randn(count, 1, 3, 3)
    x[:, 0, 0, 0] = torch.arange(count).float()
    return nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1)), x.split(batch)


@pytest.mark.parametrize("batch", [7, 16, 40, 100])
def test_held_out_images_are_never_trained_on(batch):
    teacher, inputs = numbered(50, batch)
    Spy.seen = []
    result = distill(teacher, {"1": Spy()}, inputs, Recipe(Schedule(9, 10), start="given", holdout=20))
    assert len(result["1"].losses) == len(Spy.seen) == 9
    assert all(len(rows) == 10 for rows in Spy.seen)
    assert sorted(i for rows in Spy.seen[:3] for i in rows) == list(range(20, 50))


def counting(teacher):
    """A copy of the teacher, and how many images each of its passes has."""
    teacher, calls = copy.deepcopy(teacher), []
    teacher.stem.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return teacher, calls


def test_one_pass_of_the_teacher_serves_all_neighbourhoods(given):
    teacher, calls = counting(given[0])
    distill(teacher, dict.fromkeys(teacher.block_names, 0.5), given[1].split(32), RECIPE)
    assert calls == [2, 2, 32, 32, 32]  # two looks at two images for the names, then every image that is wanted once


def boundary_gb(*shapes):
    """Gigabytes of 96 images' boundaries in float16."""
    return 96 * 2 * sum(math.prod(shape) for shape in shapes) / 1e9


@pytest.mark.parametrize("start", ["solved", "random"])
@pytest.mark.parametrize("passes", [2, 3])
def test_students_are_the_same_bit_by_bit_however_many_passes_the_teacher_makes(given, capsys, start, passes):
    torch.manual_seed(0)
    teacher, calls = counting(reestimate_batchnorm(resnet(20, 5, seed=0, widths=(8, 8, 12)), [given[1]]))
    calls.clear()
    limit = boundary_gb(*[(8, 8, 8)] * {2: 3, 3: 2}[passes])  # input and output of one block, or a block more
    recipe = Recipe(Schedule(6, 16), start=start, holdout=16, solve_images=64)
    students = {"layer1.0": 0.5, "layer1.1": nn.Sequential(nn.Dropout(0.3), BasicBlock(8, 8)), "layer1.2": 0.5}
    whole = distill(teacher, students, given[1].split(32), recipe)
    assert "kept in memory" in repr(whole) and calls[2:] == [32, 32, 32]
    divided = distill(teacher, students, given[1].split(32), replace(recipe, memory_limit_gb=limit))
    assert calls[7:] == [32] * 3 * passes and bits(divided) == bits(whole)
    assert f"memory_limit_gb (={limit:g}): {passes} passes of the teacher" in repr(divided)
    assert f", pass {passes} of {passes})" in capsys.readouterr().out


@pytest.mark.parametrize("more", [0, 1])
def test_boundaries_fit_to_the_byte(given, more):
    teacher, calls = counting(given[0])
    recipe = replace(COPIED, memory_limit_gb=boundary_gb((8, 8, 8), (8, 8, 8)) - more / 1e9)
    if more:
        with pytest.raises(
            ValueError, match=r"boundaries of 'layer1.0' for 96 images take 0.000197 GB, more than memory"
        ):
            distill(teacher, {"layer1.0": 0.5}, given[1], recipe)
    else:
        distill(teacher, {"layer1.0": 0.5}, given[1], recipe)
        assert calls[2:] == [96]


def test_inputs_that_differ_in_every_pass_are_refused_where_several_are_made(given):
    teacher, x = given

    class Shuffled:
        def __init__(self):
            self.turn = 0

        def __iter__(self):
            self.turn += 1
            return iter(x.roll(self.turn * 10, 0).split(16))

    students = {"layer1.0": 0.5, "layer2.0": 0.5}
    distill(teacher, students, Shuffled(), COPIED)  # one pass only
    with pytest.raises(ValueError, match=r"inputs gives other images, or another order, .* 2 passes; .* shuffle=False"):
        distill(teacher, students, Shuffled(), replace(COPIED, memory_limit_gb=boundary_gb((8, 8, 8), (8, 8, 8))))


def test_steps_in_bfloat16_end_near_those_in_float32(given, capability):
    capability("AVX512")
    teacher, x = given
    schedules = (Schedule(30, 16, lr=5e-3, amp=amp) for amp in (False, True))
    plain, mixed = (distill(teacher, {"layer2.0": 0.5}, [x], replace(COPIED, schedule=s)) for s in schedules)
    one, other = plain["layer2.0"], mixed["layer2.0"]
    assert other.losses != one.losses and other.losses == pytest.approx(one.losses, rel=0.05)
    assert other.local_error == pytest.approx(one.local_error, rel=0.05)
    assert {value.dtype for value in other.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["AVX2", "DEFAULT"])
def test_steps_are_in_float32_on_a_cpu_without_fast_bfloat16(given, capability, name):
    capability(name)
    teacher, x = given
    schedules = (Schedule(3, 16, lr=5e-3, amp=amp) for amp in (False, True))
    recipes = [replace(COPIED, schedule=schedule, dtype=torch.bfloat16) for schedule in schedules]
    plain, asked = (distill(teacher, {"layer2.0": 0.5}, [x], recipe)["layer2.0"] for recipe in recipes)
    assert asked.losses == plain.losses and asked.local_error == plain.local_error
    assert not bfloat16_pays(torch.device("cpu")) and bfloat16_pays(torch.device("cuda"))


def test_boundaries_in_bfloat16_stay_so_in_steps_that_use_it(capability):
    capability("AVX512")
    y, seen = torch.tensor([[1.0], [3.0], [0.0], [2.0]]).bfloat16(), []
    student = nn.Linear(1, 1)
    student.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0].dtype)))
    for amp, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        recipe = Recipe(Schedule(1, 2, lr=1e-9, amp=amp), start="given", holdout=2)
        seen.clear()
        with torch.no_grad():
            student.weight.zero_(), student.bias.fill_(1.0)
        found = train_local("part", student, Store({"x": y, "y": y}), recipe, seed=0)
        assert [kind for training, kind in seen if training] == [dtype]
        assert found["losses"] == [1.0]  # (0 - 1)^2 and (2 - 1)^2, over a variance of 1
        assert found["local_error"] == pytest.approx(2.0)  # (1 - 1)^2 and (3 - 1)^2
        assert squared_error(y, y + 2).dtype == torch.float32


def test_boundaries_are_kept_in_the_type_of_the_steps():
    assert [Recipe(Schedule(1, amp=amp)).dtype for amp in (True, False)] == [torch.bfloat16, torch.float16]
    assert Recipe(Schedule(1, amp=True), dtype=torch.float32).dtype == torch.float32


@pytest.fixture(scope="module")
def two_workers():
    """An executor of two processes."""
    with make_executor(jobs=2) as executor:
        yield executor


def dropping(p=0.2):
    """Students that draw random numbers as they learn."""
    torch.manual_seed(1)
    return {
        "layer1.0": nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.Dropout(p), nn.ReLU(), nn.Conv2d(6, 8, 1)),
        "layer2.0": nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1), StochasticDepth(p, "row"), nn.Conv2d(8, 8, 1)),
    }


@pytest.mark.parametrize("start", ["random", "solved"])
def test_workers_and_order_do_not_matter(given, two_workers, start):
    teacher, x = given
    recipe = Recipe(Schedule(3, batch_size=16, lr=2e-3), start=start, holdout=16, solve_images=32)
    students = {**dropping(), "layer3.0": 0.5}
    turned = dict(reversed(students.items()))
    here = distill(teacher, students, [x], recipe)
    results = [
        distill(teacher, students, [x], recipe, executor=make_executor(jobs=1)),
        distill(teacher, students, [x], recipe, executor=two_workers),
        distill(teacher, turned, [x], recipe),
        distill(teacher, turned, [x], recipe, executor=two_workers, cache=Cache()),
    ]
    assert list(here) == ["layer1.0", "layer2.0", "layer3.0"]
    for result in results:
        assert bits(result) == bits(here)


def test_a_student_does_not_depend_on_its_company(given):
    teacher, x = given
    alone = distill(teacher, {"layer3.0": 0.5}, [x], COPIED)
    among = distill(teacher, {"layer1.0": 0.25, "layer3.0": 0.5}, [x], COPIED)
    assert bits(alone)["layer3.0"] == bits(among)["layer3.0"]


def test_starts(given):
    teacher, x = given
    student = BasicBlock(8, 8, inner=3)

    def begin(start, student, seed=0):
        recipe = Recipe(Schedule(0), start=start, seed=seed, holdout=16)
        return distill(teacher, {"layer1.0": student}, [x], recipe)["layer1.0"].module.state_dict()

    same = begin("given", student)
    assert all(torch.equal(same[name], value) for name, value in student.state_dict().items())
    copied = begin("copied", 1.0)
    assert all(torch.equal(copied[name], value) for name, value in teacher.layer1[0].state_dict().items())
    one, two, other = (begin("random", student, seed)["conv1.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other) and not torch.equal(one, student.conv1.weight)
    assert begin("random", 3)["conv1.weight"].shape == (3, 8, 3, 3)


def test_a_trained_students_batchnorm_is_that_of_what_it_sees(given):
    teacher, x = given
    recipe = replace(COPIED, bn_images=40, dtype=torch.float32)
    module = distill(teacher, {"layer1.0": 0.5}, [x], recipe)["layer1.0"].module
    with torch.no_grad():
        y = module.conv1(teacher.stem(x[16:56])).transpose(0, 1).flatten(1)
    torch.testing.assert_close(module.bn1.running_mean, y.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.bn1.running_var, y.var(1), rtol=1e-4, atol=1e-4)
    left = distill(teacher, {"layer1.0": 0.5}, [x], replace(recipe, bn_images=0))["layer1.0"].module
    assert not torch.allclose(left.bn1.running_mean, module.bn1.running_mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: x.split(10),
        lambda x: iter(x.split(10)),
        lambda x: ((images, torch.zeros(len(images))) for images in x.split(10)),
        lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=10),
    ],
    ids=["tensor", "one batch", "batches", "iterator", "with labels", "loader"],
)
def test_inputs_are_any_batches_of_images(given, wrap):
    teacher, x = given
    wanted = distill(teacher, {"layer1.0": 0.5}, x.split(10), COPIED)["layer1.0"]
    found = distill(teacher, {"layer1.0": 0.5}, wrap(x), COPIED)["layer1.0"]
    assert found.local_error == pytest.approx(wanted.local_error, rel=1e-2)


def test_a_second_call_finds_everything_in_the_cache(given, runs, monkeypatch):
    teacher, x = given
    students = {"layer1.0": BasicBlock(8, 8, inner=2), "layer2.0": 0.5}

    def made():
        return sorted(runs.rglob("tensors.safetensors"))

    partly = distill(teacher, {"layer2.0": 0.5}, [x], COPIED, cache=Cache())
    assert len(made()) == 1
    recipe = replace(COPIED, start="given")
    first = distill(teacher, students, [x], recipe, cache=Cache())
    stamps = [path.stat().st_mtime_ns for path in made()]
    assert len(stamps) == 3 and partly["layer2.0"].local_error == first["layer2.0"].local_error
    monkeypatch.setattr("nkdlib.training.loop.Trainer.step", None)  # a step would fail
    again = distill(teacher, students, [x], recipe, cache=Cache())
    assert bits(again) == bits(first) and [path.stat().st_mtime_ns for path in made()] == stamps
    assert [d.device_s for d in again.values()] == [d.device_s for d in first.values()]


class Scaled(nn.Module):
    """A block whose setting its `repr` does not show."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.conv = scale, nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(x) * self.scale


def test_what_determines_a_student_determines_its_key(given, runs):
    teacher, x = given
    one, frozen = Scaled(1.0), Scaled(1.0)
    other = Scaled(2.0)
    for student in (frozen, other):
        student.load_state_dict(one.state_dict())
    frozen.conv.bias.requires_grad_(False)
    recipe = Recipe(Schedule(2, batch_size=16, lr=2e-3), start="given", holdout=16)
    errors = []
    for student in (one, frozen, other, one):
        errors.append(distill(teacher, {"layer1.0": student}, [x], recipe, cache=Cache())["layer1.0"].local_error)
    for changed in ({"schedule": Schedule(2, 16)}, {"seed": 1}, {"holdout": 17}):
        changed = replace(recipe, **changed)
        errors.append(distill(teacher, {"layer1.0": one}, [x], changed, cache=Cache())["layer1.0"].local_error)
    assert errors[0] == errors[3] and len(set(errors)) == 6
    assert len(list(runs.rglob("tensors.safetensors"))) == 6


def test_what_it_costs_by_hand():
    taken = {"a": (0.5, 3.0), "b": (0.25, 5.0)}  # start and steps
    students = {n: Distilled(n, nn.Identity(), torch.zeros(1, 2), *s, local_error=0.1) for n, s in taken.items()}
    result = Distillation(students, 8.0, True, "boundaries")
    assert result.device_s == 8 + 0.75 + 8
    assert result.critical_path_s() == 8 / 2 + 0.75 + 5 and result.critical_path_s(workers=1) == 8 + 0.75 + 5
    result.sequential_start = False
    assert result.critical_path_s() == 8 / 2 + max(0.5 + 3, 0.25 + 5)


class Tuple(nn.Module):
    """Returns no tensor."""

    def forward(self, x):
        return x, x


NAN = nn.Conv2d(8, 8, 1)
nn.init.constant_(NAN.weight, math.nan)


@pytest.mark.parametrize(
    ("students", "recipe", "message"),
    [
        ({"layer9": 0.5}, {}, r"names holds 'layer9', but the model has no submodule 'layer9'; did you mean layer"),
        (
            {"layer1.0": nn.Conv2d(8, 9, 1)},
            {},
            r"students\['layer1.0'\] returns shape \(9, 8, 8\), the teacher's part ",
        ),
        (
            {"layer1.0": nn.MaxPool2d(2)},
            {},
            r"students\['layer1.0'\] returns shape \(8, 4, 4\).* same out",
        ),
        (
            {"layer1.0": {"a": 0.5}},
            {},
            r"students\['layer1.0'\] \(=\{'a': 0.5\}\) must be a module or a width;",
        ),
        ({"layer1.0": nn.Conv2d(7, 8, 1)}, {}, r"students\['layer1.0'\] cannot take .* input of shape \(8, 8, 8\): "),
        ({"layer1.0": Tuple()}, {}, r"students\['layer1.0'\] returns shape tuple, the teacher's part \(8, 8, 8\)"),
        (
            {"layer1.0": nn.Conv2d(8, 8, 1)},
            {"start": "copied"},
            r"start \(='copied'\) needs a width for students\['layer1.0'\], not",
        ),
        ({"layer1.0": nn.ReLU()}, {"start": "given"}, r"layer1.0 has no parameters to train; use steps=0"),
        (
            {"layer1.0": 0.5},
            {"holdout": 95},
            r"inputs holds 96 images, recipe.holdout \(=95\) leaves fewer than 2 to",
        ),
    ],
)
def test_what_cannot_be_distilled_is_named(given, students, recipe, message):
    teacher, x = given
    with pytest.raises(ValueError, match=message):
        distill(teacher, students, [x], Recipe(Schedule(2, 16), **{"holdout": 16, **recipe}))


def test_a_loss_that_is_not_finite_is_named(given, two_workers):
    teacher, x = given
    recipe = Recipe(Schedule(2, 16, lr=2e-3), start="given", holdout=16)
    for executor in (None, two_workers):
        with pytest.raises(
            FloatingPointError, match=r"loss of layer1.0 is not finite at step 0 of 2 with lr \(=0.002\)"
        ):
            distill(teacher, {"layer1.0": NAN, "layer3.0": 0.5}, x.split(16), recipe, executor)


@pytest.mark.parametrize("empty", [[], iter([])], ids=["list", "iterator"])
def test_no_images_is_an_error(given, empty):
    with pytest.raises(ValueError, match="inputs holds no batch; give at least one"):
        distill(given[0], {"layer1.0": 0.5}, empty, RECIPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "zero"}, r"start \(='zero'\) must be one of given, random, copied, solved"),
        ({"ridge_to": "mean"}, r"ridge_to \(='mean'\) must be one of zero, own"),
        ({"schedule": 100}, r"schedule \(=100\) must be a Schedule, such as Schedule\(steps=100"),
        ({"holdout": 1}, r"holdout \(=1\) must be a whole number of at least 2"),
        ({"solve_images": 0}, r"solve_images \(=0\) must be a whole number of at least 2"),
        ({"solve_images": 64.0}, r"solve_images \(=64.0\) must be a whole number of at least 2"),
        ({"bn_images": -1}, r"bn_images \(=-1\) must be a whole number of at least 0"),
        ({"seed": -1}, r"seed \(=-1\) must be a whole number of at least 0"),
        ({"ridge": -1}, r"ridge \(=-1\) must be a finite number of at least 0"),
        ({"ridge": math.nan}, r"ridge \(=nan\) must be a finite number of at least 0"),
        ({"ridge": math.inf}, r"ridge \(=inf\) must be a finite number of at least 0"),
        ({"memory_limit_gb": 0}, r"memory_limit_gb \(=0\) must be a finite number above 0"),
        ({"memory_limit_gb": math.nan}, r"memory_limit_gb \(=nan\) must be a finite number above 0"),
        ({"dtype": torch.int8}, r"dtype \(=torch.int8\) must be a floating-point type"),
    ],
)
def test_a_recipe_that_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_a_network_of_distilled_parts_imitates_the_teacher(given):
    teacher, x = given
    recipe = Recipe(Schedule(30, batch_size=32, lr=2e-3), holdout=16, solve_images=80)
    result = distill(teacher, dict.fromkeys(teacher.block_names, 0.5), [x], recipe)
    copied = distill(teacher, dict.fromkeys(teacher.block_names, 0.5), [x], UNTRAINED)
    with torch.no_grad():
        y, a, b = (network(x[:16]) for network in (teacher, result.recompose(teacher), copied.recompose(teacher)))
        by_name = recompose(teacher, {found.name: found.module for found in result.values()})(x[:16])
    assert torch.equal(a, by_name) and (a - y).square().mean() < 0.7 * (b - y).square().mean()


def test_an_endless_iterator_and_empty_batches_are_read_for_the_images_that_are_used(given):
    recipe = Recipe(Schedule(2, 16), holdout=16, solve_images=48)
    wanted = distill(given[0], {"layer1.0": 0.5}, [given[1][:64]], recipe)
    batches = itertools.cycle([given[1][:0], *given[1][:64].split(24)])
    assert distill(given[0], {"layer1.0": 0.5}, batches, recipe)["layer1.0"].losses == wanted["layer1.0"].losses
