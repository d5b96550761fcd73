"""What draws predictions to a picture's edges, against definitions written out."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from fcnlab.errors import UserError
from fcnlab.refine import DenseCRF, GuidedFilter, Superpixels
from fcnlab.refine.edges import mean_of_segments


@pytest.fixture
def scene():
    """A dark and a bright half with a little noise; the prediction puts the border four pixels too far left."""
    generator = np.random.default_rng(0)
    picture = np.full((40, 60, 3), 60.0)
    picture[:, 30:] = 190
    picture += generator.normal(0, 3, picture.shape)
    right = np.where(np.arange(60) >= 26, 0.7, 0.3)[None].repeat(40, 0)
    probability = np.stack([1 - right, right]).astype(np.float32)
    return picture.clip(0, 255).astype(np.uint8), probability


def wrong_pixels(probability: np.ndarray) -> int:
    truth = np.broadcast_to(np.arange(60) >= 30, (40, 60))
    return int(((probability[1] > probability[0]) != truth).sum())


def test_guided_filter_is_its_definition(scene):
    """He, Sun & Tang, equations 5, 6 and 8, window by window, away from the border."""
    picture, probability = scene
    radius, eps = 2, 1e-2
    found = GuidedFilter(radius, eps).refine(probability, picture)
    grey = np.round(picture @ np.array([0.299, 0.587, 0.114])) / 255
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
        assert found[1, row, col] == pytest.approx(slope * grey[row, col] + offset, abs=1e-3)


def test_mean_of_segments_by_hand():
    probability = np.array([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]], np.float32)
    segments = np.array([[0, 0, 2], [0, 2, 2]])
    expected = [[4 / 3, 4 / 3, 11 / 3], [4 / 3, 11 / 3, 11 / 3]]
    np.testing.assert_allclose(mean_of_segments(probability, segments)[0], expected, rtol=1e-6)


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


REFINEMENTS = [
    pytest.param(GuidedFilter(8, 1e-3), id="guided"),
    pytest.param(Superpixels(40), id="superpixels", marks=needs("skimage")),
    pytest.param(DenseCRF(), id="crf", marks=needs("pydensecrf")),
]


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_borders_are_drawn_to_the_edge(scene, refine):
    picture, probability = scene
    found = refine.refine(probability, picture)
    assert found.shape == probability.shape and found.dtype == np.float32
    assert wrong_pixels(probability) == 160 and wrong_pixels(found) < 80
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-3)


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_a_picture_without_edges_and_a_certain_net_stay_as_they_are(refine):
    probability = np.stack([np.full((20, 20), 0.1), np.full((20, 20), 0.9)]).astype(np.float32)
    found = refine.refine(probability, np.full((20, 20, 3), 77, np.uint8))
    assert (found[1] > found[0]).all()


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_pictures_are_refined_one_by_one(net_that_scores, scene, refine):
    picture, probability = scene
    scores = torch.from_numpy(probability).log()
    net = net_that_scores(lambda images: scores.expand(len(images), -1, -1, -1), len(scores))
    batch = torch.from_numpy(np.stack([picture, picture[::-1].copy()])).permute(0, 3, 1, 2) / 255
    found = refine(net, batch)
    np.testing.assert_allclose(found[0].numpy(), refine.refine(probability, picture), atol=1e-4)
    np.testing.assert_allclose(found[1].numpy(), refine.refine(probability, picture[::-1].copy()), atol=1e-4)


@pytest.mark.parametrize(
    ("refine", "module", "extra"),
    [(Superpixels(), "skimage.segmentation", "refine"), (DenseCRF(), "pydensecrf.densecrf", "crf")],
)
def test_what_is_not_installed_is_named(scene, monkeypatch, refine, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    picture, probability = scene
    with pytest.raises(UserError, match=rf"pip install 'fcnlab\[{extra}\]'"):
        refine.refine(probability, picture)
