"""The library: when candidates are distilled, what they predict, and the networks that it builds.

Behind claim ND-2.
"""

import copy
import dataclasses
import itertools
import math
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.prune import l1_unstructured
from torch.utils.data import DataLoader, TensorDataset

from nkdlib.compendium.rivals.student_search import choose_at_random, choose_locally, choose_uniform
from nkdlib.neighbourhoods import Library, Recipe, local_error, recompose, solve
from nkdlib.neighbourhoods.local import STATE
from nkdlib.networks import BasicBlock, cost, resnet
from nkdlib.tasks import Cache, cache
from nkdlib.tasks.executors import Processes
from nkdlib.training import Schedule, Store, predict, reestimate_batchnorm

RECIPE = Recipe(Schedule(0), holdout=16, solve_images=64)
GIVEN = dataclasses.replace(RECIPE, start="given")
FLOAT = torch.float32
WIDTHS = {"0.25": 0.25, "0.5": 0.5, "6 channels": 6}


@pytest.fixture(scope="module")
def given():
    """A small teacher with BatchNorm statistics of its images, and 96 images."""
    torch.manual_seed(0)
    images = torch.einsum("oc,bchw->bohw", torch.randn(3, 3), torch.randn(96, 3, 8, 8))
    teacher = resnet(14, 5, seed=0, blocks=(1, 2, 1), widths=(8, 8, 12)).to(memory_format=torch.channels_last)
    return reestimate_batchnorm(teacher, [images]), images


@pytest.fixture
def made(monkeypatch):
    """The labels of the tasks that are run, and not read from the cache, by function."""
    calls, make = {"rank": [], "distill_candidate": [], "time_modules": []}, cache._make

    def noting(task, *rest):
        calls[task.fn.__name__].append(task.label)
        return make(task, *rest)

    monkeypatch.setattr(cache, "_make", noting)
    return calls


def make_library(given, recipe=RECIPE, **changes):
    """Candidates of four blocks, of which two keep the shape of their input and one has modules as candidates."""
    teacher, x = given
    torch.manual_seed(1)
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    pointwise = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    students = dict.fromkeys(teacher.block_names, WIDTHS)
    students["layer2.1"] = {"0.5": 0.5, "depthwise": depthwise, "1x1": pointwise}
    return Library(teacher, students, x, recipe, **changes)


@pytest.fixture(scope="module")
def library(given, tmp_path_factory):
    """A library that is filled."""
    filled = make_library(given, cache=Cache(tmp_path_factory.mktemp("runs")))
    filled.fill()
    return filled


def weights(composition):
    return {name: value.tolist() for name, value in composition.build().state_dict().items()}


class Scaled(nn.Module):
    """Reads an attribute of its part."""

    def __init__(self):
        super().__init__()
        self.part, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        self.part.scale = 2.0

    def forward(self, x):
        return self.head(self.part(x) * self.part.scale)


def test_a_part_with_an_attribute_that_others_read_is_not_left_out(tmp_path):
    library = Library(Scaled(), {"part": {}, "head": {}}, torch.randn(20, 3, 4, 4), GIVEN, Cache(tmp_path))
    assert {name: list(family) for name, family in library.candidates.items()} == {
        "part": ["teacher"],
        "head": ["teacher"],
    }


def test_promised_parameters_are_those_of_the_built_network_where_weights_are_shared(tmp_path):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(3, 6, 1), *blocks, nn.Conv2d(6, 2, 1))
    net[1][2].weight, net[2][2].weight = net[1][0].weight, net[2][0].weight
    small = {"small": nn.Conv2d(6, 6, 1)}
    library = Library(net, {"1": small, "2": small}, torch.randn(20, 3, 4, 4), GIVEN, Cache(tmp_path))
    library.fill()
    by_hand = {"teacher": 6 * 6 * 9 + 2 * 6, "small": 42, "identity": 0}
    for a, b in itertools.product(by_hand, repeat=2):
        composed = library.compose({"1": a, "2": b})
        assert composed.costs["params"] == cost(composed.build(), net[0].weight.new_zeros(1, 3, 4, 4)).params
        assert composed.costs["params"] == 24 + 14 + by_hand[a] + by_hand[b]
    net[2][2].weight = net[2][0].weight = net[1][0].weight
    with pytest.raises(ValueError, match=r"names holds '1', whose layer '1.0' shares a weight with '2.0' outside it"):
        Library(net, {"1": small}, torch.randn(20, 3, 4, 4), GIVEN, Cache(tmp_path))


