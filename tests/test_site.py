"""Test the documentation site as it is built: strictly, complete, and without anything from a network."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import fcnlab

pytestmark = pytest.mark.slow
REGISTRIES = ("pypi.", "pythonhosted.", "npmjs.", "conda.", "anaconda.")
RESOURCES = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """The anchors, links and resources of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.anchors, self.links, self.resources = path, set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values["id"]} if values.get("id") else set()
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])
        if tag in RESOURCES and values.get(RESOURCES[tag]):
            self.resources.add(values[RESOURCES[tag]])


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory) -> Path:
    """Build the site as make docs does."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-E",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-b",
        "html",
        "docs",
        str(target),
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def broken_links(pages: dict[Path, Page]) -> Iterator[str]:
    for page in pages.values():
        for link in page.links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme:
                continue
            target = (page.path.parent / unquote(address)).resolve() if address else page.path
            known = target in pages and (not anchor or unquote(anchor) in pages[target].anchors)
            if not known and not (target.is_file() and not anchor):
                yield f"{page.path.name}: {link}"


def test_no_link_inside_is_broken(pages):
    assert list(broken_links(pages)) == []


def test_a_broken_link_is_found(site, pages, tmp_path):
    (tmp_path / "page.html").write_text(
        '<a href="#nowhere">x</a><a href="gone.html">y</a><a href="#here" id="here">z</a>'
    )
    assert len(list(broken_links({tmp_path / "page.html": Page(tmp_path / "page.html")}))) == 2


def test_nothing_is_loaded_from_a_network(site, pages):
    for page in pages.values():
        outside = [address for address in page.resources if urlsplit(address).netloc]
        assert not outside, f"{page.path.name}: {outside}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path.name


def test_no_page_names_a_package_registry(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.js"), *site.rglob("*.txt")]:
        assert not [name for name in REGISTRIES if name in path.read_text().lower()], path.name


def test_search_finds_settings_and_public_names(site):
    """The index is a file of the site, so search needs no network."""
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text(), re.DOTALL)[1])
    objects = {f"{prefix}.{entry[4]}".lstrip(".") for prefix, found in index["objects"].items() for entry in found}
    assert {f"fcnlab.{name}" for name in fcnlab.__all__ if not name.startswith("__")} <= objects
    assert {"optim.lr", "loss=ohem", "fcnlab train"} <= objects


def test_api_pages_show_shapes_and_hide_ranges(site):
    text = re.sub(r"<[^>]+>", "", (site / "reference/api.html").read_text())
    assert "Float[Tensor, 'batch 3 rows cols']" in text and "Meaning(" not in text
