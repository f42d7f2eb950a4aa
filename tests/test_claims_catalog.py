"""The claims as data: what `claims.toml` says, and errors for what it must not say."""

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from nkdlib.compendium.claims import CLAIMS, FINDINGS, claim_by_id, read_claims, read_findings
from nkdlib.compendium.tiers import TIERS

ROOT = Path(__file__).parents[1]
SOUND = """
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
column = "paper"
asked = { sense = "above", bound = 1.0, unit = "x", tolerance = 0.3, scale = "log" }
published = 4.6
tiers = ["cpu", "gpu"]

[claim.ND-0.criterion.far_ahead]
metric = "speed"
words = "as speed"
column = "aim"
asked = { sense = "above", bound = 10.0, unit = "x", tolerance = 0.3, scale = "log" }
"""


def test_a_claim_is_read_from_toml():
    (claim,) = read_claims(SOUND)
    assert (claim.id, claim.notebook) == ("ND-0", "01_x")
    criterion = claim.criterion("speed")
    assert (criterion.sense, criterion.bound, criterion.published, criterion.seeds) == ("above", 1.0, 4.6, 3)
    assert criterion.tiers == ("cpu", "gpu") and hash(criterion)


def test_a_label_and_a_reason_are_words_and_change_no_criterion():
    (plain,) = read_claims(SOUND)
    (named,) = read_claims(SOUND.replace('words = "as', 'label = "a large speed-up"\nwords = "as'))
    assert [c.label for c in plain.criteria] == ["speed", "far ahead"] and named.criteria[1].label == "a large speed-up"
    assert named == plain  # a reference stays one when words for the reader are added


def test_a_finding_is_read_from_toml():
    (finding,) = read_findings('[finding.speed]\ntitle = "Speed"\nwords = "It takes {ND-0.speed}."')
    assert (finding.id, finding.title, finding.words) == ("speed", "Speed", "It takes {ND-0.speed}.")
    with pytest.raises(ValueError, match="speed: field `words` is missing"):
        read_findings('[finding.speed]\ntitle = "Speed"')


def test_two_criteria_may_read_one_metric():
    (claim,) = read_claims(SOUND)
    assert [(c.name, c.column) for c in claim.on("speed")] == [("speed", "paper"), ("far_ahead", "aim")]
    with pytest.raises(ValueError, match=r"metric \(='far_ahead'\) is not one of ND-0's: speed"):
        claim.on("far_ahead")


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
        ('words = "seconds over seconds"\n', "", "claim ND-0, speed: field `words` is missing"),
        ("bound = 1.0, ", "bounds = 1.0, ", "claim ND-0, speed: field `bounds` is unknown"),
        ('"above"', '"over"', r"sense \(='over'\) must be 'above' or 'below'"),
        ('"paper"', '"ours"', r"column \(='ours'\) must be 'paper' or 'aim'"),
        ('"log"', '"square"', r"scale \(='square'\) must be 'linear' or 'log'"),
        ("bound = 1.0", "bound = 0.0", r"bound \(=0.0\) and expected .* must be above 0 on the log scale"),
        ("published = 4.6", "expected = 4.6", "speed must have both `expected` and `spread`, or neither"),
        ("published = 4.6", "expected = 4.6\nspread = 0", r"spread \(=0\) must be above 0; take it from a rehearsal"),
        ('words = "as speed"', 'words = "as speed"\nseeds = 1', r"seeds \(=1\) must be at least 2"),
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
    assert ids == ["ND-0", "ND-1", "ND-2", "ND-3", "FG-1", "FG-2", "FG-3"]
    for claim in CLAIMS:
        assert all([claim.wording, claim.published, claim.source, claim.metric])
        assert "paper" in {criterion.column for criterion in claim.criteria}
        assert not re.search(r"\d", claim.why)  # numbers are computed
        for criterion in claim.criteria:
            assert criterion.label != replace(criterion, label="").label  # in words, not the metric's name
            assert criterion.words and criterion.unit and criterion.tolerance > 0
            assert set(criterion.tiers or ()) <= TIERS.keys()
            if criterion.published is not None:  # it lies beyond the bound
                assert (criterion.published > criterion.bound) == (criterion.sense == "above")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_names_a_notebook_code_and_tests_that_exist(claim):
    assert (ROOT / "notebooks" / f"{claim.notebook}.ipynb").is_file()
    assert claim.tests and all((ROOT / "tests" / f"{name}.py").is_file() for name in claim.tests)
    for package, name in (path.split(".") for path in claim.code):
        assert name in import_module(f"nkdlib.{package}").__all__


def test_findings_name_criteria_and_hold_no_number_of_their_own():
    named = [name for finding in FINDINGS for name in re.findall(r"{([\w-]+)\.(\w+)[:}]", finding.words)]
    assert len(FINDINGS) == 5 and len(named) >= 4
    for claim, criterion in named:
        assert claim_by_id(claim).criterion(criterion)
    assert not any(re.search(r"\d", re.sub("{.*?}", "", finding.words)) for finding in FINDINGS)


def test_published_values():
    published = {claim.id: claim.published for claim in CLAIMS}
    assert "4.6x" in published["ND-1"]
    assert "75.4 %" in published["FG-1"] and "2.6M" in published["FG-1"]
    assert "25.8" in published["FG-2"] and "3.0M" in published["FG-2"]
    assert claim_by_id("ND-1").criteria[0].published == 4.6