def test_candidates_are_distilled_once_and_a_new_one_alone(given, made):
    first = make_library(given)
    with pytest.raises(ValueError, match=r"14 of 18 candidates have not been distilled; call fill\(\)"):
        first.best(params=1_000)
    everything = [(n, k) for n, family in first.candidates.items() for k in family if k != "teacher"]
    assert first.fill() == everything and made["distill_candidate"] == [" ".join(candidate) for candidate in everything]
    assert made["rank"] == list(first.candidates)  # once for all widths
    made["rank"].clear(), made["distill_candidate"].clear()
    again = make_library(given)
    assert again.fill() == first.fill() == [] and not made["distill_candidate"] and not made["rank"]
    assert weights(again.best(params=5_000)) == weights(first.best(params=5_000))
    again.add("layer1.0", "3 channels", 3)
    again.add("layer1.0", "random", 0.5, Recipe(Schedule(2, batch_size=8, lr=2e-3), start="random"))
    assert again.fill() == [("layer1.0", "3 channels"), ("layer1.0", "random")]
    assert made["distill_candidate"] == ["layer1.0 3 channels", "layer1.0 random"] and not made["rank"]


def test_an_interrupted_fill_resumes(given, made, monkeypatch):
    noting = cache._make

    def stopping(task, *rest):
        if len(made["distill_candidate"]) == 5:
            raise KeyboardInterrupt
        return noting(task, *rest)

    monkeypatch.setattr(cache, "_make", stopping)
    with pytest.raises(KeyboardInterrupt):
        make_library(given).fill()
    monkeypatch.setattr(cache, "_make", noting)
    assert len(make_library(given).fill()) == 14 - 5 and len(made["distill_candidate"]) == 14


def test_a_changed_teacher_image_or_ridge_makes_other_candidates(given, made):
    teacher, x = given
    make_library(given).fill()
    made["distill_candidate"].clear()
    other = copy.deepcopy(teacher)
    other.layer3[0].conv1.weight.data[0] += 0.1
    for changed in ((other, x), (teacher, x.flip(0))):
        assert len(make_library(changed).fill()) == 14
    assert len(make_library(given, dataclasses.replace(RECIPE, ridge=1e-2)).fill()) == 12  # not the identities
    assert make_library(given, dataclasses.replace(RECIPE, front_to_back=False)).fill() == []


def test_widths_from_one_gram_matrix_are_those_solved_one_by_one(given, library):
    teacher, x = given
    for name in ("layer1.0", "layer3.0"):
        for label, width in WIDTHS.items():
            student = solve(teacher, {name: width}, x, RECIPE)[name]
            found = library.candidates[name][label]
            state = student.module.state_dict()
            assert found.error == student.local_error and found.cost == student.cost
            assert all(torch.equal(found.artefact.state(STATE)[key], value) for key, value in state.items())


def test_a_block_of_two_groups_is_solved_as_it_is_alone():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 6, 1))
    teacher, x = nn.Sequential(block), torch.randn(80, 6, 5, 5)
    library = Library(teacher, {"0": [0.5, 0.75]}, x, RECIPE)
    library.fill()
    for label, width in {"0.5": 0.5, "0.75": 0.75}.items():
        student = solve(teacher, {"0": width}, x, RECIPE)["0"]
        found = library.candidates["0"][label].artefact.state(STATE)
        assert all(torch.equal(found[key], value) for key, value in student.module.state_dict().items())


