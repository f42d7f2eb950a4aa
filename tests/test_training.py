"""Training: the schedule, the loop, distillation of a whole network, BatchNorm's statistics, the store.

Behind claim ND-1.
"""

import copy
import dataclasses
import math
import re
from functools import partial
from types import NoneType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils.prune import l1_unstructured
from torch.utils.checkpoint import checkpoint

from nkdlib.data import DeadLeaves, GaussianImages, SmoothImages, SpectrumImages
from nkdlib.data.images import ShiftFlip
from nkdlib.data.noise import NoiseImages
from nkdlib.networks import reset, resnet
from nkdlib.training import (
    Checkpoints,
    Schedule,
    Store,
    accuracy,
    distill_end_to_end,
    fit,
    mismatch,
    predict,
    reestimate_batchnorm,
)
from nkdlib.training.end_to_end import capture_logits, soft_targets
from nkdlib.training.kernels import better_kernels
from nkdlib.training.loop import Trainer, minimize
from nkdlib.training.store import images_of


def test_rates_rise_and_fall():
    rates = [Schedule(steps=10, warmup=0.4).rate(step) for step in range(10)]
    falling = [0.5 * (1 + math.cos(math.pi * k / 7)) for k in range(7)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *falling])
    assert [Schedule(steps=4, warmup=1.0).rate(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert [Schedule(steps=1, warmup=0.0).rate(0)] == pytest.approx([0.5])
    assert all(0 < Schedule(steps=n).rate(step) <= 1 for n in (2, 7, 15, 100) for step in range(n))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"steps \(=-1\) must be a whole number of at least 0"),
        ({"steps": 2.5}, r"steps \(=2.5\) must be a whole number"),
        ({"batch_size": 1}, r"batch_size \(=1\) must be a whole number of at least 2"),
        ({"batch_size": True}, r"batch_size \(=True\) must be a whole number"),
        ({"lr": 0.0}, r"lr \(=0.0\) must be a finite number above 0"),
        ({"lr": "1e-3"}, r"lr \(='1e-3'\) must be a finite number"),
        ({"momentum": 1.0}, r"momentum \(=1.0\) must be a finite number of at least 0 and below 1"),
        ({"ema": -0.1}, r"ema \(=-0.1\) must be a finite number of at least 0 and below 1"),
        ({"warmup": 1.5}, r"warmup \(=1.5\) must be a finite number of at least 0 and at most 1"),
        ({"weight_decay": -1e-4}, r"weight_decay \(=-0.0001\) must be a finite number of at least 0"),
        ({"max_grad_norm": 0}, r"max_grad_norm \(=0\) must be a finite number above 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [Schedule, GaussianImages, SmoothImages, SpectrumImages, DeadLeaves, ShiftFlip])
def test_no_number_of_any_settings_may_be_nan_or_infinite(kind, value):
    needed = {"shape": (1, 4, 4), "count": 4, "seed": 0} if issubclass(kind, NoiseImages) else {}
    made, changed = kind(**needed), 0
    for field in dataclasses.fields(kind):
        was = getattr(made, field.name)
        if isinstance(was, bool | str | NoneType):
            continue
        wrong = (*was[:-1], value) if isinstance(was, tuple) else value
        with pytest.raises(ValueError, match=rf"{field.name} \(={value}\) must be a (whole|finite) number"):
            dataclasses.replace(made, **{field.name: wrong})
        changed += 1
    assert changed > 0
    assert kind(**needed) == made


def quadratic(model):
    return lambda x: (model(x) - 1).square().mean()


def test_minimize_learns_and_ends_in_evaluation_mode():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    losses = minimize(model, [x] * 80, quadratic(model), Schedule(steps=80, lr=0.1))
    assert len(losses) == 80 and losses[-1] < 0.01 * losses[0] and not model.training


def test_the_first_step_of_adam_moves_each_weight_by_the_rate():
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    schedule = Schedule(steps=4, lr=0.1, warmup=0.5, max_grad_norm=None)
    Trainer(model, schedule).step(lambda: (model.weight * torch.tensor([3.0, -5.0])).sum())
    torch.testing.assert_close(model.weight - before, torch.tensor([[-0.05, 0.05]]))  # rate 1/2 at step 0


def test_two_steps_of_sgd_by_hand():
    """Of a gradient g, with the decay's w / 10: v = v / 2 + g, and w falls by the rate times g + v / 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    schedule = Schedule(steps=2, lr=0.1, warmup=1.0, weight_decay=0.1, momentum=0.5, max_grad_norm=None)
    trainer = Trainer(model, schedule)
    trainer.step(lambda: 3 * model.weight.sum())  # rate 0.05: 1 - 0.05 (3.1 + 1.55)
    assert model.weight.item() == pytest.approx(0.7675)
    trainer.step(lambda: 3 * model.weight.sum())  # v = 1.55 + 3.07675, 0.7675 - 0.1 (3.07675 + 2.313375)
    assert model.weight.item() == pytest.approx(0.2284875)


def test_errors_of_the_loop():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"batches ended after 2 of the 3 steps of model; give more"):
        minimize(model, [x] * 2, quadratic(model), Schedule(steps=3))
    bad = [x] * 4 + [x * math.nan] + [x]
    with pytest.raises(FloatingPointError, match=r"loss of net is not finite at step 4 of 6 with lr \(=0.01\); choose"):
        minimize(model, bad, quadratic(model), Schedule(steps=6), "net")
    with pytest.raises(ValueError, match=r"net has no parameters to train; use steps=0"):
        Trainer(nn.ReLU(), Schedule(steps=1), "net")
    done = Trainer(nn.Linear(3, 1), Schedule(steps=0), "net")
    with pytest.raises(ValueError, match=r"net has had its 0 steps; raise schedule.steps"):
        done.step(lambda: done.model(x).mean())


def test_dropout_draws_from_the_seed_and_leaves_the_global_generator_alone():
    def run(seed, before):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)), torch.randn(16, 3)
        torch.manual_seed(before)
        state = torch.get_rng_state()
        losses = minimize(model, [x] * 3, quadratic(model), Schedule(steps=3), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return losses

    assert run(1, before=0) == run(1, before=9) != run(2, before=0)


DEPTHWISE = {  # options of nn.Conv2d(8, ...), and whether bfloat16 makes its gradients slow
    "stride": ({"stride": 2, "groups": 8}, True),
    "dilation": ({"dilation": (1, 2), "groups": 8}, True),
    "multiplier": ({"out_channels": 16, "groups": 8}, True),
    "5x5": ({"kernel_size": 5, "padding": "same", "bias": False, "groups": 8}, True),
    "3x3": ({"groups": 8}, False),
    "grouped": ({"stride": 2, "groups": 4}, False),
    "dense": ({"stride": 2}, False),
}


@pytest.mark.parametrize(("options", "slow"), DEPTHWISE.values(), ids=DEPTHWISE)
def test_depthwise_convolutions_that_bfloat16_slows_are_float32(options, slow):
    conv = nn.Conv2d(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, **options})
    x = torch.randn(2, 8, 9, 9).bfloat16()
    exact = conv(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        usual = conv(x)
    with better_kernels(conv):
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        assert torch.equal(conv(x.float()), exact), "without autocast"
    assert "forward" not in vars(conv)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16() if slow else usual)
    ours, theirs = (torch.autograd.grad(each.float().square().sum(), conv.weight)[0] for each in (y, exact))
    assert torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max())


STRIDED = {  # options of nn.Conv2d(4, ...) with 1x1 weights
    "stride": {"stride": 2},
    "strides": {"stride": (3, 2), "bias": False},
    "grouped": {"stride": 2, "groups": 2},
    "three inputs": {"stride": 2, "in_channels": 3},
    "valid": {"stride": 2, "padding": "valid"},
}


@pytest.mark.parametrize("options", STRIDED.values(), ids=STRIDED)
def test_gradients_of_strided_convolutions_with_few_inputs_are_right(options):
    conv = nn.Conv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 1, **options})
    x = torch.randn(32, conv.in_channels, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    with better_kernels(conv):
        y = conv(x)
        found = torch.autograd.grad(y.square().sum(), (x, conv.weight))
    double = copy.deepcopy(conv).double()
    exact = double(x.double().contiguous())
    wanted = torch.autograd.grad(exact.square().sum(), (x, double.weight))
    torch.testing.assert_close((y, *found), (exact.float(), wanted[0], wanted[1].float()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "dims"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_strided_convolutions_of_other_dimensions_give_the_same(kind, dims):
    conv, x = kind(2, 3, 1, stride=2), torch.randn(2, 2, *(5, 6, 7)[:dims])
    usual = conv(x)
    with better_kernels(conv):
        torch.testing.assert_close(conv(x), usual)
        assert "forward" in vars(conv)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 1), nn.Conv2d(16, 4, 1, 2), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 1, 2, padding=1)]
)
def test_other_convolutions_keep_their_kernels(conv):
    with better_kernels(conv):
        assert "forward" not in vars(conv)


class Standardized(nn.Conv2d):
    """A convolution of a weight that it standardizes."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight - weight.mean()) / weight.std(), bias)


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"kernel_size": 3, "groups": 4}])
def test_convolutions_that_compute_by_themselves_still_do(options):
    layer = Standardized(in_channels=4, out_channels=4, stride=2, **options)
    other = nn.Conv2d(in_channels=4, out_channels=4, stride=2, **options)
    other._conv_forward = lambda x, weight, bias: nn.Conv2d._conv_forward(other, x, 3 * weight, bias)
    x = torch.randn(2, 4, 9, 9)
    for conv in (layer, other):
        usual = conv(x)
        with better_kernels(conv):
            assert torch.equal(conv(x), usual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_keep_it_under_autocast(dtype):
    conv, x = nn.Conv2d(8, 8, 3, 2, groups=8).to(dtype), torch.randn(2, 8, 9, 9).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        usual = conv(x)
        with better_kernels(conv):
            assert torch.equal(conv(x), usual)


def test_a_step_that_computes_layers_once_more_is_the_same(capability):
    capability("AVX512")

    def losses(again):
        network = reset(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.BatchNorm2d(4), nn.ReLU()), seed=0)
        trainer, x = Trainer(network, Schedule(2, amp=True)), torch.linspace(-1, 1, 1536).view(6, 4, 8, 8).sin()
        for _ in range(2):
            trainer.step(lambda: (checkpoint(network, x, use_reentrant=False) if again else network(x)).square().mean())
        return trainer.finish()

    assert losses(True) == losses(False)


