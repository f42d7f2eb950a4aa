"""Training in several processes: equal to one process, and to itself when it was cut off; each read image once.

Run by torchrun, this file is what the two processes do; the first time one of them is killed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from nkdlib.compendium.pictures import Order, Pictures, once
from nkdlib.compendium.scenes import write_scenes
from nkdlib.compendium.torchrun import main
from nkdlib.data import DataNotFound, load
from nkdlib.training import Parallel, Schedule, fit
from nkdlib.training.loop import Trainer
from nkdlib.training.parallel import joined

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
    sizes = ["--batch-size", "8", "--part", "4", "--data", str(folder / "scenes")]
    if task != "detect":
        sizes = ["--batch-size", "32", "--part", "16"]
    return [task, *COMMON.split(), *TASKS[task], *sizes, "--out", str(folder / out / task)]


def at(step, act):
    """Act after so many steps of all stages, once."""
    keep, done = Parallel.keep, []

    def then(self, *args):
        keep(self, *args)
        done.append(args[1])
        if len(done) == step:
            act()

    return then


def plain():
    """A network without BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def learned(parallel):
    """It and its losses, trained on digits; the whole batch at once where nothing is shared."""
    network, schedule = plain(), Schedule(steps=6, batch_size=32)
    batches = Pictures.open("digits").batches(schedule, parallel or Parallel(), 3, CPU)
    losses = fit(network, batches, schedule, label_smoothing=0.1, parallel=parallel)
    return {"losses": torch.tensor(losses), **network.state_dict()}


def work(folder):
    """What each of the two processes does."""
    with joined("cpu"):
        kept = Parallel.keep
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
            Parallel.keep = at(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        for task in TASKS:
            main(given(task, folder, "two"))
            Parallel.keep = kept
        torch.save(learned(Parallel(parts=2)), folder / f"plain{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where both ways have left their results."""
    folder = tmp_path_factory.mktemp("torchrun")
    for split, count in (("train", 16), ("val", 6)):
        write_scenes(load("digits", "test" if split == "val" else "train"), folder / "scenes", count, 64, split=split)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, *command, str(folder)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert ran.returncode == 0, ran.stderr
    (folder / "stderr").write_text(ran.stderr)
    for task in TASKS:
        main(given(task, folder, "one"))
    return folder


def left(folder):
    """Weights and result in a folder; how often BatchNorm was called is each process' own."""
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    result = json.loads((folder / "result.json").read_text())
    return {k: v for k, v in weights.items() if "num_batches" not in k}, result


def losses(folder):
    """Of every step of the last stage."""
    [path] = [path for path in folder.glob("*.pt") if path.stem != "search"]
    return torch.load(path)["state"]["losses"]


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


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_equal_one_bit_by_bit(task, folder):
    (two, result), (one, expected) = left(folder / "two" / task), left(folder / "one" / task)
    assert torch.equal(losses(folder / "two" / task), losses(folder / "one" / task))
    assert two.keys() == one.keys() and all(torch.equal(two[name], one[name]) for name in one)  # halves add exactly
    assert result == pytest.approx(expected)
    if task == "search":  # one was killed; what was lost was done again
        assert "exitcode: -9" in (folder / "stderr").read_text()
        assert (folder / "two/search/counts.json").read_text() == (folder / "one/search/counts.json").read_text()
        assert (folder / "two/search/history.json").read_text() == (folder / "one/search/history.json").read_text()


def test_without_batchnorm_two_processes_equal_one_with_the_whole_batch(folder):
    whole = learned(None)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(folder / f"plain{rank}.pt"), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("task", "step"), [("search", 3), ("search", 9), ("classify", 2), ("detect", 2)])
def test_a_training_goes_on_where_it_was_cut_off(task, step, folder, tmp_path, monkeypatch):
    arguments = [*given(task, folder, "again")[:-1], str(tmp_path)]

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parallel, "keep", at(step, stop))
        main(arguments)
    main(arguments)
    (again, result), (one, expected) = left(tmp_path), left(folder / "one" / task)
    assert all(torch.equal(again[name], one[name]) for name in one) and result == expected
    if task == "classify":
        assert main(arguments) == expected  # once more: nothing is left to do
        with pytest.raises(ValueError, match=r"lr \(=0.5\) was 0.01 when the training in .* began; give that again"):
            main([*arguments, "--lr", "0.5"])


def test_a_found_network_is_trained_from_scratch(folder, tmp_path):
    counts = folder / "one/search/counts.json"
    result = main([*given("classify", folder, "one")[:-1], str(tmp_path), "--counts", str(counts)])
    assert result["params"] == left(folder / "one/search")[1]["params"] <= 1500


def test_a_detector_begins_with_the_weights_that_it_is_given(folder, photographs):
    learned, held = photographs / "learned", photographs / "held"
    sizes = ["--space", json.dumps(DETECTING), "--batch-size", "8", "--part", "8", "--pixels", "32", "--steps", "2"]
    main(["classify", *COMMON.split(), *sizes, "--data", str(photographs), "--out", str(learned)])
    still = ["--lr", "1e-12", "--ema", "0", "--steps", "1", "--weights", str(learned / "weights.safetensors")]
    main([*given("detect", folder, "one")[:-1], str(held), *still])
    (trained, _), (carried, _) = left(learned), left(held)
    for layer in ("0.0", "6.paths.operators.3x3.0.0"):
        torch.testing.assert_close(carried[f"backbone.body.{layer}.weight"], trained[f"{layer}.weight"])


