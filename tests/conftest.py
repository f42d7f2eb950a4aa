"""Every test runs under one torch thread and keeps its results in a folder of its own."""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Point NKD_RUNS to a temporary folder and return it."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("NKD_RUNS", str(folder))
    monkeypatch.delenv("NKD_PROGRESS", raising=False)
    return folder