def test_local_errors_are_those_of_held_out_images(given, library):
    teacher, x = given
    with torch.no_grad():
        h = teacher.layer2[0](teacher.layer1(teacher.stem(x[:16])))
        boundary = Store.of({"x": h.half(), "y": teacher.layer2[1](h).half()})
    family = library.candidates["layer2.1"]
    assert family["teacher"].error == 0.0
    assert family["identity"].error == pytest.approx(local_error(nn.Identity(), boundary), rel=1e-3)
    for label in ("0.5", "depthwise", "1x1"):
        chosen = {**dict.fromkeys(library.candidates, "teacher"), "layer2.1": label}
        student = library.compose(chosen).build(bn_images=0).layer2[1]
        assert family[label].error == pytest.approx(local_error(student, boundary), rel=1e-3)
    assert family["0.5"].error < family["1x1"].error


def test_predicted_costs_are_those_counted_on_the_built_network(given, library):
    _, x = given
    draw = random.Random(0)
    chosen = [{n: draw.choice(list(family)) for n, family in library.candidates.items()} for _ in range(12)]
    for labels in (dict.fromkeys(library.candidates, "teacher"), *chosen):
        composition = library.compose(labels)
        counted = cost(composition.build(), x[:1])
        assert composition.costs == {"params": counted.params, "macs": counted.macs}
        errors = [library.candidates[name][label].error for name, label in labels.items()]
        assert composition.error == pytest.approx(sum(errors))


def test_the_best_network_meets_several_budgets_and_is_the_teacher_under_the_teachers_costs(given, library):
    teacher, x = given
    whole = library.compose(dict.fromkeys(library.candidates, "teacher"))
    found = library.best(params=whole.costs["params"], macs=whole.costs["macs"])
    assert found.labels == whole.labels and found.error == 0.0
    assert torch.equal(predict(found.build(), [x]), predict(teacher, [x]))
    limits = {"params": 4_500, "macs": 250_000}
    found = library.best(**limits)
    assert all(found.costs[name] <= limit for name, limit in limits.items())
    rivals = [library.best(**limits, rule=rule) for rule in (choose_locally, choose_at_random)]
    rivals.append(library.best(params=4_500, rule=partial(choose_at_random, seed=3)))
    assert all(found.error <= rival.error for rival in rivals[:2]) and rivals[2].costs["params"] <= 4_500
    assert set(library.best(params=4_500, rule=choose_uniform).labels.values()) == {"0.5"}
    with pytest.raises(ValueError, match=r"params \(=10\) can be [\d,]+ at the smallest"):
        library.best(params=10)
    with pytest.raises(ValueError, match=r"must give a limit for one or more of \['macs', 'params'\]"):
        library.best(latency_ms=1.0)


@pytest.mark.parametrize("size", [2.0**-20, 2.0**20])
def test_errors_and_choices_do_not_depend_on_the_size_of_activations(size):
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)) for _ in range(2)]
    teacher, images = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), *parts), torch.randn(64, 3, 4, 4)
    found = []
    for factor in (1.0, size):
        teacher[0].weight.data *= factor
        library = Library(teacher, {"1": [2, 3, 4], "2": [2, 3, 4]}, images, dataclasses.replace(RECIPE, dtype=FLOAT))
        library.fill()
        errors = {n: {k: c.error for k, c in family.items()} for n, family in library.candidates.items()}
        found.append((errors, library.best(params=75).labels))
    assert found[0] == found[1] and 0.01 < found[0][0]["1"]["2"] < 1


def test_a_candidate_without_a_finite_error_is_never_chosen(given):
    torch.manual_seed(0)
    silent = nn.Conv2d(3, 3, 1)  # gives zeros: every other output is infinitely far from them
    nn.init.zeros_(silent.weight), nn.init.zeros_(silent.bias)
    library = Library(nn.Sequential(silent), {"0": {"other": nn.Conv2d(3, 3, 1, bias=False)}}, given[1], GIVEN)
    library.fill()
    assert library.candidates["0"]["other"].error == math.inf and "inf" in repr(library)
    assert {c.labels["0"] for c in library.sample(20)} == {"teacher"} == set(library.best(params=12).labels.values())
    with pytest.raises(ValueError, match=r"params \(=11\) can be 12 at the smallest"):
        library.best(params=11)


