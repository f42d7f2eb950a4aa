"""`make report`: the results of a profile as a static site that needs no network.

The notebooks as they were executed, the claims with all that they rest on, figures, tests and the API reference;
`docs/` holds what no run decides.
"""

import argparse
import ast
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
from nkdlib.compendium.criteria import Interval, short
from nkdlib.compendium.plots import WATERMARK
from nkdlib.compendium.provenance import provenance
from nkdlib.compendium.results import PROVENANCE, markdown
from nkdlib.compendium.run import Job, up_to_date
from nkdlib.compendium.table import claims_table, cost
from nkdlib.compendium.tiers import PROFILES
from nkdlib.compendium.verify import as_reference, differences, judge_all, read_reference
from nkdlib.tasks.places import checkout, figures_root, runs_root

METHODS = ("nkdlib.neighbourhoods", "nkdlib.figs", "nkdlib.detection")
PACKAGES = (*METHODS, "nkdlib.training", "nkdlib.networks", "nkdlib.data", "nkdlib.compendium", "nkdlib.tasks")
MODULES = ("nkdlib.compendium.plots", "nkdlib.compendium.tiers")


def write_pages(profile: str, root: Path, folder: Path) -> None:
    """Write everything that Sphinx reads into `folder`; root: the checkout."""
    shutil.copytree(root / "docs", folder, dirs_exist_ok=True)
    for source, target in (("README.md", "README.md"), ("CONTRIBUTING.md", "contributing.md")):
        (folder / target).write_text(_linked((root / source).read_text()))
    listed = dict.fromkeys(PACKAGES, "\n   :imported-members:") | dict.fromkeys(MODULES, "")  # those that __all__ names
    _group(folder, "api", "Reference", {m: f"```{{eval-rst}}\n.. automodule:: {m}{o}\n```" for m, o in listed.items()})
    _group(folder, "tests", "Tests", {p.stem: _listing(p) for p in sorted((root / "tests").glob("test_*.py"))})
    if (figures := figures_root() / profile).exists():
        shutil.copytree(figures, folder / "figures")
    (folder / "figures.md").write_text("\n".join(_figures(figures, profile)))
    (folder / "claims.md").write_text("\n".join(_claims(profile, root)))
    (folder / "notebooks").mkdir()
    rows = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        page, *said = _notebook(path, profile)
        nbformat.write(page, folder / "notebooks" / path.name)
        rows.append((f"[{path.stem}](notebooks/{path.name})", *said))
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


def _listing(path: Path) -> str:
    return f"{_docstring(path)}\n\n~~~{{code-block}} python\n:linenos:\n\n{path.read_text()}\n~~~"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _words(path: Path) -> list[str]:
    """The words of a test file's docstring, which names the claims that stand on what it tests."""
    return re.findall(r"[\w-]+", _docstring(path))


def _linked(text: str) -> str:
    """README's text, whose links to files lead to pages of the site."""
    text = re.sub(r"\[`?([^]`]+)`?\]\((nkdlib/[\w/]+)\.py\)", r'<a href="_modules/\2.html"><code>\1</code></a>', text)
    text = re.sub(r"\]\((tests/\w+)\.py\)", r"](\1.md)", text).replace("](docs/", "](")
    return text.replace("(CONTRIBUTING.md)", "(contributing.md)")


def _figures(figures: Path, profile: str) -> Iterator[str]:
    """The page of all figures, with the tables that lie beside them."""
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


def describe(origin: Mapping) -> str:
    """Provenance in one line."""
    hardware, packages = origin["hardware"], origin["packages"]
    parts = (
        origin["time"].replace("T", " ").replace("+00:00", " UTC"),
        f"commit {(origin['commit'] or 'unknown')[:10]}{' with changes' if origin['dirty'] else ''}",
        ", ".join([f"Python {origin['python']}", *(f"{name} {version}" for name, version in packages.items())]),
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB",
        f"{hardware['gpu']} with CUDA {origin['cuda']}" if hardware["gpu"] else "no GPU",
    )
    return "; ".join(parts)


def _notebook(path: Path, profile: str) -> tuple[nbformat.NotebookNode, str, str]:
    """A notebook as it was executed, else as it stands; what is to be said of that, and where its results are from."""
    executed, record = runs_root() / profile / path.name, figures_root() / profile / path.stem / PROVENANCE
    notebook = nbformat.read(executed if executed.exists() else path, as_version=4)
    origin = json.loads(record.read_text()) if record.exists() else None
    state, note = "executed", ""
    if not executed.exists():
        state, note = "not run on this machine", f"No outputs below; `make reproduce PROFILE={profile}` makes them. "
        note += "The results of this profile come with the repository: " if origin else ""
    elif not up_to_date(Job(path.resolve(), profile, notebook.metadata.papermill["parameters"])):
        state += "; notebook, code, pins or results have changed since"
    state += "" if PROFILES[profile].judged else f" ({WATERMARK})"
    came = describe(origin) if origin else ""
    note = f"```{{admonition}} Profile {profile}: {state}\n{note}{came}\n```"
    notebook.cells.insert(1, new_markdown_cell(note))
    if origin:
        rows = ((name, f"`{json.dumps(value)}`") for name, value in sorted(origin.items()))
        notebook.cells.append(new_markdown_cell(f"## Provenance\n\n{markdown(('what', 'value'), rows)}"))
    return notebook, state, came


