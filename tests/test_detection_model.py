"""Detectors: torchvision's and pycocotools' numbers, the taps, and that a small one learns.

Behind claim FG-2.
"""

import contextlib
import copy
import io
import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large

from nkdlib.detection import detect, evaluate, ssdlite, train_detector
from nkdlib.detection.feature_maps import feature_maps
from nkdlib.detection.precision import NUMBERS
from nkdlib.figs import CostModel, Gates, keep_best
from nkdlib.networks import CellNetwork, cost, mixed_space, residual_space
from nkdlib.networks.module import evaluating, seeded
from nkdlib.training import Schedule

PUBLISHED = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta


def batch(images, channels, size, objects=3, classes=2, seed=0):
    """Noise, and boxes anywhere; the second image has none."""
    draw = torch.Generator().manual_seed(seed)
    targets = []
    for number in range(images):
        count = 0 if number == 1 else objects
        corner = torch.rand(count, 2, generator=draw) * size / 2
        boxes = torch.cat([corner, corner + size / 8 + torch.rand(count, 2, generator=draw) * size / 3], 1)
        labels = torch.randint(1, classes + 1, (count,), generator=draw)
        targets.append({"boxes": boxes, "labels": labels, "image_id": number})
    return torch.randint(256, (images, channels, size, size), generator=draw, dtype=torch.uint8), targets


@pytest.mark.parametrize("taps", [(16, 32), ("features.13.block.0", "features.16")])
def test_equal_to_torchvision(taps):
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    detector = ssdlite(zoo.mobilenet_v3_large(norm_layer=norm, reduced_tail=True), 90, taps=taps)
    assert detector.cost().params == PUBLISHED["num_params"] == 3_440_060
    assert round(detector.cost().macs / 1e9, 3) == PUBLISHED["_ops"] == 0.583
    torch.manual_seed(0)
    reference = ssdlite320_mobilenet_v3_large(weights_backbone=None)
    names = zip(detector.state_dict(), reference.state_dict(), strict=True)  # both front to back
    renamed = {ours: reference.state_dict()[theirs] for ours, theirs in names if ours.split(".")[-1] in theirs}
    detector.load_state_dict(renamed)
    images, targets = batch(3, 3, 320, classes=90)
    losses, wanted = detector.train()(images, targets), reference.train()(list(images / 255), targets)
    assert losses.keys() == wanted.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, wanted[name])
    with torch.no_grad():
        for ours, theirs in zip(detector.eval()(images), reference.eval()(list(images / 255)), strict=True):
            assert len(theirs["boxes"]) > 10
            for key in theirs:
                torch.testing.assert_close(ours[key], theirs[key])


def slim_space():
    network = residual_space(10, blocks=(1, 1), widths=(8, 8), stem_stride=2)
    gates = Gates(CostModel(network, torch.zeros(1, 3, 16, 16)))
    gates.log_odds.data.copy_(torch.randn(gates.log_odds.shape, generator=torch.Generator().manual_seed(1)))
    half = 0.5 * gates.model.total(gates.model.sizes, "params")
    gates.keep(keep_best(gates.model, gates.scores, "params", half))
    slim = gates.slim()
    gates.remove()
    return slim


