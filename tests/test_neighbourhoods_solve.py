"""The closed form: by hand, against least squares and exhaustive search, on blocks of torchvision's networks.

Behind the closed form of claim ND-1.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from conftest import speaking
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from nkdlib.neighbourhoods import Recipe, distill, local_error, narrow, recompose, solve, split
from nkdlib.neighbourhoods.closed_form import elimination_order, solve_neighbourhood
from nkdlib.neighbourhoods.local import train_local
from nkdlib.neighbourhoods.students import importance
from nkdlib.networks import BasicBlock, count_params, reset, resnet
from nkdlib.networks.channels import channel_groups, width_of
from nkdlib.networks.least_squares import Normal, normal_equations
from nkdlib.training import Schedule, Store, reestimate_batchnorm

EXACT = torch.float32  # boundaries kept as they are, for comparisons
RECIPE = Recipe(holdout=16, solve_images=64, dtype=EXACT, ridge=1e-6)


def test_ridge_with_an_intercept_by_hand():
    z, t = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[3.0], [5.0], [7.0]])
    normal = normal_equations([(z[:2], t[:2]), (z[2:], t[2:])], nn.Linear(1, 1), intercept=True)
    assert normal.gram.tolist() == [[14, 6], [6, 3]] and normal.cross.flatten().tolist() == [34, 15]
    assert normal.count == 3
    assert normal.solve(0.0).flatten().tolist() == pytest.approx([2, 1])
    # strength 1/7 x 14 = 2 on the slope and none on the intercept: 16 w + 6 b = 34 and 6 w + 3 b = 15
    assert normal.solve(1 / 7).flatten().tolist() == pytest.approx([1, 3])


def columns_by_hand(x, kernel, stride, padding):
    """What a convolution reads at each place, (places, C k k), written as loops."""
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows = []
    for image in padded:
        for i in range(0, image.shape[1] - kernel + 1, stride):
            for j in range(0, image.shape[2] - kernel + 1, stride):
                rows.append(image[:, i : i + kernel, j : j + kernel].reshape(-1))
    return np.array(rows, np.float64)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("intercept", [True, False])
def test_solved_weights_of_a_convolution_are_numpys_least_squares(kernel, stride, padding, intercept):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, kernel, stride, padding, bias=intercept), torch.randn(12, 3, 6, 6)
    target = torch.randn(layer(x).shape)
    z = columns_by_hand(x, kernel, stride, padding)
    t = target.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    z = np.hstack([z, np.ones((len(z), 1))]) if intercept else z
    found = normal_equations(zip(x.split(5), target.split(5), strict=True), layer, intercept).solve(1e-12)
    np.testing.assert_allclose(found.numpy(), np.linalg.lstsq(z, t, rcond=None)[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 5), (10, 4, 5), (4, 3, 4, 5)])
def test_solved_weights_of_a_linear_layer_are_numpys_least_squares(shape):
    torch.manual_seed(0)
    x, target = torch.randn(shape), torch.randn(*shape[:-1], 4)  # tokens are rows as well
    z, t = np.hstack([x.reshape(-1, 5).numpy(), np.ones((x[..., 0].numel(), 1))]), target.reshape(-1, 4).numpy()
    found = normal_equations([(x, target)], nn.Linear(5, 4), True).solve(1e-12)
    np.testing.assert_allclose(found.numpy(), np.linalg.lstsq(z, t, rcond=None)[0], atol=1e-4)


def test_the_order_of_orthogonal_channels_by_hand():
    energies, weights = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([3.0, 1.0, 0.5]).double()
    normal = Normal(energies.diag(), (energies * weights)[:, None], 1, 1, intercept=False)
    assert elimination_order(normal, 0.0).tolist() == [2, 1, 0]  # w^2 g: 9, 4, 2.25


def test_of_two_equal_channels_one_goes_first_and_the_other_stays():
    torch.manual_seed(0)
    z = torch.randn(200, 4)
    z[:, 2] = z[:, 0] * 0.9 + 0.01 * torch.randn(200)
    target = z @ torch.tensor([[2.0], [0.3], [2.0], [0.6]])
    order = elimination_order(normal_equations([(z, target)], nn.Linear(4, 1), False), 1e-6).tolist()
    assert order[0] in (0, 2) and order[-1] in (0, 2) and order[1:3] == [1, 3]


def regularized_error(normal, ridge, channels):
    """The least of |T - Z W|^2 + strength |W - own|^2 over weights of these channels, up to a constant."""
    rows = normal.rows_of(torch.tensor(channels))
    gram, cross = (part[rows].numpy() for part in normal.regularized(ridge))
    gram = gram[:, rows.numpy()]
    return -np.trace(cross.T @ np.linalg.solve(gram, cross))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("to_own", [True, False])
def test_each_dropped_channel_is_the_one_that_exhaustive_search_drops(kernel, intercept, seed, to_own):
    torch.manual_seed(seed)
    layer = nn.Conv2d(6, 3, kernel, padding=kernel // 2, bias=False)
    x = torch.einsum("oc,bchw->bohw", torch.randn(6, 6), torch.randn(20, 6, 6, 6))  # correlated channels
    target = (layer(x) + 0.3 * torch.randn(20, 3, 6, 6) + 1).detach()
    normal, ridge = normal_equations([(x, target)], layer, intercept), 1e-1 if to_own else 1e-2
    normal.own = torch.randn(normal.cross.shape, dtype=torch.float64) if to_own else None
    left, order = list(range(6)), elimination_order(normal, ridge).tolist()
    for dropped in order[:-1]:
        errors = {c: regularized_error(normal, ridge, [k for k in left if k != c]) for c in left}
        assert dropped == min(errors, key=errors.get)
        left.remove(dropped)
    assert sorted(order) == list(range(6))
    assert elimination_order(normal, ridge, 2).tolist() == [*order[:2], *sorted(order[2:])]


def test_weights_of_the_channels_that_stay_are_solved_for_them_alone():
    torch.manual_seed(0)
    x, target = torch.randn(50, 4), torch.randn(50, 2)
    both = normal_equations([(x, target)], nn.Linear(4, 2), True).solve(1e-12, torch.tensor([1, 3]))
    alone = normal_equations([(x[:, [1, 3]], target)], nn.Linear(2, 2), True).solve(1e-12)
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_strong_ridge_can_pull_to_the_teachers_own_weights(width):
    torch.manual_seed(0)
    block, x = BasicBlock(8, 8).eval(), torch.randn(6, 8, 5, 5)
    speaking(block, x)
    batches = [(x, x)]
    copied = narrow(block, x, width) if width == 1 else None
    student = solve_neighbourhood(block, width, lambda: iter(batches), 1e9, to_own=True)
    scale = (block.bn2.weight / (block.bn2.running_var + block.bn2.eps).sqrt())[:, None, None, None]
    found = student.conv2.weight * student.bn2.weight[:, None, None, None]
    found = found / (student.bn2.running_var + student.bn2.eps).sqrt()[:, None, None, None]
    wanted = block.conv2.weight * scale
    same = [any(torch.allclose(f, w, atol=1e-4) for w in wanted.unbind(1)) for f in found.unbind(1)]
    assert all(same) and len(same) == round(8 * width)
    with torch.no_grad():
        if copied is not None:  # and then the teacher itself is the best, however few images there are
            torch.testing.assert_close(student(x), block(x), atol=1e-3, rtol=1e-3)
        few = solve_neighbourhood(block, width, lambda: iter([(x[:1], x[:1])]), 0.1, to_own=True)
        none = solve_neighbourhood(block, width, lambda: iter([(x[:1], x[:1])]), 0.1)
        errors = [(student(x[1:]) - block(x[1:])).square().mean() for student in (few, none)]
    assert errors[0] < errors[1]


def block_of(name):
    """A block whose BatchNorms fit its inputs, the inputs, and its groups' sizes."""
    torch.manual_seed(1)
    blocks = {
        "basic": (lambda: BasicBlock(8, 12, inner=16, stride=2), 8),
        "bottleneck": (lambda: zoo.resnet50().layer1[1], 256),
        "projecting": (lambda: zoo.resnet50().layer1[0], 64),
        "mobile": (lambda: zoo.mobilenet_v2().features[3], 24),
        "squeeze": (lambda: zoo.mobilenet_v3_small().features[5], 40),
        "efficient": (lambda: zoo.efficientnet_b0().features[3][1], 40),
        "run": (lambda: zoo.mobilenet_v2().features[4:6], 24),
        "tokens": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.GELU(), nn.Dropout(0.1), nn.Conv2d(32, 8, 1)), 8),
    }
    build, channels = blocks[name]
    # inputs of low rank and some noise, as features are
    x = torch.einsum("oc,bchw->bohw", torch.randn(channels, 8), torch.randn(96, 8, 5, 5)) / 8**0.5
    x = (x + 0.3 * torch.randn_like(x)).relu()
    block = build()
    with torch.no_grad():
        for layer in block.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
    return nn.Sequential(reestimate_batchnorm(block, [x])), x


