"""Bilinear upsampling: the papers' transposed convolution, and what equals it but for rounding in a part of the time.

A kernel that is a product of two lines interpolates the columns of a map and then its rows, and between two neighbours
there is nothing but their weighted mean. Beyond the first and the last cell a transposed convolution fades to zero,
as if cells of zero stood there; ``F.interpolate`` repeats the edge instead.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fcnlab.models.geometry import FeatureMap, Grid, crop

ROWS, COLS = 2, 3
# Scores in a block of rows: on a CPU those that its cache holds, elsewhere enough to keep a large device busy.
BLOCK_ON_CPU, BLOCK = 2**18, 2**24

Scores = Float[Tensor, "batch classes rows cols"]


def bilinear_kernel(factor: int, taps: int) -> Float[Tensor, "{taps} {taps}"]:
    """The kernel with which a transposed convolution of stride ``factor`` interpolates linearly.

    ``2 * factor`` taps put the new cells between the old ones, ``2 * factor - 1`` put one of them on each old one.
    """
    distance = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    line = (1 - distance.abs() / factor).clamp(min=0)
    return torch.outer(line, line).float()


class Upsample(nn.Module):
    """Bilinear upsampling from one declared grid to another (CVPR 2015, section 3.3).

    It is a transposed convolution whose kernel has ``2f`` or ``2f - 1`` taps, whichever lets the result meet the
    target's cells by a whole crop: VGG's final x32 needs 64 of them, CaffeNet's and GoogLeNet's need 63. Between equal
    strides, as in a dilated ResNet, one tap of 1 is left: nothing is upsampled, and there is nothing to learn.

    Fixed, it interpolates, which gives the same. Learned, the kernel is a dense parameter (every class sees every
    class, as Caffe's Deconvolution does) that starts as the fixed one.
    """

    def __init__(self, channels: int, source: Grid, target: Grid, learned: bool = False):
        super().__init__()
        if source.stride % target.stride:
            raise ValueError(
                f"stride {source.stride} is no multiple of {target.stride}: cannot upsample one to the other"
            )
        self.channels = channels
        self.factor = source.stride // target.stride
        between = (target.origin - source.origin) / target.stride % 1 == 0.5
        self.taps = 2 * self.factor if between else 2 * self.factor - 1
        self.learned = learned and self.taps > 1
        if self.learned:
            self.kernel = nn.Parameter(torch.eye(channels)[:, :, None, None] * bilinear_kernel(self.factor, self.taps))

    def forward(self, features: FeatureMap) -> FeatureMap:
        if self.taps == 1:
            return features
        if self.learned:
            with keep_dtype(features.data):
                data = F.conv_transpose2d(features.data, self.kernel.to(features.data.dtype), stride=self.factor)
        else:
            data = self.along(self.along(features.data.contiguous(), COLS), ROWS)
        return FeatureMap(data, *self.grid(features))

    def grid(self, features: FeatureMap) -> Grid:
        """Where the upsampled cells lie."""
        stride = features.stride // self.factor
        return Grid(stride, features.origin - stride * (self.taps - 1) / 2)

    def along(self, data: Scores, axis: int) -> Float[Tensor, "batch classes finer_rows finer_cols"]:
        """Interpolate along one axis."""
        found = _Interpolation.apply(data, axis, self.weights(data))
        length = self.factor * (data.shape[axis] - 1) + self.taps
        return found if found.shape[axis] == length else found.narrow(axis, 0, length)

    def weights(self, data: Tensor) -> Float[Tensor, " factor"]:
        """The second neighbour's share in each value between two; with an odd number of taps the last one is it."""
        first = 0.5 if self.taps % 2 == 0 else 1.0
        places = torch.arange(self.factor, dtype=torch.float64, device=data.device)
        return ((places + first) / self.factor).to(data.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, x{self.factor}, taps={self.taps}, {'learned' if self.learned else 'fixed'}"


def keep_dtype(data: Tensor) -> AbstractContextManager:
    """Compute in the precision of the data, also under autocast, which would round products to half of it."""
    kind = data.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class _Interpolation(Function):
    """The values between neighbours along an axis, zeros standing before the first cell and behind the last.

    torch would differentiate a weighted mean through two tensors of the result's size.
    """

    @staticmethod
    def forward(ctx, data: Tensor, axis: int, weights: Tensor) -> Tensor:
        ctx.axis = axis
        ctx.save_for_backward(weights)
        return between(pad_with_zeros(data, axis), axis, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        found = between_transposed(gradient, ctx.axis, *ctx.saved_tensors)
        return found.narrow(ctx.axis, 1, found.shape[ctx.axis] - 2), None, None


def pad_with_zeros(data: Tensor, axis: int) -> Tensor:
    """A cell of zero at either end of an axis."""
    return F.pad(data, (0, 0, 1, 1) if axis == ROWS else (1, 1))


def between(cells: Tensor, axis: int, weights: Float[Tensor, " factor"]) -> Tensor:
    """``factor`` weighted means in each gap between neighbours along an axis: n cells give factor * (n - 1) values."""
    gaps = cells.shape[axis] - 1
    first, second = (cells.narrow(axis, start, gaps).unsqueeze(axis + 1) for start in (0, 1))
    shares = weights[:, None] if axis == ROWS else weights
    return torch.lerp(first, second, shares).flatten(axis, axis + 1)


def between_transposed(values: Tensor, axis: int, weights: Float[Tensor, " factor"]) -> Tensor:
    """The transpose of :func:`between`: each value goes to its two neighbours by their shares."""
    shares = torch.stack([1 - weights, weights])
    gaps = values.unflatten(axis, (-1, len(weights)))
    first, second = (shares @ gaps).unbind(ROWS + 1) if axis == ROWS else (gaps @ shares.T).unbind(COLS + 1)
    cells = F.pad(first, (0, 0, 0, 1) if axis == ROWS else (0, 1))
    cells.narrow(axis, 1, second.shape[axis]).add_(second)
    return cells


class Block(NamedTuple):
    """Some rows of an image."""

    gaps: range  # between the rows of cells, a row of zeros above them counted
    rows: slice  # of the image
    inside: slice  # which of the values in those gaps are the image's


@dataclass(frozen=True)
class CoarseScores:
    """The scores of the finest level, and the way from them to every pixel of an image.

    Taken a block of rows at a time, scores of every pixel never are in memory together: four images of 512x512 have
    88 MB of them, and a loss keeps three tensors of that size.
    """

    fused: FeatureMap
    upsample: Upsample
    image: FeatureMap

    def float(self) -> "CoarseScores":
        """In single precision."""
        return replace(self, fused=replace(self.fused, data=self.fused.data.float()))

    def full(self) -> Scores:
        """The scores of every pixel."""
        upsampled, size = self.upsample(self.fused), self.image.data.shape[2:]
        scores = crop(upsampled.data, _whole(self.image.origin - upsampled.origin), *size)
        assert scores.shape[2:] == size, f"scores of {tuple(scores.shape)} do not cover an image of {tuple(size)}"
        return scores

    def by_rows(self) -> Iterator[tuple[slice, Scores]]:
        """Rows of the image, and the scores of their pixels, from the top down."""
        if not self._interpolated:
            yield slice(None), self.full()
            return
        cells, weights = self._cells(), self.upsample.weights(self.fused.data)
        for block in self._blocks(cells):
            yield block.rows, _values(cells, block, weights)[:, :, block.inside]

    def sum_over_rows(
        self, total: Callable[[Scores, Tensor], Tensor], target: Integer[Tensor, "batch rows cols"]
    ) -> Float[Tensor, ""]:
        """``total(scores, target)``, a sum over pixels, of the whole image; gradients are computed on the way."""
        if not self._interpolated:
            return total(self.full(), target.long())
        cells = self._cells()
        return _SumOverRows.apply(cells, self._blocks(cells), self.upsample.weights(cells), total, target)

    @property
    def _interpolated(self) -> bool:
        return self.upsample.taps > 1 and not self.upsample.learned

    def _cells(self) -> Tensor:
        """All columns of the image, of the coarse rows, between rows of zeros."""
        upsampled, cols = self.upsample.grid(self.fused), self.image.data.shape[3]
        wide = self.upsample.along(self.fused.data.contiguous(), COLS)
        left = _whole(self.image.origin - upsampled.origin)
        assert left + cols <= wide.shape[3], f"{wide.shape[3]} upsampled columns do not cover {left} + {cols}"
        return pad_with_zeros(wide[..., left : left + cols], ROWS)

    def _blocks(self, cells: Tensor) -> list[Block]:
        factor, rows = self.upsample.factor, self.image.data.shape[2]
        top = _whole(self.image.origin - self.upsample.grid(self.fused).origin)
        gaps = range(top // factor, -(-(top + rows) // factor))
        assert gaps.stop < cells.shape[ROWS], f"{cells.shape[ROWS]} rows of cells do not cover {rows} of the image"
        target = BLOCK_ON_CPU if cells.device.type == "cpu" else BLOCK
        together = max(1, target // (factor * cells[:, :, 0].numel()))
        blocks = []
        for first in gaps[::together]:
            some = range(first, min(first + together, gaps.stop))
            begin, end = max(top, some.start * factor), min(top + rows, some.stop * factor)
            blocks.append(
                Block(
                    some, slice(begin - top, end - top), slice(begin - some.start * factor, end - some.start * factor)
                )
            )
        return blocks


class _SumOverRows(Function):
    """A sum over pixels, and its gradient, block by block: neither needs the scores of all pixels at once."""

    @staticmethod
    def forward(ctx, cells: Tensor, blocks: list[Block], weights: Tensor, total: Callable, target: Tensor) -> Tensor:
        found, wanted = cells.new_zeros(()), ctx.needs_input_grad[0]
        slopes = torch.zeros_like(cells) if wanted else None
        with keep_dtype(cells):  # a backward pass would not be under autocast
            for block in blocks:
                scores = _values(cells, block, weights).requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    part = total(scores[:, :, block.inside], target[:, block.rows].long())
                found += part.detach()
                if slopes is not None:
                    (slope,) = torch.autograd.grad(part, scores)
                    slopes[:, :, block.gaps.start : block.gaps.stop + 1] += between_transposed(slope, ROWS, weights)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient, None, None, None, None


def _values(cells: Tensor, block: Block, weights: Tensor) -> Scores:
    return between(cells[:, :, block.gaps.start : block.gaps.stop + 1], ROWS, weights)


def _whole(offset: float) -> int:
    """An offset in pixels that is a whole number, as the number of taps sees to."""
    assert offset >= 0 and offset.is_integer(), f"upsampled scores begin {offset} pixels before the image's"
    return int(offset)
