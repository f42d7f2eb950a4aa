"""The library runs in a process that cannot import what only the compendium needs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPENDIUM_ONLY = (
    "IPython faster_coco_eval ipykernel ipywidgets jupyter_client jupyterlab matplotlib myst_nb nbclient nbformat "
    "papermill pycocotools seaborn sphinx tabulate yaml"
)
SCRIPT = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

class WithoutCompendium(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in {COMPENDIUM_ONLY.split()}
        return None if missing else super().find_spec(name, path, target)

sys.meta_path = [WithoutCompendium if finder is PathFinder else finder for finder in sys.meta_path]
assert not any(map(find_spec, {COMPENDIUM_ONLY.split()}))

import torch
from nkdlib.data import load
from nkdlib.detection import ssdlite
from nkdlib.figs import Search, search
from nkdlib.neighbourhoods import Library, Recipe, distill, solve
from nkdlib.networks import residual_space, resnet
from nkdlib.tasks import Cache
from nkdlib.training import Schedule

assert len(load("digits").classes) == 10
teacher, images = resnet(8, 10, seed=0).eval(), [torch.randn(96, 3, 16, 16)]
recipe = Recipe(Schedule(2, 16), holdout=32)
for run in (distill, solve):
    found = run(teacher, {{"layer1.0": 0.5}}, images, recipe)
    assert found.recompose(teacher)(images[0]).shape == (96, 10)
library = Library(teacher, {{"layer1.0": [0.5]}}, images[0], recipe, cache=Cache(sys.argv[1]))
library.fill()
assert library.best(params=74_000).costs["params"] <= 74_000

space, batch = residual_space(2, blocks=(1, 1), widths=(8, 8)), (torch.randn(16, 3, 8, 8), torch.arange(16) % 2)
assert search(space, batch[0][:1], [batch] * 10, 1_000, recipe=Search(Schedule(steps=10))).cost.params <= 1_000
detector = ssdlite(residual_space(10, blocks=(1, 1), widths=(8, 8)), 2, 32, taps=[1, 2], extra=[16]).eval()
assert len(detector(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))) == 1
"""


def test_the_library_runs_without_the_compendiums_packages(tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