BLOCKS = ("basic", "bottleneck", "projecting", "mobile", "squeeze", "efficient", "run", "tokens")


@pytest.mark.parametrize("name", BLOCKS)
def test_a_solved_block_beats_one_with_copied_weights(name):
    teacher, x = block_of(name)
    solved = solve(teacher, {"0": 0.5}, [x], Recipe(holdout=16, solve_images=80))["0"]
    copied = distill(teacher, {"0": 0.5}, [x], Recipe(Schedule(0), holdout=16, start="copied"))["0"]

    assert solved.local_error < 0.9 * copied.local_error
    assert solved.cost == copied.cost and solved.cost.params < count_params(teacher)
    for group, whole in zip(channel_groups(solved.module, x), channel_groups(teacher[0], x), strict=True):
        assert group.size == round(whole.size * 0.5)


@pytest.mark.parametrize("name", ["basic", "bottleneck", "projecting", "squeeze"])
def test_a_block_with_dead_channels_is_cut_to_the_block_itself(name):
    teacher, x = block_of(name)
    for group in channel_groups(teacher[0], x):
        dead = torch.arange(group.size) % 4 == 1
        for path in group.producers:  # they say nothing, and nobody listens
            layer = teacher[0].get_submodule(path)
            layer.weight.data[dead] = 0
        for path in group.consumers:
            teacher[0].get_submodule(path).weight.data[:, dead] = 0
    found = solve(teacher, {"0": 0.75}, [x], Recipe(holdout=16, dtype=EXACT, ridge=1e-7))
    assert found["0"].local_error < 1e-6
    with torch.no_grad():
        wanted, again = teacher(x), found.recompose(teacher)(x)
    torch.testing.assert_close(again, wanted, atol=2e-3 * wanted.abs().max().item(), rtol=0)