def test_a_random_sample_is_drawn_from_all_networks_and_from_its_seed(library):
    drawn = [tuple(c.labels.values()) for c in library.sample(40, seed=1)]
    assert drawn == [tuple(c.labels.values()) for c in library.sample(40, seed=1)] != library.sample(40, seed=2)
    for index, family in enumerate(library.candidates.values()):
        assert {labels[index] for labels in drawn} == set(family)


def test_device_seconds_count_each_ranking_once(given, made):
    library = make_library(given)
    library.fill()
    infos = [c.artefact.info for family in library.candidates.values() for c in family.values() if c.artefact]
    rankings = {round(info["ranking_s"], 9) for info in infos} - {0.0}
    assert len(rankings) == len(made["rank"]) == 4
    assert library.device_s == pytest.approx(sum(i["start_s"] + i["device_s"] for i in infos) + sum(rankings))


def test_a_built_network_is_plain_and_its_own(given, library, tmp_path):
    teacher, x = given
    composition = library.best(params=4_500)
    network, twin = composition.build(), library.compose(composition.labels).build()
    assert type(network) is type(teacher) and not network.training
    bare = composition.build(bn_images=0)
    students = {n: bare.get_submodule(n) for n in library.candidates}
    assert torch.equal(predict(recompose(teacher, students), [x]), predict(bare, [x]))
    torch.save(network.state_dict(), tmp_path / "network.pt")
    for parameter in twin.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    assert not torch.equal(predict(twin, [x]), predict(network, [x]))
    assert weights(composition) == {name: value.tolist() for name, value in network.state_dict().items()}
    twin.load_state_dict(torch.load(tmp_path / "network.pt"))
    assert torch.equal(predict(twin, [x]), predict(network, [x]))


def test_a_library_does_not_change_with_its_teacher_nor_change_it(given):
    teacher, x = copy.deepcopy(given[0]).train(), given[1]
    before = copy.deepcopy(teacher.state_dict())
    block = BasicBlock(8, 8, inner=2)
    kept = copy.deepcopy(block.state_dict())
    library = Library(teacher, {"layer1.0": {"mine": block}}, iter(x.split(40)), RECIPE)
    library.fill()
    assert all(module.training for module in teacher.modules()) and all(module.training for module in block.modules())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(torch.equal(kept[name], value) for name, value in block.state_dict().items())
    found = weights(library.compose({"layer1.0": "mine"}))
    for part in (teacher, block):
        for parameter in part.parameters():
            parameter.data.zero_()
    assert weights(library.compose({"layer1.0": "mine"})) == found and library.fill() == []


def test_gradient_steps_lower_the_error_of_a_start(given, library):
    name, recipe = "layer3.0", Recipe(Schedule(40, batch_size=32, lr=5e-3), holdout=16, solve_images=64, start="copied")
    trained = Library(given[0], {name: [0.25, 0.5]}, given[1], recipe)
    trained.fill()
    start = Library(given[0], {name: [0.25, 0.5]}, given[1], dataclasses.replace(recipe, schedule=Schedule(0)))
    start.fill()
    for label in ("0.25", "0.5"):
        assert trained.candidates[name][label].error < 0.8 * start.candidates[name][label].error
        info = trained.candidates[name][label].artefact.info
        assert len(info["losses"]) == 40 and info["device_s"] > 0


@pytest.mark.parametrize(
    "norm", [spectral_norm, partial(l1_unstructured, name="weight", amount=0.5)], ids=["spectral", "pruned"]
)
def test_candidates_with_weights_that_a_hook_computes_are_distilled_timed_and_built(norm):
    torch.manual_seed(0)
    teacher, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), norm(nn.Linear(6, 2))), torch.randn(64, 4)
    student = norm(nn.Linear(4, 6))
    for module in (teacher, student):
        module(x).sum().backward()
    library = Library(teacher, {"0": {"normed": student}}, x, dataclasses.replace(GIVEN, schedule=Schedule(2)))
    library.fill()
    library.measure_latency(repeats=6)
    built = library.compose({"0": "normed"}).build()
    error = (built[0](x[:16]) - (y := teacher[0](x[:16]))).square().mean() / (y - y.mean(0)).square().mean()
    assert library.candidates["0"]["normed"].error == pytest.approx(error.item(), rel=0.02)