def test_soft_targets_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_targets(student, teacher, 1.0).item() == pytest.approx(one)
    p = math.sqrt(3) / (1 + math.sqrt(3))  # softened by temperature 2
    two = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert soft_targets(student, teacher, 2.0).item() == pytest.approx(two)
    assert soft_targets(student.expand(3, 2), teacher.expand(3, 2), 2.0).item() == pytest.approx(two)  # mean over B
    assert soft_targets(teacher, teacher, 4.0).item() == pytest.approx(0)


def test_soft_targets_gradient_is_the_difference_of_probabilities():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    soft_targets(student, teacher, 3.0).backward()
    expected = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 5
    torch.testing.assert_close(student.grad, expected.detach())


def pictures(count=96, classes=4, seed=0):
    """Images whose class is the quadrant that is bright, in batches with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 2
    return list(zip(images.split(32), labels.split(32), strict=True))


def small(seed=0, classes=4):
    return resnet(8, classes, seed=seed, widths=(4, 8, 8))


def test_training_from_labels_learns():
    model, batches = small(), pictures()
    losses = fit(model, batches * 10, Schedule(steps=30, lr=0.02))
    assert losses[-1] < 0.5 * losses[0] and accuracy(model, batches) > 80


def test_end_to_end_distillation_imitates_the_teacher_and_leaves_it_alone():
    teacher, student, batches = small(seed=1), small(seed=2), pictures()
    fit(teacher, batches * 10, Schedule(steps=30, lr=0.02))
    teacher.train()
    teacher.layer1.eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images = [x for x, _ in batches]
    wanted = predict(teacher.eval(), images).argmax(1)
    start = (predict(student, images).argmax(1) == wanted).float().mean()
    teacher.train()
    teacher.layer1.eval()
    result = distill_end_to_end(teacher, student, batches, Schedule(steps=40, lr=0.02, batch_size=32))
    assert teacher.training and not teacher.layer1.training and not teacher.layer1[0].training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert result.module is student and len(result.losses) == 40
    assert result.device_s == result.teacher_s + result.train_s > 0
    assert (predict(student, images).argmax(1) == wanted).float().mean() > max(start, 0.75)


def test_end_to_end_distillation_repeats_bit_for_bit():
    def run(seed):
        student = small(seed=2)
        schedule = Schedule(steps=4, batch_size=32)
        return distill_end_to_end(small(seed=1), student, pictures(), schedule, seed=seed).losses, student

    (one, a), (two, b), (other, _) = run(0), run(0), run(1)
    assert one == two != other
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_loss_is_that_of_soft_targets():
    teacher, student, batches = small(1).eval(), small(2).train(), pictures(32)
    images, _ = batches[0]
    with torch.no_grad():
        expected = soft_targets(student(images), teacher(images), 4.0)
    result = distill_end_to_end(teacher, small(2), batches, Schedule(steps=1, batch_size=32))
    assert result.losses == pytest.approx([expected.item()], rel=1e-5)


def test_errors_of_end_to_end_distillation():
    images = [images for images, _ in pictures()]
    for wrong in ({"temperature": 0.0}, {"temperature": math.nan}, {"seed": -1}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} \(={next(iter(wrong.values()))}\) must be a"):
            distill_end_to_end(small(), small(), images, Schedule(steps=1), **wrong)
    broken = small()
    list(broken.parameters())[-1].data[2] = math.nan
    with pytest.raises(ValueError, match=r"the teacher's outputs for batch 0 must be finite; 32 of 32 .* hold NaN"):
        distill_end_to_end(broken, small(), images, Schedule(steps=1))


def test_capture_logits_keeps_images_and_logits_in_order():
    teacher, batches = small().eval(), pictures()
    rows = capture_logits(teacher, batches).take(slice(None))
    assert torch.equal(rows["images"], torch.cat([images for images, _ in batches]))
    torch.testing.assert_close(rows["logits"], predict(teacher, batches))


class Always(nn.Module):
    """Says one class for every image."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, images):
        return F.one_hot(torch.full((len(images),), self.label), 4).float()


