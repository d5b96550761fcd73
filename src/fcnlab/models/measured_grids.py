"""Where the features of any net lie in the image, and how much of it they see: measured on the net itself.

``Grid.through`` computes the same from a list of layers. Other people's nets are no lists: they branch, pad by the size
of their input, and cut images into patches. So the net runs on a long and narrow image, and the gradient of one cell
tells which pixels the cell sees. Only the structure of the net counts: layers are replaced by means over the same
windows (:class:`_Structure`), so no weight and no rectifier can hide a pixel, and a wide net costs no more than a
narrow one.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fcnlab.errors import UserError, first_line
from fcnlab.library_internals.torch import detached
from fcnlab.models.geometry import Grid

LENGTHS = (512, 1024, 2048, 4096, 8192)  # pixels of the long side of an image; the first that is long enough is used
SIDES = (32, 64, 128, 256)  # pixels of the short side, likewise
REFUSALS = (RuntimeError, AssertionError, ValueError)  # of nets, for sizes that they cannot take
ROWS, COLS = 2, 3


class MeasuredLevel(NamedTuple):
    """A level's grid, the pixels of a row or column that one of its cells sees, and its channels."""

    grid: Grid
    receptive_field: int
    channels: int


class Frame(NamedTuple):
    """The padding with which each level's grid is the same for every image and its cells cover the image.

    A row or column gets ``before`` and ``after`` pixels, and then as many at its end as give it ``step * k +
    remainder`` pixels. With ``remainder=None``, every length is fine.
    """

    before: int
    after: int
    step: int
    remainder: int | None

    def padding(self, length: int) -> tuple[int, int]:
        """Return the pixels to add before and behind a row or column of ``length`` pixels."""
        total = self.before + length + self.after
        if self.remainder is None:
            return self.before, self.after
        # As a quotient, not as a remainder: torch.export can then halve the length of the padded image symbolically.
        steps = (total - self.remainder + self.step - 1) // self.step
        return self.before, self.step * steps + self.remainder - self.before - length


class MeasuredGrids(NamedTuple):
    """The levels of a net, in pixels of the image without the padding that ``frame`` adds.

    ``sees_whole_image`` says that the features also depend on all other pixels, through attention or a mean over the
    image; the receptive fields are then those of the other layers. ``min_size`` is the side of the smallest square, of
    1, 2, 4, 8, ... pixels, that passes through.
    """

    levels: dict[int, MeasuredLevel]
    frame: Frame
    min_size: int
    sees_whole_image: bool


class GridError(UserError):
    """The positions of a net's features cannot be measured, or are no regular grid."""


@torch.enable_grad()  # also where a caller switched gradients off
def measure_grids(net: nn.Module) -> MeasuredGrids:
    """Measure the levels of a net that maps images (1, 3, rows, cols) to ``{level: features}``, channels second.

    The net is not changed. It may be on any device, also on ``meta``. No random numbers are drawn.

    Raises
    ------
    GridError
        Cells see the whole image, even without attention and without means over the image; or they lie at irregular
        distances; or their grids differ between rows and columns.
    """
    shadow = _without_numbers(net)
    short = _short_side(shadow)
    for length in LENGTHS:
        with suppress(_TooShortError):
            return _measure_sizes(shadow, length, short)
    raise GridError(
        f"each cell of its features sees all of an image of {LENGTHS[-1]} pixels, so their position cannot be measured"
    )


class _Line(NamedTuple):
    """One level along one axis of an image."""

    grid: Grid
    receptive_field: int
    channels: int
    cells: int

    def missing_pixels(self, length: int) -> int:
        """Return how many pixels at the end of an image are beyond the reach of the last cell."""
        return max(0, math.ceil(length - self.grid.origin - self.grid.stride * self.cells))


class _Measurement(NamedTuple):
    lines: dict[int, _Line]
    sees_whole_image: bool


class _TooShortError(Exception):
    """The field of view of a cell reaches an end of the image."""


def _short_side(net: nn.Module) -> int:
    """Return a side that is long enough for an image to pass through."""
    refusal = Exception()
    for short in SIDES:
        try:
            _run(net, LENGTHS[0], short)
            return short
        except GridError:
            raise
        except REFUSALS as error:
            refusal = error
    raise GridError(f"it takes no image of {LENGTHS[0]}x{SIDES[-1]} pixels: {first_line(refusal)}") from refusal