def test_latencies_have_an_interval_and_are_kept(given, made):
    library = Library(given[0], {"layer1.0": WIDTHS, "layer2.1": WIDTHS}, given[1], RECIPE)
    library.fill()
    teachers = library.measure_latency(batch=4, repeats=12)
    # The teacher, and two neighbourhoods with the same input but for its height and width, in one go.
    assert made["time_modules"] == ["11 modules"]
    for family in library.candidates.values():
        for candidate in family.values():
            latency = candidate.latency
            assert 0 < latency.low_ms <= latency.ms <= latency.high_ms
            assert (latency.batch, latency.threads) == (4, 1) and latency.device
    whole = library.compose(dict.fromkeys(library.candidates, "teacher"))
    assert whole.costs["latency_ms"] == pytest.approx(teachers.ms)
    assert library.best(latency_ms=teachers.ms * 1.001, params=10**6).costs["latency_ms"] > 0
    with pytest.raises(ValueError, match=r"repeats \(=5\) must be at least 6"):
        library.measure_latency(repeats=5)
    made["time_modules"].pop()
    measured = whole.latency()  # as the parts were, whatever failed since
    assert 0 < measured.low_ms <= measured.high_ms and measured.batch == 4
    library.measure_latency(batch=4, repeats=12)
    assert made["time_modules"] == ["11 modules", "1 modules"]  # kept, like the candidates


def test_a_library_and_a_composition_print_as_tables(given, library):
    empty = make_library(given)
    assert "14 not distilled yet, call fill()" in repr(empty) and repr(empty).count("not distilled") == 15
    lines = repr(library).splitlines()
    assert lines[0].split()[:4] == ["neighbourhood", "candidate", "local", "error"]
    assert lines[-1] == "18 candidates of 4 neighbourhoods, 400 networks" and library.size == 5 * 4 * 5 * 4
    composition = library.best(params=4_500)
    assert f"predicted: sum of errors {composition.error:.4f}, {composition.costs['params']:,} par" in repr(composition)
    assert len(composition.table()) == 4
    assert "<table" in library._repr_html_() and "<table" in composition._repr_html_()


@pytest.mark.parametrize(
    ("label", "student", "recipe", "match"),
    [
        ("0.5", 0.5, None, r"label \(='0.5'\) is taken in 'layer1.0'"),
        ("new", nn.Conv2d(8, 9, 1), None, r"returns shape \(9, 8, 8\), the teacher's part \(8, 8, 8\)"),
        (
            "new",
            nn.Conv2d(8, 8, 1),
            Recipe(start="copied"),
            r"needs a width for students\['layer1.0'\]\['new'\]",
        ),
    ],
)
def test_candidates_that_do_not_fit_are_refused(library, label, student, recipe, match):
    with pytest.raises(ValueError, match=match):
        library.add("layer1.0", label, student, recipe)
    assert "new" not in library.candidates["layer1.0"]


def test_inputs_that_are_empty_or_shuffled_are_refused(given):
    shuffled = DataLoader(TensorDataset(given[1]), batch_size=96, shuffle=True)
    for inputs, match in (([], "inputs holds no batch"), (shuffled, "other images in every pass; give a loader")):
        with pytest.raises(ValueError, match=match):
            make_library((given[0], inputs))
    ordered = DataLoader(TensorDataset(given[1]), batch_size=96)
    make_library((given[0], ordered))


class Passes:
    """Batches of images that differ from pass to pass."""

    def __init__(self, first, *later):
        self.passes = itertools.chain([first, first], itertools.cycle(later))  # a library looks twice at the start

    def __iter__(self):
        return iter(next(self.passes))


