"""`make lab` in a browser: progress that moves, objects that print themselves, errors that can be read."""

import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from trials.lab import CHROMIUM, lab

ROOT = Path(__file__).parents[1]
CELLS = [
    """
import time
from nkdlib.tasks.progress import progress
for _ in progress(range(20), "counting"):
    time.sleep(0.05)
""",
    """
import torch
from nkdlib.networks import resnet
from nkdlib.neighbourhoods import split
print(torch.get_num_threads())
split(resnet(8, 10), ["layer1.0", "layer2.0"], torch.zeros(1, 3, 16, 16))
""",
    """
import pandas as pd
from nkdlib.compendium import Results
results = Results("00_start_here", "smoke", {})
results.observe("ND-0", "one_drop_points", 0, 0.25)
display(results.table(pd.DataFrame({"network": ["teacher"], "params": [1184]}), "sizes", "Sizes"))
results.verdict("ND-0")
""",
    "from nkdlib.data import load\nload('fashon-mnist')",
]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
def test_a_new_user_sees_bars_tables_verdicts_and_errors(tmp_path, monkeypatch):
    clone = tmp_path / "a clone"
    (clone / "notebooks").mkdir(parents=True)
    (clone / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", clone)
    (clone / "nkdlib").symlink_to(ROOT / "nkdlib")
    python = clone / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    cells = [new_code_cell(source.strip()) for source in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), clone / "notebooks/00_start_here.ipynb")
    monkeypatch.setenv("NKD_RUNS", str(tmp_path / "runs"))
    with lab(clone) as user:
        user.open("00_start_here.ipynb")
        took = user.run_all(limit=60)
        assert took["done"] and took["bars"] == 1
        split, sizes = user.page.locator(".jp-OutputArea table").all()
        assert "layer2.0" in split.inner_text() and "not a result" in sizes.inner_text()
        aligned = [cell.evaluate("cell => getComputedStyle(cell).textAlign") for cell in sizes.locator("td").all()]
        assert aligned == ["left", "right"]
        threads, by_hand = (one["text"] for one in user.outputs("stream"))
        assert threads == "1\n" and by_hand.startswith(
            "run by hand: figures, tables and observations go to ../../runs/"
        )
        assert "NOT ATTEMPTED" in user.page.inner_text(".jp-OutputArea >> nth=2")
        (error,) = user.outputs("error")
        assert error["ename"] == "DataNotFound" and "digits, fashion-mnist, cifar10" in error["evalue"]
        assert not user.said
    assert {path.name for path in (clone / "notebooks").iterdir()} <= {"00_start_here.ipynb", ".ipynb_checkpoints"}
    assert not (clone / "runs").exists() and not (clone / "figures").exists()
