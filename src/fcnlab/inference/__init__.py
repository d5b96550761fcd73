"""Inference: how a net's scores of an image are computed, and what post-processes them. None of it is trained.

An inference method is called with a net and images, RGB in 0..1, and returns scores of every pixel. A post-processing
step works on the class probabilities of one image and the image. Each method combines with each step.
"""

from fcnlab.inference.augmentation import Flip, InferenceMethod, MultiScale, SlidingWindow, WholeImage
from fcnlab.inference.postprocess import DenseCRF, GuidedFilter, NoPostprocess, Postprocess, Superpixels
from fcnlab.inference.shift_and_stitch import ShiftAndStitch

__all__ = [
    "DenseCRF",
    "Flip",
    "GuidedFilter",
    "InferenceMethod",
    "MultiScale",
    "NoPostprocess",
    "Postprocess",
    "ShiftAndStitch",
    "SlidingWindow",
    "Superpixels",
    "WholeImage",
]
