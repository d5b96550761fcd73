"""Post-processing steps, compared with their definitions."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from fcnlab.errors import UserError
from fcnlab.inference import DenseCRF, GuidedFilter, Superpixels
from fcnlab.inference.postprocess import mean_of_segments


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.fixture
def scene():
    """An image with a dark and a bright half and noise; the predicted border is four pixels too far left."""
    generator = np.random.default_rng(0)
    image = np.full((40, 60, 3), 60.0)
    image[:, 30:] = 190
    image += generator.normal(0, 3, image.shape)
    right = np.where(np.arange(60) >= 26, 0.7, 0.3)[None].repeat(40, 0)
    probability = np.stack([1 - right, right]).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), probability


def wrong_pixels(probability: np.ndarray) -> int:
    target = np.broadcast_to(np.arange(60) >= 30, (40, 60))
    return int(((probability[1] > probability[0]) != target).sum())


def test_guided_filter_equals_its_definition(scene):
    """He, Sun & Tang, equations 5, 6 and 8, computed per window, away from the border."""
    image, probability = scene
    radius, eps = 2, 1e-2
    processed = GuidedFilter(radius, eps).process(probability, image)
    grey = np.round(image @ np.array([0.299, 0.587, 0.114])) / 255
    values = probability[1].astype(float)

    def window(row, col):
        return slice(row - radius, row + radius + 1), slice(col - radius, col + radius + 1)

    def line(row, col):
        place = window(row, col)
        guide, value = grey[place], values[place]
        slope = ((guide * value).mean() - guide.mean() * value.mean()) / (guide.var() + eps)
        return slope, value.mean() - slope * guide.mean()

    for row, col in [(10, 10), (20, 26), (20, 29), (20, 30), (30, 50)]:
        lines = [
            line(r, c) for r in range(row - radius, row + radius + 1) for c in range(col - radius, col + radius + 1)
        ]
        slope, offset = np.mean(lines, axis=0)
        assert processed[1, row, col] == pytest.approx(slope * grey[row, col] + offset, abs=1e-3)


def test_mean_of_segments_by_hand():
    probability = np.array([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]], np.float32)
    segments = np.array([[0, 0, 2], [0, 2, 2]])
    expected = [[4 / 3, 4 / 3, 11 / 3], [4 / 3, 11 / 3, 11 / 3]]
    np.testing.assert_allclose(mean_of_segments(probability, segments)[0], expected, rtol=1e-6)


STEPS = [
    pytest.param(GuidedFilter(8, 1e-3), id="guided"),
    pytest.param(Superpixels(40), id="superpixels", marks=needs("skimage")),
    pytest.param(DenseCRF(), id="crf", marks=needs("pydensecrf")),
]


@pytest.mark.parametrize("step", STEPS)
def test_borders_move_towards_image_edges(scene, step):
    image, probability = scene
    processed = step.process(probability, image)
    assert processed.shape == probability.shape and processed.dtype == np.float32
    assert wrong_pixels(probability) == 160 and wrong_pixels(processed) < 80
    np.testing.assert_allclose(processed.sum(0), 1, atol=1e-3)


@pytest.mark.parametrize("step", STEPS)
def test_confident_predictions_without_edges_do_not_change(step):
    probability = np.stack([np.full((20, 20), 0.1), np.full((20, 20), 0.9)]).astype(np.float32)
    processed = step.process(probability, np.full((20, 20, 3), 77, np.uint8))
    assert (processed[1] > processed[0]).all()


@pytest.mark.parametrize("step", STEPS)
def test_images_are_processed_one_by_one(scene, step):
    image, probability = scene
    batch = torch.from_numpy(np.stack([image, image[::-1].copy()])).permute(0, 3, 1, 2) / 255
    processed = step(torch.from_numpy(probability).expand(2, -1, -1, -1), batch)
    np.testing.assert_array_equal(processed[0].numpy(), step.process(probability, image))
    np.testing.assert_array_equal(processed[1].numpy(), step.process(probability, image[::-1].copy()))


@pytest.mark.parametrize(
    ("step", "module", "extra"),
    [(Superpixels(), "skimage.segmentation", "superpixels"), (DenseCRF(), "pydensecrf.densecrf", "crf")],
)
def test_a_missing_package_is_an_error_that_names_it(monkeypatch, step, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'fcnlab\[{extra}\]'"):
        step.check_installed()