def test_the_last_layer_of_a_given_student_is_solved_and_its_norm_passes_it_on_in_both_modes():
    teacher, x = block_of("basic")
    student = nn.Sequential(nn.Conv2d(8, 48, 3, 2, 1), nn.ReLU(), nn.Conv2d(48, 12, 1), nn.BatchNorm2d(12), nn.ReLU())
    before = copy.deepcopy(student.state_dict())
    result = solve(teacher, {"0": student}, [x], RECIPE)
    module = result["0"].module
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(torch.equal(before[name], module.state_dict()[name]) for name in ("0.weight", "0.bias"))
    held, rows = x[:16], x[16:80]
    with torch.no_grad():
        shortcut = teacher[0].shortcut
        target = shortcut(rows) + teacher[0].bn2(teacher[0].conv2(teacher[0].bn1(teacher[0].conv1(rows)).relu()))
        z = module[:2](rows).permute(0, 2, 3, 1).reshape(-1, 48).double().numpy()
        t = target.permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
        z = np.hstack([z, np.ones((len(z), 1))])
        by_hand = z @ np.linalg.lstsq(z, t, rcond=None)[0]
        found = module[:4](rows).permute(0, 2, 3, 1).reshape(-1, 12)
        np.testing.assert_allclose(found.numpy(), by_hand, atol=1e-2)
        torch.testing.assert_close(copy.deepcopy(module).train()(rows), module(rows), atol=1e-3, rtol=1e-3)
        error = (module(held) - teacher(held)).square().mean()
        whole = (teacher(held) - teacher(held).mean(0)).square().mean()
    assert result["0"].local_error == pytest.approx((error / whole).item(), rel=1e-4)
    copied = distill(teacher, {"0": student}, [x], Recipe(Schedule(0), holdout=16, start="given"))["0"]
    assert result["0"].local_error < 0.5 * copied.local_error