def test_accuracy_is_a_percentage_of_images():
    images = torch.zeros(5, 3, 2, 2)
    batches = [(images[:3], torch.tensor([1, 1, 2])), (images[:2], torch.tensor([1, 0]))]
    assert accuracy(Always(1), batches) == 60
    for measure in (lambda: accuracy(Always(1), []), lambda: predict(Always(1), [])):
        with pytest.raises(ValueError, match="inputs holds no batch; give at least one"):
            measure()


class Affine(nn.Module):
    """A model with a parameter, whose outputs are what a function makes of logits."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.linear, self.change = nn.Linear(12, 4), change

    def forward(self, images):
        return self.change(self.linear(images.flatten(1)))


def evaluated(model, batch):
    accuracy(model, [batch])


def fitted(model, batch):
    fit(model, [batch], Schedule(steps=1))


def distilled(model, batch):
    distill_end_to_end(model, Affine(), [batch], Schedule(steps=1, batch_size=5))


USES = pytest.mark.parametrize("use", [evaluated, fitted, distilled])
LABELS = pytest.mark.parametrize("use", [evaluated, fitted])


@LABELS
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(5, 1).long(), "labels (=torch.int64, (5, 1)) must be integers (5,)"),
        (torch.zeros(1).long(), "labels (=torch.int64, (1,)) must be integers (5,)"),
        (torch.zeros(4).long(), "labels (=torch.int64, (4,)) must be integers (5,)"),
        (torch.zeros(5, 4), "labels (=torch.float32, (5, 4)) must be integers (5,)"),
        (torch.zeros(5), "labels (=torch.float32, (5,)) must be integers (5,)"),
        (torch.arange(5), "labels (=0 to 4) must be 0 to 3; the model tells that many classes"),
        (torch.full((5,), -100), "labels (=-100 to -100) must be 0 to 3"),
    ],
)
def test_labels_that_are_no_classes_are_refused_wherever_they_enter(use, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        use(Affine(), (torch.zeros(5, 3, 2, 2), labels))


@LABELS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_integers_of_any_size(use, dtype):
    use(Affine(), (torch.zeros(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0], dtype=dtype)))


@USES
@pytest.mark.parametrize(("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinite values")])
def test_images_that_are_not_finite_are_named_with_their_batch(use, value, kind):
    images, labels = torch.zeros(5, 3, 2, 2), torch.zeros(5).long()
    images[3, 1, 0, 1] = value
    message = f"batch 0 of inputs must be finite; 1 of 5 examples hold {kind}, first 3"
    with pytest.raises(ValueError, match=message):
        use(Affine(), (images, labels))


@pytest.mark.parametrize(
    "use",
    [
        lambda inputs: predict(Affine(), inputs),
        lambda inputs: accuracy(Affine(), [(x, torch.zeros(len(x)).long()) for x in inputs]),
        lambda inputs: mismatch(nn.BatchNorm2d(3), inputs),
        lambda inputs: reestimate_batchnorm(nn.BatchNorm2d(3), inputs),
        lambda inputs: fit(Affine(), [(x, torch.zeros(len(x)).long()) for x in inputs], Schedule(steps=2)),
    ],
)
def test_the_second_batch_is_named(use):
    with pytest.raises(ValueError, match="batch 1 of inputs must be finite"):
        use([torch.zeros(4, 3, 2, 2), torch.full((4, 3, 2, 2), math.nan)])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(5, 3, 2, 2), r"gives a batch of type Tensor; give pairs \(images, labels\)"),
        ({"x": 1, "y": 2}, r"gives a batch of type dict; give pairs"),
        ((torch.zeros(5, 3, 2, 2), torch.zeros(5).long(), 0), r"of type tuple \(Tensor, Tensor, int\); give pairs"),
        (({"x": 1}, torch.zeros(5).long()), r"type tuple \(dict, Tensor\); give pairs .*, the images one tensor"),
        ((torch.zeros(5, 3, 2, 2), [0] * 5), r"labels \(a list\) must be a tensor of integers"),
    ],
)
def test_batches_that_are_no_pairs_are_refused(batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit(Affine(), [batch], Schedule(steps=1))
    with pytest.raises((TypeError, ValueError), match=message):
        accuracy(Affine(), [batch])


def test_batches_without_an_image_have_no_accuracy():
    with pytest.raises(ValueError, match="inputs holds no batch; give at least one"):
        accuracy(Affine(), [(torch.zeros(0, 3, 2, 2), torch.zeros(0).long())])


def test_a_loss_of_one_element_is_a_number():
    model = nn.Linear(3, 1)
    losses = minimize(model, [torch.ones(4, 3)] * 2, lambda x: model(x).square().mean().view(1), Schedule(steps=2))
    assert all(isinstance(loss, float) for loss in losses)


@USES
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: {"out": logits}, "a dict"),
        (lambda logits: (logits, logits), "a tuple"),
        (lambda logits: logits[:, 0], "(5,)"),
        (lambda logits: logits[:1], "(1, 4)"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(use, change, said):
    message = f"model (=Affine) must return logits (B, classes) for 5 images, it returned {said}"
    with pytest.raises(ValueError, match=re.escape(message)):
        use(Affine(change), (torch.zeros(5, 3, 2, 2), torch.zeros(5).long()))


def test_a_seed_or_smoothing_that_cannot_be_is_refused_before_the_first_step():
    model, batches = Affine(), [(torch.zeros(5, 3, 2, 2), torch.zeros(5).long())]
    for wrong in ({"seed": -1}, {"seed": 0.5}, {"label_smoothing": 1.1}, {"label_smoothing": math.nan}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} \(="):
            fit(model, batches, Schedule(steps=1), **wrong)
        assert model.linear.weight.grad is None


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.pt is damaged or no checkpoint; remove it"):
        Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"every_s \(=nan\) must be a finite number of at least 0"):
        Checkpoints(tmp_path / "other", every_s=math.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 2}, r"schedule.steps \(=2\) was 4 when the training of model began; give that again, or choose"),
        ({"lr": 0.5}, r"schedule.lr \(=0.5\) was 0.01 when"),
        ({"momentum": 0.9}, r"schedule.momentum \(=0.9\) was 0.0 when"),
        ({"ema": 0.9}, r"schedule.ema \(=0.9\) was 0.0 when"),
        ({}, r"seed \(=1\) was 0 when"),
    ],
)
def test_a_training_is_not_resumed_by_another_schedule_or_seed(change, message, tmp_path):
    batches = [(torch.randn(4, 3, 2, 2), torch.zeros(4).long())] * 4
    fit(Affine(), batches, Schedule(steps=4), checkpoints=Checkpoints(tmp_path, every_s=0))
    with pytest.raises(ValueError, match=message):
        fit(Affine(), [], Schedule(**{"steps": 4} | change), seed=int(not change), checkpoints=Checkpoints(tmp_path))
    assert len(fit(Affine(), [], Schedule(steps=4), checkpoints=Checkpoints(tmp_path))) == 4  # done already


@pytest.mark.parametrize("shape", [(5, 1), (1, 4), (1, 1)])
def test_logits_that_would_broadcast_are_refused(shape):
    message = f"logits of student and teacher must have one shape; they have (5, 4) and {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        soft_targets(torch.zeros(5, 4), torch.zeros(shape), 4.0)


def test_batchnorm_gets_the_population_variance_by_hand():
    """Of 0, 2 and 4, 10: mean 4, squared distances 16 + 4 + 0 + 36. The mean of the batches' variances would be 10."""
    norm = reestimate_batchnorm(nn.BatchNorm1d(1), [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])])
    assert norm.running_mean.item() == 4 and norm.running_var.item() == pytest.approx(56 / 3)