def test_averages_by_hand():
    model, x = nn.Linear(2, 1), torch.tensor([[1.0, -2.0]])
    trainer, expected = Trainer(model, Schedule(steps=3, lr=0.1, ema=0.2)), model.weight.detach().clone()
    for decay in (1 / 10, 2 / 11, 0.2):
        trainer.step(lambda: (model(x) - 1).square().sum())
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert not torch.allclose(model.weight, expected)
    trainer.finish()
    torch.testing.assert_close(model.weight.detach(), expected)


def test_parts_count_alike_in_loss_gradient_and_statistics():
    norm, parts = nn.BatchNorm1d(1, momentum=0.5), [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])]
    trainer = Trainer(norm, Schedule(steps=1, max_grad_norm=None))
    trainer.step(*(lambda x=x: (norm(x) * x).mean() for x in parts))
    slopes = [(x * (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()).mean() for x in parts]
    assert norm.weight.grad.item() == pytest.approx(sum(slopes).item() / 2, rel=1e-5)
    assert norm.bias.grad.item() == 4.0  # the mean of 1 and 7
    assert norm.running_mean.item() == 2.0  # half of the same
    assert norm.running_var.item() == 0.5 + 0.5 * (2 + 18) / 2


def test_labels_are_smoothed_and_products_are_in_bfloat16():
    model, x, labels = nn.Linear(3, 4), torch.randn(5, 3), torch.arange(5) % 4
    with torch.no_grad():
        logs = model(x).log_softmax(1)
        wanted = -(0.9 * logs[torch.arange(5), labels] + 0.1 * logs.mean(1)).mean()
    assert fit(model, [(x, labels)], Schedule(steps=1), label_smoothing=0.1) == pytest.approx([wanted.item()])
    types, trainer = [], Trainer(model, Schedule(steps=1, amp=True))
    trainer.step(lambda: F.cross_entropy(types.append(y := model(x)) or y, labels))
    assert types[0].dtype == torch.bfloat16 and model.weight.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, where threads run
def test_crops_depend_on_seed_step_and_image_alone(photographs, monkeypatch):
    pictures, schedule = Pictures.open(str(photographs), 16), Schedule(steps=5, batch_size=8)

    def drawn(parallel, seed=0, workers=0):
        return list(pictures.batches(schedule, parallel, seed, CPU, workers))

    whole, parts = drawn(Parallel()), drawn(Parallel(parts=2))
    assert [len(labels) for _, labels in parts] == [4] * 10 and whole[0][0].shape == (8, 3, 16, 16)
    for place, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([parts[2 * place][0], parts[2 * place + 1][0]]), x)
        assert torch.equal(torch.cat([parts[2 * place][1], parts[2 * place + 1][1]]), y)
    assert not torch.equal(drawn(Parallel(), seed=1)[0][0], whole[0][0])
    second = Parallel(parts=2)
    second.own = range(1, 2)
    monkeypatch.setattr(Parallel, "start", 2)
    later = drawn(second, workers=2)
    assert len(later) == 3 and all(torch.equal(x, parts[5 + 2 * k][0]) for k, (x, _) in enumerate(later))
    [(x, y)] = pictures.validation(Parallel(), CPU)
    assert x.shape == (4, 3, 16, 16) and y.tolist() == [0, 0, 1, 1]
    assert x[0, 0, -1, 0].item() == pytest.approx((12 * 14 / 255 - 0.485) / 0.229, abs=1e-5)


def test_every_image_is_read_once_an_epoch():
    order = Order(12, Schedule(steps=6, batch_size=4), 0, Parallel(parts=2))
    places = [place for part in order for place in part]
    for epoch in (0, 1):
        assert sorted(place for step, place in places if step // 3 == epoch) == list(range(12))
    ranks = [Parallel(), Parallel()]
    for rank, parallel in enumerate(ranks):
        parallel.rank, parallel.size = rank, 2
    read = [place for parallel in ranks for batch in once(7, 2, parallel) for _, place in batch]
    assert sorted(read) == list(range(7))


def test_what_cannot_be_shared_is_named(photographs):
    with pytest.raises(ValueError, match=r"parts \(=0\) of a batch must be a multiple of the 1 processes"):
        Parallel(parts=0)
    with pytest.raises(ValueError, match=r"ema \(=1.0\) is a decay; choose 0 to below 1"):
        Schedule(ema=1.0)
    with pytest.raises(ValueError, match=r"batch_size \(=6\) must be a multiple of the 4 parts, and no more than 8"):
        Order(8, Schedule(batch_size=6), 0, Parallel(parts=4))
    with pytest.raises(DataNotFound, match=r"data \(=nowhere\) must be one of digits.*nowhere/train and nowhere/val"):
        Pictures.open("nowhere")
    (photographs / "train" / "c").mkdir()
    (photographs / "train" / "a" / "0.png").rename(photographs / "train" / "c" / "0.png")
    with pytest.raises(ValueError, match=r"must have the same classes; they differ in \['c'\]"):
        Pictures.open(str(photographs))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
