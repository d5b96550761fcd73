"""Colours that readers with a kind of colour blindness confuse."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

# Machado, Oliveira and Fernandes (2009), table 1, severity 1: linear RGB as seen with each kind of colour blindness.
COLOUR_BLINDNESS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)  # D65
NEAR = 15.0  # distance in CIELAB below which neighbouring areas are easily confused


def confusable(legend: Sequence[tuple[str, tuple[int, int, int]]]) -> list[tuple[str, str]]:
    """Return the pairs of names whose colours look alike to readers with a kind of colour blindness."""
    colours = np.array([colour for _, colour in legend], float)
    alike = np.zeros((len(legend), len(legend)), bool)
    for matrix in COLOUR_BLINDNESS.values():
        seen = _lab(np.clip(_linear(colours) @ np.array(matrix).T, 0, 1))
        alike |= np.linalg.norm(seen[:, None] - seen[None], axis=-1) < NEAR
    return [(legend[first][0], legend[second][0]) for first, second in np.argwhere(np.triu(alike, 1)).tolist()]


def _linear(colours: Float[ndarray, "colours 3"]) -> Float[ndarray, "colours 3"]:
    """Return linear RGB in 0..1 of sRGB in 0..255."""
    scaled = colours / 255
    return np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)


def _lab(linear: Float[ndarray, "colours 3"]) -> Float[ndarray, "colours 3"]:
    """Return CIELAB of linear RGB."""
    ratio = linear @ np.array(TO_XYZ).T / np.array(WHITE)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
