"""The site that `make report` builds: links, words for images, nothing from elsewhere, and how a browser shows it."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

from nkdlib.compendium import run
from nkdlib.compendium.claims import CLAIMS
from nkdlib.compendium.plots import WATERMARK
from nkdlib.compendium.report import write_pages

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ESCAPED = """() => [document.documentElement, ...document.querySelectorAll("article, article > *, section > *")]
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML)
    .concat(document.documentElement.scrollWidth > innerWidth ? "the page scrolls sideways" : [])"""


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


@pytest.fixture(scope="session")
def site(reproduced):
    """The site of a smoke run; of its first notebook where the others have not been run."""
    if not (reproduced / "runs" / "smoke" / "00_start_here.ipynb").exists():
        assert run.main(["00_start_here", "--profile", "smoke", "--out", str(reproduced)]) == 0
    places = {"NKD_RUNS": str(reproduced / "runs"), "NKD_FIGURES": str(reproduced / "figures")}
    command = [sys.executable, "-m", "nkdlib.compendium.report", "--profile", "smoke"]
    done = subprocess.run(command, env={**os.environ, **places}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return reproduced / "runs" / "report"


@pytest.fixture(scope="session")
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
    assert "Provenance" in pages[site / "notebooks" / "00_start_here.html"].text


def test_a_claim_is_one_click_from_notebook_figure_code_and_test(site, pages, reproduced):
    page = pages[site / "index.html"]
    links = [attributes.get("href", "") for tag, attributes in page.tags if tag == "a"]
    for claim in CLAIMS:
        assert claim.id.lower() in page.ids and claim.published in page.text
        assert all(criterion.words in " ".join(page.text.split()) for criterion in claim.criteria)
        notebook = f"notebooks/{claim.notebook}.html"
        assert notebook in links or not (ROOT / "notebooks" / f"{claim.notebook}.ipynb").exists()
    assert "api/nkdlib.neighbourhoods.html#nkdlib.neighbourhoods.distill" in links
    assert "tests/test_neighbourhoods_distill.html" in links
    if (reproduced / "figures" / "smoke" / "01_local_replacement").exists():
        assert "figures.html#fig-01-local-replacement-noise" in links
        assert "n=2" in page.text


def test_a_notebook_that_was_not_run_is_shown_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("NKD_FIGURES", str(tmp_path / "figures"))
    (tmp_path / "pages").mkdir()
    write_pages("cpu", ROOT, tmp_path / "pages")
    page = (tmp_path / "pages" / "notebooks" / "01_local_replacement.ipynb").read_text()
    assert "not run on this machine" in page and "make reproduce PROFILE=cpu" in page and WATERMARK not in page
    assert "not attempted: no observations at cpu" in (tmp_path / "pages" / "claims.md").read_text()


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
        page.goto((site / "search.html").as_uri() + "?q=neighbourhood")
        page.wait_for_selector("#search-results li")
        browser.close()
    assert not said
