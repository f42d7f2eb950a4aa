"""What torchrun trained, as observations of the paper's size."""

import json

import pytest

from nkdlib.compendium.judge import judge
from nkdlib.compendium.trained import main, observe
from nkdlib.compendium.verify import read_observations

IMAGENET = {"found": True, "task": "classify", "classes": 1_000, "images": 50_000, "params": 2_599_988, "macs": 3.5e8}
COCO = {"found": True, "task": "detect", "classes": 80, "images": 5_000, "params": 3_000_000, "macs": 5e8}


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
        ({"params": 2_700_000}, "params are 2,700,000, the claim is about at most 2,650,000"),
        ({"classes": 100}, "classes is 100, the claim is about 1000"),
        ({"images": 49_999}, "images is 49999, the claim is about 50000"),
        ({"found": False}, "found is False, the claim is about True"),
        ({"task": "search"}, "a search observes nothing; give trainings of classify or detect"),
    ],
)
def test_what_is_no_evidence_is_refused(left, change, said):
    with pytest.raises(ValueError, match=said):
        observe([left("scratch", **IMAGENET | change, seed=0, accuracy=75.0)])


def test_a_worse_training_is_not_reproduced(left):
    observe(left(f"scratch-{seed}", **IMAGENET, seed=seed, accuracy=70.0 + seed / 10) for seed in range(5))
    assert judge("FG-1", read_observations("paper"), "paper").verdict == "not reproduced"


@pytest.mark.parametrize(
    ("content", "said"),
    [(json.dumps(IMAGENET), "no evidence: it has no 'seed'"), ("", "no evidence: Expecting value"), (None, "No such")],
)
def test_what_is_not_there_or_damaged_is_one_line(left, content, said, monkeypatch, capsys):
    path = left("scratch") / "result.json"
    path.write_text(content) if content is not None else path.unlink()
    monkeypatch.setattr("sys.argv", ["trained", str(path.parent)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_two_trainings_of_one_seed_are_refused(left):
    folders = [left(name, **IMAGENET, seed=3, accuracy=75.0) for name in ("a", "b")]
    with pytest.raises(ValueError, match="observed twice under seed 3"):
        observe(folders)
