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
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import main as sphinx

from nkdlib.compendium.claims import CLAIMS, Claim
from nkdlib.compendium.criteria import AIM, short
from nkdlib.compendium.plots import WATERMARK
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.readme import claims_table, strongest
from nkdlib.compendium.records import PROVENANCE, markdown
from nkdlib.compendium.run import Job, up_to_date
from nkdlib.compendium.tiers import TIERS
from nkdlib.compendium.verify import Record, compare, judge_all, read_reference
from nkdlib.tasks.places import checkout, figures_root, runs_root

PACKAGES = ("neighbourhoods", "figs", "detection", "training", "networks", "data", "tasks")
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
    if (figures := figures_root() / profile).exists():
        shutil.copytree(figures, folder / "figures")
    (folder / "figures.md").write_text("\n".join(_figures(figures, profile)))
    (folder / "claims.md").write_text("\n".join(_claims(profile, root)))
    rows = [_notebook(path, profile, folder / "notebooks") for path in sorted((root / "notebooks").glob("*.ipynb"))]
    table = markdown(("notebook", "at this profile", "its results are from"), rows)
    toctree = "```{toctree}\n:hidden:\n:glob:\n\nnotebooks/*\n```"
    (folder / "notebooks.md").write_text(f"# Notebooks\n\n{table}\n{toctree}\n")


