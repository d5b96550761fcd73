"""Inference methods and post-processing steps. None of them is trained.

An inference method is called with a network and images (RGB in 0..1) and returns class scores of every pixel. A
post-processing step gets the class probabilities of one image, and the image. Every method combines with every step.
"""

from fcnlab.inference.augmentation import Flip, InferenceMethod, MultiScale, Resized, SlidingWindow, WholeImage
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
    "Resized",
    "ShiftAndStitch",
    "SlidingWindow",
    "Superpixels",
    "WholeImage",
]