def test_images_that_change_after_the_first_batch_are_refused_before_anything_is_distilled(given, made):
    teacher, x = given
    a, b, c = x.split(32)
    for later in ([a, c, b], [a, b, c + 1e-3 * torch.randn(32, 3, 8, 8)], [a, b], [a, b, c, c], [a, b, c[:16], c[16:]]):
        library = make_library((teacher, Passes([a, b, c], later)))
        with pytest.raises(ValueError, match="inputs gives other images in every pass; give a loader with shuffle=Fal"):
            library.fill()
    assert not any(made.values())
    make_library((teacher, Passes([a, b, c], [(a, 0), (b, 1), [c]]))).fill()  # labels and containers do not count


def test_labels_and_images_that_do_not_fit_are_refused(given, library):
    with pytest.raises(ValueError, match=r"labels\['layer1.0'\] \(='other'\) is no candidate; choose from \['teacher'"):
        library.compose({**dict.fromkeys(library.candidates, "teacher"), "layer1.0": "other"})
    with pytest.raises(ValueError, match=r"holds 96 images, recipe.holdout \(=95\) leaves fewer than 2 to learn from"):
        make_library(given, Recipe(Schedule(0), holdout=95)).fill()
    with pytest.raises(ValueError, match=r"of 'layer1.0' for 96 images .* memory_limit_gb \(=1e-06\); raise"):
        make_library((given[0], given[1].split(24)), Recipe(Schedule(0), holdout=16, memory_limit_gb=1e-6)).fill()


def test_candidates_are_the_same_however_many_passes_the_teacher_makes(given, library, tmp_path, capsys):
    recipe = dataclasses.replace(RECIPE, memory_limit_gb=2 * 96 * 2 * 8**3 / 1e9)  # one block of the first stage
    other = Library(given[0], {"layer1.0": WIDTHS, "layer2.1": WIDTHS}, given[1], recipe, Cache(tmp_path))
    other.fill()
    assert "pass 2 of 2" in capsys.readouterr().out
    for name, label in (("layer1.0", "0.5"), ("layer2.1", "0.5")):
        found, wanted = (each.candidates[name][label] for each in (other, library))
        assert found.error == wanted.error and found.artefact.key == wanted.artefact.key
        assert all(torch.equal(found.artefact.tensors[k], v) for k, v in wanted.artefact.tensors.items())


@pytest.fixture(scope="module")
def worker():
    """An executor with one process."""
    with Processes(1) as executor:
        yield executor


def test_workers_make_the_same_candidates(given, library, made, worker):
    other = make_library(given)
    other.fill(worker)
    assert not made["distill_candidate"]  # none in this process
    for name, family in library.candidates.items():
        for label, candidate in family.items():
            if label != "teacher":
                found = other.candidates[name][label]
                assert (found.artefact.key, found.error) == (candidate.artefact.key, candidate.error)
                assert all(torch.equal(found.artefact.tensors[k], v) for k, v in candidate.artefact.tensors.items())


def fill_and_choose(given, root):
    """Labels and weights of a choice from a library that another process fills as well."""
    library = make_library(given, cache=Cache(root))
    library.fill()
    composition = library.best(params=4_500)
    return composition.labels, weights(composition)


def test_two_processes_fill_one_library_at_once(given, worker, tmp_path):
    elsewhere = worker.submit(fill_and_choose, given, tmp_path)
    here = fill_and_choose(given, tmp_path)
    assert elsewhere.result() == here
    assert len(list((tmp_path / "cache" / "distill_candidate").iterdir())) == 14


class Words(nn.Module):
    """Token ids (B, L) to logits."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(20, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.norm(self.embed(ids).mean(1)))


def test_a_network_of_token_ids_is_timed_and_built():
    torch.manual_seed(0)
    words, ids = Words().eval(), torch.randint(20, (48, 5))
    low_rank = nn.Sequential(nn.Embedding(20, 2), nn.Linear(2, 6))
    library = Library(words, {"embed": {"low rank": low_rank}}, [ids], Recipe(Schedule(2, 16), holdout=16))
    library.fill()
    assert library.measure_latency(repeats=6).ms > 0
    network = library.compose({"embed": "low rank"}).build()
    seen = network.embed(ids).mean(1)
    torch.testing.assert_close(network.norm.running_mean, seen.mean(0))
    torch.testing.assert_close(network.norm.running_var, seen.var(0))
