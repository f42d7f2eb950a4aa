"""README's generated parts, on references made up here, and README's length."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nkdlib.compendium import readme
from nkdlib.compendium.claims import CLAIMS
from nkdlib.compendium.judge import Observation, Verdicts, judge
from nkdlib.compendium.readme import claims_table, committed, findings, in_words, parts, strongest, updated
from nkdlib.compendium.verify import Record

ROOT = Path(__file__).parents[1]
OLD = "README's generated parts are out of date; run python -m nkdlib.compendium.readme"


def record(profile="cpu", values=(2.0, 2.1, 2.2), only="", **others):
    """A reference in which every criterion was observed, those of one claim, or single metrics."""
    observed = []
    for claim in CLAIMS:
        for metric in dict.fromkeys(c.metric for c in claim.criteria if c.applies(profile)):
            if claim.id.startswith(only):
                found = others.get(metric, values)
                observed += [Observation(claim.id, metric, seed, value) for seed, value in enumerate(found)]
    return Record(profile, Verdicts({claim.id: judge(claim, observed, profile) for claim in CLAIMS}), {})


def row(records, claim, root=ROOT / "none"):
    (line,) = [line for line in claims_table(strongest(records), root).splitlines() if f"**{claim}**" in line]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_without_a_reference_nothing_is_attempted_and_no_finding_is_told(tmp_path):
    assert claims_table(strongest([]), tmp_path).count("**not attempted**") == len(CLAIMS)
    assert not findings(strongest([]))
    assert "none is committed yet" in parts(strongest([]), tmp_path)["findings"]


def test_a_row_says_in_words_what_the_paper_says_and_what_was_measured():
    _, verdict, published, found, why = row([record()], "ND-1")
    assert (verdict, published) == ("**reproduced** (cpu)", "up to 4.6x at the same quality")
    assert found == "speed-up with a worker for each block: 2.1x [1.86, 2.36] (above 1)"  # our aims stand elsewhere
    assert why == "the mean does not reach the paper's 4.6"


def test_a_row_names_the_criteria_that_do_not_hold():
    assert row([record()], "ND-0")[1] == "**reproduced** (cpu)"
    assert row([record()], "ND-0")[4] == "every interval lies beyond its bound"
    part = row([record(minus_end_to_end_points=[-3.0, -3.1, -3.2])], "ND-0")
    assert part[1] == "**in part** (cpu)" and part[4] == "accuracy over end-to-end distillation is not above -1"
    unclear = row([record(kept_share=[0.4, 0.5, 0.7])], "ND-0")
    assert unclear[4] == "kept lead over a linear classifier: about 84 seeds would decide"
    missed = row([record(kept_share=[0.9, 0.9, None])], "ND-0")
    assert "kept lead over a linear classifier: not reached by seed 2, n=3" in missed[3]


def test_a_claims_own_sentence_takes_the_place_of_computed_reasons(monkeypatch):
    monkeypatch.setattr(readme, "CLAIMS", (replace(CLAIMS[0], why="Because."),))
    assert row([record()], "ND-0")[4] == "Because." and "no reference" in row([], "ND-0")[4]


def test_a_row_comes_from_the_strongest_tier_that_judged_its_claim():
    records = [record("night", only="ND-1"), record("cpu")]
    assert row(records, "ND-1")[1] == "**reproduced** (night)" and row(records, "ND-3")[1] == "**reproduced** (cpu)"
    assert row(records, "FG-1")[1] == "**not attempted**" and "only the tier paper" in row(records, "FG-1")[4]


def test_a_claim_that_no_tier_here_can_decide_shows_our_aims():
    found = row([record("night", only="ND-1"), record("cpu")], "FG-1")[3]
    assert found.startswith("*our aims:*<br>Top-1 lost at 2.6M: 2.1 points [1.85, 2.35] (below 4)<br>FiGS ")
    assert "*our aims:*" not in row([record("cpu")], "ND-1")[3]


def test_a_row_links_the_executed_notebook_where_one_is_kept(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "02_distillation_speed.ipynb").touch()
    assert "](notebooks/02_distillation_speed.ipynb)" in row([record()], "ND-1", tmp_path)[0]
    (tmp_path / "figures" / "cpu").mkdir(parents=True)
    (tmp_path / "figures" / "cpu" / "02_distillation_speed.ipynb").touch()
    assert "](figures/cpu/02_distillation_speed.ipynb)" in row([record()], "ND-1", tmp_path)[0]
    assert "](" not in row([record()], "ND-0", tmp_path)[0]


def test_findings_are_filled_with_means_and_intervals_and_say_the_side():
    values = {"local_minus_random_points": [-4.0, -5.0, -6.0], "exact_minus_local_points": [-1.0, 0.5, 2.0]}
    speed, choice, noise, closed, search = findings(strongest([record(**values)]))
    assert "With one worker for both it is 2.1 [1.86, 2.36] times as fast, and against ideal" in speed
    assert "5 [2.52, 7.48] points worse than choosing at random" in choice
    assert "0.5 [-3.23, 4.23] points better (not settled) than the local one" in choice
    assert "2.1 [1.85, 2.35] points above the same student" in noise and closed.startswith("- **Closed form.** ")
    assert "with 2.1 [1.85, 2.35] points more accuracy" in search


def test_a_finding_is_left_out_where_something_was_not_judged():
    assert len(findings(strongest([record(only="ND-1")]))) == 2
    assert len(findings(strongest([record(only="ND-1", speedup_one_worker=[2.0, None, 2.1])]))) == 1
    assert not findings(strongest([record("smoke")]))


def test_the_picture_shows_each_claim_at_its_strongest_tier(tmp_path):
    assert "comes with the first reference" in parts(committed(tmp_path), tmp_path)["picture"]
    record("cpu").write(tmp_path / "cpu" / "reference.json")
    record("night", only="FG-3").write(tmp_path / "night" / "reference.json")
    rows = committed(tmp_path)
    assert 'src="figures/claims.png"' in parts(rows, tmp_path)["picture"]
    words = in_words(rows)
    assert "ND-0: reproduced (cpu); kept lead over a linear classifier 2.1 [1.85, 2.35; n=3], holds; " in words
    assert ". FG-3: reproduced (night); " in words
    assert words.endswith("; FiGS over DARTS for cells 2.1 [1.85, 2.35; n=3], holds.")


def test_a_part_is_put_between_its_marks():
    text = "before\n<!-- claims:begin -->\nold\n<!-- claims:end -->\nafter\n"
    assert updated(text, {"claims": "new\n"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="no <!-- findings:begin --> followed by <!-- findings:end -->"):
        updated(text, {"findings": "new\n"})


def test_readme_is_written_and_a_page_without_marks_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readme, "checkout", lambda: tmp_path)
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text().replace("not attempted", "praised"))
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    assert readme.main() == 0 and "praised" not in page.read_text()
    page.write_text("no marks")
    assert readme.main() == 2 and "findings:begin" in capsys.readouterr().err and page.read_text() == "no marks"


def test_the_readme_agrees_with_the_committed_references():
    text = (ROOT / "README.md").read_text()
    rows = committed(ROOT / "figures")
    assert (ROOT / "figures" / "claims.alt.txt").read_text().strip() == in_words(rows), OLD
    expected = updated(text, parts(rows, ROOT))
    assert text == expected, OLD


def test_the_readmes_code_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for slow, fast in {'weights="DEFAULT"': "", "224, 224": "32, 32", "steps=100": "steps=2"}.items():
        assert slow in code
        code = code.replace(slow, fast)
    assert len(code.strip().splitlines()) <= 15
    exec(code, {})
    assert "layer2.1" in capsys.readouterr().out


@pytest.mark.parametrize("claims", [(), CLAIMS], ids=["as it is", "with every claim judged"])
def test_the_readme_is_two_screens_long(claims):
    text, rows = (ROOT / "README.md").read_text(), strongest([record()])
    if claims:
        text = updated(text, {"findings": "".join(findings(rows)), "claims": claims_table(rows, ROOT)})
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    assert len(re.findall(r"\S*\w\S*", prose)) <= 900
    for paragraph in re.split(r"\n\s*\n|\n- ", re.sub("(?m)^[|].*$", "", prose)):
        assert len(paragraph.split()) <= 60, paragraph
    names = {criterion.name for claim in CLAIMS for criterion in claim.criteria}
    assert not names & set(re.findall(r"\w+", text))  # words, never a metric's name