def test_batchnorm_is_the_mean_and_variance_of_the_images():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2, momentum=0.3))
    x = torch.randn(40, 2, 3, 3) * 3 + torch.linspace(-2, 2, 40).view(-1, 1, 1, 1)
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    assert reestimate_batchnorm(net, [x[:8], x[8:24], x[24:]], images=36) is net
    parts = [x[:8], x[8:24], x[24:36]]
    seen = [F.batch_norm(p, None, None, net[0].weight, net[0].bias, True).relu() for p in parts]  # batch statistics
    for norm, values in ((net[0], x[:36]), (net[2], torch.cat(seen).detach())):
        torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)))
    assert net[0].momentum == 0.1 and net[2].momentum == 0.3 and not any(m.training for m in net.modules())


class Own(nn.BatchNorm2d):
    """A subclass of BatchNorm."""


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.SyncBatchNorm, (6, 2, 4, 4)),
        (Own, (6, 2, 4, 4)),
        (nn.BatchNorm3d, (6, 2, 2, 4, 2)),
        (nn.BatchNorm1d, (6, 2, 16)),
    ],
)
def test_every_kind_of_batchnorm_is_one(norm, shape):
    torch.manual_seed(0)
    x = torch.randn(12, 2, 4, 4) + torch.arange(12.0).view(-1, 1, 1, 1)
    plain, other = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(norm(2))
    seen = [part.view(shape) for part in x.split(6)]
    wanted, got = reestimate_batchnorm(plain, x.split(6)), reestimate_batchnorm(other, seen)
    torch.testing.assert_close(got.state_dict(), wanted.state_dict())
    assert mismatch(got, [seen[0]]) == pytest.approx(mismatch(wanted, [x[:6]]))