def _claims(profile: str, root: Path) -> Iterator[str]:
    """The claims page: README's table for this machine's results, then a section for each claim."""
    here, reference = as_reference(judge_all(profile), profile), read_reference(profile)
    yield re.sub(r"\*\*((?:ND|FG)-\w+)\*\*", r"[**\1**](#\1)", claims_table(here, root / "notebooks"))
    if reference:
        found = [f"- {difference}" for difference in differences(reference, here)] or ["- no difference"]
        yield "\n".join(["Beyond tolerances, compared with the committed reference:\n", *found, ""])
    for claim in CLAIMS:
        yield from _claim(claim, here, reference or {"claims": {}}, profile, root)


def _claim(claim: Claim, here: dict, reference: dict, profile: str, root: Path) -> Iterator[str]:
    """One claim: what was asked for, every seed, the verdict, the cost, and links to what it rests on."""
    judged, origin = here["claims"][claim.id], here["provenance"].get(claim.notebook)
    took = f"; the last run took {origin['seconds']['wall']:.0f} s, kept results cost nothing again" if origin else ""
    yield f"({claim.id})=\n## {claim.id}: {claim.title}\n\n{claim.wording}\n"
    yield f"- **Published:** {claim.published} ({claim.source})"
    yield f"- **Measured here:** {claim.metric}"
    yield f"- **Verdict:** {judged['verdict']}: {judged['reason']}"
    yield f"- **Evidence:** {judged['evidence'] or 'none'}"
    yield f"- **Cost:** {cost(claim, root / 'notebooks', profile) or 'not stated'}{took}\n"
    rows = []
    for criterion in claim.criteria:
        asked = f"{criterion} {criterion.unit}, {criterion.seeds} seeds"
        row = [f"`{criterion.metric}`: {criterion.words}", asked, "not observed", "", "", ""]
        if found := dict(judged["metrics"].get(criterion.metric, {})):
            outcome = found.pop("outcome")
            row[2:5] = Interval(**found), ", ".join(map(short, found["values"].values())), outcome
        if before := reference["claims"].get(claim.id, {"metrics": {}})["metrics"].get(criterion.metric):
            row[5] = short(before["mean"])
        rows.append(row)
    yield markdown(("criterion", "asked", "here: mean [95 % interval]", "every seed", "outcome", "reference"), rows)
    yield f"{'; '.join(_links(claim, profile, root))}\n"


def _links(claim: Claim, profile: str, root: Path) -> Iterator[str]:
    """From a claim to its notebook, figures, code and tests."""
    path = root / "notebooks" / f"{claim.notebook}.ipynb"
    if path.exists():
        yield f"**Notebook:** [{path.stem}](notebooks/{path.name})"
        stems = [figure.stem for figure in sorted((figures_root() / profile / path.stem).glob("*.svg"))]
        figures = ", ".join(f"[{stem.replace('_', ' ')}](#fig-{path.stem}-{stem})" for stem in stems)
        yield f"**figures:** {figures or 'none yet'}"
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        imports = [node for node in ast.walk(ast.parse("\n".join(cells))) if isinstance(node, ast.ImportFrom)]
        names = (f"{node.module}.{name.name}" for node in imports if node.module in METHODS for name in node.names)
        yield "**code:** " + ", ".join(f"{{py:obj}}`~{name}`" for name in names)
    yield '**criterion:** <a href="_modules/nkdlib/compendium/claims.html">catalogue.py</a>'
    tests = (p.stem for p in sorted((root / "tests").glob("test_*.py")) if claim.id in _words(p))
    yield "**tests:** " + ", ".join(f"[{stem}](tests/{stem}.md)" for stem in tests)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site; 0, 1 where Sphinx warns of anything, 2 where there is nothing to build from."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=list(PROFILES), default="cpu")
    options = parser.parse_args(arguments)
    root, out = checkout(), runs_root() / "report"
    if root is None:
        print("error: the report is built from the repository; install nkdlib from a clone of it", file=sys.stderr)
        return 2
    banner = f"Profile {options.profile}" if PROFILES[options.profile].judged else WATERMARK
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
