"""The page: whole, by itself, and no markup from a run's folder."""

import re
from html.parser import HTMLParser

import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.page import page, write_page
from fcnlab.comparison.runs import ExcludedRun, read_runs
from run_folders import toy_matrices

IGNORE_INDEX = {"meta", "img", "br", "input", "link", "hr"}


class Outline(HTMLParser):
    """Every element with its attributes; complains where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in IGNORE_INDEX:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def made(tmp_path):
    def make(**kwargs) -> str:
        found = compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})
        return page(found, "fcnlab compare runs=x")

    return make


def test_all_parts_are_there(sweep, made):
    outline = Outline(made())
    sections = [each["id"] for each in outline.all("section")]
    assert sections == [
        "answer",
        "differences",
        "scores",
        "classes",
        "curves",
        "cost",
        "settings",
        "images",
        "runs",
        "method",
    ]
    targets = {each["href"] for each in outline.all("a") if each["href"].startswith("#")}
    assert targets == {f"#{section}" for section in sections}


def test_it_needs_nothing_else(sweep, made):
    """No address of anything outside: what there is of src, href and url() lies in the page."""
    text = made()
    outline = Outline(text)
    addresses = [each[key] for _, each in outline.elements for key in ("src", "href", "xlink:href") if key in each]
    assert addresses and all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert "http" not in re.sub(r"http-equiv", "", text) and "url(" not in text and "@import" not in text
    assert not outline.all("link", "iframe") and outline.all("script") == [{}]
    (policy,) = [each["content"] for each in outline.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_it_can_be_heard(sweep, made):
    """Tables have captions and heads with scopes, charts and images a text, the page a language and one heading."""
    text = made()
    outline = Outline(text)
    assert outline.all("html") == [{"lang": "en"}] and len(outline.all("h1", "main")) == 2
    assert text.count("<table") == text.count("<caption") and all(each.get("scope") for each in outline.all("th"))
    assert all(
        (each.get("role") == "img" and each["aria-label"]) or each.get("aria-hidden") for each in outline.all("svg")
    )
    assert all(each["alt"] for each in outline.all("img"))
    named = {each["id"] for _, each in outline.elements if "id" in each}
    assert {each["aria-labelledby"] for _, each in outline.elements if "aria-labelledby" in each} <= named
    assert len(named) == text.count(' id="')


def test_numbers_are_the_comparisons(sweep, made, tmp_path):
    found = compare(read_runs([sweep])[0], resamples=500)
    text = page(found, "")
    for pair in found.pairs:
        assert f">{100 * pair.difference:+.2f}</td>" in text
    for group in found.groups:
        assert f"{100 * group.mean():.2f}<span" in text and f">{100 * group.iou()[2]:.1f}</td>" in text


EVIL = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


def test_text_from_run_folders_is_no_markup(make_run, tmp_path):
    classes, listed = ("background", EVIL, "<b>", "c"), [f"{place}<i>" for place in range(36)]
    for place, quality in enumerate((0.9, 0.5)):
        settings = {"optim.lr": f"{EVIL}{place}", f"optim.<u>{place}": 1}
        make_run(
            f"<s>{place}",
            toy_matrices(quality),
            settings=settings,
            classes=classes,
            names=listed,
            protocol={"set": EVIL},
        )
    found = compare(read_runs([tmp_path / "runs"])[0], resamples=500)
    found.left_out.append(ExcludedRun(tmp_path / EVIL, EVIL))
    text = page(found, EVIL)
    elements = {tag for tag, _ in Outline(text).elements}
    assert not elements & {"img", "b", "i", "u", "s"} and "49" not in re.findall(r"&amp;(\{\{.*?\}\}|49)", text)
    assert text.count("<script>") == 1 and "onerror=alert(1)&gt;" in text


def test_images_are_those_that_several_groups_drew(sweep, made):
    """Three of twelve; each group's first seed, for each of three groups."""
    outline = Outline(made())
    assert len(outline.all("img")) == 9 and outline.all("img")[0]["alt"].startswith("image_00")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nhalf", b"<svg onload=alert(1)>"])
def test_a_damaged_image_is_passed_over(sweep, made, content):
    for run in ("0", "3", "6"):
        (sweep / run / "predictions" / "image_000.png").write_bytes(content)
    assert len(Outline(made()).all("img")) == 6


def test_a_page_of_little(make_run, made):
    """One run, no curves, no images, a class that is nowhere."""
    matrices = toy_matrices(0.7)
    matrices[:, 3], matrices[:, :, 3] = 0, 0
    folder = make_run("a", matrices)
    (folder / "metrics.csv").unlink()
    sections = [each["id"] for each in Outline(made()).all("section")]
    assert sections == ["answer", "scores", "classes", "runs", "method"]


def test_published_scores(make_run, made):
    make_run("a", published={"miou": 65.5})
    assert "published" in [each["id"] for each in Outline(made()).all("section")]


def test_it_is_written_whole_or_not_at_all(sweep, tmp_path):
    found = compare(read_runs([sweep])[0], resamples=500)
    write_page(tmp_path / "page.html", found, "x")
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert not list(tmp_path.glob("*.part"))