def test_a_layer_that_runs_twice_is_measured_over_both_and_one_that_never_runs_keeps_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
            self.unused.running_mean.fill_(7.0)

        def forward(self, x):
            self.norm(x)
            return self.norm(x + 4)

    net = reestimate_batchnorm(Twice(), [torch.tensor([[0.0], [2.0]])])
    assert net.norm.running_mean.item() == 3 and net.norm.running_var.item() == pytest.approx(20 / 3)  # of 0, 2, 4, 6
    assert net.unused.running_mean.item() == 7


def test_batchnorm_is_measured_on_token_ids_and_in_the_type_of_the_weights():
    embedding = nn.Embedding.from_pretrained(torch.tensor([[0.0], [2.0], [4.0], [10.0]]))
    ids = torch.tensor([[0, 1], [2, 3]])
    net = reestimate_batchnorm(nn.Sequential(embedding, nn.Flatten(0, 1), nn.BatchNorm1d(1)), [ids])
    assert net[2].running_mean.item() == 4 and net[2].running_var.item() == pytest.approx(56 / 3)
    assert mismatch(net, [ids])["2"] == pytest.approx(0.5 * (4 / 3 - 1 - math.log(4 / 3)), rel=1e-4)  # n - 1 over n
    double = reestimate_batchnorm(nn.BatchNorm1d(1).double(), [torch.tensor([[0.0], [2.0]], dtype=torch.float64)])
    assert double.running_var.item() == 2 and mismatch(double, [torch.tensor([[0.0], [2.0]])])[""] > 0


