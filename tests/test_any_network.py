"""Right or refused: on networks of every kind each operation meets an equality, or an error names what is in the way.

Behind claims ND-0 and FG-1: what is measured there must not depend on how a network is written.
"""

import contextlib
import copy
import functools
import math
import re

import pytest
import torch
import torchvision.models as zoo
from conftest import speaking
from odd_networks import BY_HAND, EXAMPLES, FAMILIES, NETWORKS, PARTS, REFUSED
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nkdlib.detection.feature_maps import feature_maps
from nkdlib.figs import CostModel, Gates, rebuild
from nkdlib.neighbourhoods import Recipe, capture, narrow, recompose, solve, split
from nkdlib.networks import cost
from nkdlib.networks.module import in_evaluation, in_training
from nkdlib.tasks import fingerprint
from nkdlib.training import Schedule, accuracy, distill_end_to_end, fit, mismatch, predict, reestimate_batchnorm

EVERY = NETWORKS | {name: make for name, (make, _, _) in FAMILIES.items()}

EXACT = {torch.half: 2e-3, torch.bfloat16: 2e-2}  # relative differences allowed by type; 1e-5 otherwise


@functools.cache
def made(name):
    """A network, built once, and images; every test leaves it as it was."""
    torch.manual_seed(0)
    network = EVERY[name]()
    x = torch.randn(EXAMPLES.get(name, (64, 3, 8, 8)), dtype=next(network.parameters()).dtype)
    return speaking(network, x) if name != "two inputs" else in_evaluation(network), x


