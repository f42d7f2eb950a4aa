"""All blocks trained in the same steps learn what each learns by itself."""

import copy
import dataclasses
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nkdlib.neighbourhoods import Recipe, distill
from nkdlib.networks import resnet
from nkdlib.training import Schedule, distill_end_to_end

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCHEDULE = Schedule(6, batch_size=16, lr=2e-2, weight_decay=1e-2, max_grad_norm=0.5)


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_gpu

    return bench_gpu


@pytest.fixture
def teacher():
    """A ResNet-8 with random weights."""
    return resnet(8, 10, seed=0, width=4)


@pytest.fixture
def inputs():
    """Batches of images and labels, 64 more than are held out."""
    images = torch.randn(320, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [(part, torch.zeros(len(part))) for part in images.split(80)]


def start(teacher, inputs):
    """The student that both methods begin with."""
    return distill(teacher, dict.fromkeys(teacher.block_names, 0.5), inputs, Recipe(Schedule(0), start="random"))


@pytest.mark.parametrize("amp", [False, True])
def test_blocks_trained_together_learn_what_distill_teaches_them(bench, teacher, inputs, amp):
    schedule = dataclasses.replace(SCHEDULE, amp=amp)
    recipe = Recipe(schedule, start="random", bn_images=0)
    alone = distill(teacher, dict.fromkeys(teacher.block_names, 0.5), inputs, recipe)
    student = start(teacher, inputs).recompose(teacher)
    together = bench.Together(bench.blocks(teacher, student, inputs, 320, amp), schedule)
    assert together.run() > 0
    torch.testing.assert_close(together.losses, torch.tensor([part.losses for part in alone.values()]))
    for name, part in alone.items():
        torch.testing.assert_close(student.get_submodule(name).state_dict(), part.module.state_dict())
    assert not torch.allclose(together.losses[:, 0], together.losses[:, -1], rtol=1e-3)


def test_the_student_in_one_piece_learns_what_end_to_end_distillation_teaches_it(bench, teacher, inputs):
    student = start(teacher, inputs).recompose(teacher)
    rival = copy.deepcopy(student)
    losses = distill_end_to_end(teacher, rival, inputs, SCHEDULE, temperature=bench.TEMPERATURE).losses
    together = bench.Together(bench.whole(teacher, student, inputs, 320), SCHEDULE)
    together.run()
    torch.testing.assert_close(together.losses, torch.tensor([losses]))
    torch.testing.assert_close(student.state_dict(), rival.state_dict())


def test_a_loss_that_is_not_finite_is_no_result(bench, teacher, inputs):
    part = bench.whole(teacher, start(teacher, inputs).recompose(teacher), inputs, 320)[0]
    part.loss = lambda rows: part.module(rows["images"]).sum() * torch.inf
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        bench.Together([part], SCHEDULE).run()


class Stream:
    """A stream that keeps what it waited for."""

    def __init__(self, *args):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


@pytest.fixture
def recording(monkeypatch):
    """CUDA's graphs on a CPU, where a capture records a step and does not run it: captures under way, and streams."""
    current, made, captures = [Stream()], [], []

    @contextmanager
    def use(stream):
        current.append(stream or current[-1])
        yield
        current.pop()

    @contextmanager
    def capturing(graph, stream):
        assert stream is current[-1] and stream in made  # not the default stream
        captures.append(graph)
        yield
        graph.replay = captures.pop()

    def stream(*args):
        made.append(Stream())
        return made[-1]

    for name, fake in {"stream": use, "graph": capturing, "Stream": stream, "CUDAGraph": SimpleNamespace}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    return captures, made


def test_with_a_graph_the_warm_up_counts_and_the_capture_does_not(bench, teacher, inputs, recording):
    captures, streams = recording
    eager, graphed = (start(teacher, inputs).recompose(teacher) for _ in range(2))
    first = bench.Together(bench.blocks(teacher, eager, inputs, 320), SCHEDULE)
    first.run()

    class Captured(bench.Together):
        def step(self):
            if captures:
                captures[0] = super().step
            else:
                super().step()

    second = Captured(bench.blocks(teacher, graphed, inputs, 320), SCHEDULE, graph=True)
    second.run()
    torch.testing.assert_close(second.losses, first.losses, rtol=0, atol=0)
    torch.testing.assert_close(graphed.state_dict(), eager.state_dict())
    *parts, main = streams
    assert [part.waited for part in parts] == [[main] * SCHEDULE.steps] * 3  # each forks from it
    assert main.waited[1:] == parts * SCHEDULE.steps  # and is joined again