def _measure_sizes(net: nn.Module, length: int, short: int) -> MeasuredGrids:
    """Measure on images of ``length`` pixels and a few more: the grids of some nets depend on the size of the image."""
    first, sees_whole_image = _measure(net, length, short, ROWS)
    step = max(line.grid.stride for line in first.values())
    length += -length % step  # a stride that is no power of two leaves some of 512 pixels over
    halvings = step.bit_length() - 1
    # A stage that halves its input sees an odd length with one of these; the last one leaves most pixels over.
    some = sorted({0, step - 1, *(2**power for power in range(halvings))})
    remainders = some if step == 2**halvings else range(step)
    lines = {}
    for remainder in remainders:
        with nullcontext() if remainder == 0 else _refusal_allowed():
            lines[remainder] = _both_axes(net, length + remainder, short)
    missing = {
        remainder: max(line.missing_pixels(length + remainder) for line in levels.values())
        for remainder, levels in lines.items()
    }
    # A map is upsampled up to one pixel less than a stride beyond its first and last cell.
    before = max(0, *(math.ceil((line.grid.origin - line.grid.stride + 1) / step) * step for line in first.values()))
    grids = {tuple(line.grid for line in levels.values()) for levels in lines.values()}
    if len(grids) == 1 and len(lines) == len(remainders) and not any(missing.values()):
        frame = Frame(before, 0, step, None)
    else:
        # TensorFlow's "same" padding is symmetric for step * k + 1 pixels; patches leave no pixels over for step * k.
        order = sorted(lines, key=lambda remainder: (remainder != (len(grids) > 1), remainder))
        best = min(order, key=lambda remainder: missing[remainder])
        frame = Frame(before, missing[best], step, best)
    fixed = lines[frame.remainder or 0]
    levels = {
        level: MeasuredLevel(line.grid._replace(origin=line.grid.origin - before), line.receptive_field, line.channels)
        for level, line in fixed.items()
    }
    return MeasuredGrids(levels, frame, _min_size(net, frame, fixed), sees_whole_image)


def _min_size(net: nn.Module, frame: Frame, levels: Mapping[int, _Line]) -> int:
    for side in range(SIDES[-1].bit_length()):
        before, after = frame.padding(2**side)
        length = before + 2**side + after
        with _refusal_allowed():
            features = _run(net, length, length).features
            cells = {level: line._replace(cells=min(features[level].shape[2:])) for level, line in levels.items()}
            if not any(line.missing_pixels(before + 2**side) for line in cells.values()):
                return 2**side
    return SIDES[-1]


@contextmanager
def _refusal_allowed() -> Iterator[None]:
    """Let a net refuse a size: it may be too small, or leave a part of a patch over."""
    try:
        yield
    except GridError:
        raise
    except REFUSALS:
        pass


def _both_axes(net: nn.Module, length: int, short: int) -> dict[int, _Line]:
    rows, cols = (_measure(net, length, short, axis).lines for axis in (ROWS, COLS))
    if rows != cols:
        raise GridError(f"its features lie on different grids in rows and in columns: {rows} and {cols}")
    return rows


def _measure(net: nn.Module, length: int, short: int, axis: int) -> _Measurement:
    """Measure all levels along one axis of an image that is ``length`` pixels long there."""
    image, features, sees_whole_image = _run(net, *((length, short) if axis == ROWS else (short, length)))
    return _Measurement({level: _line(values, image, axis) for level, values in features.items()}, sees_whole_image)


class _Pass(NamedTuple):
    image: Tensor
    features: Mapping[int, Tensor]
    sees_whole_image: bool


def _run(net: nn.Module, rows: int, cols: int) -> _Pass:
    # Larger than any mean that is subtracted, so that no number is negative.
    image = torch.full((1, 3, rows, cols), 2.0, dtype=torch.float64, device="cpu", requires_grad=True)
    with torch.device("cpu"), _Structure() as structure:
        return _Pass(image, net(image), structure.sees_whole_image)


def _line(features: Tensor, image: Tensor, axis: int) -> _Line:
    mean, middle = _mean(features, 1), features.shape[axis] // 2
    (first, last), (next_first, next_last) = (_seen(mean, image, axis, cell) for cell in (middle, middle + 1))
    stride = next_first - first
    if stride != next_last - last or stride < 1:
        raise GridError(
            f"its cells lie at irregular distances: cell {middle} sees the pixels {first} to {last}, and the next cell"
            f" sees {next_first} to {next_last}"
        )
    origin = (first + last) / 2 - stride * middle
    return _Line(Grid(stride, origin), last - first + 1, features.shape[1], features.shape[axis])


