"""The site that `make report` builds: links, words for images, nothing from elsewhere, and how a browser shows it."""

import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import sync_playwright

from nkdlib.compendium import report
from nkdlib.compendium.claims import CLAIMS
from nkdlib.compendium.plots import WATERMARK
from nkdlib.compendium.results import Results
from nkdlib.compendium.tiers import TIERS

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ESCAPED = """() => [document.documentElement, ...document.querySelectorAll("article, article > *, section > *")]
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML)
    .concat(document.documentElement.scrollWidth > innerWidth ? "the page scrolls sideways" : [])"""
FRAMED = """[...document.querySelectorAll("#choice td")]
    .filter(cell => getComputedStyle(cell).outlineStyle == "solid").map(cell => cell.textContent)"""
VERDICTS = """() => [...document.querySelectorAll(".verdict, .criteria td")].map(e => e.getBoundingClientRect())
    .every(box => box.width > 0 && box.left >= 0 && box.right <= innerWidth)
    && document.querySelectorAll(".verdict").length"""


class Page(HTMLParser):
    """Tags with their attributes, and the text, of one page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text())
        self.ids = {attributes.get("id") for _, attributes in self.tags}

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text += text


def notebook(path, *cells, **metadata):
    """A notebook with the name and the metadata of one of the checkout, and cells of its own."""
    parameters, observing = new_code_cell("seeds: int = 2"), new_code_cell("results.observe(...)")
    cells = [new_markdown_cell(f"# {path.stem}"), parameters, *cells, observing]
    return new_notebook(cells=cells, metadata={**nbformat.read(path, as_version=4).metadata, **metadata})


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout with the documents of this one, and with notebooks and tests that hold nothing but their names."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, root)
    for folder in ("tests", "notebooks"):
        (root / folder).mkdir()
    linked = re.findall(r"tests/(\w+).py", (root / "README.md").read_text() + (root / "CONTRIBUTING.md").read_text())
    for name in {*linked, *(test for claim in CLAIMS for test in claim.tests)}:
        (root / "tests" / f"{name}.py").write_text(f'"""{name}"""\n')
    for path in ROOT.glob("notebooks/*.ipynb"):
        nbformat.write(notebook(path), root / "notebooks" / path.name)
    return root


@pytest.fixture(scope="module")
def site(clone, tmp_path_factory):
    """The site of a smoke run in which one notebook left an observation, a figure and a table."""
    folder, stem = tmp_path_factory.mktemp("run"), "01_local_replacement"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setenv("NKD_RUNS", str(folder / "runs"))
        patch.setenv("NKD_FIGURES", str(folder / "figures"))
        patch.setattr(report, "checkout", lambda: clone)
        results, drawn = Results(stem, "smoke", TIERS["smoke"].protocol(stem)), []
        patch.setattr("nkdlib.compendium.results.display", lambda item: drawn.append(item.data))
        results.figure(plt.figure(), "noise", "A line that rises")
        errors = pd.DataFrame({"thin": [0.5, 0.2], "wide": [0.1, None]}, ["block 1", "block 2"])
        choices = [{"block 1": column, "block 2": "thin"} for column in errors]
        results.slider(errors, "choice", {"#ff0000": choices}, ["a small budget", "a large budget"])
        table = results.table(pd.DataFrame({"network": ["teacher"], "accuracy": [0.5]}), "drops", "Accuracy").to_html()
        for seed in range(2):
            results.observe("ND-0", "worst_drop_points", seed, 0.3)
        results.write()
        outputs = [new_output("display_data", {"text/html": shown}) for shown in (table, *drawn)]
        shown = new_code_cell("drops", outputs=outputs, execution_count=1)
        (folder / "runs" / "smoke").mkdir(parents=True)
        executed = notebook(clone / "notebooks" / f"{stem}.ipynb", shown, papermill={"parameters": {"seeds": 2}})
        nbformat.write(executed, folder / "runs" / "smoke" / f"{stem}.ipynb")
        assert report.main(["--profile", "smoke"]) == 0
    return folder / "runs" / "report"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_links_hold_and_nothing_is_loaded_from_elsewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for tag, attributes in page.tags:
            for link in filter(None, (attributes.get("href"), attributes.get("src"))):
                parts = urlsplit(link)
                if parts.scheme in ("http", "https", "data"):
                    assert tag == "a" or parts.scheme == "data", f"{path.name} loads {link}"
                    continue
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                anchored = not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].ids
                if not (target.is_relative_to(site) and target.is_file() and anchored):
                    broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\s\"']*(https?:)?//", sheet.read_text()), sheet.name


def test_every_image_has_words_and_every_table_a_head(pages):
    images = [(path, found) for path, page in pages.items() for tag, found in page.tags if tag == "img"]
    assert len(images) > 1 and all(found.get("alt", "").strip() for _, found in images)
    for page in pages.values():
        tags = [tag for tag, _ in page.tags]
        assert tags.count("table") == tags.count("thead")


def test_every_page_says_where_it_comes_from_and_that_smoke_is_no_result(site, pages):
    for path, page in pages.items():
        assert WATERMARK in page.text, path.name
        assert re.search(r"Built \d{4}-\d\d-\d\d .*Python 3.*torch .* cores", page.text), path.name
    assert "Provenance" in pages[site / "notebooks" / "01_local_replacement.html"].text
    assert "/CPU minutes" in "/".join(pages[site / "costs.html"].text.splitlines())


def test_a_claim_is_one_click_from_notebook_figure_code_and_test(site, pages):
    page = pages[site / "index.html"]
    links = [attributes.get("href", "") for tag, attributes in page.tags if tag == "a"]
    for claim in CLAIMS:
        assert claim.id.lower() in page.ids and claim.published in page.text
        assert all(criterion.words in " ".join(page.text.split()) for criterion in claim.criteria)
        assert f"notebooks/{claim.notebook}.html" in links
    assert "api/nkdlib.neighbourhoods.html#nkdlib.neighbourhoods.distill" in links
    assert "tests/test_neighbourhoods_distill.html" in links
    assert "figures/01_local_replacement.html#fig-01-local-replacement-noise" in links
    assert {"notebooks/01_local_replacement.html#judged", "figures/01_local_replacement/observations.json"} <= {*links}
    assert "0.3 points [0.3, 0.3]" in page.text and "below 2 points" in page.text  # obtained beside expected


def test_a_figure_leads_to_the_cell_that_made_it(site, pages):
    page = pages[site / "figures" / "01_local_replacement.html"]
    assert "../notebooks/01_local_replacement.html#noise" in [found.get("href") for _, found in page.tags]
    assert "noise" in pages[site / "notebooks" / "01_local_replacement.html"].ids


def test_a_notebook_that_was_not_run_is_shown_as_such(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    (tmp_path / "pages").mkdir()
    report.write_pages("cpu", clone, tmp_path / "pages")
    page = (tmp_path / "pages" / "notebooks" / "01_local_replacement.ipynb").read_text()
    assert "hide-input" in page
    assert "not run on this machine" in page and "make reproduce PROFILE=cpu" in page and WATERMARK not in page
    assert "no observations at cpu" in (tmp_path / "pages" / "claims.md").read_text()


def test_the_executed_notebook_of_a_reference_is_shown_where_nothing_was_run(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("NKD_RUNS", str(tmp_path / "runs"))
    kept = tmp_path / "figures" / "cpu" / "01_local_replacement.ipynb"
    kept.parent.mkdir(parents=True)
    printed = new_output("stream", name="stdout", text="printed by the reference's run")
    nbformat.write(notebook(clone / "notebooks" / kept.name, new_code_cell("1", outputs=[printed])), kept)
    (tmp_path / "pages").mkdir()
    report.write_pages("cpu", clone, tmp_path / "pages")
    page = (tmp_path / "pages" / "notebooks" / kept.name).read_text()
    assert not [*tmp_path.glob("pages/figures/*.ipynb")]  # one page for a notebook
    assert "executed for the reference" in page and "printed by the reference's run" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
def test_a_browser_shows_every_page_in_light_and_dark_on_a_desk_and_a_phone(site, pages):
    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        for path in pages:
            page.goto(path.as_uri())
            colors = set()
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                assert not page.evaluate(ESCAPED), f"{path} at {width}"
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme=scheme)
                    colors.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(colors) == 2 and not said, (path, colors, said)
        page.set_viewport_size({"width": 390, "height": 900})
        page.goto((site / "index.html").as_uri())
        assert page.evaluate(VERDICTS) == len(CLAIMS)
        page.goto((site / "notebooks" / "01_local_replacement.html").as_uri())
        code = page.locator("details.hide .highlight").first
        assert not code.is_visible()
        page.get_by_role("button", name="Show all code").click()
        assert code.is_visible()
        assert page.evaluate(FRAMED) == ["0.50", "0.20"] and page.get_by_text("a small budget").is_visible()
        page.locator("#choice input").fill("1")  # the slider
        assert page.evaluate(FRAMED) == ["0.10", "0.20"] and not page.get_by_text("a small budget").is_visible()
        page.goto((site / "search.html").as_uri() + "?q=neighbourhood")
        page.wait_for_selector("#search-results li")
        browser.close()
    assert not said
