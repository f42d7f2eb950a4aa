"""Training in several processes: equal to one process, resumed after an interruption, each image read once.

As a program this file is the second of two processes; the first is the test's own.
"""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from nkdlib.compendium import torchrun
from nkdlib.compendium.pictures import open_pictures, training_batches, validation_batches
from nkdlib.compendium.scenes import write_scenes
from nkdlib.compendium.torchrun import main
from nkdlib.data import DataNotFound, load
from nkdlib.figs import Search, search
from nkdlib.training import Checkpoints, Schedule, fit
from nkdlib.training.distributed import data_parallel, process_group
from nkdlib.training.loop import Trainer

CPU = torch.device("cpu")
SPACE = {"stem": 8, "stages": [[3, 8, 1, 2], [3, 8, 1, 1]], "head": 16, "kernels": [3, 5]}
DETECTING = {"stem": 8, "stages": [[2, 8, 1, 1], *[[2, 8, 1, 2]] * 4], "head": 16, "kernels": [3]}
COMMON = "--device cpu --workers 0 --lr 1e-2 --warmup 0.1 --checkpoint-s 0 --ema 0.5"
TASKS = {
    "search": ["--data", "digits", "--steps", "10", "--target", "1500", "--space", json.dumps(SPACE)],
    "classify": ["--data", "digits", "--steps", "6", "--space", json.dumps(SPACE)],
    "detect": ["--steps", "3", "--pixels", "64", "--extra", "8", "--space", json.dumps(DETECTING)],
}


def given(task, folder, out):
    """The command's arguments; detectors read the scenes in `folder`."""
    sizes = ["--batch-size", "8", "--data", str(folder / "scenes")] if task == "detect" else ["--batch-size", "32"]
    return [task, *COMMON.split(), *TASKS[task], *sizes, "--out", str(folder / out / task)]


