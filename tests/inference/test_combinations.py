"""Each inference method with each post-processing step, compared with a computation by hand."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcnlab.inference
from fcnlab.inference import (
    DenseCRF,
    Flip,
    GuidedFilter,
    InferenceMethod,
    MultiScale,
    NoPostprocess,
    Postprocess,
    Resized,
    ShiftAndStitch,
    SlidingWindow,
    Superpixels,
    WholeImage,
)
from fcnlab.models import FCN, Tiny
from fcnlab.training.segmenter import Segmenter, class_map

IMAGES = np.random.default_rng(0).integers(0, 100, (2, 64, 96, 3), np.uint8)
IMAGES[:, :, 50:] += 150
METHODS = {
    "whole": WholeImage(),
    "flip": Flip(),
    "multiscale": MultiScale((1.0, 2.0), flip=False),
    "sliding": SlidingWindow(64, 40),
    "shift_and_stitch": ShiftAndStitch(2),
    "resized": Resized(96),
}
STEPS = {"none": NoPostprocess(), "guided": GuidedFilter(2), "superpixels": Superpixels(1000), "crf": DenseCRF(2)}
PACKAGES = {"superpixels": "skimage", "crf": "pydensecrf"}


@pytest.fixture(scope="module")
def model() -> FCN:
    """A model that predicts several classes in the images."""
    torch.manual_seed(0)
    model = FCN(Tiny(width=4), 3).eval().requires_grad_(False)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight, std=0.3)
    with torch.inference_mode():
        mean = model(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255).mean((0, 2, 3))
    model.heads["32"].bias.sub_(mean)
    return model


def scores_by_hand(method: str, model: FCN, image: Tensor) -> Tensor:
    """Return the logarithm of the probabilities, up to a constant for each pixel."""
    if method == "flip":
        return ((model(image).softmax(1) + model(image.flip(3)).softmax(1).flip(3)) / 2).log()
    if method == "multiscale":
        double = model(F.interpolate(image, (128, 192), mode="bilinear", antialias=True)).softmax(1)
        return ((model(image).softmax(1) + F.interpolate(double, (64, 96), mode="bilinear")) / 2).log()
    if method == "sliding":
        left, right = model(image[..., :64]), model(image[..., 32:])
        return torch.cat([left[..., :32], (left[..., 32:] + right[..., :32]) / 2, right[..., 32:]], 3)
    if method == "resized":
        larger = F.interpolate(image, (96, 144), mode="bilinear", antialias=True)
        return F.interpolate(model(larger), (64, 96), mode="bilinear")
    return ShiftAndStitch(2)(model, image) if method == "shift_and_stitch" else model(image)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_combinations_equal_a_computation_by_hand(model, method, step):
    if step in PACKAGES and importlib.util.find_spec(PACKAGES[step]) is None:
        pytest.skip(f"{PACKAGES[step]} is not installed")
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    segmenter = Segmenter(model, "abc", inference=METHODS[method], postprocess=STEPS[step]).eval()
    expected = scores_by_hand(method, model, images / 255).softmax(1)
    assert len(expected.argmax(1).unique()) > 1
    if step != "none":
        processed = [STEPS[step].process(values, image) for values, image in zip(expected.numpy(), IMAGES, strict=True)]
        expected = torch.from_numpy(np.stack(processed))
        torch.testing.assert_close(segmenter(images), expected, atol=1e-5, rtol=0)
    predictions = class_map(segmenter._scores(images))
    assert (predictions == expected.argmax(1)).float().mean() > 0.999


def test_every_method_and_step_is_tested():
    for tested, kind in ((METHODS, InferenceMethod), (STEPS, Postprocess)):
        public = [getattr(fcnlab.inference, name) for name in fcnlab.inference.__all__]
        assert {type(value) for value in tested.values()} == {cls for cls in public if kind in cls.__mro__[1:]}
