"""A Ray cluster: the same bits as here, even if a node dies; large tensors travel once."""

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import torch
from torch import nn

from nkdlib.neighbourhoods import Recipe, distill
from nkdlib.neighbourhoods.local import train_local
from nkdlib.networks import resnet
from nkdlib.tasks.cache import Cache, Task
from nkdlib.tasks.executors import Processes, make_executor
from nkdlib.training import Schedule
from nkdlib.training.store import Store

RECIPE = Recipe(Schedule(3, batch_size=8, lr=2e-3), start="given", holdout=8, bn_images=8, solve_images=2)
DRIVER = """
from test_tasks_ray import tasks_of
from nkdlib.tasks.cache import Cache
from nkdlib.tasks.executors import make_executor
with make_executor("ray") as executor:
    Cache().run(tasks_of({notes!r})[::-1], executor)  # the one that waits comes last
"""


@pytest.fixture(scope="module")
def cluster():
    """A head without workers, and two nodes of one worker each, with object stores of their own."""
    pytest.importorskip("ray", reason="the cluster's tests need the package ray; install nkdlib[ray]")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def gpu_node(cluster):
    """One more node, with what it says is a GPU."""
    return cluster.add_node(num_cpus=1, num_gpus=1)


@pytest.fixture(scope="module")
def executor(cluster):
    """An executor on that cluster, whose tasks ask for no GPU."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("RAY_ADDRESS", cluster.address)
        variables.setenv("NKD_GPU_SHARE", "0")
        with make_executor("ray", jobs=4) as executor:
            yield executor


@pytest.fixture(scope="module")
def process():
    """An executor with a worker process on this machine."""
    with Processes(jobs=1) as executor:
        yield executor


def student():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def noted(notes, store, seed):
    """Distill one student, and note that it was begun; the first to distill seed 0 waits to be killed."""
    (Path(notes) / f"{seed}-{uuid.uuid4()}").touch()
    if seed == 0:
        try:
            (Path(notes) / "victim").open("x").write(node_of_this_process())
        except FileExistsError:
            pass
        else:
            time.sleep(600)
    torch.manual_seed(seed)
    return train_local("part", student(), store, RECIPE, seed)


def kept(parts):
    """Give back what arrives, after a step that changes statistics in place, as training does."""
    parts[1].train()(torch.ones(2, len(parts[1][2].running_mean)))
    return parts


def node_of_this_process():
    import ray

    return ray.get_runtime_context().get_node_id()


def tasks_of(notes):
    """Six tiny distillations on one store of boundaries, 0.6 MB."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 100, 3, 16, 16, generator=draw)
    return [Task(noted, {"notes": notes, "store": Store.of({"x": x, "y": y}), "seed": k}, f"{k}") for k in range(6)]


def times_begun(notes):
    """How often each task was begun."""
    names = [path.name.split("-")[0] for path in Path(notes).iterdir() if "-" in path.name]
    return [names.count(str(seed)) for seed in range(6)]


def wait_for(condition):
    until = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < until, "the cluster did not come that far"
        time.sleep(0.05)


def test_a_node_dies_and_the_results_are_the_same(cluster, executor, runs, tmp_path):
    (notes := tmp_path / "notes").mkdir()
    there = Cache(runs / "there")

    def kill():
        wait_for(lambda: (notes / "victim").exists() and len(list(there.root.glob("noted/*/info.json"))) >= 2)
        (node,) = [node for node in cluster.worker_nodes if node.node_id == (notes / "victim").read_text()]
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    made = there.run(tasks_of(str(notes)), executor)
    killer.join()
    assert times_begun(notes) == [2, 1, 1, 1, 1, 1]
    assert there.run(tasks_of(str(notes)), executor) == made and sum(times_begun(notes)) == 7
    for here, elsewhere in zip(Cache(runs / "here").run(tasks_of(str(notes))), made, strict=True):
        assert here.key == elsewhere.key and here.info["losses"] == elsewhere.info["losses"]
        assert (here.path / "tensors.safetensors").read_bytes() == (elsewhere.path / "tensors.safetensors").read_bytes()


def test_what_was_finished_survives_the_caller(cluster, gpu_node, runs, tmp_path):
    (notes := tmp_path / "notes").mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(notes=str(notes)))
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.DEVNULL) as driver:
        try:
            wait_for(lambda: (notes / "victim").exists() and len(list(Cache().root.glob("noted/*/info.json"))) == 5)
        finally:
            driver.kill()
    Cache().run(tasks_of(str(notes)))
    assert times_begun(notes) == [2, 1, 1, 1, 1, 1]


