"""The page in headless Chromium (Debian), opened from a file, without a network.

A script after the page's own clicks, types and measures, and posts its results to the frame that Chromium prints.
"""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.page import page
from fcnlab.comparison.runs import read_runs
from run_folders import write_run_with_predictions

CHROMIUM = shutil.which("chromium")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

PROBE = """
<script>
{
const found = {};
const column = (table, place) => [...document.querySelector(`#${table} tbody`).rows].filter((row) => !row.hidden)
  .map((row) => row.cells[place].textContent.trim());
const style = (element, name) => getComputedStyle(element)[name];
const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3)
  .map((part) => part * (text.startsWith("color(srgb") ? 255 : 1));
function luminance(text) {
  const [r, g, b] = rgb(text).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

found.before = column("scores", 0);
const heads = [...document.querySelectorAll("#scores thead th")];
const button = heads[3].querySelector("button");
button.focus();
found.focused = document.activeElement === button;
found.outline = style(button, "outlineStyle");
heads[0].querySelector("button").click();
found.byName = [column("scores", 0), heads[0].getAttribute("aria-sort")];
button.click();
found.falling = [column("scores", 3), heads[3].getAttribute("aria-sort"), heads[0].getAttribute("aria-sort")];
button.click();
found.rising = [column("scores", 3), heads[3].getAttribute("aria-sort")];

const filter = document.getElementById("filter");
filter.value = "FCN8S";
filter.dispatchEvent(new Event("input"));
found.filtered = [column("scores", 0), column("differences", 0).length, document.getElementById("shown").textContent,
  [...document.querySelector("#classes thead").rows[0].cells].filter((head) => !head.hidden).length];
filter.value = "";
filter.dispatchEvent(new Event("input"));
found.unfiltered = column("scores", 0).length;

const ground = () => style(document.body, "backgroundColor");
const theme = document.getElementById("theme");
found.system = ground();
found.contrasts = [];
found.themes = [];
for (let turn = 0; turn < 3; turn++) {
  const back = ground();
  found.themes.push([theme.textContent, back]);
  for (const element of document.querySelectorAll("p, li, h1, h2, td, th, a, summary, dd, caption, span, strong")) {
    let box = element;
    while (style(box, "backgroundColor").endsWith(", 0)") && box.parentElement) box = box.parentElement;
    const behind = style(box, "backgroundColor");
    found.contrasts.push([contrast(style(element, "color"), behind), element.tagName]);
  }
  theme.click();
}
found.width = [document.documentElement.scrollWidth, innerWidth];
const least = (what, size) => Math.min(...[...document.querySelectorAll(what)].map(size));
found.small = least("p, td, th, li, figcaption", (element) => parseFloat(style(element, "fontSize")));
found.chartText = least("figure > svg text", (element) => element.getBoundingClientRect().height);
found.tallest = Math.max(...[...document.querySelectorAll("tr")].map((row) => row.getBoundingClientRect().height));
found.split = [];
found.looseUnits = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const range = document.createRange();
while (texts.nextNode()) {
  const node = texts.currentNode;
  if (node.parentElement.closest("script, svg, code")) continue;
  if (node.data.includes(" %")) found.looseUnits.push(node.data.trim());
  for (const word of node.data.matchAll(/[A-Za-z0-9]{2,}/g)) {
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    const lines = new Set([...range.getClientRects()].filter((box) => box.width > 0).map((box) => Math.round(box.top)));
    if (lines.size > 1) found.split.push(word[0]);
  }
}
found.images = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
parent.postMessage(JSON.stringify(found), "*");
}
</script>
</body>
"""

# Chromium's window is at least 500 pixels wide; a frame can be narrower.
FRAME = """<!DOCTYPE html><pre id="probe"></pre>
<script>addEventListener("message", (event) => document.getElementById("probe").textContent = event.data);</script>
<iframe src="comparison.html" style="border: 0; width: {width}px; height: 900px"></iframe>
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """Open a page at a width, in a colour scheme; return the probe's results and Chromium's console errors."""

    def run(text: str, width: int = 1280, dark: bool = False) -> dict:
        folder = tmp_path_factory.mktemp("page")
        (folder / "comparison.html").write_text(text.replace("</body>", PROBE))
        (folder / "frame.html").write_text(FRAME.format(width=width))
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        profile = ["--user-data-dir=" + str(folder / "profile"), "--window-size=1400,1000", "--enable-logging=stderr"]
        words = [CHROMIUM, *QUIET.split(), *scheme, *profile, "--virtual-time-budget=2000", "--dump-dom"]
        words.append((folder / "frame.html").as_uri())
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        left = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.DOTALL)
        assert left, done.stderr[-2000:]
        errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(html.unescape(left[1])) | {"errors": errors}

    return run


@pytest.fixture
def text(sweep) -> str:
    return page(compare(read_runs([sweep])[0], resamples=500), "fcnlab compare runs=x")


def test_sorting_filtering_and_themes(text, probe):
    results = probe(text)
    models = [f"model=fcn{stride}s" for stride in (8, 16, 32)]
    assert results["errors"] == [] and results["images"]
    assert results["before"] == models and results["focused"] and results["outline"] != "none"
    assert results["byName"] == [models, "ascending"]  # in natural order: 8, 16, 32
    numbers = [float(cell.split()[0]) for cell in results["falling"][0]]
    assert numbers == sorted(numbers, reverse=True) and results["falling"][1:] == ["descending", "none"]
    assert results["rising"] == [results["falling"][0][::-1], "ascending"]
    assert results["filtered"] == [models[:1], 2, "1 of 3 groups", 2] and results["unfiltered"] == 3
    labels, grounds = zip(*results["themes"], strict=True)
    assert labels == ("Theme: system", "Theme: light", "Theme: dark")
    assert grounds[0] == grounds[1] == "rgb(255, 255, 255)" and grounds[2] != grounds[1]


def test_the_system_theme_is_the_default(text, probe):
    results = probe(text, dark=True)
    grounds = [ground for _, ground in results["themes"]]
    assert grounds[0] == grounds[2] != grounds[1] == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_long_names_and_images_fit_the_page(make_run, tmp_path, probe, width):
    """No word is split, no unit stands on a line of its own, and no row is as high as 200 pixels."""
    for place, quality in enumerate(np.linspace(0.4, 0.9, 9)):
        weights = f"/data/weights/imagenet/vgg16_reduced_atrous_{place % 2}.pth"
        settings = {"optim.lr": place / 100, "model.backbone.weights": weights, "augment.scale": [0.5, 2.0]}
        settings |= {"loss.class_weights": "none" if place % 4 else "median_frequency_of_the_training_set"}
        write_run_with_predictions(tmp_path / "runs" / str(place), quality, settings=settings)
    text = page(compare(read_runs([tmp_path / "runs"])[0], resamples=200), "fcnlab compare runs=x")
    results = probe(text.replace("<details", "<details open"), width)
    assert results["width"][0] <= results["width"][1] == width and results["images"]
    assert results["split"] == [] and results["looseUnits"] == []
    assert results["tallest"] < 200


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_readable(text, probe, width):
    """No part is wider than the page, text has at least 11 pixels, and WCAG's contrast of 4.5 holds in both themes."""
    commit = "8c0ffee" * 5
    assert commit in text
    results = probe(text.replace(commit, f"{commit}01234+changes"), width)  # as long as commits of others are
    assert results["width"][0] <= results["width"][1] == width
    assert results["small"] >= 11 and results["chartText"] >= 11
    poor = [(round(ratio, 2), tag) for ratio, tag in results["contrasts"] if ratio < 4.5]
    assert len(results["contrasts"]) > 100 and not poor
