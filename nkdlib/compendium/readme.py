"""README's generated parts, from the committed references: the findings, the picture of all claims, their table.

`python -m nkdlib.compendium.readme` writes them into README.md, and the picture to figures/claims.png.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt

from nkdlib.compendium import plots, saving
from nkdlib.compendium.claims import CLAIMS, FINDINGS, Claim
from nkdlib.compendium.criteria import Assessment, Criterion, short
from nkdlib.compendium.judge import NOTHING, Judgement, Record, read_reference
from nkdlib.compendium.records import markdown
from nkdlib.tasks.places import checkout, figures_root, write_atomically

COLUMNS = ("claim", "verdict", "the paper says", "we measured", "why")
HEADLINES = ("night", "cpu")  # the tiers that README's verdicts come from, the strongest first
PICTURE = "claims"  # its name in figures/

Rows = Mapping[str, tuple[str, Judgement]]  # claim id -> the tier that judged it, and how


def strongest(records: Sequence[Record]) -> Rows:
    """Return each claim's judgement from the first record that judged it, or that observed it, or from the first."""
    rows = {}
    for claim in CLAIMS:
        found = [(record.profile, record.claims.get(claim.id, NOTHING)) for record in records]
        judged = [pair for pair in found if pair[1].verdict != NOTHING.verdict]
        observed = [pair for pair in found if pair[1].found]
        rows[claim.id] = [*judged, *observed, *found, ("", NOTHING)][0]
    return rows


class _Said:
    """A mean with its interval inside a sentence; a format `more|less` adds the word for its side of zero."""

    def __init__(self, found: Assessment):
        self.found = found

    def __format__(self, words: str) -> str:
        found, ends = self.found, [self.found.low, self.found.high]
        more, _, less = words.partition("|")
        sign = -1 if words and found.mean < 0 else 1
        low, high = sorted(sign * end for end in ends)
        said = f"{short(sign * found.mean)} [{short(low)}, {short(high)}]"
        return f"{said} {more if sign > 0 else less}{'' if found.side else ' (not settled)'}" if words else said


def findings(rows: Rows) -> list[str]:
    """Write the findings whose criteria were all judged."""
    seen = {claim: {} for claim in rows}
    for claim, (_, judgement) in rows.items():
        for name, found in judgement.found.items():
            if found.low is not None and found.outcome != "not judged":
                seen[claim][name] = _Said(found)
    names = {claim: SimpleNamespace(**found) for claim, found in seen.items()}
    said = []
    for finding in FINDINGS:
        with suppress(AttributeError):  # a criterion that was not judged
            said.append(f"- **{finding.title}.** {finding.words.format_map(names)}\n")
    return said


def measured(criterion: Criterion, found: Assessment) -> str:
    """Write what was measured for a criterion, in words."""
    unit = "x" if criterion.unit == "x" else f" {criterion.unit}"
    if found.low is None:
        return f"{criterion.label}: {found}"
    return f"{criterion.label}: {short(found.mean)}{unit} [{short(found.low)}, {short(found.high)}]"


def by_column(claim: Claim, judgement: Judgement, column: str) -> list[str]:
    """Write what was measured, with the bound, for the criteria of a column, "paper" or "aim"."""
    return [
        f"{measured(criterion, judgement.found[criterion.name])} ({criterion})"
        for criterion in claim.criteria
        if criterion.column == column and criterion.name in judgement.found
    ]


def why(claim: Claim, judgement: Judgement) -> str:
    """Say what lies behind a verdict: the claim's own sentence, else the criteria that do not hold."""
    if judgement.verdict == NOTHING.verdict:
        return judgement.reason
    said = []
    for criterion in claim.criteria:
        if criterion.column == "paper" and (found := judgement.found.get(criterion.name)):
            _, _, beside = found.words.partition("; ")
            outcomes = {"holds": beside, "open": f"{criterion.label}: {beside or found.words}"}
            said.append(outcomes.get(found.outcome, found.words))
    return claim.why or "; ".join(filter(None, said)) or "every interval lies beyond its bound"