def test_boundaries_are_put_once_whatever_the_number_of_tasks(executor, monkeypatch):
    import ray

    put, sizes = ray.put, []
    monkeypatch.setattr(ray, "put", lambda content: sizes.append(content.nbytes) or put(content))
    teacher, images = resnet(8, 10, seed=0).eval(), torch.randn(64, 3, 32, 32)
    students = {"layer1.0": 0.5, "layer2.0": 0.5}
    recipe = Recipe(Schedule(1, batch_size=8, lr=2e-3), start="random", holdout=8, bn_images=8, solve_images=2)
    there = distill(teacher, students, [images], recipe, executor)
    before, between, after = (16 * channels * size**2 * 2 for channels, size in ((16, 32), (16, 32), (32, 16)))
    assert sorted(sizes) == [after, between, before]  # 16 images in float16, for both tasks
    here = distill(teacher, students, [images], recipe)
    assert [d.losses for d in there.values()] == [d.losses for d in here.values()]


def test_an_artefact_needs_no_disk_that_is_shared(executor, runs):
    def weights(seed):
        return {"w": torch.ones(50_000), "b": torch.ones(2), "seed": seed}

    def total(parent, again):
        assert not parent.path.exists() and parent is again["parent"]
        return {"total": float(sum(value.sum() for value in parent.tensors.values())), "seed": parent.info["seed"]}

    parent = Cache().call(weights, seed=7)
    assert len(parent.tensors) == 2
    shutil.rmtree(parent.path)
    (child,) = Cache().run([Task(total, {"parent": parent, "again": {"parent": parent}}, "total")], executor)
    assert child.info == {"total": 50_002, "seed": 7} and child.path.is_dir()


def test_a_failure_keeps_its_type_and_the_others_are_cancelled(executor):
    def fail(seed):
        if seed == 1:
            raise KeyError("no good")
        time.sleep(8)  # a cluster may overlook a cancellation

    with pytest.raises(KeyError, match="no good") as caught:
        Cache().run([Task(fail, {"seed": seed}, f"fail {seed}") for seed in range(1, 4)], executor)
    assert "in task 'fail 1'" in caught.value.__notes__
    assert executor.submit(os.getpid).result(timeout=180) != os.getpid()  # nothing stands in its way


def test_what_changed_in_place_is_put_again(executor):
    weight = torch.zeros(50_000)
    assert executor.submit(torch.sum, weight).result(timeout=180) == 0
    weight += 1
    assert executor.submit(torch.sum, weight).result(timeout=180) == 50_000


def test_a_task_has_its_share_of_a_gpu(gpu_node, executor, monkeypatch):
    def resources():
        import ray

        return ray.get_runtime_context().get_assigned_resources()

    assert executor.submit(resources).result(timeout=180) == {"CPU": 1}
    executor.shutdown()
    monkeypatch.delenv("NKD_GPU_SHARE")
    assert executor.submit(resources).result(timeout=180) == {"CPU": 1, "GPU": 0.25}  # four jobs share one


@pytest.mark.parametrize("kind", ["local", "ray"])
@pytest.mark.parametrize("size", [2, 200])
def test_tensors_arrive_as_they_were(request, kind, size):
    executor = request.getfixturevalue("executor") if kind == "ray" else request.getfixturevalue("process")
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(size, size)
    layer.weight.requires_grad_(False)
    maps = torch.randn(2, 3, size, size, generator=draw)
    sent = {
        "half": maps.half(),
        "channels last": maps.contiguous(memory_format=torch.channels_last),
        "view": maps[:, 1],
        "bools": maps > 0,
        "none": maps[:0],
        "scalar": torch.tensor(3),
        "learned": maps.clone().requires_grad_(True),
        "bfloat": maps.bfloat16(),
    }
    found, tied = executor.submit(kept, [sent, nn.Sequential(layer, layer, nn.BatchNorm1d(size))]).result(timeout=180)
    for name, value in sent.items():
        twin = found[name]
        assert torch.equal(twin, value) and twin.dtype == value.dtype and twin.requires_grad == value.requires_grad
        assert twin.stride() == value.stride() or name == "view"
    assert tied[0].weight is tied[1].weight and isinstance(tied[0].weight, nn.Parameter)
    assert [p.requires_grad for p in tied[0].parameters()] == [False, True] and tied[2].num_batches_tracked == 1
    assert torch.equal(tied[0].weight, layer.weight) and torch.equal(tied[0].bias, layer.bias)
