"""`make report`: the results of a profile as a static site that needs no network.

It holds the notebooks as they were executed, every claim with its evidence, figures, tests and the API reference;
`docs/` holds the pages that no run decides.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import main as sphinx

from nkdlib.compendium.claims import CLAIMS, Claim
from nkdlib.compendium.criteria import AIM, short
from nkdlib.compendium.plots import WATERMARK
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.readme import findings, measured, strongest, why
from nkdlib.compendium.records import PROVENANCE, markdown
from nkdlib.compendium.run import Job, up_to_date
from nkdlib.compendium.saving import kind
from nkdlib.compendium.tiers import TIERS
from nkdlib.compendium.verify import Record, compare, judge_all, read_reference
from nkdlib.tasks.places import checkout, figures_root, runs_root

PACKAGES = ("neighbourhoods", "figs", "detection", "training", "networks", "data", "tasks")
IN_VIEW = "in-view"  # a tag of cells whose code stays open
MODULES = ("claims", "criteria", "judge", "results", "plots", "tiers")  # of the compendium, whose package has no names


def write_pages(profile: str, root: Path, folder: Path) -> None:
    """Write all pages that Sphinx reads into `folder`; root: the checkout."""
    shutil.copytree(root / "docs", folder, dirs_exist_ok=True)
    for page in folder.glob("*.md"):
        page.write_text(page.read_text().replace("](../notebooks/", "](notebooks/"))
    for source, target in (("README.md", "README.md"), ("CONTRIBUTING.md", "contributing.md")):
        (folder / target).write_text(_linked((root / source).read_text()))
    api = {f"nkdlib.{name}": "\n   :imported-members:" for name in PACKAGES}  # the names of `__all__`
    api |= {f"nkdlib.compendium.{name}": "" for name in MODULES}
    _group(folder, "api", "Reference", {m: f"```{{eval-rst}}\n.. automodule:: {m}{how}\n```" for m, how in api.items()})
    tests = {path.stem: path.read_text() for path in sorted((root / "tests").glob("test_*.py"))}
    listing = "~~~{{code-block}} python\n:linenos:\n\n{}\n~~~"
    _group(folder, "tests", "Tests", {name: listing.format(text) for name, text in tests.items()})
    rows = [_notebook(path, profile, folder / "notebooks") for path in sorted((root / "notebooks").glob("*.ipynb"))]
    toctree = "```{toctree}\n:hidden:\n:glob:\n\nnotebooks/*\n```"
    (folder / "notebooks.md").write_text(f"# Notebooks\n\n{markdown(('notebook', 'at this tier'), rows)}\n{toctree}\n")
    figures = figures_root() / profile
    if figures.exists():
        shutil.copytree(figures, folder / "figures", ignore=shutil.ignore_patterns("*.ipynb"))
    drawn = {path.name: "\n".join(_figures(path, folder)) for path in sorted(figures.glob("*/"))}
    _group(folder, "figures", "Figures and tables", {stem: text for stem, text in drawn.items() if text})
    (folder / "claims.md").write_text("\n".join(_claims(profile)))
    (folder / "costs.md").write_text("\n".join(_costs()))


def _group(folder: Path, group: str, title: str, pages: Mapping[str, str]) -> None:
    """Write a group of pages, and one that lists them."""
    (folder / group).mkdir(exist_ok=True)
    for name, text in pages.items():
        (folder / group / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
    names = "\n".join(f"{group}/{name}" for name in pages)
    (folder / f"{group}.md").write_text(f"# {title}\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n")


def _linked(text: str) -> str:
    """Lead the links of README and CONTRIBUTING to pages of the site."""
    text = re.sub(r"\[`?([^]`]+)`?\]\((nkdlib/[\w/]+)\.py\)", r'<a href="_modules/\2.html"><code>\1</code></a>', text)
    text = re.sub(r"\]\((tests/\w+)\.py\)", r"](\1.md)", text).replace("](docs/", "](")
    return text.replace("(CONTRIBUTING.md)", "(contributing.md)")


def _figures(figures: Path, folder: Path) -> Iterator[str]:
    """Write a notebook's figures, each with the cell that made it, and the tables that lie beside them."""
    stem = figures.name
    page = folder / "notebooks" / f"{stem}.ipynb"
    notebook = page.read_text() if page.exists() else ""
    for path in sorted(figures.glob("*.svg")):
        alt, name = path.with_suffix(".alt.txt").read_text().strip(), path.stem
        yield f"(fig-{stem}-{name})=\n## {name.replace('_', ' ').capitalize()}\n"
        yield f"```{{image}} {stem}/{path.name}\n:alt: {alt}\n:class: {kind(path)}\n```\n"
        if f'id=\\"{name}\\"' in notebook:
            yield f'<p><a href="../notebooks/{stem}.html#{name}">The cell that made it</a></p>\n'
    for path in sorted(figures.glob("*.md")):
        yield f"## {path.stem.replace('_', ' ').capitalize()} (table)\n\n```{{include}} {stem}/{path.name}\n```\n"
    if rows := [f'<a href="{stem}/{path.name}">{path.name}</a>' for path in sorted(figures.glob("*.csv"))]:
        yield f"<p>Rows behind them: {', '.join(rows)}</p>\n"


