"""The artefact cache: what a key depends on, what survives damage, kills and a full disk."""

import errno
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nkdlib.tasks import cache
from nkdlib.tasks.cache import Artefact, ArtefactDamaged, Cache, Task, open_artefact
from nkdlib.tasks.executors import Processes
from nkdlib.tasks.keys import fingerprint


@dataclass(frozen=True)
class Recipe:
    """A configuration."""

    steps: int = 3


class Data:
    """Something with a fingerprint."""

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def noise(seed, size=4):
    """Draw from the global generator and note the call."""
    noise.calls.append(seed)
    return {"values": torch.randn(size), "scalar": torch.tensor(seed), "seed": seed, "pair": (1, 2)}


def twice(parent):
    """Double an artefact."""
    return {"values": parent.tensors["values"] * 2}


def work(seed, recipe=None, data=None, dtype=None, layer=None):
    """Take arguments of every kind."""
    return {}


def fail(seed):
    """Fail for one seed."""
    if seed == 2:
        raise ValueError("no good")
    return {"seed": seed}


def die(seed):
    """Kill the worker, as the kernel does when memory runs out."""
    if seed == 1:
        os.kill(os.getpid(), 9)
    return {}


def matrix(seed):
    """Multiply matrices, whose sums depend on the number of threads."""
    a = torch.randn(300, 300, generator=torch.Generator().manual_seed(seed))
    return {"product": a @ a @ a, "drawn": torch.rand(3)}


@pytest.fixture(autouse=True)
def no_calls():
    """Forget earlier calls."""
    noise.calls = []


def tasks(fn, seeds):
    """Return one task per seed."""
    return [Task(fn, {"seed": seed}, f"{fn.__name__} {seed}") for seed in seeds]


def files(runs):
    """Return every file of the cache."""
    return sorted(path for path in runs.rglob("*") if path.is_file())


def test_a_result_is_made_once_and_read_after(runs):
    first = Cache().run(tasks(noise, [3, 1, 3]))
    again = Cache().run(tasks(noise, [3, 1, 3]))
    assert noise.calls == [3, 1]
    assert [made.info["seed"] for made in first] == [3, 1, 3]
    assert first == again and first[0].info == {"seed": 3, "pair": [1, 2]}
    assert torch.equal(first[0].tensors["values"], again[0].tensors["values"])
    assert first[0].path.parent == runs / "cache" / "noise"
    assert [path.name for path in files(runs) if path.suffix not in (".json", ".safetensors")] == []


def test_a_task_draws_the_same_numbers_wherever_it_stands(runs):
    alone = Cache(runs / "a").call(noise, seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    after_others = Cache(runs / "b").run(tasks(noise, [1, 2, 5]))[2]
    assert torch.equal(alone.tensors["values"], after_others.tensors["values"])
    assert torch.equal(before, torch.get_rng_state())


def test_an_artefact_is_an_argument_and_a_parent(runs):
    parent = Cache().call(noise, seed=1)
    child = Cache().call(twice, parent=parent)
    assert torch.equal(child.tensors["values"], parent.tensors["values"] * 2)
    reopened = pickle.loads(pickle.dumps(parent))
    assert isinstance(reopened, Artefact) and reopened == parent
    assert len(pickle.dumps(parent)) < 1_000
    assert list(parent.state("val")) == ["ues"]
    assert Cache().key(Task(twice, {"parent": Cache().call(noise, seed=2)}, "")) != child.key


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"seed": 0.0},
        {"recipe": Recipe(4)},
        {"data": Data("b")},
        {"dtype": torch.float64},
        {"layer": torch.nn.GELU},
        {"layer": noise},
        {"layer": torch.zeros(1)},
    ],
)
def test_every_argument_counts(changed):
    arguments = {
        "seed": 0,
        "recipe": Recipe(),
        "data": Data("a"),
        "dtype": torch.float32,
        "layer": torch.nn.ReLU,
    }
    assert Cache().key(Task(work, arguments, "a")) == Cache().key(Task(work, dict(arguments), "b"))
    assert Cache().key(Task(work, arguments, "")) != Cache().key(Task(work, arguments | changed, ""))


