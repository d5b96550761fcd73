"""File name patterns match like a regular expression, but never in exponential time."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fcnlab.data.patterns import find_images, name_in, same_names, shortest_name_in

PARTS = st.lists(st.sampled_from(["a", "b", "*", "/", ".", "ab", "**", "A"]), max_size=6).map("".join)
PATHS = st.text("ab/.AB", max_size=14)


def expected_name(pattern: str, path: str) -> str | None:
    known = {"{name}": "(?P<name>.+)", "*": "[^/]*"}
    regex = "".join(known.get(part, re.escape(part)) for part in re.split(r"(\{name\}|\*)", pattern))
    match = re.fullmatch(regex, path)
    return match and match["name"]


@given(PARTS, PARTS, PATHS)
@example("*a*b", "*a*b*", "xaybzbaabxb")
@example("a/*", "/**", "a/b/c/d")
@example("", "", "a")
@example("", "*", "")
@example("a", "b", "ab")
@example("*", "", "a/b")
def test_name_in_equals_a_regular_expression(before: str, after: str, path: str):
    pattern = f"{before}{{name}}{after}"
    assert name_in(pattern, path) == expected_name(pattern, path)


@pytest.mark.parametrize(
    "pattern", ["a*" * 30 + "b/{name}.*", "{name}" + "a*" * 30 + "b", "a*" * 30 + "{name}" + "a*" * 30 + "b"]
)
def test_patterns_with_many_stars_are_fast(pattern: str, tmp_path):
    """The time of a regular expression doubles with each star."""
    folder = tmp_path / ("a" * 200)
    folder.mkdir()
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{'a' * 200}.png").touch()
    (folder / f"{'a' * 200}.png").touch()
    start = time.process_time()
    assert name_in(pattern, 4_000 * "a") is None
    assert find_images(str(tmp_path), pattern, "{name}.png") == ({}, {})
    assert not list(same_names(str(tmp_path), f"{{split}}/{pattern}", "train"))
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("images/{split}/{name}.*", ("images/train/x/a.png", "images/val/x/a.jpg")),
        ("*/{split}_*/{name}_left.*", ("b/train_1/a_left.png", "c/val_2/a_left.png")),
        ("{split}/set-{split}/{name}.png", ("train/set-train/a.png", "val/set-val/a.png")),
        ("{name}/{split}.png", ("x/a/train.png", "x/a/val.png")),
        ("{name}-{split}.png", ("x/a-b-train.png", "x/a-b-val.png")),
        ("{split}-{name}.png", ("train-a.png", "val-a.png")),
    ],
)
def test_same_names_finds_equal_names_in_two_splits(pattern: str, files, tmp_path):
    for file in (*files, "images/train/b.png", "train/set-val/a.png", "train/set-val/b.png", "val/set-val/c.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert list(same_names(str(tmp_path), pattern, "train")) == [tuple(tmp_path / file for file in files)]


def test_skipped_files_keep_the_case_of_their_names(tmp_path):
    for file in ("photos/a.jpg", "Photos/İB.JPEG", "photos/C.TIF"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    images, skipped = find_images(str(tmp_path), "{name}.jpg", "labels/{name}.png")
    assert list(images) == ["photos/a"] and sorted(skipped) == ["Photos/İB", "photos/C"]


@pytest.mark.parametrize(
    ("pattern", "path", "name"),
    [
        ("{name}_*", "patient1_slice_003_a", "patient1"),
        ("{name}_*", "_a_b", "_a"),
        ("{name}_*", "patient1", None),
        ("patient{name}_*_a", "patient1_slice_003_a", "1"),
        ("{name}/*", "city/drive/image", "city/drive"),
        ("*/{name}_*", "city/a_b_c", "a"),
        ("*_{name}_*", "a_b_c_d", "b"),
        ("{name}", "a_b", "a_b"),
        ("{name}*", "a_b", "a"),
    ],
)
def test_the_shortest_name(pattern, path, name):
    assert shortest_name_in(pattern, path) == name