def _notebook(path: Path, profile: str, folder: Path) -> tuple[str, str]:
    """Write a notebook as it was executed here or for the reference, else as it stands; return its row of the table."""
    here, kept = runs_root() / profile / path.name, figures_root() / profile / path.name
    record = figures_root() / profile / path.stem / PROVENANCE
    executed = next((place for place in (here, kept) if place.exists()), None)
    notebook = nbformat.read(executed or path, as_version=4)
    state = "executed"
    if executed is None:
        state = f"not run on this machine; `make reproduce PROFILE={profile}` runs it"
    elif executed == kept:
        state = "executed for the reference"
    elif not up_to_date(Job(path.resolve(), profile, notebook.metadata.papermill["parameters"])):
        state += "; notebook, code, pins or results have changed since"
    state += "" if TIERS[profile].judged else f" ({WATERMARK})"
    observes = False
    for cell in [*notebook.cells]:
        if cell.cell_type != "code":
            cell.source = cell.source.replace("](../docs/", "](../")
            continue
        shown = IN_VIEW in cell.metadata.get("tags", [])
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), *([] if shown else ["hide-input"])]
        if "results.observe(" in cell.source and not observes:
            notebook.cells.insert(notebook.cells.index(cell), new_markdown_cell('<a id="judged"></a>'))
            observes = True
    notebook.cells.insert(1, new_markdown_cell(f"*Tier `{profile}`: {state}.*"))
    if record.exists():
        rows = [(name, f"`{json.dumps(value)}`") for name, value in sorted(json.loads(record.read_text()).items())]
        notebook.cells.append(new_markdown_cell(_folded("Provenance", markdown(("what", "value"), rows))))
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    return f"[{path.stem}](notebooks/{path.name})", state


def _folded(summary: str, text: str) -> str:
    """Write Markdown that opens on a click."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>\n"


def describe(origin: Mapping) -> str:
    """Write provenance in one line."""
    hardware, packages = origin["hardware"], origin["packages"]
    parts = (
        origin["time"].replace("T", " ").replace("+00:00", " UTC"),
        f"commit {(origin['commit'] or 'unknown')[:10]}{' with changes' if origin['dirty'] else ''}",
        ", ".join([f"Python {origin['python']}", *(f"{name} {version}" for name, version in packages.items())]),
        _machine(hardware),
        f"CUDA {origin['cuda']}" if origin["cuda"] else "no GPU",
    )
    return "; ".join(parts)


def _machine(hardware: Mapping) -> str:
    parts = (f"{hardware['cpu']}, {hardware['cores']} cores", f"{hardware['memory_gb']} GB", hardware["gpu"])
    return ", ".join(filter(None, parts))


def _costs() -> Iterator[str]:
    """Write README's table of tiers, and what every notebook took on the machine that its results are from."""
    part = ':start-after: "## Two commands"\n:end-before: "## Your own network"'
    yield f"# Costs\n\n```{{include}} README.md\n{part}\n```\n\n## Measured\n"
    yield "Notebooks with their tier's own parameters. What an earlier run had kept cost nothing again.\n"
    rows = []
    for tier in TIERS.values():
        for path in sorted((figures_root() / tier.name).glob(f"*/{PROVENANCE}")):
            origin = json.loads(path.read_text())
            if not tier.departures(path.parent.name, origin["parameters"]):
                minutes = [f"{origin['seconds'][clock] / 60:.1f}" for clock in ("wall", "cpu")]
                rows.append((tier.name, path.parent.name, *minutes, _machine(origin["hardware"])))
    heads = ("tier", "notebook", "minutes", "CPU minutes", "machine")
    yield markdown(heads, rows) if rows else "No notebook has run with its tier's parameters yet.\n"


def _claims(profile: str) -> Iterator[str]:
    """Write the front page's results: findings, the picture of all claims, and a card for each."""
    here, reference = judge_all(profile), read_reference(profile)
    said = "".join(findings(strongest([here])))
    yield f"## Findings\n\n{said or 'None: nothing was judged at this tier.'}\n"
    yield f"Tier `{profile}`. Brackets hold 95 % intervals over seeds.\n\n## Claims\n"
    if (figures_root() / profile / "09_claims" / "forest.svg").exists():
        alt = "Every criterion's distance from its bound, by claim"
        yield f"```{{image}} figures/09_claims/forest.svg\n:alt: {alt}\n:class: drawing\n```\n"
    if reference:
        found = [f"- {one}" for one in compare(reference, here) if not one.agrees] or ["- no difference"]
        yield _folded("Beyond tolerances, compared with the committed reference", "\n".join(found))
    for claim in CLAIMS:
        yield from _claim(claim, here, reference)