def test_a_failed_estimate_leaves_the_statistics_alone():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3))
    net[0].running_mean.fill_(3.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(net, [torch.randn(4, 2, 5, 5), torch.randn(4, 2, 1, 1)])  # the kernel is larger
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert net[0].momentum == 0.1 and not net[0].training and not net[0]._forward_hooks


def test_batchnorm_needs_two_images_and_nothing_else_changes():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match=r"inputs holds no batch of at least 2 images; BatchNorm cannot"):
        reestimate_batchnorm(net, [torch.randn(1, 2, 3, 3)])
    x = torch.randn(5, 2, 3, 3)
    one_between = reestimate_batchnorm(nn.BatchNorm2d(2), [x[:3], x[:1], x[3:]])  # passed over, and no end
    torch.testing.assert_close(one_between.running_mean, x.mean((0, 2, 3)))
    with pytest.raises(ValueError, match="too few: '' gets 1 values a channel; give more images"):
        mismatch(nn.BatchNorm2d(2), [torch.randn(1, 2, 1, 1)])
    with pytest.raises(ValueError, match=r"inputs holds no image .* '' gets 0 values a channel"):
        mismatch(nn.BatchNorm2d(2), [])
    plain = nn.Conv2d(2, 2, 1).train()
    assert reestimate_batchnorm(plain, []) is plain and not plain.training


