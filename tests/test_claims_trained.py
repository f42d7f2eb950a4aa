"""What torchrun trained, as observations of the paper's size."""

import json

import pytest

from nkdlib.claims.judge import judge
from nkdlib.claims.observations import read_observations
from nkdlib.claims.trained import observe

IMAGENET = {"task": "classify", "classes": 1_000, "images": 50_000, "params": 2_599_988, "macs": 3.5e8}
COCO = {"task": "detect", "classes": 80, "images": 5_000, "params": 3_000_000, "macs": 5e8}


@pytest.fixture
def left(tmp_path, monkeypatch):
    """Write what a training leaves; return its folder."""
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))

    def write(name, **result):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        return tmp_path / name

    return write


def test_trainings_are_judged_at_the_papers_size(left):
    scores = [75.4, 75.3, 75.5, 75.4, 75.3]
    folders = [left(f"scratch-{k}", **IMAGENET, seed=k, accuracy=score) for k, score in enumerate(scores)]
    written = observe([*folders, left("boxes-0", **COCO, seed=0, map=25.0)])
    assert [folder.name for folder in written] == ["05_figs_classification", "06_figs_detection"]
    found = read_observations("paper")
    assert [o.value for o in found if o.claim == "FG-1"] == scores
    assert judge("FG-1", found, "paper").verdict == "reproduced"
    assert judge("FG-2", found, "paper").verdict == "not attempted"  # one seed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params": 2_700_000}, "has 2,700,000 params, the claim is about at most 2,650,000"),
        ({"classes": 100}, "has 100 classes, the claim is about 1,000"),
        ({"images": 49_999}, "has 49,999 images, the claim is about 50,000"),
        ({"task": "search"}, "is a search, which observes nothing; give classify or detect"),
    ],
)
def test_what_is_no_evidence_is_refused(left, change, said):
    with pytest.raises(ValueError, match=said):
        observe([left("scratch", **IMAGENET | change, seed=0, accuracy=75.0)])


def test_two_trainings_of_one_seed_are_refused(left):
    folders = [left(name, **IMAGENET, seed=3, accuracy=75.0) for name in ("a", "b")]
    with pytest.raises(ValueError, match="observed twice under seed 3"):
        observe(folders)
