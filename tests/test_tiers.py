"""Tiers: budgets, whose files name only parameters that the notebooks declare, with values of their types."""

from pathlib import Path

import papermill
import pytest
from joblib import cpu_count

from nkdlib.compendium.tiers import FOLDER, TIERS, Tier, check_parameters

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DECLARED = {"steps": {"inferred_type_name": "int"}, "rate": {"inferred_type_name": "float"}}


def test_every_file_is_a_tier_and_smoke_alone_judges_nothing():
    assert sorted(TIERS) == ["cpu", "gpu", "night", "paper", "smoke"]
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in TIERS}
    assert [name for name, tier in TIERS.items() if not tier.judged] == ["smoke"]
    assert all(tier.common["seeds"] >= 3 for tier in TIERS.values() if tier.judged)


def test_a_file_begins_with_what_it_is_what_it_costs_and_its_command():
    for name in TIERS:
        head, _, _ = (FOLDER / f"{name}.yaml").read_text().partition("judged:")
        assert head.startswith(f"# {name}: ")
        assert all(f"\n# {word:8} " in head for word in ("paper", "hours", "expect", "command")), name


def test_parameters_go_from_common_to_the_notebooks_to_the_users():
    tier = Tier("p", True, {"data": "digits", "device": "cpu", "seeds": 2}, {"01_x": {"steps": 3, "data": "own"}})
    common = {"profile": "p", "seeds": 2, "jobs": cpu_count(), "device": "cpu", "executor": "local"}
    assert tier.for_notebook("02_y") == common | {"data": "digits"}
    assert tier.for_notebook("01_x", seeds=None, jobs=7) == common | {"data": "own", "steps": 3, "jobs": 7}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_is_one_that_the_notebook_declares(path):
    declared = papermill.inspect_notebook(str(path))
    for tier in TIERS.values():
        check_parameters(tier.for_notebook(path.stem), declared)


def test_every_notebook_that_a_tier_names_exists():
    named = {stem for tier in TIERS.values() for stem in tier.notebooks}
    assert named <= {path.stem for path in NOTEBOOKS}


def test_a_misspelt_name_and_a_wrong_type_are_refused():
    check_parameters({"steps": 3, "rate": 1}, DECLARED)
    with pytest.raises(ValueError, match="declares no parameter `step`; the nearest it has: steps"):
        check_parameters({"step": 3}, DECLARED)
    for name, value in {"steps": 2.5, "rate": "1e-3"}.items():
        with pytest.raises(ValueError, match=f"declares {name} as .*, which '?{value}'? is not"):
            check_parameters({name: value}, DECLARED)
    with pytest.raises(ValueError, match="declares steps as int, which True is not"):
        check_parameters({"steps": True}, DECLARED)