@pytest.mark.parametrize("build", [Store.of, lambda tensors: Store.collect([tensors])], ids=["of", "collect"])
def test_a_store_gives_back_what_was_put_in(build):
    x, y = torch.randn(6, 2, 3, 4), torch.randn(6, 5)
    store = build({"x": x, "y": y})
    rows = store.take(torch.tensor([4, 1]))
    assert torch.equal(rows["x"], x[[4, 1]]) and torch.equal(rows["y"], y[[4, 1]])
    assert rows["x"].is_contiguous(memory_format=torch.channels_last)
    assert len(store) == 6 and store.nbytes == 4 * (x.numel() + y.numel())
    chunks = list(store[1:].chunks(2))
    assert [len(chunk["x"]) for chunk in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat([chunk["x"] for chunk in chunks]), x[1:])
    large = Store({"x": torch.zeros(5, 1).expand(5, 3_000_000)})
    assert [len(chunk["x"]) for chunk in large.chunks()] == [2, 2, 1]  # 32 MB at a time
    assert list(store.select(["y"]).tensors) == ["y"]


@pytest.mark.parametrize("count, shared", [(None, False), (10, False), (17, False), (10, True), (17, True)])
def test_a_store_in_half_precision_keeps_labels_and_the_order_of_batches(count, shared):
    x, labels = torch.randn(10, 2, 3, 3), torch.arange(10)
    rows = ({"x": x[i : i + 3].half(), "labels": labels[i : i + 3]} for i in range(0, 10, 3))
    store = Store.collect(rows, count, shared=shared)
    assert len(store) == 10 and store.tensors["x"].untyped_storage().nbytes() == 2 * x.numel()
    assert store.tensors["x"].dtype == torch.float16 and store.tensors["labels"].dtype == torch.int64
    taken = store.take(slice(None))
    assert taken["x"].dtype == torch.float32 and torch.equal(taken["x"], x.half().float())
    assert torch.equal(taken["labels"], labels)
    (halves,) = store.batches(10, steps=1, seed=0, dtype=torch.float16)
    assert halves["x"].dtype == torch.float16 and torch.equal(halves["x"], x.half()[halves["labels"]])
    with pytest.raises(ValueError, match="inputs holds no batch; give at least one"):
        Store.collect([])


def test_what_is_taken_from_a_store_can_be_worked_on_in_place():
    store = Store.of({"x": torch.ones(4, 2, 3, 3), "y": torch.ones(4, 2)})
    for chunk in (*store.chunks(2), *store.batches(2, steps=2, seed=0)):
        chunk["x"].zero_(), chunk["y"].zero_()
    assert all((value == 1).all() for value in store.tensors.values())