class Clamp(nn.Module):
    """At least 0, and at most a number."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        return x.clamp(0, self.most)


@pytest.mark.parametrize("most", [3, 9, 30])
def test_activations_that_differ_only_at_large_values_are_told_apart(most):
    block = nn.Sequential(nn.Conv2d(4, 4, 1), Clamp(most)).eval()
    with torch.no_grad():
        block[0].weight.mul_(2 * most)
    student, x = nn.Sequential(copy.deepcopy(block[0]), nn.ReLU()), torch.randn(80, 4, 5, 5)
    given = distill(nn.Sequential(block), {"0": student}, [x], Recipe(Schedule(0), holdout=16, start="given"))["0"]
    assert solve(nn.Sequential(block), {"0": student}, [x], RECIPE)["0"].local_error < 0.9 * given.local_error


@pytest.mark.parametrize("lacking", ["weight", "bias"])
def test_a_layer_before_a_norm_that_lacks_a_tensor_is_solved_itself(lacking):
    block = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)).eval()
    setattr(block[3], lacking, None)
    student, x = copy.deepcopy(block), torch.randn(80, 4, 5, 5)
    nn.init.normal_(student[2].weight)
    solved = solve(nn.Sequential(block), {"0": student}, [x], RECIPE)["0"]
    assert solved.local_error < 1e-8 and getattr(solved.module[3], lacking) is None
    torch.testing.assert_close(solved.module[2].weight, block[2].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("piece", [nn.Conv2d(4, 3, 3, padding=1), nn.Sequential(nn.Conv2d(4, 3, 3, padding=1))])
def test_a_bare_layer_is_solved_to_what_it_imitates(piece):
    student = nn.Conv2d(4, 3, 3, padding=1)
    found = solve(nn.Sequential(piece), {"0": student}, [torch.randn(80, 4, 5, 5)], RECIPE)["0"]
    assert found.local_error < 1e-8
    torch.testing.assert_close(found.module.weight, (piece if isinstance(piece, nn.Conv2d) else piece[0]).weight)


def test_tokens_are_solved():
    net = zoo.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3)
    name = "encoder.layers.encoder_layer_0.mlp"
    student = nn.Sequential(nn.Linear(8, 48), nn.GELU(), nn.Linear(48, 8))
    with torch.no_grad():
        for layer in (net.encoder.layers[0].mlp[0], student[0]):
            layer.bias.normal_()
    solved = solve(net, {name: student}, [torch.randn(80, 3, 32, 32)], RECIPE)[name]
    assert solved.local_error < 0.05


@pytest.mark.parametrize("dead", [0, 1])  # of two layers, the first of which is read by the other
def test_tokens_lose_the_channels_that_nobody_needs(dead):
    made = nn.Linear(4, 6), nn.Linear(6, 6)
    block = nn.Sequential(nn.LayerNorm(4), made[0], nn.GELU(), made[1], nn.GELU(), nn.Linear(6, 4))
    with torch.no_grad():
        made[dead].weight[::2], made[dead].bias[::2] = 0.0, 0.0
    narrow = nn.Sequential(nn.Linear(3, 4), block)
    x = torch.randn(80, 5, 3)
    found = solve(narrow, {"1": 0.5}, [x], RECIPE)["1"]
    assert (found.module[1].out_features, found.module[3].in_features, found.module[3].out_features) == (3, 3, 3)
    alone = solve(nn.Sequential(block[:4], block[4:]), {"0": 0.5}, [torch.randn(80, 5, 4)], RECIPE)["0"]
    assert alone.module[1].out_features == 3 and (alone.local_error < 1e-5) == (dead == 0)


class Ends(nn.Module):
    """A convolution, and an end that a test chooses."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.pool, self.end = nn.Conv2d(3, 3, 1), nn.MaxPool2d(1), end

    def forward(self, x):
        return self.end(self, self.conv(x))


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (lambda self, y: self.pool(y), r"MaxPool2d \('pool'\)"),
        (lambda self, y: F.max_pool2d(y, 1), "max_pool2d"),
        (lambda self, y: y * y, "mul"),
        (lambda self, y: y * y.mean(1, keepdim=True).sigmoid(), "mul"),
        (lambda self, y: y.tanh(), "tanh"),
    ],
)
def test_an_end_that_cannot_be_solved_is_named(end, what):
    teacher = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(
        ValueError, match=rf"students\['0'\]: .* ends in {what} cannot be solved; .* Use start='given', 'random' or"
    ):
        solve(teacher, {"0": Ends(end)}, [torch.randn(80, 3, 4, 4)], RECIPE)