NETWORKS = {
    "mobilenet_v2": (lambda: zoo.mobilenet_v2(width_mult=0.25), (16, 32), 3),
    "mobilenet_v3": (lambda: zoo.mobilenet_v3_small(width_mult=0.5), (16, 32), 3),
    "mnasnet": (lambda: zoo.mnasnet0_5(), (16, 32), 3),
    "resnet": (lambda: zoo.resnet18(), ("layer1", "layer2"), 3),
    "mixed": (lambda: mixed_space(9, in_channels=1, stages=((3, 8, 1, 2), (3, 8, 2, 2)), squeeze=True), (4, 8), 1),
    "residual": (lambda: residual_space(9, in_channels=1, widths=(8, 8, 8), stem_stride=2), (4, "6"), 1),
    "slim": (slim_space, (2, 4), 3),
    "cells": (lambda: CellNetwork(9, channels=2, cells="nrr", nodes=1), ("cells.1", 4), 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_dead_parameters(name):
    make, taps, channels = NETWORKS[name]
    network = make()
    before = copy.deepcopy(network.state_dict())
    detector = ssdlite(network, 2, 96, taps, extra=(16,))
    assert detector.cost() == cost(detector, torch.zeros(1, channels, 96, 96, dtype=torch.uint8))
    sum(detector.train()(*batch(3, channels, 96)).values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # a copy is trained
    kept = set(detector.backbone["body"].state_dict())
    assert kept < set(before) and all("classifier" not in key and key[:2] != "fc" for key in kept)
    again = copy.deepcopy(detector)
    assert again.state_dict().keys() == detector.state_dict().keys()


def test_taps_are_what_the_network_computes():
    network = zoo.resnet18().eval()
    images, seen = torch.rand(1, 3, 64, 64), []
    with network.layer3.register_forward_hook(lambda *call: seen.append(call[2])):
        network(images)
    for tap in (16, "layer3"):
        torch.testing.assert_close(feature_maps(network, images, [tap])(images)[str(tap)], seen[0])


class OfTheMode(nn.Module):
    """Functional dropout, and a layer that only training runs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.extra = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = nn.functional.dropout(self.first(x), 0.5, self.training)
        if self.training:
            x = self.extra(x)
        return self.second(x).mean((2, 3))


def test_dropout_drop_path_and_branches_follow_the_mode():
    images = torch.rand(2, 3, 32, 32)
    network = zoo.efficientnet_b0(stochastic_depth_prob=0.9)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    for features, tap in ((feature_maps(network, images, [16]), "16"), (feature_maps(OfTheMode(), images, [2]), "2")):
        features.eval()
        assert torch.equal(features(images)[tap], features(images)[tap])
        with evaluating(features.train()):
            assert torch.equal(features(images)[tap], features(images)[tap])
        assert not torch.equal(features(images)[tap], features(images)[tap])
    assert "extra.weight" in features.state_dict()
    network = OfTheMode().eval()
    seen = network.second(network.first(images))
    assert torch.equal(feature_maps(network, images, ["second"]).eval()(images)["second"], seen)


class StillNorms(nn.Sequential):
    """Keeps its BatchNorms in evaluation mode, and a dropout in training mode."""

    def train(self, mode=True):
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.Dropout):
                layer.train(isinstance(layer, nn.Dropout))
        return self


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("copied", [lambda module: module, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_layers_keep_the_modes_that_the_network_gives_them(inner, copied):
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 4, 1)
    network = nn.Sequential(StillNorms(*layers), nn.BatchNorm2d(4)) if inner else StillNorms(*layers)
    detector = copied(ssdlite(network, 2, 32, ("0.3" if inner else "3",), extra=(8,)))
    own = dict(network.named_modules())
    for mode in (True, False, True):
        network.train(mode), detector.train(mode)
        body = dict(detector.backbone["body"].named_modules())
        prefix = "0." if inner else ""
        assert [body[f"{prefix}{path}"].training for path in range(4)] == [mode, False, True, mode]
        assert all(part.training == own[path].training for path, part in body.items() if path in own and path)
        assert all(part.training == mode for part in detector.backbone["extra"].modules())
    before = own["0.1" if inner else "1"].running_mean.clone()
    detector(*batch(2, 3, 32))
    assert torch.equal(detector.backbone["body"].get_submodule("0.1" if inner else "1").running_mean, before)


class Helped(nn.Module):
    """Holds a layer first that it does not run on images."""

    def __init__(self):
        super().__init__()
        self.helper, self.stem = nn.Conv2d(8, 4, 1), nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, x):
        return self.stem(x)


@pytest.mark.parametrize(
    ("network", "tap", "guess"),
    [(Helped, "stem", 8), (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1)), 2, 12)],
)
def test_channels_of_images_that_do_not_follow_from_the_network_are_given(network, tap, guess):
    with pytest.raises(ValueError, match=rf"does not take images \(1, {guess}, 32, 32\): .* ssdlite: channels or size"):
        ssdlite(network(), 2, 32, (tap,), extra=(8,))
    detector = ssdlite(network(), 2, 32, (tap,), extra=(8,), channels=3)
    assert sum(detector(*batch(2, 3, 32)).values()).isfinite()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_are_integers_of_any_type(dtype):
    detector = ssdlite(residual_space(9, blocks=(1, 1), widths=(8, 8)), 2, 32, taps=(2,), extra=(8,))
    images, targets = batch(2, 3, 32)
    schedule, short = Schedule(steps=1), [{**target, "labels": target["labels"].to(dtype)} for target in targets]
    found = [train_detector(copy.deepcopy(detector), [(images, given)], schedule) for given in (targets, short)]
    assert found[0] == found[1] and short[0]["labels"].dtype == dtype


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.second(x)


def test_what_a_tracer_drops_is_refused_or_kept():
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"first runs under torch.no_grad\(\).*freeze"):
        feature_maps(Frozen(), images, [2])
    for path in ("", "layer1", "layer2.0"):
        network = zoo.resnet18()
        network.get_submodule(path).register_forward_hook(lambda module, inputs, output: 2 * output)
        with pytest.raises(ValueError, match=f"hooks of {path or 'the network'} would be lost"):
            feature_maps(network, images, [16])
    network = zoo.resnet18().eval()
    plain = feature_maps(network, images, [4])(images)["4"]
    network.bn1.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not torch.allclose(feature_maps(network, images, [4])(images)["4"], plain)


def test_network_without_classifier():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1))
    images = torch.rand(1, 1, 30, 30)
    for taps in ([2, 4], [2, "1"]):
        maps = feature_maps(network, images, taps)(images)
        assert [tuple(maps[str(tap)].shape) for tap in taps] == [(1, 4, 15, 15), (1, 6, 8, 8)]
    with pytest.raises(ValueError, match="one feature map twice"):
        feature_maps(network, images, ["1", 4])


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "taps", "message"),
    [
        (lambda: zoo.mobilenet_v2(width_mult=0.25), (5,), r"tap \(=5\) is no stride .* \[2, 4, 8, 16, 32\]"),
        (lambda: zoo.mobilenet_v2(width_mult=0.25), ("features.17", "features.99"), r"'features.99'.*features.9"),
        (lambda: zoo.mobilenet_v2(width_mult=0.25), ("classifier",), r"'classifier'\) gives \(1, 1000\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Branching()), (1,), "Sequential.* cannot be traced"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(5, 2)), (1,), "does not take images"),
        (lambda: nn.Linear(3, 3), (1,), "must hold a convolution"),
        (lambda: zoo.mobilenet_v2(width_mult=0.25), (), "taps"),
    ],
)
def test_errors_of_taps(network, taps, message):
    with pytest.raises(ValueError, match=message):
        ssdlite(network(), 2, 96, taps)


def test_errors_of_batches():
    detector = ssdlite(residual_space(9, blocks=(1, 1), widths=(8, 8)), 2, 32, taps=(2,), extra=(8,)).train()
    images, targets = batch(2, 3, 32)
    for wrong in (images.float(), images[..., :16], images[:, :1]):
        with pytest.raises(ValueError, match=r"must be torch.uint8 \(B, \*\(3, 32, 32\)\)"):
            detector(wrong, targets)
    with pytest.raises(ValueError, match=r"targets \(=1\)"):
        detector(images, targets[:1])
    for key, value in (("labels", 3), ("labels", 0), ("boxes", 4.0), ("boxes", float("nan")), ("boxes", float("inf"))):
        damaged = [{**target, key: torch.full_like(target[key], value)} for target in targets]
        with pytest.raises(ValueError, match=r"x1 < x2 .* from 1 to 2"):
            detector(images, damaged)
    for key, change in (("labels", lambda x: x[:, None]), ("labels", lambda x: x[:1]), ("boxes", lambda x: x.T)):
        damaged = [{**target, key: change(target[key])} for target in targets]
        with pytest.raises(ValueError, match=r"targets\[0\] must hold boxes \(N, 4\) and labels \(N,\), it holds"):
            detector(images, damaged)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 0}, r"num_classes \(=0\)"),
        ({"size": 32.5}, r"size \(=32.5\)"),
        ({"extra": (0,)}, r"extra \(=0\)"),
        ({"channels": 0}, r"channels \(=0\)"),
        ({"seed": -1}, r"seed \(=-1\)"),
        ({"mean": (0.5, 0.5)}, r"mean \(=\[0.5, 0.5\]\) .* must have 3 values"),
        ({"std": 0.0}, r"std \(=\[0.0, 0.0, 0.0\]\) .* std above 0"),
        ({"std": (0.5, 0.5, float("nan"))}, r"std .* std above 0"),
    ],
)
def test_a_detector_that_cannot_be_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        ssdlite(
            residual_space(9, blocks=(1, 1), widths=(8, 8)), **{"num_classes": 2, "size": 32, "taps": (2,)} | options
        )


@pytest.mark.parametrize("copied", [lambda module: pickle.loads(pickle.dumps(module)), copy.deepcopy])
@pytest.mark.parametrize("training", [True, False])
def test_a_pickled_or_copied_detector_detects_and_trains_as_before(training, copied):
    network = zoo.efficientnet_b0(stochastic_depth_prob=0.5)
    detector = ssdlite(network, 2, 64, (16, 32), extra=(16,)).train(training)
    next(layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d)).eval()  # a frozen one
    again = copied(detector)
    assert [part.training for part in again.modules()] == [part.training for part in detector.modules()]
    images, targets = batch(2, 3, 64)
    torch.testing.assert_close(again.state_dict(), detector.state_dict(), rtol=0, atol=0)
    for mode in (not training, training):
        made = []
        for one in (detector.train(mode), again.train(mode)):
            with seeded(torch.device("cpu"), 0), torch.no_grad():
                made.append(one(images, targets))
        torch.testing.assert_close(*made, rtol=0, atol=0)


# --- average precision ---


def scene(images=12, classes=4, found=15, objects=6, seed=0, absent=(), crowds=0.2):
    """Predictions near boxes of every size, and the ground truth, of which some classes have no object."""
    draw = np.random.default_rng(seed)
    categories = [{"id": 3 * number + 2, "name": str(number)} for number in range(classes)]
    annotations, predictions = [], []
    for image in range(images):
        count = 0 if image % 4 == 3 else draw.integers(1, objects + 1)
        corner, sides = draw.uniform(0, 150, (count, 2)), draw.choice([10, 20, 60, 150], (count, 2)) + draw.random(2)
        labels = draw.choice([k for k in range(1, classes + 1) if k not in absent], count)
        for box, area, label in zip(np.hstack([corner, sides]), sides.prod(1), labels, strict=True):
            entry = {"image_id": image, "category_id": categories[label - 1]["id"], "bbox": box.tolist()}
            crowd = int(draw.random() < crowds)
            annotations.append({"id": len(annotations) + 1, **entry, "area": float(area), "iscrowd": crowd})
        if image % 5 == 4:
            continue
        picked = draw.integers(0, count, found) if count else []
        near = np.hstack([corner, corner + sides])[picked] + draw.normal(0, 3, (len(picked), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        shown = np.where(draw.random(len(picked)) < 0.8, labels[picked], draw.integers(1, classes + 1, len(picked)))
        found_here = {"boxes": near, "scores": draw.random(len(near)).round(2), "labels": shown.astype(int)}
        predictions.append({"image_id": image, **{key: torch.tensor(value) for key, value in found_here.items()}})
    truth = [{"id": image, "height": 300, "width": 300} for image in range(images)]
    return predictions, {"images": truth, "annotations": annotations, "categories": categories}


def pycocotools(predictions, truth):
    ids = [category["id"] for category in truth["categories"]]
    results = [
        {"image_id": p["image_id"], "category_id": ids[label - 1], "bbox": [a, b, c - a, d - b], "score": score}
        for p in predictions
        for (a, b, c, d), score, label in zip(*(p[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(
    "options", [{}, {"seed": 1, "absent": (2,)}, {"crowds": 1.0}, {"classes": 1, "found": 150, "objects": 20}]
)
def test_equal_to_pycocotools(options, capfd):
    predictions, truth = scene(**options)
    kept = copy.deepcopy((predictions, truth))
    result = evaluate(predictions, truth)
    reference = pycocotools(predictions, truth)
    wanted = np.where(reference.stats < 0, np.nan, reference.stats)
    np.testing.assert_allclose([getattr(result, name) for name in NUMBERS], wanted, rtol=0, atol=1e-6)
    assert kept[1] == truth  # nothing of the caller's is changed
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(kept[0], predictions, strict=True))
    assert capfd.readouterr() == ("", "")


def test_nothing_found_and_nothing_to_find(capfd):
    predictions, truth = scene(crowds=0)
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    for nothing in ([], [{"image_id": 0, **empty}]):
        result = evaluate(nothing, truth)
        assert {getattr(result, name) for name in NUMBERS} == {0.0}
    assert np.isnan(evaluate([], {**truth, "annotations": [], "images": []}).ap)
    for found in (predictions, []):
        result = evaluate(found, {**truth, "annotations": []})
        assert np.isnan([getattr(result, name) for name in NUMBERS]).all()
    assert capfd.readouterr() == ("", "")


def test_categories_and_errors_of_evaluate():
    predictions, truth = scene(crowds=0)
    result = evaluate(predictions, truth)
    turned = {**truth, "categories": truth["categories"][::-1]}  # labels count by rising id, not by order
    assert result.ap == evaluate(predictions, turned).ap > 0
    for annotation in truth["annotations"]:
        assert annotation.pop("area") == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3])
    assert result.ap == evaluate(predictions, truth).ap  # of the box, for want of another
    with pytest.raises(ValueError, match="1 to 3"):
        evaluate(predictions, {**truth, "categories": truth["categories"][:3]})
    for annotation in truth["annotations"]:
        annotation |= {"area": None, "iscrowd": None}
    assert result.ap == evaluate(predictions, truth).ap
    twice = {**truth, "categories": [*truth["categories"], truth["categories"][0]]}
    as_floats = [{**one, "labels": one["labels"].float()} for one in predictions]
    assert result.ap == evaluate(predictions, twice).ap == evaluate(as_floats, truth).ap  # a label still means the same
    for kind in (tuple, np.array, torch.tensor):
        others = [{**annotation, "bbox": kind(annotation["bbox"])} for annotation in truth["annotations"]]
        assert evaluate(predictions, {**truth, "annotations": others}).ap == pytest.approx(result.ap)
    first = truth["annotations"][0]
    for wrong in (
        {"bbox": [1, 2, 3]},
        {"bbox": ["1", "2", "3", "4"]},
        {"bbox": [1, 2, float("nan"), 4]},
        {"image_id": 99},
        {"category_id": "2"},
        {"iscrowd": "0"},
        {"area": "60"},
        {"area": float("inf")},
        {"area": -1},
        {"bbox": [30, 30, -10, -10]},
    ):
        with pytest.raises(ValueError, match=r"annotation \(=.*\) of ground_truth must have an image_id of images"):
            evaluate(predictions, {**truth, "annotations": [{**first, **wrong}]})
    found = {key: value.numpy() if key != "image_id" else value for key, value in predictions[0].items()}
    for key, value, message in (
        ("boxes", found["boxes"].T, r"boxes \(4, 15\), scores \(15,\) and labels \(15,\) of image 0 must be \(N, 4\)"),
        ("scores", found["scores"][:, None], r"scores \(15, 1\)"),
        ("labels", found["labels"][1:], r"labels \(14,\)"),
        ("scores", found["scores"] * np.nan, "boxes and scores of image 0 must be finite"),
        ("boxes", found["boxes"][:, ::-1], "x1 y1 x2 y2 from low to high"),
        ("labels", found["labels"] + 0.5, "1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate([{**found, key: value}], truth)
    with pytest.raises(ValueError, match=r"image_id \(=0\) of predictions comes twice"):
        evaluate([predictions[0]] * 2, truth)
    with pytest.raises(ValueError, match=r"image_id \(=0.5\) of predictions is not in ground_truth"):
        evaluate([{**predictions[0], "image_id": 0.5}], truth)
    with pytest.raises(ValueError, match=r"image_id \(=0\) of predictions is not in ground_truth"):
        evaluate(predictions, {**truth, "images": truth["images"][1:]})


def test_evaluate_asks_for_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match="pip install faster-coco-eval"):
        evaluate([], {"images": [], "annotations": [], "categories": []})


# --- training ---


def rectangles(steps, images, seed, size=64):
    """Batches of one bright rectangle on black each."""
    draw, number = torch.Generator().manual_seed(seed), 0
    for _ in range(steps):
        pixels, targets = torch.zeros(images, 1, size, size, dtype=torch.uint8), []
        for image in range(images):
            sides = torch.randint(16, 33, (2,), generator=draw)
            corner = (torch.rand(2, generator=draw) * (size - sides)).long()
            x1, y1, x2, y2 = box = torch.cat([corner, corner + sides])
            pixels[image, 0, y1:y2, x1:x2] = 255
            targets.append({"boxes": box[None].float(), "labels": torch.tensor([1]), "image_id": number})
            number += 1
        yield pixels, targets


def learn(seed):
    torch.manual_seed(0)
    network = residual_space(9, in_channels=1, blocks=(1, 1, 1), widths=(8, 16, 16), stem_stride=2)
    detector = ssdlite(network, 1, 64, (4, 8), extra=(32,), scales=(0.25, 0.6), ratios=(2,), seed=seed)
    tests = list(rectangles(2, 16, seed=1))
    boxes = [(t["image_id"], t["boxes"][0].tolist()) for _, targets in tests for t in targets]
    annotations = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        for image, (x1, y1, x2, y2) in boxes
    ]
    truth = {"images": [{"id": image} for image, _ in boxes], "annotations": annotations, "categories": [{"id": 1}]}
    before = evaluate(detect(detector, tests), truth).ap50
    losses = train_detector(detector, rectangles(50, 16, seed=0), Schedule(steps=50, batch_size=16), seed=seed)
    assert not detector.training
    found = detect(detector, tests)
    assert [f["image_id"] for f in found] == list(range(32))
    return before, losses, evaluate(found, truth).ap50


def test_learns_and_repeats():
    before, losses, after = learn(0)
    assert before < 0.3 and after > 0.7 and losses[-1] < losses[0] / 2
    assert (before, losses, after) == learn(0)
    assert learn(1)[1] != losses


def test_too_few_batches():
    detector = ssdlite(residual_space(9, in_channels=1, blocks=(1, 1), widths=(8, 8)), 1, 64, (2,), extra=())
    with pytest.raises(ValueError, match="batches ended after 1 of the "):
        train_detector(detector, rectangles(1, 2, 0), Schedule(steps=2, batch_size=2))
    before = copy.deepcopy(detector.state_dict())
    with pytest.raises(ValueError, match="batches ended after 1 of the 2 steps of detector; give more batches or few"):
        train_detector(detector, list(rectangles(1, 2, 0)), Schedule(steps=2, batch_size=2))
    torch.testing.assert_close(detector.state_dict(), before, rtol=0, atol=0)  # known before any step


def test_a_batch_that_is_too_small_for_batchnorm_is_named():
    detector = ssdlite(residual_space(9, blocks=(1, 1), widths=(8, 8)), 2, 32, taps=(2,), extra=(8,) * 4)
    images, targets = batch(2, 3, 32)
    message = r"batch 1 of batches, images \(1, 3, 32, 32\), is too small for BatchNorm in training .*drop_last=True"
    with pytest.raises(ValueError, match=message):
        train_detector(detector, [(images, targets), (images[:1], targets[:1])], Schedule(steps=2))
