"""Where features lie in the image: the arithmetic behind every crop offset of an FCN.

A layer with kernel k, stride s, padding p and dilation d maps "cell i is centred on pixel b + a * i" to
``a' = a * s`` and ``b' = b + a * (d * (k - 1) / 2 - p)``; a transposed convolution is the inverse. The crop offsets
of the released networks (19; 5, 27; 5, 9, 31) follow from these two lines, so no module of fcnlab states one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Grid(NamedTuple):
    """Cell i is centred on image pixel ``origin + stride * i``, on both axes."""

    stride: int
    origin: float

    def through(self, layers: Iterable[nn.Module]) -> "Grid":
        """The grid behind a chain of layers; those without a kernel (ReLU, norms, dropout) leave it as it is."""
        grid = self
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                kernel, stride, padding, dilation = (
                    _square(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")
                )
                shift = dilation * (kernel - 1) / 2 - padding
                grid = Grid(grid.stride * stride, grid.origin + grid.stride * shift)
        return grid


IMAGE = Grid(stride=1, origin=0.0)


def receptive_field(layers: Iterable[nn.Module]) -> int:
    """The side, in pixels, of the square that one cell behind a chain of layers sees, around its centre."""
    field, grid = 1, IMAGE
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            field += grid.stride * _square(layer, "dilation") * (_square(layer, "kernel_size") - 1)
        grid = grid.through([layer])
    return field


def _square(layer: nn.Module, name: str) -> int:
    """A layer's setting on both axes."""
    value = getattr(layer, name)
    rows, cols = value if isinstance(value, tuple) else (value, value)
    assert rows == cols, f"{layer} differs between the axes"
    return rows


@dataclass(frozen=True)
class FeatureMap:
    """Features that know where they lie: cell i is centred on image pixel ``origin + stride * i``."""

    data: Float[Tensor, "batch channel rows cols"]
    stride: int
    origin: float

    @property
    def grid(self) -> Grid:
        return Grid(self.stride, self.origin)


def overlap(a: FeatureMap, b: FeatureMap) -> tuple[FeatureMap, FeatureMap]:
    """Crop two maps of one stride to the window that they share.

    Raises
    ------
    ValueError
        The strides differ, or the cells of one fall between the cells of the other.
    """
    if a.stride != b.stride:
        raise ValueError(f"maps of stride {a.stride} and {b.stride} do not overlap cell by cell: upsample one first")
    shift = (b.origin - a.origin) / a.stride
    if not shift.is_integer():
        raise ValueError(
            f"cells at {a.origin} + {a.stride} i and {b.origin} + {b.stride} i lie {shift} cells apart:"
            " a crop can only shift by whole cells"
        )
    top_a, top_b = max(int(shift), 0), max(-int(shift), 0)
    rows = min(a.data.shape[2] - top_a, b.data.shape[2] - top_b)
    cols = min(a.data.shape[3] - top_a, b.data.shape[3] - top_b)
    return _window(a, top_a, rows, cols), _window(b, top_b, rows, cols)


def _window(features: FeatureMap, first: int, rows: int, cols: int) -> FeatureMap:
    data = crop(features.data, first, rows, cols)
    return FeatureMap(data, features.stride, features.origin + features.stride * first)


def crop(
    data: Float[Tensor, "batch channel rows cols"], first: int, rows: int, cols: int
) -> Float[Tensor, "batch channel cropped_rows cropped_cols"]:
    """Return ``rows`` and ``cols`` of a map, from cell ``first`` on both axes; fewer where the map ends before.

    For a slice, torch.export records whether it removes cells in the example, and the exported program refuses images
    of which it would remove none, or some. It records nothing for cells that are selected by their indices.
    """
    if torch.compiler.is_exporting():
        for axis, length in ((2, rows), (3, cols)):
            data = data.index_select(axis, torch.arange(first, first + length, device=data.device))
        return data
    return data[:, :, first : first + rows, first : first + cols]


def add(a: FeatureMap, b: FeatureMap) -> FeatureMap:
    """The sum of two maps of one stride, where both have cells."""
    a, b = overlap(a, b)
    return replace(a, data=a.data + b.data)