def test_an_epoch_visits_each_example_once_in_an_order_of_the_seed():
    store = Store.of({"x": torch.arange(8.0)[:, None]})
    orders = [[batch["x"].flatten().tolist() for batch in store.batches(4, steps=4, seed=s)] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    (a, b), (c, d) = orders[0][:2], orders[0][2:]
    assert sorted(a + b) == sorted(c + d) == list(range(8))
    assert (a, b) != (c, d)
    assert [len(batch["x"]) for batch in store.batches(100, steps=1, seed=0)] == [8]


def test_a_fingerprint_knows_values_names_and_types():
    x = torch.randn(4, 2, 3, 3)
    same = Store.of({"x": x}).fingerprint
    changed = x.clone()
    changed[3, 1, 2, 2] += 1e-6
    others = [Store.of({"x": changed}), Store.of({"z": x}), Store.of({"x": x.half()}), Store.of({"x": x[:3]})]
    assert Store.collect([{"x": x[:1]}, {"x": x[1:]}]).fingerprint == same
    assert same not in {other.fingerprint for other in others}


def test_images_of_a_batch():
    x = torch.zeros(2, 3)
    assert images_of(x) is images_of((x, 1)) is images_of([x]) is x
    with pytest.raises(TypeError, match=r"inputs gives a batch of type str; give tensors or \(images, labels\)"):
        images_of("x")


def test_a_step_has_gradients_though_the_batches_leave_them_off_and_freezes_batchnorm_on_request():
    def batches():
        with torch.no_grad():
            for _ in range(2):
                yield torch.randn(8, 3, 2, 2) + 5

    for frozen in (True, False):
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
        before, schedule = model[0].weight.detach().clone(), Schedule(2, freeze_batchnorm=frozen)
        minimize(model, batches(), quadratic(model), schedule)
        assert not torch.equal(model[0].weight, before)
        assert (model[1].num_batches_tracked == 0) == frozen and model[1].running_mean.eq(0).all() == frozen


def test_frozen_weights_that_are_named_get_no_step():
    model, gate = nn.Linear(2, 1).requires_grad_(False), torch.ones(1, requires_grad=True)
    trainer = Trainer(model, Schedule(1), parameters=model.parameters())
    trainer.step(lambda: (model(torch.ones(1, 2)) * gate).sum())
    assert gate.grad.item() == pytest.approx(model(torch.ones(1, 2)).item()) and len(trainer.losses) == 1
    assert trainer.state_dict()["optimizer"] is None


class Counting(nn.Linear):
    """A layer with an order, flags, and a count of its training passes that `state_dict` leaves out."""

    def __init__(self):
        super().__init__(2, 1)
        self.register_buffer("order", torch.arange(200))
        self.register_buffer("chosen", torch.arange(5) > 2)
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.seen += self.training
        return super().forward(x)


def test_averages_copy_integers_and_take_in_every_buffer():
    model, x = Counting(), torch.ones(4, 2)
    minimize(model, [x] * 3, lambda x: model(x).square().mean(), Schedule(steps=3, ema=0.2))
    assert model.order.equal(torch.arange(200)) and model.chosen.tolist() == [False, False, False, True, True]
    assert model.seen.item() == pytest.approx(0.2 * (2 / 11 * 1 + 9 / 11 * 2) + 0.8 * 3)


@pytest.mark.parametrize(
    "norm", [spectral_norm, parametrizations.weight_norm, partial(l1_unstructured, name="weight", amount=0.5)]
)
def test_averages_of_a_network_with_computed_weights_after_a_pass_with_gradients(norm):
    model, x = norm(nn.Linear(3, 3)), torch.randn(4, 3)
    model(x).sum().backward()
    trainer, passed = Trainer(model, Schedule(steps=2, lr=0.1, ema=0.2)), []
    for _ in range(2):
        trainer.step(lambda: model(x).square().mean())
        passed.append([value.detach().clone() for value in model.parameters()])
    trainer.finish()
    for value, first, second in zip(model.parameters(), *passed, strict=True):
        torch.testing.assert_close(value.detach(), first * 2 / 11 + second * 9 / 11)
    model(x)


def test_a_resumed_training_has_every_buffer_and_average_of_the_one_before():
    x = torch.ones(4, 2)

    def trained(model, steps, state=None):
        trainer = Trainer(model, Schedule(steps=4, lr=0.1, ema=0.5))
        if state:
            trainer.load_state_dict(state)
        for _ in range(steps):
            trainer.step(lambda: model(x).square().mean())
        return trainer

    begun = Counting()
    whole, state = copy.deepcopy(begun), trained(begun, 2).state_dict()
    trained(whole, 4).finish()
    resumed = Counting()
    trained(resumed, 2, state).finish()
    assert resumed.seen.equal(whole.seen) and resumed.weight.equal(whole.weight)