def _claim(claim: Claim, here: Record, reference: Record | None) -> Iterator[str]:
    """Write one claim's card: verdict, expected beside obtained, links to what it rests on, every seed."""
    judged = here.claims[claim.id]
    before = reference.claims[claim.id].found if reference and claim.id in reference.claims else {}
    yield f"({claim.id})=\n### {claim.id}: {claim.title}\n"
    yield f'<p class="verdict {judged.verdict.replace(" ", "-")}">{judged.verdict}</p>\n\n{claim.wording}\n'
    yield f"**The paper says:** {claim.published} ({claim.source}).\n"
    rows, more = [], []
    for criterion in claim.criteria:
        found, was, ours = judged.found.get(criterion.name), before.get(criterion.name), criterion.column == "aim"
        outcome = (AIM[found.outcome] if ours else found.outcome) if found else "not observed"
        name = f"{criterion.label}{' <small>(our aim)</small>' if ours else ''}"
        obtained = measured(criterion, found).partition(": ")[2] if found else "-"
        ends = f'<td class="outcome {outcome.replace(" ", "-")}">{outcome}</tr>'
        asked = f"{criterion} {criterion.unit}".replace(" x", "x")
        rows.append(f"<tr><td>{name}<td>{asked}<td>{escape(obtained)}{ends}")
        chance = criterion.chance(found.n if found else criterion.seeds)
        parts = [f"**{criterion.label}**: {criterion.words}"]
        parts += [f"known before: {criterion.known}"] if criterion.known else []
        parts += [f"seeds: {', '.join(map(short, found.values.values()))}"] if found else []
        parts += [f"met with {100 * chance:.0f} % if exactly true"] if chance is not None else []
        parts += [f"reference: {short(was.mean)}"] if was else []
        more.append("- " + ". ".join(parts))
    heads = "".join(f"<th>{head}</th>" for head in ("criterion", "expected", "obtained", "outcome"))
    yield f'<table class="criteria"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>\n'
    if said := why(claim, judged):
        yield f"**Why:** {said}.\n"
    stem, root = claim.notebook, figures_root() / here.profile / claim.notebook
    drawn = [path.stem.replace("_", "-") for path in sorted(root.glob("*.svg"))]
    page = f"figures/{stem}.html#fig-{stem.replace('_', '-')}"
    links = {
        "Figures": [(name.replace("-", " "), f"{page}-{name}") for name in drawn],
        "Notebook": [(stem, f"notebooks/{stem}.html"), ("the cell that judges", f"notebooks/{stem}.html#judged")],
        "Code": [(name, f"api/nkdlib.{name.split('.')[0]}.html#nkdlib.{name}") for name in claim.code],
        "Tests": [(name, f"tests/{name}.html") for name in claim.tests],
        "Record": [(path.name, f"figures/{stem}/{path.name}") for path in sorted(root.glob("*.json"))],
    }
    for name, found in links.items():
        each = ", ".join(f'<a href="{link}">{text}</a>' for text, link in found)
        yield f'<p class="links"><b>{name}</b> {each or "none yet"}</p>\n'
    yield _folded("Recipe, every seed and the chance to be met", "\n".join(more))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site; 0, 1 if Sphinx warns of anything, 2 if there is nothing to build from."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=list(TIERS), default="cpu")
    options = parser.parse_args(arguments)
    root, out = checkout(), runs_root() / "report"
    if root is None:
        print("error: the report is built from the repository; install nkdlib from a clone of it", file=sys.stderr)
        return 2
    banner = f"Tier {options.profile}" if TIERS[options.profile].judged else WATERMARK
    built = f"Built {describe(provenance({'profile': options.profile}))}"
    settings = ["-D", f"html_theme_options.announcement={banner}", "-A", f"provenance={built}"]
    with tempfile.TemporaryDirectory() as pages, tempfile.TemporaryDirectory() as doctrees:
        write_pages(options.profile, root, Path(pages))
        shutil.rmtree(out, ignore_errors=True)
        settings += ["-c", str(root / "docs"), "-d", doctrees, "-q", "-W", "--keep-going", "-j", "auto"]
        failed = sphinx([*settings, pages, str(out)])
        if (figures := figures_root() / options.profile).exists():  # the records, which pages link
            drawn = shutil.ignore_patterns("*.svg", "*.png", "*.jpg", "*.md", "*.txt", "*.ipynb")
            shutil.copytree(figures, out / "figures", ignore=drawn, dirs_exist_ok=True)
    if not failed:
        print(f"open {out / 'index.html'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