def trained_like(seed=0):
    """A small teacher whose BatchNorms fit its images, and images."""
    torch.manual_seed(seed)
    images = torch.einsum("oc,bchw->bohw", torch.randn(3, 3), torch.randn(160, 3, 10, 10))
    net = resnet(14, 5, seed=seed, widths=(8, 12, 16))
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.uniform_(-0.5, 0.5)
    return reestimate_batchnorm(net, [images]), images


def difference(network, teacher, x):
    """How far two networks' logits lie apart, relative to the teacher's spread."""
    with torch.no_grad():
        y = teacher(x)
        return ((network(x) - y).square().mean() / (y - y.mean(0)).square().mean()).item()


def test_front_to_back_makes_a_better_network_than_each_by_itself():
    teacher, x = trained_like()
    widths = dict.fromkeys(teacher.block_names, 0.5)
    recipe = Recipe(holdout=16, solve_images=128, ridge=1e-4)
    together = solve(teacher, widths, [x], recipe)
    apart = solve(teacher, widths, [x], Recipe(holdout=16, solve_images=128, ridge=1e-4, front_to_back=False))
    held = x[:16]
    assert difference(together.recompose(teacher), teacher, held) < difference(apart.recompose(teacher), teacher, held)
    assert together.sequential_start and not apart.sequential_start
    first = [result[teacher.block_names[0]] for result in (together, apart)]
    assert first[0].local_error == first[1].local_error


@pytest.mark.parametrize("names", [["layer1.0", "layer1.1"], ["layer3.0:layer3.1", "head"]])
@pytest.mark.parametrize("batches", [1, 4, 5])
def test_front_to_back_is_the_network_solved_by_hand(names, batches):
    teacher, x = trained_like()
    students = {names[0]: 0.5, names[1]: 0.5}
    if names[1] == "head":
        students["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    found = solve(teacher, students, list(x.chunk(batches)), RECIPE)
    a, b = (here.module for here in split(teacher, names, x[:2]))
    rows = x[16:80]
    inputs = []

    def note(module, given):
        inputs.append(given[0].clone())

    def pairs(network):
        """What the second neighbourhood takes in the teacher and in the network."""
        inputs.clear()
        for net in (teacher, network):
            part = net.get_submodule(names[1])
            handle = part.register_forward_pre_hook(note)
            with torch.no_grad():
                net(rows)
            handle.remove()
        return iter([tuple(inputs)])

    with torch.no_grad():
        before = teacher.stem(rows)
        if names[0].startswith("layer3"):
            before = teacher.layer2(teacher.layer1(before))
    first = solve_neighbourhood(a, 0.5, lambda: iter([(before, before)]), RECIPE.ridge)
    network = recompose(teacher, {names[0]: first})
    second = solve_neighbourhood(b, copy.deepcopy(students[names[1]]), lambda: pairs(network), RECIPE.ridge)
    for module, name in ((first, names[0]), (second, names[1])):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(found[name].module.state_dict()[key], value, rtol=2e-3, atol=2e-3)


def test_after_a_gap_a_student_is_solved_on_the_teachers_own_boundary():
    teacher, x = trained_like()
    together, alone = (
        solve(teacher, dict.fromkeys(n, 0.5), x, RECIPE) for n in (["layer1.0", "layer3.0"], ["layer3.0"])
    )
    states = (found["layer3.0"].module.state_dict().values() for found in (together, alone))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_students_that_begin_by_working_in_place_are_solved_as_if_they_did_not():
    def result(inplace):
        torch.manual_seed(0)
        a, b, c = (nn.Hardswish(inplace) for _ in range(3))
        teacher = nn.Sequential(nn.Conv2d(3, 6, 3), a, nn.Conv2d(6, 8, 1), b, nn.Conv2d(8, 4, 1), c)
        students = {"0": nn.Conv2d(3, 6, 3), "1:2": nn.Sequential(a, nn.Conv2d(6, 8, 1)), "4": nn.Conv2d(8, 4, 1)}
        x = torch.randn(80, 3, 6, 6)
        found, narrowed = solve(teacher, students, x.split(16), RECIPE), solve(teacher, {"1:4": 0.5}, x, RECIPE)
        return [*found.values(), *narrowed.values()]

    for a, b in zip(result(True), result(False), strict=True):
        assert a.local_error == b.local_error
        assert all(torch.equal(p, q) for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True))