def _group(folder: Path, group: str, title: str, pages: Mapping[str, str]) -> None:
    """Write a group of pages, and one that lists them."""
    (folder / group).mkdir()
    for name, text in pages.items():
        (folder / group / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
    names = "\n".join(f"{group}/{name}" for name in pages)
    (folder / f"{group}.md").write_text(f"# {title}\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n")


def _linked(text: str) -> str:
    """Lead the links of README and CONTRIBUTING to pages of the site."""
    text = re.sub(r"\[`?([^]`]+)`?\]\((nkdlib/[\w/]+)\.py\)", r'<a href="_modules/\2.html"><code>\1</code></a>', text)
    text = re.sub(r"\]\((tests/\w+)\.py\)", r"](\1.md)", text).replace("](docs/", "](")
    return text.replace("(CONTRIBUTING.md)", "(contributing.md)")


def _figures(figures: Path, profile: str) -> Iterator[str]:
    """Write the page of all figures, with the tables that lie beside them."""
    yield f"# Figures and tables\n\nAs the notebooks wrote them at profile `{profile}`.\n"
    for folder in sorted(path for path in figures.glob("*") if path.is_dir()):
        yield f"## {folder.name}\n"
        for path in sorted(folder.glob("*.svg")):
            alt, source = path.with_suffix(".alt.txt").read_text().strip(), path.relative_to(figures)
            yield f"(fig-{folder.name}-{path.stem})=\n### {path.stem.replace('_', ' ')}\n"
            yield f"```{{image}} figures/{source}\n:alt: {alt}\n```\n"
        for path in sorted(folder.glob("*.md")):
            yield f"### {path.stem.replace('_', ' ')} (table)\n"
            yield f"```{{include}} figures/{path.relative_to(figures)}\n```\n"
        rows = (f"[{path.name}](figures/{path.relative_to(figures)})" for path in sorted(folder.glob("*.csv")))
        yield f"Rows behind them: {', '.join(rows)}\n"


def _notebook(path: Path, profile: str, folder: Path) -> tuple[str, str, str]:
    """Write a notebook as it was executed, else as it stands; return its row of the table of notebooks."""
    executed, record = runs_root() / profile / path.name, figures_root() / profile / path.stem / PROVENANCE
    notebook = nbformat.read(executed if executed.exists() else path, as_version=4)
    origin = json.loads(record.read_text()) if record.exists() else None
    state, note, came = "executed", "", describe(origin) if origin else ""
    if not executed.exists():
        state, note = "not run on this machine", f"No outputs below; `make reproduce PROFILE={profile}` makes them. "
        note += "The results of this profile come with the repository: " if origin else ""
    elif not up_to_date(Job(path.resolve(), profile, notebook.metadata.papermill["parameters"])):
        state += "; notebook, code, pins or results have changed since"
    state += "" if TIERS[profile].judged else f" ({WATERMARK})"
    note = f"```{{admonition}} Profile {profile}: {state}\n{note}{came}\n```"
    notebook.cells.insert(1, new_markdown_cell(note))
    if origin:
        rows = [(name, f"`{json.dumps(value)}`") for name, value in sorted(origin.items())]
        notebook.cells.append(new_markdown_cell(f"## Provenance\n\n{markdown(('what', 'value'), rows)}"))
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    return f"[{path.stem}](notebooks/{path.name})", state, came


def describe(origin: Mapping) -> str:
    """Write provenance in one line."""
    hardware, packages = origin["hardware"], origin["packages"]
    parts = (
        origin["time"].replace("T", " ").replace("+00:00", " UTC"),
        f"commit {(origin['commit'] or 'unknown')[:10]}{' with changes' if origin['dirty'] else ''}",
        ", ".join([f"Python {origin['python']}", *(f"{name} {version}" for name, version in packages.items())]),
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB",
        f"{hardware['gpu']} with CUDA {origin['cuda']}" if hardware["gpu"] else "no GPU",
    )
    return "; ".join(parts)


def _claims(profile: str, root: Path) -> Iterator[str]:
    """Write the claims page: README's table for this machine's results, then a section for each claim."""
    here, reference = judge_all(profile), read_reference(profile)
    yield re.sub(r"\*\*((?:ND|FG)-\w+)\*\*", r"[**\1**](#\1)", claims_table(strongest([here]), root))
    if reference:
        found = [f"- {one}" for one in compare(reference, here) if not one.agrees] or ["- no difference"]
        yield "\n".join(["Beyond tolerances, compared with the committed reference:\n", *found, ""])
    for claim in CLAIMS:
        yield from _claim(claim, here, reference, root)


def _claim(claim: Claim, here: Record, reference: Record | None, root: Path) -> Iterator[str]:
    """Write one claim: its criteria, every seed, the verdict, the cost, and links to what it rests on."""
    judged, origin = here.claims[claim.id], here.provenance.get(claim.notebook)
    before = reference.claims[claim.id].found if reference and claim.id in reference.claims else {}
    took = f"{origin['seconds']['wall']:.0f} s; kept results cost nothing again" if origin else "not run at this tier"
    yield f"({claim.id})=\n## {claim.id}: {claim.title}\n\n{claim.wording}\n"
    yield f"- **Published:** {claim.published} ({claim.source})"
    yield f"- **Measured here:** {claim.metric}"
    yield f"- **Verdict:** {judged.verdict}: {judged.reason}"
    yield f"- **Cost:** {took}\n"
    rows = []
    for criterion in claim.criteria:
        found, was = judged.found.get(criterion.name), before.get(criterion.name)
        ours, chance = criterion.column == "aim", criterion.chance(found.n if found else criterion.seeds)
        seen = ("not observed", "", "")
        if found:
            outcome = AIM[found.outcome] if ours else found.outcome
            seen = found, ", ".join(map(short, found.values.values())), outcome
        known = f" Known before: {criterion.known}" if criterion.known else ""
        asked = f"{criterion} {criterion.unit}, {criterion.seeds} seeds"
        odds = "" if chance is None else f"{100 * chance:.0f} %"
        says = f"**{criterion.label}** (`{criterion.metric}`): {criterion.words}.{known}"
        rows.append(("our aim" if ours else "the paper", says, asked, odds, *seen, short(was.mean) if was else ""))
    heads = ("column", "criterion", "asked", "chance if exactly true", "here: mean [95 % interval]")
    yield markdown((*heads, "every seed", "outcome", "reference"), rows)
    figures = sorted((figures_root() / here.profile / claim.notebook).glob("*.svg"))
    links = {
        "Notebook": [f"[{claim.notebook}](notebooks/{claim.notebook}.ipynb)"],
        "figures": [f"[{path.stem.replace('_', ' ')}](#fig-{claim.notebook}-{path.stem})" for path in figures],
        "code": [f"{{py:obj}}`~nkdlib.{name}`" for name in claim.code],
        "tests": [f"[{name}](tests/{name}.md)" for name in claim.tests],
    }
    yield "; ".join(f"**{name}:** {', '.join(found) or 'none yet'}" for name, found in links.items()) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site; 0, 1 if Sphinx warns of anything, 2 if there is nothing to build from."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=list(TIERS), default="cpu")
    options = parser.parse_args(arguments)
    root, out = checkout(), runs_root() / "report"
    if root is None:
        print("error: the report is built from the repository; install nkdlib from a clone of it", file=sys.stderr)
        return 2
    banner = f"Profile {options.profile}" if TIERS[options.profile].judged else WATERMARK
    built = f"Built {describe(provenance({'profile': options.profile}))}"
    settings = ["-D", f"html_theme_options.announcement={banner}", "-A", f"provenance={built}"]
    with tempfile.TemporaryDirectory() as pages, tempfile.TemporaryDirectory() as doctrees:
        write_pages(options.profile, root, Path(pages))
        shutil.rmtree(out, ignore_errors=True)
        settings += ["-c", str(root / "docs"), "-d", doctrees, "-q", "-W", "--keep-going", "-j", "auto"]
        failed = sphinx([*settings, pages, str(out)])
    if not failed:
        print(f"open {out / 'index.html'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
