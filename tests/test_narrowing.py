"""MobileNetV2 narrowed by rules: what each may cut, what budgets it can meet, and whose answers are learned.

Behind claim FG-1.
"""

import copy
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from torchvision.models import mobilenet_v2

from nkdlib import figs
from nkdlib.compendium import narrowing
from nkdlib.compendium.tiers import TIERS
from nkdlib.data import Images

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return narrowing.cost_model(mobilenet_v2().eval(), 32)


def test_gates_stand_inside_blocks_and_before_the_classifier(model):
    assert len(model.groups) == 17 and sum(model.sizes.values()) == 7_104 + 1_280
    assert all(len(group.producers) == 1 for group in model.groups.values())


def test_the_last_layer_alone_meets_no_budget_below_its_own_weight(model):
    # Each of its channels costs 320 weights before it, 2 of BatchNorm, and 1,000 behind it.
    last = narrowing.rules(model, 0)["last layer"]
    least = 3_504_872 - 1_279 * 1_322
    assert narrowing.fits(model, last, "params", least) and not narrowing.fits(model, last, "params", least - 1)
    counts = figs.keep_best(model, last, "params", 2.6e6)
    assert counts.pop("features.18.0") == 1_280 - 685 and all(counts[n] == model.sizes[n] for n in counts)
    read = model.network.classifier[1].weight.norm(dim=0)
    assert torch.equal(last["features.18.0"], read)


def test_uniform_width_keeps_the_channels_of_the_largest_weights(model):
    uniform, size = narrowing.rules(model, 0)["uniform"], figs.score_by_magnitude(model)
    for name, scores in uniform.items():
        assert scores.argsort().tolist() == size[name].argsort(descending=True, stable=True).flip(0).tolist()


def test_answers_are_the_networks_own_and_their_error_is_relative(model):
    network, x = copy.deepcopy(model.network), torch.randn(4, 3, 32, 32)
    [(images, answers)] = narrowing.with_answers(network, [(x, torch.zeros(4))], amp=False)
    assert torch.equal(images, x) and torch.equal(answers, network(x))
    assert narrowing.relative_error(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(0.5)


def test_seeds_see_other_photographs_first():
    pixels = torch.arange(64).view(64, 1, 1, 1).expand(-1, 3, 8, 8).byte()
    images = Images("gray", "all", pixels, torch.arange(64), tuple(map(str, range(64))), (0.5,) * 3, (0.5,) * 3)
    firsts = [next(iter(narrowing.crops_of(images, 8, 32, seed, "cpu")))[1].tolist() for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2] and len({*firsts[0]}) == 32


def test_notebooks_06_and_07_narrow_alike_so_that_one_reads_what_the_other_computed():
    paths = (NOTEBOOKS / "06_figs_imagenet.ipynb", NOTEBOOKS / "07_figs_detection.ipynb")
    first, second = ({key: one["default"] for key, one in papermill.inspect_notebook(path).items()} for path in paths)
    recipes = [[c for c in nbformat.read(path, 4).cells if c.source.startswith("# The recipe")] for path in paths]
    assert len(recipes[0]) == 1 and recipes[0][0].source == recipes[1][0].source
    shared = {"gate_lr", "moment_crops", "heal_steps", "stages", "search_steps", "photographs", "size", "judge"}
    shared |= {"weights", "amp"}
    assert {name: first[name] for name in shared} == {name: second[name] for name in shared}
    for name in ("cpu", "night"):
        tiers = [TIERS[name].for_notebook(path.stem) for path in paths]
        assert {key: tiers[0].get(key) for key in shared} == {key: tiers[1].get(key) for key in shared}