def test_held_out_images_are_not_solved_from():
    teacher, x = trained_like()
    other = x.clone()
    other[:16] = torch.randn(16, 3, 10, 10) * 5
    a, b = (solve(teacher, {"layer2.0": 0.5}, [images], RECIPE)["layer2.0"] for images in (x, other))
    states = (found.module.state_dict().values() for found in (a, b))
    assert all(torch.equal(p, q) for p, q in zip(*states, strict=True))
    assert a.local_error != b.local_error and a.losses == [] and a.device_s == 0  # no gradient step


@pytest.mark.parametrize(("width", "left"), [(0.5, 5), (1, 10), (1.0, 10), (3, 3), (99, 10), (0.01, 1), (0.25, 2)])
def test_widths_are_shares_or_channels(width, left):
    groups = channel_groups(BasicBlock(4, 4, inner=10), torch.zeros(1, 4, 3, 3))
    assert width_of(groups[0], width) == left


def test_narrow_keeps_the_most_important_channels():
    block = BasicBlock(2, 2, inner=4).eval()
    with torch.no_grad():
        block.conv2.weight.fill_(1.0)
        block.conv2.weight[:, 2] = 3.0
        block.bn1.weight.copy_(torch.tensor([1.0, -4.0, 1.0, 0.5]))
    (group,) = channel_groups(block, torch.zeros(1, 2, 3, 3))
    norm = 18**0.5  # of the weights that read a channel: 2 outputs x 9
    torch.testing.assert_close(importance(block, group), torch.tensor([norm, 4 * norm, 3 * norm, 0.5 * norm]))
    slim = narrow(block, torch.zeros(1, 2, 3, 3), 0.5)
    assert torch.equal(slim.conv1.weight, block.conv1.weight[[1, 2]])
    assert torch.equal(slim.bn1.weight, block.bn1.weight[[1, 2]]) and block.conv1.out_channels == 4
    with pytest.raises(ValueError, match=r"width \(=0\) must be a share .*, or a whole .* of layer 'conv1', 1 to "):
        narrow(block, torch.zeros(1, 2, 3, 3), 0)
    with pytest.raises(ValueError, match=r"width was given for a neighbourhood \(Conv2d\) that has no inner channels"):
        narrow(nn.Conv2d(2, 2, 1), torch.zeros(1, 2, 3, 3), 0.5)


def test_without_a_scale_the_weights_that_make_a_channel_count():
    block = BasicBlock(2, 2, inner=4).eval()
    block.bn1.weight = None
    with torch.no_grad():
        block.conv2.weight.fill_(1.0)
        block.conv1.weight.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]).view(4, 1, 1, 1))
    example = torch.zeros(1, 2, 3, 3)
    (group,) = channel_groups(block, example)
    torch.testing.assert_close(importance(block, group), 18 * torch.tensor([1.0, 2.0, 0.5, 3.0]))
    kept = narrow(block, example, 0.5).conv1.weight
    torch.testing.assert_close(kept, block.conv1.weight[[1, 3]])