def plain():
    """A network without BatchNorm, whose gradient of a batch is the mean of its halves' gradients."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6, 10))


def digits(steps):
    train, _ = open_pictures("digits")
    return train.normalized(training_batches(train, 32, steps, seed=3), CPU)


def trained():
    """A plain network and its losses, trained on digits."""
    network = plain()
    losses = fit(data_parallel(network), digits(6), Schedule(steps=6, batch_size=32, ema=0.5), label_smoothing=0.1)
    return {"losses": torch.tensor(losses), **network.state_dict()}


def searched():
    """The history and weights of a search in a plain network."""
    example, recipe = torch.zeros(1, 1, 8, 8), Search(Schedule(10, 32), open_share=0.3)
    found = search(plain(), example, digits(10), 250, recipe=recipe, wrap=data_parallel)
    history = {name: torch.tensor(found.history[name]) for name in ("loss", "expected", "accuracy", "counted")}
    return {"cost": torch.tensor(found.cost.params), "log_odds": found.log_odds} | history | found.network.state_dict()


def work(folder):
    """Do the share of one of the two processes."""
    with process_group("cpu"):
        for task in TASKS:
            main(given(task, folder, "two"))
        for what in (trained, searched):
            torch.save(what(), folder / f"{what.__name__}{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of two processes and of one."""
    folder = tmp_path_factory.mktemp("torchrun")
    for split, count in (("train", 16), ("val", 6)):
        write_scenes(load("digits", "test" if split == "val" else "train"), folder / "scenes", count, 64, split=split)
    for task in TASKS:
        main(given(task, folder, "one"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    root = str(Path(__file__).parents[1])
    environment = os.environ | torchrun | {"RANK": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as second:
        try:
            assert second.stdout.readline() == "ready\n"  # else it failed before the first would wait for it
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # costs time only
                for name, value in (torchrun | {"RANK": "0"}).items():
                    patch.setenv(name, value)
                work(folder)
            second.communicate(timeout=60)
        finally:
            second.kill()
    assert second.returncode == 0
    return folder


def left(folder):
    """Weights and result in a folder."""
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    return weights, json.loads((folder / "result.json").read_text())


@pytest.fixture
def photographs(tmp_path):
    """Two classes of colored squares, as ImageNet lies on disk."""
    for number in range(20):
        part, kind = ("train", "val")[number % 5 == 4], "ab"[number % 2]
        (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (40, 30), (12 * number, 90, 200))
        image.paste((255, 255, 255), (number, 0, 40, 9))
        image.save(tmp_path / part / kind / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("work", [trained, searched])
def test_two_processes_equal_one(work, folder):
    whole = work()
    for rank in (0, 1):
        shared = torch.load(folder / f"{work.__name__}{rank}.pt", weights_only=True)
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_judge_the_network_that_they_leave(task, folder, tmp_path, monkeypatch):
    """One process that trains nothing and begins with the weights left by two finds their accuracy or precision."""
    weights, result = left(folder / "two" / task)
    arguments = [*given(task, folder, "two")[:-1], str(tmp_path)]
    monkeypatch.setattr(torchrun, "fit", lambda network, *_, **__: network.load_state_dict(weights))
    monkeypatch.setattr(torchrun, "train_detector", lambda network, *_, **__: network.eval().load_state_dict(weights))
    if task == "search":
        arguments = [*given("classify", folder, "two")[:-1], str(tmp_path)]
        arguments += ["--counts", str(folder / "two/search/counts.json")]
    again = main(arguments)
    assert again == pytest.approx(result | {"task": again["task"]})


@pytest.mark.parametrize(("task", "step"), [("search", 3), ("search", 9), ("classify", 2), ("detect", 2)])
def test_an_interrupted_training_is_resumed(task, step, folder, tmp_path, monkeypatch):
    arguments = [*given(task, folder, "again")[:-1], str(tmp_path)]
    save, saved = Checkpoints.save, []

    def interrupted(*given):
        save(*given)
        saved.append(given)
        if len(saved) == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", interrupted)
        main(arguments)
    main(arguments)
    (again, result), (one, expected) = left(tmp_path), left(folder / "one" / task)
    assert all(torch.equal(again[name], one[name]) for name in one) and result == expected
    if task == "classify":
        assert main(arguments) == expected  # nothing is left to do
        with pytest.raises(ValueError, match=r"lr \(=0.5\) was 0.01 when the training in .* began; give that again"):
            main([*arguments, "--lr", "0.5"])


def test_a_found_network_is_trained_from_scratch(folder, tmp_path):
    counts = folder / "one/search/counts.json"
    result = main([*given("classify", folder, "one")[:-1], str(tmp_path), "--counts", str(counts)])
    assert result["params"] == left(folder / "one/search")[1]["params"] <= 1500


def test_a_detector_begins_with_the_weights_that_it_is_given(folder, photographs):
    learned, held = photographs / "learned", photographs / "held"
    sizes = ["--space", json.dumps(DETECTING), "--batch-size", "8", "--pixels", "32", "--steps", "2"]
    main(["classify", *COMMON.split(), *sizes, "--data", str(photographs), "--out", str(learned)])
    still = ["--lr", "1e-12", "--ema", "0", "--steps", "1", "--weights", str(learned / "weights.safetensors")]
    main([*given("detect", folder, "one")[:-1], str(held), *still])
    (trained, _), (carried, _) = left(learned), left(held)
    for layer in ("0.0", "6.paths.operators.3x3.0.0"):
        torch.testing.assert_close(carried[f"backbone.body.{layer}.weight"], trained[f"{layer}.weight"])


def test_averages_by_hand():
    """The first step's weights, then decays of 2 / 11 and 0.2."""
    model, x = nn.Linear(2, 1), torch.tensor([[1.0, -2.0]])
    trainer = Trainer(model, Schedule(steps=3, lr=0.1, ema=0.2))
    weights = []
    for _ in range(3):
        trainer.step(lambda: (model(x) - 1).square().sum())
        weights.append(model.weight.detach().clone())
    expected = 0.2 * (2 / 11 * weights[0] + 9 / 11 * weights[1]) + 0.8 * weights[2]
    trainer.finish()
    torch.testing.assert_close(model.weight.detach(), expected)
    assert not torch.allclose(weights[2], expected)


def test_labels_are_smoothed_and_products_are_in_bfloat16(capability):
    capability("AVX512")
    model, x, labels = nn.Linear(3, 4), torch.randn(5, 3), torch.arange(5) % 4
    with torch.no_grad():
        logs = model(x).log_softmax(1)
        wanted = -(0.9 * logs[torch.arange(5), labels] + 0.1 * logs.mean(1)).mean()
    assert fit(model, [(x, labels)], Schedule(steps=1), label_smoothing=0.1) == pytest.approx([wanted.item()])
    types, trainer = [], Trainer(model, Schedule(steps=1, amp=True))
    trainer.step(lambda: F.cross_entropy(types.append(y := model(x)) or y, labels))
    assert types[0].dtype == torch.bfloat16 and model.weight.dtype == torch.float32


@pytest.fixture
def processes(monkeypatch):
    """Set the number of this process and of all."""

    def choose(rank, size):
        monkeypatch.setattr("nkdlib.compendium.pictures.rank_and_size", lambda: (rank, size))

    return choose


def test_crops_depend_on_seed_step_and_image_alone(photographs, processes):
    train, val = open_pictures(str(photographs), 16)

    def drawn(rank=0, size=1, seed=0, **options):
        processes(rank, size)
        return list(train.normalized(training_batches(train, 8, 5, seed, **options), CPU))

    whole, halves = drawn(), [drawn(rank, 2) for rank in (0, 1)]
    assert whole[0][0].shape == (8, 3, 16, 16) and all(len(labels) == 4 for half in halves for _, labels in half)
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *halves, strict=True):  # processes take turns
        assert torch.equal(torch.stack([x0, x1], 1).flatten(0, 1), x)
        assert torch.equal(torch.stack([y0, y1], 1).flatten(), y)
    assert not torch.equal(drawn(seed=1)[0][0], whole[0][0])
    later = drawn(1, 2, start=2, workers=2)
    assert len(later) == 3 and all(torch.equal(x, y) for (x, _), (y, _) in zip(later, halves[1][2:], strict=True))
    processes(0, 1)
    [(x, y)] = val.normalized(validation_batches(val), CPU)
    assert x.shape == (4, 3, 16, 16) and y.tolist() == [0, 0, 1, 1]
    assert x[0, 0, -1, 0].item() == pytest.approx((12 * 14 / 255 - 0.485) / 0.229, abs=1e-5)


def test_every_image_is_read_once_an_epoch(processes):
    numbers, read, judged = torch.arange(12), [], []
    for rank in (0, 1):
        processes(rank, 2)
        read.append(list(training_batches(numbers, 4, 6, seed=0)))
        judged += torch.cat(list(validation_batches(numbers[:7], 2))).tolist()
    for epoch in (0, 1):
        assert sorted(torch.cat([batch for half in read for batch in half[3 * epoch :][:3]]).tolist()) == list(
            range(12)
        )
    assert sorted(judged) == list(range(7))


def test_wrong_arguments_are_named(photographs, processes):
    with pytest.raises(ValueError, match=r"ema \(=1.0\) must be a finite number of at least 0 and below 1"):
        Schedule(ema=1.0)
    processes(0, 4)
    for size in (6, 12):
        with pytest.raises(
            ValueError, match=rf"batch_size \(={size}\) must be a multiple of the 4 processes, and no more "
        ):
            training_batches(torch.arange(8), size, 1, seed=0)
    with pytest.raises(DataNotFound, match=r"data \(=nowhere\) must be one of digits.*nowhere/train and nowhere/val"):
        open_pictures("nowhere")
    (photographs / "train" / "c").mkdir()
    (photographs / "train" / "a" / "0.png").rename(photographs / "train" / "c" / "0.png")
    with pytest.raises(ValueError, match=r"must have the same classes; they differ in \['c'\]"):
        open_pictures(str(photographs))


if __name__ == "__main__":
    print("ready", flush=True)
    work(Path(sys.argv[1]))
