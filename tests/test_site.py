"""The documents as a site: it builds, every link in it leads somewhere, and a page loads nothing from elsewhere."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import lwc_compiler
from tests.test_docs import DOCUMENTS, ROOT, commands, name, options

# Elements that make a browser load what they name, and the attribute that does.
LOADED = {"iframe": "src", "img": "src", "link": "href", "script": "src", "source": "src"}


class Page(HTMLParser):
    """What a page links and loads, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in LOADED and LOADED[tag] in attributes and attributes.get("rel") != "canonical":
            self.loaded.append(attributes[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(r"^docs:.*\n\t(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    command = recipe.replace("$(BIN)/mkdocs", f"{shlex.quote(sys.executable)} -m mkdocs")
    done = subprocess.run(
        f"{command} --site-dir {shlex.quote(str(folder))}", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_document_is_a_page(site, pages):
    for document in DOCUMENTS:
        page = site / name(document).replace("README.md", "index.html").replace(".md", ".html")
        assert page in pages, document


def test_links_lead_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path}: {link}"
            if target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path}: {link}"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert sum(len(page.loaded) for page in pages.values()) > len(pages)
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_references_have_every_public_name_and_every_command(site, pages):
    python = pages[site / "reference" / "python.html"].anchors
    assert {f"lwc_compiler.{public}" for public in lwc_compiler.__all__ if not public.startswith("__")} <= python
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command, parsed in commands():
        assert f"lwc {command}" in text
        for option in options(parsed):
            assert option.opts[-1] in text, f"{command} {option.opts}"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=name)
def test_pictures_load_nothing_and_are_small(picture):
    text = picture.read_text(encoding="utf-8")
    assert not re.search(r"(href|src)=|@import|url\([\"']?http", text)
    assert len(text) < 200_000
    assert "prefers-color-scheme" in text or "background" in text