def tensors(value):
    """All tensors of an output."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in (value.values() if isinstance(value, dict) else value) for t in tensors(part)]


@torch.no_grad()
def difference(network, other, x):
    """The largest difference of two networks' outputs, relative to the largest output."""
    pairs = zip(tensors(network(x.clone())), tensors(other(x.clone())), strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


def distinct(network):
    """Learnable numbers, each once."""
    return sum(p.numel() for p in {id(p): p for part in network.modules() for p in own(part)}.values())


def own(part):
    return [p for p in part._parameters.values() if p is not None]


def flags(network):
    """Names, in order, and what each parameter is besides its numbers and their number."""
    return [(name, p.requires_grad, p.dtype, p.is_contiguous()) for name, p in network.named_parameters()]


def state(network):
    """All that a network is: modules, modes, hooks, and each tensor with its place, flags and numbers."""
    found = []
    for name, part in network.named_modules(remove_duplicate=False):
        hooks = {key: list(value) for key, value in vars(part).items() if "hooks" in key}
        found.append((name, part, type(part), part.training, hooks, {key: type(v) for key, v in vars(part).items()}))
        for key, value in (*part._parameters.items(), *part._buffers.items()):
            if value is not None:
                numbers = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
                found.append((name, key, id(value), value.requires_grad, value.dtype, value.stride(), hash(numbers)))
    return found


def holds(operation, name, equality):
    """Check an equality on a network, or that it is refused by name; and that the network stays as it was."""
    network, x = made(name)
    with torch.no_grad(), contextlib.suppress(TypeError):
        network(x[:2].clone())  # what a forward pass leaves behind is nobody's fault
    before, images = state(network), x.clone()
    if name in REFUSED.get(operation, {}):
        with pytest.raises((ValueError, TypeError)) as error:
            equality(network, x)
        assert re.search(REFUSED[operation][name], str(error.value)), error.value
    else:
        equality(network, x)
    assert state(network) == before and torch.equal(x, images)


def runs(network, x):
    return all(y.isfinite().all() for y in tensors(network(x.clone())))


def exact(x):
    return EXACT.get(x.dtype, 1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_network_of_copies_of_its_own_parts_is_the_network_and_a_change_reaches_it_alone(name):
    def equality(network, x):
        names = PARTS.get(name, ["stem", "body"])
        members = split(network, names, x)
        assert difference(network, recompose(network, {m.name: copy.deepcopy(m.module) for m in members}), x) == 0
        wanted = [y.clone() for y in tensors(network(x.clone()))]
        changed = recompose(network, {m.name: Shifted(m.module) for m in members})
        assert difference(network, changed, x) > 1e-4
        theirs = {id(p) for p in network.parameters()}
        assert theirs.isdisjoint(map(id, changed.parameters()))
        assert all(map(torch.equal, wanted, tensors(network(x.clone()))))

    with torch.no_grad():
        holds("split", name, equality)


class Shifted(nn.Module):
    """A part whose output is not the teacher's."""

    def __init__(self, part):
        super().__init__()
        self.part = copy.deepcopy(part)

    def forward(self, x):
        return self.part(x) * 1.5 + 1


@pytest.mark.parametrize("name", EVERY)
def test_at_full_width_a_part_is_itself_and_at_half_it_costs_what_it_holds(name):
    def equality(network, x):
        path = PARTS.get(name, ["body"])[-1]
        (member,) = split(network, [path], x)
        h = torch.randn(2, *member.input_shape, dtype=x.dtype)
        full, half = narrow(member.module, h, 1.0), narrow(member.module, h, 0.5)
        assert difference(member.module, full, h) <= exact(x) and distinct(full) == distinct(member.module)
        assert flags(full) == flags(half) == flags(member.module)
        assert cost(half, h).params == distinct(half) < distinct(full) and runs(half, h)
        assert [p.training for p in half.modules()] == [p.training for p in member.module.modules()]
        assert runs(in_training(half), h)

    holds("narrow", name, equality)


@pytest.mark.parametrize("name", NETWORKS)
def test_solving_a_copy_leaves_it_exact(name):
    recipe = Recipe(holdout=16, solve_images=48, ridge=1e-9, dtype=torch.float32)

    def equality(network, x):
        path = PARTS.get(name, ["body"])[-1]
        student = copy.deepcopy(dict(network.named_modules()).get(path))
        solved = solve(network, {path: student}, x, recipe)
        assert solved[path].local_error <= exact(x)
        assert difference(network, solved.recompose(network), x) <= 10 * exact(x)

    holds("solve", name, equality)


@pytest.mark.parametrize("name", EVERY)
def test_open_gates_change_nothing_and_the_slim_network_is_the_gated_one_and_costs_what_was_predicted(name):
    def equality(network, x):
        x, own_flags = x[:2], flags(network)
        plain = copy.deepcopy(network)
        model = CostModel(network, x)
        gates = Gates(model)
        try:
            gates.opened = True
            assert difference(plain, network, x) == 0 and model(model.sizes) == cost(plain, x)
            gates.opened = False
            generator = torch.Generator().manual_seed(0)
            gates.log_odds.data.copy_(torch.randn(gates.log_odds.shape, generator=generator))
            slim, counts = gates.slim(), gates.counts
            assert difference(network, slim, x) <= exact(x) < difference(plain, slim, x)
            predicted = model(counts)
        finally:
            gates.remove()
        assert predicted == cost(slim, x) and predicted.params == distinct(slim) < distinct(network)
        assert flags(slim) == own_flags
        assert runs(in_training(slim), x) and in_evaluation(slim)
        rebuilt = rebuild(network, x, counts)
        rebuilt.load_state_dict(slim.state_dict())
        assert difference(slim, in_evaluation(rebuilt), x) == 0 and difference(plain, network, x) == 0

    holds("gates", name, equality)


class Multiplications(TorchFunctionMode):
    """Counts the multiplications of every convolution and linear layer by torch's functions, modules' or not."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        called = getattr(function, "__name__", "")
        if called in ("conv2d", "linear"):
            self.count += output.numel() * args[1][0].numel()
        elif called == "conv_transpose2d":
            self.count += args[0].numel() * args[1][0].numel()
        elif called in ("mv", "dot", "vdot"):  # of spectral normalization, in every pass
            self.count += args[0].numel()
        elif called == "matmul":
            self.count += output.numel() * args[0].shape[-1]
        elif called == "einsum":  # every combination of its indices
            sizes = [size for value in args[1:] for size in value.shape]
            letters = filter(str.isalpha, args[0].split("->")[0])
            self.count += math.prod(dict(zip(letters, sizes, strict=True)).values())
        elif called == "multi_head_attention_forward":
            tokens, batch, size = args[0].shape  # four matrices; each token's scores of all, and sums over all
            self.count += 4 * tokens * batch * size**2 + 2 * batch * tokens**2 * size
        return output


@pytest.mark.parametrize("name", EVERY)
def test_costs_are_distinct_parameters_and_every_multiplication(name):
    def equality(network, x):
        with Multiplications() as seen, torch.no_grad():
            getattr(network, "_orig_mod", network)(x[:2].clone())
        assert cost(network, x[:2]).params == distinct(network)
        assert cost(network, x[:2]).macs == seen.count / 2 + BY_HAND.get(name, 0)

    holds("cost", name, equality)


@pytest.mark.parametrize("name", EVERY)
def test_a_key_is_that_of_equal_networks_alone(name):
    def equality(network, x):
        key = fingerprint(network)
        copied = copy.deepcopy(network)
        assert fingerprint(copied) == key
        changes = [change for part in copied.modules() for change in (*numbers(part), *settings(part))]
        for change, undo in changes[:: max(1, len(changes) // (2 if name in FAMILIES else 12))]:
            change()
            assert fingerprint(copied) != key
            undo()
        copied.load_state_dict(network.state_dict())
        assert fingerprint(copied) == key

    holds("key", name, equality)


def numbers(part):
    """Ways to change one number of each parameter and buffer of a module, and ways back."""
    for tensor in (*part._parameters.values(), *part._buffers.values()):
        if tensor is not None and tensor.numel():
            last = tensor.detach()[(-1,) * tensor.dim()]
            value = last.clone()
            yield functools.partial(last.add_, 1), functools.partial(last.copy_, value)


def settings(part):
    """Ways to change each number among a module's attributes, and ways back."""
    for name, value in vars(part).items():
        if isinstance(value, int | float) and not name.startswith("_") and name != "training":
            yield functools.partial(setattr, part, name, value + 1), functools.partial(setattr, part, name, value)


@pytest.mark.parametrize(
    "act",
    [
        lambda network, x: predict(network, [x]),
        lambda network, x: accuracy(network, [(x, torch.zeros(64, dtype=torch.int64))]),
        lambda network, x: mismatch(network, [x]),
        lambda network, x: reestimate_batchnorm(network, [x]),
        lambda network, x: capture(network, split(network, ["body"], x), [x]),
        lambda network, x: distill_end_to_end(network, network, [x], Schedule(steps=1)),
        lambda network, x: fit(network, [(x, torch.zeros(64, dtype=torch.int64))], Schedule(steps=1)),
    ],
)
def test_images_stay_as_they_are(act):
    network, x = copy.deepcopy(made("work in place on images")[0]), made("work in place on images")[1]
    network.stem = nn.Sequential(network.stem, nn.BatchNorm2d(8))
    images = x.clone()
    act(network, images)
    assert torch.equal(images, x)


def test_feature_maps_take_subclasses_of_layers():
    network, x = made("subclasses of layers")
    with torch.no_grad():
        assert torch.equal(feature_maps(network, x, ["body"])(x)["body"], network.body(network.stem(x)))


def test_a_part_that_a_plain_list_holds_too_is_not_left_to_the_teacher():
    network, x = made("an alias in a plain list")
    replaced = recompose(network, {"body.a": nn.Conv2d(8, 12, 1)})
    with pytest.raises(ValueError, match=r"'body.a' was replaced, but the network runs it by another attribute"):
        replaced(x)
    with pytest.raises(ValueError, match=r"names holds 'body.a', but with its output in its place"):
        split(network, ["body.a"], x)


@pytest.mark.parametrize("how", ["closure", "default", "hook", "hook before"])
def test_a_function_that_holds_a_layer_is_refused_where_a_copy_would_run_the_original(how):
    network, x = copy.deepcopy(made("a ModuleDict")[0]), made("a ModuleDict")[1]
    layer = network.stem
    if how == "closure":
        layer.forward = lambda x: nn.functional.conv2d(x, layer.weight, padding=1)
    elif how == "default":
        layer.forward = lambda x, weight=layer.weight: nn.functional.conv2d(x, weight, padding=1)
    elif how == "hook":
        network.head.register_forward_hook(lambda head, inputs, output: output + layer.bias.sum())
    else:
        network.head.register_forward_pre_hook(lambda head, inputs: (inputs[0] + layer.bias.sum(),))
    path = "head" if "hook" in how else "stem"
    for act in (lambda: recompose(network, {"body": nn.Identity()}), lambda: split(network, ["body"], x)):
        with pytest.raises(ValueError, match=rf"'{path}' .*holds a part|names holds 'body'"):
            act()


def test_every_family_of_torchvision_is_here():
    wanted = {zoo.get_model_builder(name).__module__ for name in zoo.list_models(module=zoo)}
    assert wanted <= {type(made(name)[0]).__module__ for name in FAMILIES}
