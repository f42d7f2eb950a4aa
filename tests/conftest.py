"""Every test runs under one torch thread and keeps its results in a folder of its own."""

import os
import signal

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a script's background job; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("test_notebooks", "test_notebooks_figs", "test_tasks_ray", "test_runtime_run")  # begun first


def pytest_collection_modifyitems(items):
    """Put the files that take longest first, so that no worker ends alone with one of them."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@torch.no_grad()
def speaking(network, x):
    """Give BatchNorms scales of their own and the statistics of `x`, so that it reaches the end; evaluation mode."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
            for value, ends in ((layer.weight, (0.5, 1.5)), (layer.bias, (-0.5, 1.0))):
                if value is not None:
                    value.uniform_(*ends)
    network.train()
    network(x)
    network.eval()
    return network


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Point NKD_RUNS to a temporary folder and return it."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("NKD_RUNS", str(folder))
    monkeypatch.delenv("NKD_PROGRESS", raising=False)
    return folder


@pytest.fixture
def capability(monkeypatch):
    """Give this CPU's instructions another name."""
    return lambda name: monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """One folder for all notebooks, since the later ones and the report read what the earlier ones left."""
    return tmp_path_factory.mktemp("reproduce")
