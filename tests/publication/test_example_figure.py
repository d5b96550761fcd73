"""The example figure has the pixels of the runs' archives at the places that its layout names."""

import re

import numpy as np
import pytest
from PIL import Image

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.image_panels import Archives
from fcnlab.comparison.pairs import image_scores
from fcnlab.comparison.runs import read_runs
from fcnlab.errors import UserError
from fcnlab.publication.example_figure import chosen_images, example_figure, images_that_differ_most, run_columns
from fcnlab.publication.figure_files import DOTS, POINTS, text_measure, write_figure
from fcnlab.publication.figure_layout import MOST_LINES, fitted, layout
from run_folders import PALETTE, write_run_with_predictions

MODELS = {"fcn32s": 0.3, "fcn16s": 0.6, "fcn8s": 0.9}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcnlab.files.writing._sync", lambda path: None)
        for model, quality in MODELS.items():
            write_run_with_predictions(folder / model, quality, model=model, typed=[])
    return folder


@pytest.fixture(scope="module")
def comparison(runs):
    return compare(read_runs([runs])[0], resamples=100, names={model: model.upper() for model in MODELS})


def columns_of(comparison, runs, *models):
    return run_columns(comparison, [runs / model for model in models])


def test_columns_have_the_given_order_and_the_names_of_compare(comparison, runs):
    columns = columns_of(comparison, runs, "fcn8s", "fcn32s")
    assert [column.title for column in columns] == ["FCN8S", "FCN32S"]
    assert [column.run.folder.name for column in columns] == ["fcn8s", "fcn32s"]


def test_seeds_of_a_group_are_named(sweep):
    comparison = compare(read_runs([sweep])[0], resamples=100)
    columns = run_columns(comparison, [sweep / "3", sweep / "4"])
    assert [column.title for column in columns] == ["model=fcn16s seed=1", "model=fcn16s seed=2"]


def test_too_many_columns_are_refused_with_one_run_of_each_group(sweep):
    comparison = compare(read_runs([sweep])[0], resamples=100)
    with pytest.raises(UserError, match="contains 9 runs, but a figure has at most 6") as error:
        run_columns(comparison, [sweep / str(place) for place in range(9)])
    assert str(error.value).endswith(f"runs={sweep}/0,{sweep}/3,{sweep}/6")


def test_the_chosen_images_are_those_that_differ_most(comparison, runs):
    columns = columns_of(comparison, runs, *MODELS)
    scores = np.array([image_scores(group) for group in comparison.groups])
    order = np.argsort(scores.min(axis=0) - scores.max(axis=0), kind="stable")
    expected = [comparison.groups[0].runs[0].names[place] for place in order[:3]]
    assert chosen_images(columns, [], 3, Archives()) == expected


def test_of_a_single_run_images_of_all_ranks_are_chosen(comparison, runs):
    run = columns_of(comparison, runs, "fcn16s")[0].run
    chosen = images_that_differ_most([run], frozenset(run.names), 3)
    group = next(group for group in comparison.groups if group.title == "FCN16S")
    order = [run.names[place] for place in np.argsort(-image_scores(group), kind="stable")]
    assert (chosen[0], chosen[2]) == (order[0], order[-1]) and chosen[1] in order[17:19]


def test_an_unknown_image_is_refused_with_similar_names(comparison, runs):
    with pytest.raises(UserError, match=r"images=image_99 is not one of the 36 images.*image_0"):
        chosen_images(columns_of(comparison, runs, *MODELS), ["image_99"], 4, Archives())


def test_the_panels_have_the_pixels_of_the_archives(comparison, runs, tmp_path):
    """And the images keep their aspect ratio: 12 rows and 16 columns, at 300 dots to an inch."""
    columns = columns_of(comparison, runs, *MODELS)
    archives = Archives()
    figure = example_figure(columns, ["image_003", "image_001"], archives)
    write_figure(figure, "text", tmp_path / "f.pdf", tmp_path / "f.png", "a figure")
    with Image.open(tmp_path / "f.png") as image:
        drawn, dpi = np.array(image.convert("RGB")), image.info["dpi"]
    assert drawn.shape[1] == int(6.875 * 300) and dpi[0] == pytest.approx(300, abs=0.1)
    places = layout(figure, 6.875 * POINTS, text_measure())
    for name, boxes in zip(("image_003", "image_001"), places.cells, strict=True):
        kept = [archives.images(column.run, [name])[name] for column in columns]
        maps = [*(each.prediction for each in kept), kept[0].target]
        for box, labels in zip(boxes[1:], maps, strict=True):
            assert box.width / box.height == pytest.approx(16 / 12)
            rows = ((box.top + (np.arange(12) + 0.5) * box.height / 12) * DOTS / POINTS).astype(int)
            cols = ((box.left + (np.arange(16) + 0.5) * box.width / 16) * DOTS / POINTS).astype(int)
            colours = np.where(labels[..., None] == 255, (224, 224, 192), PALETTE[np.minimum(labels, 3)])
            np.testing.assert_array_equal(drawn[np.ix_(rows, cols)], colours)


def test_the_pdf_embeds_its_font_as_truetype_and_has_the_width_of_a_column(comparison, runs, tmp_path):
    figure = example_figure(columns_of(comparison, runs, "fcn8s"), ["image_003"], Archives())
    for name in ("a", "b"):
        write_figure(figure, "column", tmp_path / f"{name}.pdf", tmp_path / f"{name}.png", "a figure")
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content
    assert float(re.search(rb"MediaBox \[ 0 0 ([\d.]+)", content)[1]) == 3.25 * 72
    assert content == (tmp_path / "b.pdf").read_bytes()


def test_titles_are_broken_and_cut_to_their_column():
    def measure(text: str) -> float:
        return float(len(text))

    assert fitted("model=fcn8s seed=1", 12, measure) == ["model=fcn8s", "seed=1"]
    assert fitted("model=fcn8s", 6, measure) == ["model=", "fcn8s"]
    assert fitted("a=1 b=2 c=3 d=4", 4, measure) == ["a=1", "b=2", "c=3…"] and MOST_LINES == 3
    assert fitted("incomprehensible", 6, measure) == ["incom…"]


def test_rows_of_images_of_two_shapes_have_the_same_height(comparison, runs):
    figure = example_figure(columns_of(comparison, runs, "fcn8s"), ["image_003", "image_001"], Archives())
    wide = figure.rows[0]._replace(target=np.zeros((10, 40), np.uint8))
    places = layout(figure._replace(rows=[wide, figure.rows[1]]), 300, text_measure())
    boxes = [row[0] for row in places.cells]
    assert boxes[0].height == boxes[1].height
    assert [box.width / box.height for box in boxes] == pytest.approx([4, 16 / 12])
    assert boxes[1].left + boxes[1].width / 2 == pytest.approx(boxes[0].left + boxes[0].width / 2)
    assert boxes[0].width == pytest.approx((300 - 2 * 2.5) / 3)
