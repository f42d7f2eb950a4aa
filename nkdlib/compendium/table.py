"""The claims table as Markdown; `python -m nkdlib.compendium.table --update README.md` puts it into a file."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from nkdlib.compendium.claims import CLAIMS, Claim
from nkdlib.compendium.criteria import Interval
from nkdlib.compendium.results import markdown
from nkdlib.compendium.verify import read_reference
from nkdlib.tasks.places import write_atomically

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
COLUMNS = ("claim", "published", "here: mean [95 % interval]", "verdict", "evidence", "cost")
UPDATE = "python -m nkdlib.compendium.table --update README.md"


def claims_table(reference: dict | None, notebooks: Path) -> str:
    """The papers' claims, then the extensions, as the reference judges them.

    reference: of one profile, None: nothing was attempted yet; notebooks: their folder, to link those that exist.
    """
    judged, profile = (reference or {}).get("claims", {}), (reference or {}).get("profile", "cpu")
    claims, extensions = (
        markdown(COLUMNS, [(*_row(c, judged.get(c.id), notebooks), cost(c, notebooks, profile)) for c in group])
        for group in ([c for c in CLAIMS if c.extension is kind] for kind in (False, True))
    )
    where = f"profile `{profile}`" if reference else "no reference run is committed yet"
    return f"The papers' claims ({where}):\n\n{claims}\nExtensions, which never fill a claim's row:\n\n{extensions}"


def updated(text: str, table: str) -> str:
    """`text` with the table between its marks. Raises `ValueError` where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text has no {BEGIN} followed by {END}; put both lines where the table belongs")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def cost(claim: Claim, notebooks: Path, profile: str) -> str:
    """What the first cell of the claim's notebook says that a run costs on two cores, empty where it does not."""
    path = notebooks / f"{claim.notebook}.ipynb"
    text = " ".join(nbformat.read(path, as_version=4).cells[0].source.split()) if path.exists() else ""
    said = re.search(rf"Cost on two cores: (?:.*; )?{profile}, ([^;]+?)\.?(?:;|$)", text)
    return said[1] if said else ""


def _row(claim: Claim, judged: dict | None, notebooks: Path) -> tuple[str, ...]:
    name = f"**{claim.id}** {claim.title}"
    if claim.notebook and (notebooks / f"{claim.notebook}.ipynb").exists():
        name += f" ([{claim.notebook}](notebooks/{claim.notebook}.ipynb))"
    published = claim.published if claim.extension else f"{claim.published} ({claim.source})"
    if judged is None:
        return name, published, "", "not attempted", ""
    here = [
        f"{criterion.metric} {Interval(**found)} ({criterion.unit}; asked: {criterion})"
        for criterion in claim.criteria
        if (found := {k: v for k, v in judged["metrics"].get(criterion.metric, {}).items() if k != "outcome"})
    ]
    reason = "" if judged["verdict"] == "reproduced" else f": {judged['reason']}"
    return name, published, "<br>".join(here), f"**{judged['verdict']}**{reason}", judged["evidence"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the table of profile cpu into a file."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.table", description=__doc__)
    parser.add_argument("--update", type=Path, required=True, metavar="FILE", help=f"a file with {BEGIN} and {END}")
    page = parser.parse_args(arguments).update
    try:
        table = claims_table(read_reference("cpu"), page.parent / "notebooks")
        write_atomically(page, updated(page.read_text(), table).encode())
    except (OSError, ValueError) as error:
        print(f"error: {page}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