def _seen(features: Tensor, image: Tensor, axis: int, cell: int) -> tuple[int, int]:
    """Return the first and the last pixel along an axis that a cell depends on."""
    if cell >= features.shape[axis]:
        raise _TooShortError
    (gradient,) = torch.autograd.grad(features.select(axis, cell).sum(), image, retain_graph=True)
    pixels = gradient.abs().sum([dim for dim in range(4) if dim != axis]).nonzero()
    first, last = int(pixels.min()), int(pixels.max())
    if first == 0 or last == image.shape[axis] - 1:
        raise _TooShortError
    return first, last


def _without_numbers(net: nn.Module) -> nn.Module:
    """Return a copy whose parameters are ones that take no memory, on the CPU, in double precision."""
    ones = {
        id(value): nn.Parameter(torch.ones((), dtype=torch.float64, device="cpu").expand(value.shape), False)
        for value in net.parameters()
    }
    shadow = copy.deepcopy(net, dict[int, Any](ones)).eval()
    for module in shadow.modules():
        for name, value in module.named_buffers(recurse=False):
            kept = torch.ones_like(value, device="cpu") if value.is_meta else value.detach().cpu()
            setattr(module, name, kept.double() if kept.is_floating_point() else kept)
    return shadow


class _Structure(TorchFunctionMode):
    """Run a net as a sum of means over windows.

    Convolutions, linear layers and max pools become means over all channels and the same window. Norms and activations
    become the identity, and differences become sums, so every number stays positive. Attention and means over the image
    become constants, because they have no position.

    All channels of a layer are equal then. They are one channel that is expanded, and the next layer takes the one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sees_whole_image = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", "").strip("_"), kwargs or {}
        if name in REPLACED:
            return REPLACED[name](*args, **kwargs)
        if name in CHANNELWISE:
            return _on_one_channel(func, *args, **kwargs)
        if self._is_global(name, args, kwargs):
            self.sees_whole_image = True
            return detached(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _is_global(self, name: str, args: Any, kwargs: Any) -> bool:
        """Return whether a function of the image looks at all of it at once."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not any(value.requires_grad for value in tensors):
            return False
        if name in PRODUCTS:  # of activations; a factor of two dimensions is a layer's weight
            return sum(value.ndim > 2 for value in tensors) > 1
        return name in ATTENTION or (name in REDUCTIONS and _reduces_positions(*args, **kwargs))


def _reduces_positions(values: Tensor, *args: Any, **kwargs: Any) -> bool:
    named = kwargs.get("dim", kwargs.get("axis", args[0] if args else None))
    dims = range(values.ndim) if named is None else [named] if isinstance(named, int) else named
    reduced = {dim % values.ndim for dim in dims}
    positions = {dim for dim in reduced if values.stride(dim) and values.shape[dim] > 1}
    if values.ndim > 4:  # one dimension of five may be a group of channels
        return len(positions) > 1
    return bool(positions) and not (values.ndim == 4 and reduced == {1})


class _Channels(NamedTuple):
    """What a tensor of the net knows of its channels."""

    one: Tensor  # the mean over the channels
    are_equal: bool


def _channels(values: Tensor) -> _Channels | None:
    return getattr(values, "channels", None)


def _expand(one: Tensor, shape: Any) -> Tensor:
    """Expand one channel to many equal ones."""
    return _with_channels(one.expand(shape), _Channels(one, are_equal=True))


def _with_channels(values: Tensor, channels: _Channels) -> Tensor:
    if torch.is_grad_enabled():  # the forward pass of an autograd function has no gradient of its own
        values.channels = channels  # pyright: ignore[reportAttributeAccessIssue]
    return values


def _narrow(values: Any, dims: list[int]) -> Any:
    """Return a tensor with one number in the dimensions in which all are equal."""
    if not isinstance(values, Tensor):
        return values
    known = _channels(values)
    if known and known.are_equal and all(known.one.shape[dim] == 1 for dim in dims):
        values = known.one
    for dim in dims:
        values = values.narrow(dim, 0, 1)
    return values