def test_reset_draws_all_layers_from_the_seed():
    net = nn.Sequential(BasicBlock(4, 6, stride=2), nn.MultiheadAttention(4, 2))
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    a, b, c = (reset(net, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in net.state_dict().items():
        assert torch.equal(a[name], b[name])
        if value.dim() > 1:
            assert not torch.equal(a[name], value) and not torch.equal(a[name], c[name])


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_reset_draws_a_parametrized_weight_as_that_of_a_new_layer(norm):
    norm, plain = getattr(parametrizations, norm), nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(5, 5))
    network = nn.Sequential(norm(copy.deepcopy(plain[0])), copy.deepcopy(plain[1]))
    network[0](torch.randn(2, 4, 5, 5)).sum().backward()
    before = copy.deepcopy(network.state_dict())
    fresh, wanted = reset(network.eval(), seed=1), reset(plain, seed=1)
    assert fresh[0].bias.equal(wanted[0].bias) and fresh[1].weight.equal(wanted[1].weight)
    torch.testing.assert_close(fresh[0].weight, norm(wanted[0]).eval().weight, rtol=1e-3, atol=1e-4)
    assert not any(part.training for part in fresh.modules()) and fresh[0].bias.requires_grad
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


class Symmetric(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, weight):
        return weight + weight.T


UNREACHED = {
    "spectral norm": spectral_norm,
    "weight norm": nn.utils.weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "no inverse": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
}


@pytest.mark.parametrize("norm", UNREACHED.values(), ids=UNREACHED)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weights_that_new_ones_do_not_reach_are_refused_before_the_teacher_runs(norm):
    student = nn.Sequential(nn.Linear(4, 4), norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"layer '1' computes its weight .* new random weights do not reach"):
        reset(student, seed=0)
    teacher, recipe = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), Recipe(Schedule(1), start="random", holdout=4)
    with pytest.raises(ValueError, match=r"students\['0'\]: layer '1' computes its weight"):
        distill(teacher, {"0": student}, [torch.randn(4, 4)], recipe)


def test_local_error_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    store = Store.of({"x": x, "y": x})
    double = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(2))
    # errors x: 1 + 4 + 9 + 36 = 50; around the mean (2, 4): 1 + 4 + 1 + 4 = 10
    assert local_error(double.train(), store) == pytest.approx(5) and not double.training
    with torch.no_grad():
        double.weight.zero_()
    mean = nn.Sequential(double, nn.Linear(2, 2))
    with torch.no_grad():
        mean[1].bias.copy_(torch.tensor([2.0, 4.0]))
    assert local_error(mean, store) == pytest.approx(1)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6])
def test_local_errors_do_not_depend_on_the_unit(size):
    torch.manual_seed(0)
    x, layer = torch.randn(64, 3, 4, 4), nn.Conv2d(3, 3, 1)
    y, nothing = nn.Conv2d(3, 3, 1)(x).detach() + 1, nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        wrong = (layer(x) - y).square().mean() / (y - y.mean(0)).square().mean()
        none = y.square().mean() / (y - y.mean(0)).square().mean()
        nothing.weight.zero_()
        for parameter in layer.parameters():
            parameter.mul_(size)
    store = Store.of({"x": x, "y": y * size})
    assert local_error(layer, store) == pytest.approx(wrong.item(), rel=1e-4)
    assert local_error(nothing, store) == pytest.approx(none.item(), rel=1e-4)


def test_a_constant_target_has_no_scale():
    x, layer = torch.randn(64, 3), nn.Linear(3, 2)
    store = Store.of({"x": x, "y": torch.ones(64, 2)})
    assert local_error(layer, store) == math.inf
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(1.0)
    assert local_error(layer, store) == 0
    with pytest.raises(ValueError, match=r"teacher's 'head' gives the same output for all 16 held-out images"):
        train_local("head", layer, store, Recipe(holdout=16), seed=0)
