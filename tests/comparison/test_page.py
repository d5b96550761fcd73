"""The page: complete, self-contained, and without markup from run folders."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.confusions import confusions
from fcnlab.comparison.page import page, write_page
from fcnlab.comparison.runs import ExcludedRun, read_runs
from run_folders import toy_matrices, write_run_with_predictions

VOID_ELEMENTS = {"meta", "wbr", "img", "br", "input", "link", "hr"}


class Outline(HTMLParser):
    """Collect every element with its attributes; fail if tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def make_page(tmp_path):
    def make(**kwargs) -> str:
        comparison = compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})
        return page(comparison, "fcnlab compare runs=x")

    return make


def test_the_page_has_all_sections(sweep, make_page):
    outline = Outline(make_page())
    sections = [each["id"] for each in outline.all("section")]
    assert sections == [
        "answer",
        "differences",
        "scores",
        "classes",
        "confusions",
        "curves",
        "cost",
        "settings",
        "images",
        "runs",
        "method",
    ]
    targets = {each["href"] for each in outline.all("a") if each["href"].startswith("#")}
    assert targets == {f"#{section}" for section in sections}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Write two runs with predictions.zip, a good one and a bad one; return their folders."""
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    qualities = {"fcn8s": 0.9, "fcn32s": 0.3}
    return [write_run_with_predictions(tmp_path / "runs" / name, each, model=name) for name, each in qualities.items()]


def test_the_page_is_self_contained(kept, make_page):
    """The page has no external addresses: all src, href and url() values are in the page, also those of downloads."""
    text = make_page()
    outline = Outline(text)
    addresses = [each[key] for _, each in outline.elements for key in ("src", "href", "xlink:href") if key in each]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    kinds = {address.partition(";base64,")[0] for address in addresses if address.startswith("data:")}
    downloads = {"data:image/svg+xml", "data:text/csv", "data:application/x-tex"}
    assert kinds - {"data:image/png"} == {"data:image/jpeg", *downloads}
    assert "http" not in re.sub(r"http-equiv", "", text) and "url(" not in text and "@import" not in text
    assert not outline.all("link", "iframe") and outline.all("script") == [{}]
    (policy,) = [each["content"] for each in outline.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_the_page_is_accessible(kept, make_page):
    """Tables have captions and scoped headers, charts and images a text, the page a language and one heading."""
    text = make_page()
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


def test_numbers_equal_those_of_the_comparison(sweep, make_page, tmp_path):
    comparison = compare(read_runs([sweep])[0], resamples=500)
    text = page(comparison, "")
    for pair in comparison.pairs:
        assert f">{100 * pair.difference:+.2f}</td>" in text
    for group in comparison.groups:
        assert f"{100 * group.mean():.2f}<span" in text and f">{100 * group.iou()[2]:.1f}<span" in text


def test_each_table_and_figure_can_be_saved(sweep, make_page):
    """Names are those of export=; a figure brings its colours, because no style sheet comes with it."""
    links = {each["download"]: each["href"] for each in Outline(make_page()).all("a") if "download" in each}
    tables = ("differences", "design", "scores", "classes", "costs", "settings", "runs", "val_miou", "train_loss")
    tables += (
        "fine_grained",
        "fine_grained_differences",
        "class_differences_1",
        "class_differences_2",
        "class_differences_3",
    )
    figures = ("differences", "scores", "confusion_1", "confusion_2", "confusion_difference", "val_miou", "train_loss")
    expected = {f"{name}.{kind}" for name in tables for kind in ("csv", "tex")}
    expected |= {f"{name}.svg" for name in (*figures, "cost_parameters", "setting_model")}
    assert set(links) == expected
    decoded = base64.b64decode(links["scores.svg"].partition(",")[2]).decode()
    assert decoded.startswith("<svg xmlns=") and "class=" not in decoded and 'fill="#' in decoded


def test_a_confusion_matrix_that_was_changed_is_not_shown(sweep, tmp_path):
    """The numbers of a page are those of one time."""
    comparison = compare(read_runs([sweep])[0], resamples=500)
    record = sweep / "6" / "confusions.npz"
    record.write_bytes((sweep / "0" / "confusions.npz").read_bytes())
    text = page(comparison, "x")
    assert "The matrix of model=fcn8s is not shown" in text
    figures = [each["download"] for each in Outline(text).all("a") if each.get("download", "").startswith("confusion")]
    assert figures == ["confusion_1.svg"]


def test_confusion_matrices_are_those_of_the_records(sweep):
    """The sum over the images and seeds of a group, divided by the pixels of each class."""
    comparison = compare(read_runs([sweep])[0], resamples=500)
    found = confusions(comparison)
    assert [group.name for group in found.groups] == ["model=fcn8s", "model=fcn16s"]
    total = sum(np.load(sweep / run / "confusions.npz")["matrices"].sum(axis=0) for run in ("6", "7", "8"))
    assert found.matrices[0] == pytest.approx(total / total.sum(axis=1, keepdims=True))


EVIL = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


def test_text_from_run_folders_is_escaped(make_run, tmp_path):
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
    comparison = compare(read_runs([tmp_path / "runs"])[0], resamples=500)
    comparison.left_out.append(ExcludedRun(tmp_path / EVIL, EVIL))
    text = page(comparison, EVIL)
    elements = {tag for tag, _ in Outline(text).elements}
    assert not elements & {"img", "b", "i", "u", "s"} and "49" not in re.findall(r"&amp;(\{\{.*?\}\}|49)", text)
    assert text.count("<script>") == 1 and "onerror=alert(1)&gt;" in text


def test_the_page_shows_images_of_pairs_and_groups(kept, make_page):
    """It shows five panels of each of three images for the pair, and three of each of four for each group."""
    images = Outline(make_page()).all("img")
    assert len(images) == 5 * 3 + 2 * 3 * 4
    assert [each["alt"].partition(": ")[2].split(" ")[0] for each in images[:4]] == ["image", "ground", "A", "B"]
    assert images[4]["alt"].partition(": ")[2].startswith("both right ")


def test_a_page_of_a_minimal_run(make_run, make_page):
    """One run without curves or images, and with a class that does not occur."""
    matrices = toy_matrices(0.7)
    matrices[:, 3], matrices[:, :, 3] = 0, 0
    folder = make_run("a", matrices)
    (folder / "metrics.csv").unlink()
    sections = [each["id"] for each in Outline(make_page()).all("section")]
    assert sections == ["answer", "scores", "classes", "confusions", "cost", "runs", "method"]


def test_published_scores_are_a_section(make_run, make_page):
    make_run("a", published={"miou": 65.5})
    assert "published" in [each["id"] for each in Outline(make_page()).all("section")]


def test_the_page_is_written_without_a_partial_file(sweep, tmp_path):
    comparison = compare(read_runs([sweep])[0], resamples=500)
    write_page(tmp_path / "page.html", comparison, "x")
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert not list(tmp_path.glob("*.part"))
