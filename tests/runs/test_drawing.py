"""Test colours, overlays, legends, and class ids that programs read back."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fcnlab.runs.drawing import (
    GAP,
    ROW,
    colours,
    contact_sheet,
    legend,
    overlay,
    panel,
    save_labels,
    save_png,
    with_legend,
)

PALETTE = np.array([(0, 0, 0), (128, 0, 0), (0, 100, 200)], np.uint8)
CLASSES = ("background", "cat", "dog")
CREAM = [224, 224, 192]  # the devkit's colour for its class "void"
LABELS = np.array([[0, 1], [2, 255]])


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_ignored_and_class_pixels_have_the_palette_colours(kind):
    expected = [[[0, 0, 0], [128, 0, 0]], [[0, 100, 200], CREAM]]
    assert colours(LABELS.astype(kind), PALETTE).tolist() == expected


def test_overlay_tints_all_but_black_classes():
    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = overlay(image, LABELS, PALETTE)  # 0.4 * 100 + 0.6 * colour
    assert drawn.tolist() == [[[100, 100, 100], [117, 40, 40]], [[40, 100, 160], [174, 174, 155]]]
    assert drawn.dtype == np.uint8 and (image == 100).all()


def test_legend_shows_the_colours():
    drawn = legend([1, 2], CLASSES, PALETTE, 300)
    assert drawn.shape[1] == 300
    output = {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()}
    assert {tuple(PALETTE[1].tolist()), tuple(PALETTE[2].tolist())} <= output and (0, 0, 0) in output


@pytest.mark.parametrize(("labels", "width", "lines"), [([0, 1, 2], 400, 1), ([0, 1, 2], 60, 3), ([], 60, 1)])
def test_legend_takes_as_many_lines_as_it_needs(labels, width, lines):
    drawn = legend(labels, CLASSES, PALETTE, width)
    assert drawn.shape[1] == width and drawn.shape[0] // ROW == lines


def test_legend_names_the_classes_in_the_images():
    image = np.zeros((5, 200, 3), np.uint8)
    drawn = with_legend(image, [np.array([[0, 255]]), np.array([[1, 1]])], CLASSES, PALETTE)
    np.testing.assert_array_equal(drawn[:5], image)
    np.testing.assert_array_equal(drawn[5:], legend([0, 1], CLASSES, PALETTE, 200))


def test_a_panel_shows_image_ground_truth_and_prediction():
    rng = np.random.default_rng(0)
    image, target = rng.integers(0, 256, (9, 50, 3), np.uint8), rng.integers(0, 3, (9, 50))
    drawn = panel(image, target, 0 * target, CLASSES, PALETTE)
    assert drawn.shape[1] == 3 * 50 + 2 * GAP
    parts = [drawn[:9, start : start + 50] for start in (0, 50 + GAP, 2 * (50 + GAP))]
    for part, expected in zip(parts, [image, PALETTE[target], np.zeros_like(image)], strict=True):
        np.testing.assert_array_equal(part, expected)
    assert (drawn[:9, 50 : 50 + GAP] == 255).all()


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_saved_predictions_are_class_ids_with_a_palette(tmp_path, kind):
    path = tmp_path / "new" / "a.png"
    save_labels(path, LABELS.astype(kind), PALETTE)
    with Image.open(path) as image:
        assert image.mode == "P" and np.array(image).tolist() == LABELS.tolist()
        assert np.array(image.convert("RGB")).tolist() == colours(LABELS, PALETTE).tolist()


def test_a_png_is_saved_unchanged(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    save_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), image)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 2)])
def test_a_contact_sheet_shows_fitted_images(count, rows):
    image, labels = np.full((10, 20, 3), 100, np.uint8), np.ones((10, 20), int)
    sheet = contact_sheet([("x", image, labels)] * count, CLASSES, PALETTE, side=40, columns=2)
    pair, line = 2 * (40 + GAP) + GAP, 40 + GAP + ROW
    assert sheet.shape[1] == 2 * pair and rows * line < sheet.shape[0] < (rows + 1) * line
    assert sheet[GAP + 5, GAP + 5].tolist() == [100, 100, 100]  # fitted into the square: 20 rows of 40 columns
    assert sheet[GAP + 5, 2 * GAP + 45].tolist() == [117, 40, 40]  # tinted, as in the test of overlay
    assert (sheet[GAP + 20 : GAP + 40, :pair] == 255).all()


def test_a_contact_sheet_names_ignored_pixels():
    image, labels = np.full((10, 10, 3), 100, np.uint8), np.full((10, 10), 255)
    sheet = contact_sheet([("", image, labels)], CLASSES, PALETTE, side=40, columns=1)
    assert CREAM in sheet[40 + GAP + ROW :].reshape(-1, 3).tolist()


def test_an_overlay_needs_no_float_copy_of_the_whole_image():
    image = np.random.default_rng(0).integers(0, 256, (1000, 500, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, (1000, 500))
    tracemalloc.start()
    drawn = overlay(image, labels, PALETTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * image.nbytes  # in floats, the image alone would be 8 times as large
    tint = PALETTE[labels]
    expected = np.where((labels == 0)[..., None], image, np.rint(0.4 * image + 0.6 * tint)).astype(np.uint8)
    assert (drawn == expected).all()