def _on_one_channel(func: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function that treats all channels alike, once."""
    if not isinstance(values, Tensor) or not values.requires_grad:
        return func(values, *args, **kwargs)
    equal = [dim for dim in range(values.ndim) if not values.stride(dim)]
    result = func(_narrow(values, equal), *args, **kwargs)
    return _expand(result, [values.shape[dim] if dim in equal else size for dim, size in enumerate(result.shape)])


def _permute(func: Any, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    known, result = _channels(values), func(values, *args, **kwargs)
    return _with_channels(result, known._replace(one=func(known.one, *args, **kwargs))) if known else result


def _concatenate(tensors: Any, dim: int = 0, **_: Any) -> Tensor:
    known = [_channels(each) for each in tensors]
    ones = [each.one for each in known if each and each.one.shape[dim] == 1]
    result = torch.cat(tensors, dim)
    return (
        result
        if len(ones) < len(tensors)
        else _with_channels(result, _Channels(torch.stack(ones).sum(0), are_equal=False))
    )


def _spread(values: Tensor, dim: int, channels: int) -> Tensor:
    """Expand one channel to many; its largest number becomes 1, so that deep nets do not overflow."""
    values = values / values.detach().amax()
    return _expand(values, [channels if each == dim else size for each, size in enumerate(values.shape)])


def _mean(values: Tensor, dim: int) -> Tensor:
    """Return the mean over the channels."""
    known = _channels(values)
    if known and known.one.shape[dim] == 1:
        return known.one
    return values.mean(dim, keepdim=True) if values.stride(dim) else values.narrow(dim, 0, 1)


def _convolution(values: Tensor, weight: Tensor, bias: Any = None, *settings: Any, **named: Any) -> Tensor:
    window = values.new_ones(1, 1, *weight.shape[2:]) / math.prod(weight.shape[2:])
    named = {key: value for key, value in named.items() if key != "groups"}
    return _spread(F.conv2d(_mean(values, 1), window, None, *settings[:3], **named), 1, len(weight))


def _linear(values: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return _spread(_mean(values, -1), values.ndim - 1, len(weight))


def _max_pool(
    values: Tensor,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> Tensor:
    if dilation not in (1, (1, 1), [1, 1]):
        raise GridError("it has a dilated max pool, whose position cannot be measured")
    return _on_one_channel(F.avg_pool2d, values, size, stride, padding, ceil_mode)


def _pad(values: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    """Pad with zeros, also where a max pool would have minus infinity."""
    if any(not values.stride(-1 - index // 2) for index, amount in enumerate(pad) if amount):
        return F.pad(values, pad, mode)  # more channels
    return _on_one_channel(F.pad, values, pad, mode)


def _combination(func: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    """Apply a function to each pair of numbers, once where all channels are equal."""

    def combine(*operands: Any, **_: Any) -> Tensor:
        shape = torch.broadcast_shapes(*(each.shape for each in operands if isinstance(each, Tensor)))
        wide = [_broadcast(each, shape) for each in operands]
        tensors = [each for each in wide if isinstance(each, Tensor)]
        equal = [dim for dim in range(len(shape)) if not any(each.stride(dim) for each in tensors)]
        return _expand(func(*(_narrow(each, equal) for each in wide)), shape)

    return combine


def _broadcast(values: Any, shape: Any) -> Any:
    return values if not isinstance(values, Tensor) or values.shape == shape else values.expand(shape)


def _quotient(first: Any, second: Any) -> Tensor:
    """Divide, and leave the denominator out of the gradient: with a norm's, nothing would be left of equal channels."""
    return first / (second.detach() if isinstance(second, Tensor) else second)


def _same(values: Tensor, *_: Any, **__: Any) -> Tensor:
    return values


def _constant(values: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.ones_like(values)


def _named(names: str, function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    return dict.fromkeys(names.split(), function)


# By the names of torch's functions, without the underscores of operators and of functions that work in place.
REPLACED: Mapping[str, Callable[..., Tensor]] = {
    "conv2d": _convolution,
    "linear": _linear,
    "max_pool2d": _max_pool,
    "pad": _pad,
    **_named("cat concat concatenate", _concatenate),
    **_named("add iadd radd sub isub rsub maximum minimum", _combination(lambda first, second: first + second)),
    **_named("mul imul rmul", _combination(lambda first, second: first * second)),
    **_named("div idiv truediv itruediv true_divide", _combination(_quotient)),
    **_named("rsqrt reciprocal", _constant),
    **_named("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm", _same),
    **_named("relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid", _same),
    **_named("sigmoid logsigmoid softplus softsign tanh tanhshrink hardshrink softshrink threshold", _same),
    **_named("clamp clamp_min clamp_max abs neg dropout feature_dropout", _same),
    **{
        name: functools.partial(_permute, getattr(Tensor, name))
        for name in ("permute", "transpose", "swapaxes", "movedim")
    },
}
CHANNELWISE = ("contiguous", "clone", "roll", "avg_pool2d", "interpolate", "float", "to")
PRODUCTS = ("matmul", "rmatmul", "bmm", "baddbmm", "einsum")
ATTENTION = (
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
)
REDUCTIONS = ("mean", "sum", "amax", "amin", "norm", "vector_norm", "std", "var", "var_mean", "std_mean", "logsumexp")