def test_a_module_counts_by_its_layers_settings_and_weights():
    def made(p=0.5, frozen=False, bias=0.0, mode=True):
        module = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(p)).requires_grad_(not frozen)
        torch.nn.init.constant_(module[0].weight, 1.0)
        torch.nn.init.constant_(module[0].bias, bias)
        return fingerprint(module.train(mode))

    assert made() == made() != made(mode=False)
    assert len({made(), made(p=0.1), made(frozen=True), made(bias=1.0)}) == 4


@pytest.mark.parametrize("value", [{1: 2}, {3}, object(), range(2), Path("data")])
def test_an_argument_without_canonical_form_is_named(value):
    with pytest.raises(TypeError, match="argument seed of work"):
        Cache().key(Task(work, {"seed": [value]}, ""))


def test_damage_of_every_kind_is_reported_and_made_good(runs):
    def truncate(path):
        path.write_bytes(path.read_bytes()[:-3])

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def a_file_instead(place):
        shutil.rmtree(place)
        place.write_text("what is this?")

    def another_artefact(place):
        shutil.rmtree(place)
        shutil.copytree(other, place)

    values = Cache().call(noise, seed=0).tensors["values"].clone()
    damages = [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")]
    everything = [(damage, name) for damage in damages for name in ("tensors.safetensors", "info.json")]
    everything.remove((Path.unlink, "info.json"))  # is written last: without it nothing is there
    everything += [(lambda path: path.write_text("[]"), "info.json"), (a_file_instead, ""), (another_artefact, "")]
    other = Cache().call(noise, seed=1).path
    for count, (damage, name) in enumerate(everything, start=2):
        place = Cache().call(noise, seed=0).path
        damage(place / name)
        cache._VERIFIED.clear()  # as in a new process
        with pytest.warns(ArtefactDamaged, match=f"(?s){place.name}.*made anew"):
            again = Cache().call(noise, seed=0)
        assert torch.equal(again.tensors["values"], values)
        assert len(noise.calls) == count + 1
        assert len(files(runs)) == 4


def test_a_damaged_parent_is_an_error_in_a_task(runs):
    parent = Cache().call(noise, seed=0)
    (parent.path / "info.json").write_text("{}")
    with pytest.raises(ArtefactDamaged, match=r"digest of info\.json differs"):
        open_artefact(parent.path)


def test_a_full_disk_names_the_place_and_the_need(runs, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nkdlib.tasks.places.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        Cache().call(noise, seed=0, size=1_000)
    assert any("bytes are needed" in note and "noise" in note and "NKD_RUNS" in note for note in caught.value.__notes__)
    assert files(runs) == []


def test_of_two_writers_one_stands(runs):
    made = Cache().call(noise, seed=0)
    contents = {path.name: path.read_bytes() for path in made.path.iterdir()}
    values = made.tensors["values"]  # mapped from the file of the first
    assert cache._keep((made.path, dict(sorted(contents.items(), reverse=True)))) == made
    assert sorted(os.listdir(made.path)) == sorted(contents) and torch.equal(values, made.tensors["values"])


def test_a_killed_writer_leaves_no_artefact_and_is_swept(runs):
    made = Cache().call(noise, seed=0)
    written, left = made.path / ".info.json.1.tmp", made.path / ".info.json.2.tmp"
    for file in (written, left):
        file.touch()
    os.utime(left, (0, 0))
    (made.path / "info.json").unlink()
    assert Cache().call(noise, seed=0) == made and len(noise.calls) == 2
    assert written.exists() and not left.exists()


def test_the_first_failure_is_raised_with_its_label(runs, capsys):
    with pytest.raises(ValueError, match="no good") as caught:
        Cache().run(tasks(fail, [1, 2, 3]))
    assert "in task 'fail 2'" in caught.value.__notes__
    assert len(list((runs / "cache" / "fail").iterdir())) == 1  # 1 is kept, 3 was not begun
    assert "fail 1: 1/3 tasks, stopped" in capsys.readouterr().out


def test_a_result_of_another_form_is_an_error():
    def wrong():
        return [1]

    def unkept():
        return {"value": object()}

    with pytest.raises(TypeError, match=r"wrong must return a dict of tensors"):
        Cache().call(wrong)
    with pytest.raises(TypeError) as caught:
        Cache().call(unkept)
    assert any("plain JSON" in note for note in caught.value.__notes__)


def test_workers_give_the_same_bits_and_a_killed_one_loses_only_its_own(runs):
    here = Cache(runs / "here").run(tasks(matrix, range(4)))
    with Processes(jobs=1) as executor:
        there = Cache(runs / "there").run(tasks(matrix, range(4)), executor)
        for a, b in zip(here, there, strict=True):
            assert a.key == b.key and a.info == b.info
            assert (a.path / "tensors.safetensors").read_bytes() == (b.path / "tensors.safetensors").read_bytes()
        with pytest.raises(RuntimeError, match="memory ran out; use fewer jobs"):
            Cache(runs).run(tasks(die, [0, 1]), executor)
        with pytest.raises(ValueError, match="no good") as caught:  # the pool starts again
            Cache(runs).run(tasks(fail, [1, 2]), executor)
        assert "in task 'fail 2'" in caught.value.__notes__


def test_the_ingredients_are_readable():
    content = json.loads((Cache().call(noise, seed=0).path / "info.json").read_text())
    assert content["ingredients"]["arguments"] == {"seed": 0}
    assert __name__ in content["ingredients"]["code"]
    assert content["ingredients"]["torch"] == torch.__version__


def test_an_input_is_made_when_its_task_is_missing_and_is_no_part_of_the_key(runs):
    made = []

    def half(x, boundary):
        return {"half": boundary / 2, "x": x}

    def draw(x):
        made.append(x)
        return torch.tensor(float(x))

    plan = [Task(half, {"x": x}, f"half of {x}", inputs={"boundary": lambda x=x: draw(x)}) for x in (1, 2)]
    first = Cache().run(plan)
    assert made == [1, 2] and [run.tensors["half"] for run in first] == [0.5, 1]
    assert Cache().run([*plan, Task(half, {"x": 3}, "half of 3", inputs={"boundary": lambda: draw(3)})])[:2] == first
    assert made == [1, 2, 3]
    with pytest.raises(ZeroDivisionError) as caught:
        Cache().run([Task(half, {"x": 4}, "half of 4", inputs={"boundary": lambda: 1 / 0})])
    assert "in an input of task 'half of 4'" in caught.value.__notes__


def test_the_longest_of_known_tasks_is_run_first_and_results_keep_their_order(runs, monkeypatch):
    class Watch:
        """Measures what a nap says it took; a real one could be held up by what else the machine does."""

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self.wall_s = self.cpu_s = order[-1]

    def nap(seconds, version):
        order.append(seconds)
        return {"seconds": seconds}

    def run(version, *naps):
        order.clear()
        tasks = [Task(nap, {"seconds": s, "version": version}, f"nap of {s}") for s in naps]
        assert [made.info["seconds"] for made in Cache().run(tasks)] == list(naps)
        return list(order)

    order: list = []
    (other := Cache().root / "nap" / "damaged").mkdir(parents=True)
    (other / "info.json").write_text("[]")
    monkeypatch.setattr(cache, "Stopwatch", Watch)
    assert run(1, 0.02, 0.0, 0.04) == [0.02, 0.0, 0.04]  # nothing is known yet
    assert run(2, 0.02, 0.0, 0.04) == [0.04, 0.02, 0.0]
    assert run(3, 0.02, 0.01, 0.04, 0.0) == [0.01, 0.04, 0.02, 0.0]  # 0.01 may be longer than all of them
