"""The claims as data: what `claims.toml` says, and errors for what it must not say."""

from importlib import import_module
from pathlib import Path

import pytest

from nkdlib.compendium.claims import CLAIMS, claim_by_id, read_claims

ROOT = Path(__file__).parents[1]
SOUND = """
[notebooks]
01_x = { cpu = "a minute" }

[claim.ND-0]
paper = "ND"
title = "A title"
wording = "Some words."
published = "4.6x"
source = "abstract"
metric = "seconds"
notebook = "01_x"
code = ["neighbourhoods.split"]
tests = ["test_x"]

[claim.ND-0.criterion.speed]
words = "seconds over seconds"
asked = { sense = "above", bound = 1.0, reaches = 4.6, unit = "x", tolerance = 0.3 }
profiles = ["cpu", "gpu"]
"""


def test_a_claim_is_read_from_toml():
    (claim,) = read_claims(SOUND)
    assert (claim.id, claim.notebook, claim.cost["cpu"], claim.extension) == ("ND-0", "01_x", "a minute", False)
    criterion = claim.criterion("speed")
    assert (criterion.sense, criterion.bound, criterion.reaches, criterion.seeds) == ("above", 1.0, 4.6, 5)
    assert criterion.profiles == ("cpu", "gpu") and hash(criterion)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (
            'title = "A title"',
            'titel = "A title"',
            "claim ND-0: field `titel` is unknown; the fields are: id",
        ),
        ('title = "A title"\n', "", "claim ND-0: field `title` is missing"),
        ('notebook = "01_x"\n', "", "claim ND-0: field `notebook` is missing"),
        ('notebook = "01_x"', 'notebook = "09_y"', r"claim ND-0: `notebook` \(='09_y'\) is not one of: 01_x"),
        ('words = "seconds over seconds"\n', "", "claim ND-0, speed: field `words` is missing"),
        ("bound = 1.0, ", "bounds = 1.0, ", "claim ND-0, speed: field `bounds` is unknown"),
        ('"above"', '"over"', r"sense \(='over'\) must be 'above' or 'below'"),
        ("[claim.ND-0.criterion.speed]", "[claim.ND-0]", "Cannot declare .*ND-0.* twice"),
        ("[claim.ND-0]", "[claims.ND-0]", "table `claims` is unknown"),
        (SOUND[SOUND.index("[claim.ND-0.crit") :], "", "claim ND-0 has no `criterion`"),
    ],
)
def test_a_mistake_is_named_with_its_claim_and_field(old, new, error):
    assert old in SOUND
    with pytest.raises(ValueError, match=error):
        read_claims(SOUND.replace(old, new))


def test_the_catalog_is_whole():
    ids = [claim.id for claim in CLAIMS]
    assert ids == ["ND-0", "ND-1", "ND-2", "ND-3", "FG-1", "FG-2", "FG-3", "ND-1c", "ND-1e", "ND-1p"]
    for claim in CLAIMS:
        assert all([claim.wording, claim.published, claim.source, claim.metric, claim.cost["cpu"]])
        for criterion in claim.criteria:
            assert criterion.words and criterion.unit and criterion.tolerance > 0
            if criterion.reaches is not None:  # the published value lies beyond the bound
                assert (criterion.reaches > criterion.bound) == (criterion.sense == "above")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_names_a_notebook_code_and_tests_that_exist(claim):
    assert (ROOT / "notebooks" / f"{claim.notebook}.ipynb").is_file()
    assert claim.tests and all((ROOT / "tests" / f"{name}.py").is_file() for name in claim.tests)
    for package, name in (path.split(".") for path in claim.code):
        assert name in import_module(f"nkdlib.{package}").__all__


def test_published_values():
    published = {claim.id: claim.published for claim in CLAIMS}
    assert "4.6x" in published["ND-1"]
    assert "75.4 %" in published["FG-1"] and "2.6M" in published["FG-1"]
    assert "25.8" in published["FG-2"] and "3.0M" in published["FG-2"]
    assert claim_by_id("ND-1").criteria[0].reaches == 4.6
