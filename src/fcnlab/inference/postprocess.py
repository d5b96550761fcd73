"""Post-processing steps that align predictions with image edges: dense CRF, superpixels, guided filter."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray

from fcnlab.config.ranges import Count, NonNegative, Positive
from fcnlab.errors import UserError
from fcnlab.inference.augmentation import Image, ScoreMap

Probability = Float32[ndarray, "classes rows cols"]
Colours = UInt8[ndarray, "rows cols 3"]


class Postprocess:
    """Base class of post-processing steps, which process one image at a time, on the CPU.

    Their ``repr`` is recorded in the evaluation protocol.
    """

    def __call__(self, probabilities: ScoreMap, image: Image) -> ScoreMap:
        """Return the post-processed class probabilities of images."""
        processed = [
            self.process(values.cpu().numpy(), (rgb * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy())
            for values, rgb in zip(probabilities, image, strict=True)
        ]
        return torch.from_numpy(np.stack(processed)).to(probabilities)

    def process(self, probability: Probability, image: Colours) -> Probability:
        """Return the post-processed class probabilities of one image."""
        raise NotImplementedError

    def check_installed(self) -> None:
        """Raise a UserError if a required package is not installed."""


class NoPostprocess(Postprocess):
    """Return the probabilities unchanged."""

    def __call__(self, probabilities: ScoreMap, image: Image) -> ScoreMap:
        return probabilities

    def __repr__(self) -> str:
        return "none"


@dataclass(frozen=True)
class GuidedFilter(Postprocess):
    """Smooth probabilities along image edges with a guided filter (He, Sun & Tang, ECCV 2010).

    Within ``radius`` pixels, probabilities become a linear function of the grey values, 0..1. Where the grey values
    vary by less than the square root of ``eps``, probabilities are averaged.
    """

    radius: Count = 8
    eps: Positive = 1e-3

    def process(self, probability: Probability, image: Colours) -> Probability:
        guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) / 255
        mean = self._mean(guide)
        variance = self._mean(guide * guide) - mean * mean
        return np.stack([self._filtered(values.astype(np.float64), guide, mean, variance) for values in probability])

    def _filtered(
        self, values: ndarray, guide: ndarray, mean: ndarray, variance: ndarray
    ) -> Float32[ndarray, "rows cols"]:
        average = self._mean(values)
        slope = (self._mean(guide * values) - mean * average) / (variance + self.eps)
        offset = average - slope * mean
        return (self._mean(slope) * guide + self._mean(offset)).astype(np.float32)

    def _mean(self, values: ndarray) -> Float[ndarray, "rows cols"]:
        side = 2 * self.radius + 1
        return cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT)


@dataclass(frozen=True)
class Superpixels(Postprocess):
    """Average the probabilities in each superpixel (SLIC: Achanta et al., PAMI 2012).

    There are about ``count`` superpixels; a larger ``compactness`` makes them more square.
    """

    count: Count = 500
    compactness: Positive = 10.0

    def check_installed(self) -> None:
        _slic()

    def process(self, probability: Probability, image: Colours) -> Probability:
        segments = _slic()(image, n_segments=self.count, compactness=self.compactness, start_label=0)
        return mean_of_segments(probability, segments)


def _slic() -> Callable[..., ndarray]:
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise UserError("postprocess=superpixels requires scikit-image: pip install 'fcnlab[superpixels]'") from error
    return slic


def mean_of_segments(probability: Probability, segments: ndarray) -> Probability:
    """Return the mean over the segment of each pixel; segments are numbered from 0."""
    flat = segments.ravel()
    sizes = np.bincount(flat)
    sums = np.stack([np.bincount(flat, values.ravel()) for values in probability])
    return (sums / np.maximum(sizes, 1))[:, flat].reshape(probability.shape).astype(np.float32)


@dataclass(frozen=True)
class DenseCRF(Postprocess):
    """Run mean-field inference in a dense CRF (Krähenbühl & Koltun, NIPS 2011), with DeepLab's kernels.

    The smoothness kernel depends on the distance of two pixels (``smooth_sigma`` pixels, weight ``smooth``), the
    appearance kernel on distance (``sigma`` pixels) and colour (``colour_sigma``, 0..255; weight ``appearance``).
    """

    iterations: Count = 5
    smooth: NonNegative = 3.0
    smooth_sigma: Positive = 3.0
    appearance: NonNegative = 5.0
    sigma: Positive = 50.0
    colour_sigma: Positive = 5.0

    def check_installed(self) -> None:
        _densecrf()

    def process(self, probability: Probability, image: Colours) -> Probability:
        densecrf = _densecrf()
        classes, rows, cols = probability.shape
        crf = densecrf.DenseCRF2D(cols, rows, classes)
        crf.setUnaryEnergy(-np.log(probability.clip(1e-5)).reshape(classes, -1).astype(np.float32, order="C"))
        crf.addPairwiseGaussian(sxy=self.smooth_sigma, compat=self.smooth)
        crf.addPairwiseBilateral(sxy=self.sigma, srgb=self.colour_sigma, rgbim=image, compat=self.appearance)
        return np.array(crf.inference(self.iterations), np.float32).reshape(classes, rows, cols)


def _densecrf() -> Any:
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise UserError(
            "postprocess=crf requires pydensecrf2, which is compiled during installation (needs a C++ compiler):"
            " pip install 'fcnlab[crf]'"
        ) from error
