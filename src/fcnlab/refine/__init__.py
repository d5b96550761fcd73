"""What is done around and after a net for better predictions; none of it is trained.

Each is called with a net and pictures, RGB in 0..1, and gives scores of every pixel: ``refine(net, image)``.
"""

from fcnlab.refine.averaging import Flip, MultiScale, Plain, Refinement, Sliding, smallest_image
from fcnlab.refine.edges import DenseCRF, GuidedFilter, Superpixels
from fcnlab.refine.stitching import ShiftAndStitch

__all__ = [
    "DenseCRF",
    "Flip",
    "GuidedFilter",
    "MultiScale",
    "Plain",
    "Refinement",
    "ShiftAndStitch",
    "Sliding",
    "Superpixels",
    "smallest_image",
]