def claims_table(rows: Rows, root: Path) -> str:
    """Write the claims as Markdown.

    Args:
        rows: from `strongest`.
        root: the checkout, to link the notebooks that exist, as they were executed if they are kept.
    """
    lines = []
    for claim in CLAIMS:
        tier, judgement = rows[claim.id]
        places = (f"figures/{tier}/{claim.notebook}.ipynb", f"notebooks/{claim.notebook}.ipynb")
        link = next((path for path in places if (root / path).exists()), "")
        title = f"**{claim.id}** " + (f"[{claim.title}]({link})" if link else claim.title)
        verdict = f"**{judgement.verdict}**" + (f" ({tier})" if judgement.verdict != NOTHING.verdict else "")
        found = "<br>".join(by_column(claim, judgement, "paper"))
        if not found and (aims := by_column(claim, judgement, "aim")):  # no tier so far decides the claim
            found = "<br>".join(["*our aims:*", *aims])
        lines.append((title, verdict, claim.published, found, why(claim, judgement)))
    return markdown(COLUMNS, lines)


def pictured(rows: Rows) -> list[tuple[str, str, list[tuple[Criterion, Assessment]]]]:
    """Return what the picture shows of each claim: its heading, its verdict, and the criteria that have an interval."""
    shown = []
    for claim in CLAIMS:
        tier, judgement = rows[claim.id]
        pairs = [(criterion, judgement.found.get(criterion.name)) for criterion in claim.criteria]
        heading = f"{claim.id}: {judgement.verdict}" + (f" ({tier})" if judgement.found else "")
        shown.append((heading, judgement.verdict, [pair for pair in pairs if pair[1] and pair[1].low is not None]))
    return shown


def in_words(rows: Rows) -> str:
    """Write every interval of the picture."""
    said = [
        "; ".join([heading, *(f"{criterion.label} {found}, {found.outcome}" for criterion, found in pairs)])
        for heading, _, pairs in pictured(rows)
        if pairs
    ]
    return f"Intervals against bounds. {'. '.join(said) or 'None yet'}."


def parts(rows: Rows, root: Path) -> dict[str, str]:
    """Return README's generated parts by name; arguments as for `claims_table`."""
    picture = "The picture of all claims comes with the first reference.\n"
    if any(judgement.found for _, judgement in rows.values()):
        image = f'src="figures/{PICTURE}.png" width="460"'
        picture = f'<img {image} alt="Every criterion\'s distance from its bound, by claim">\n'
    said = "".join(findings(rows)) or "They are computed from the reference, and none is committed yet.\n"
    return {"findings": said, "picture": picture, "claims": claims_table(rows, root)}


def committed(figures: Path) -> Rows:
    """Return each claim's judgement from the strongest reference in `figures` that has one."""
    return strongest([record for tier in HEADLINES if (record := read_reference(tier, figures))])


def updated(text: str, parts: Mapping[str, str]) -> str:
    """Return `text` with each part between its marks. Raises `ValueError` if a mark is missing."""
    for name, content in parts.items():
        begin, end = (f"<!-- {name}:{edge} -->\n" for edge in ("begin", "end"))
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise ValueError(f"the text has no {begin.strip()} followed by {end.strip()}; put both where it belongs")
        text = f"{before}{begin}{content}{end}{after}"
    return text


def main() -> int:
    """Write README's generated parts; 2 if it cannot be read or written."""
    try:
        root = checkout() or Path.cwd()
        page, rows = root / "README.md", committed(figures_root())
        write_atomically(page, updated(page.read_text(), parts(rows, root)).encode())
        with plt.style.context("nkdlib.compendium.figures"):
            drawn = plots.forest(pictured(rows))
            saving.save(drawn, figures_root() / PICTURE, in_words(rows))
            plt.close(drawn)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
