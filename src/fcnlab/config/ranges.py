"""Ranges and choices of settings, beyond their types: ``lr: NonNegative`` instead of ``lr: float``.

``validate_config`` reads these annotations from the signatures of components and from the root schemas, so that a range
is written once, where the value is used. A plain ``int`` or ``float`` takes any value of its type.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

MOST_PIXELS = 32_766  # to a side: OpenCV's warps count pixels in 16 bits
MOST_CLASSES = 255  # masks are bytes, and one value is ignore_index
LARGEST_SEED = 2**32 - 1  # NumPy's, and so Lightning's
MOST_WARMUP = 0.1  # of a run
MOST_TABLE_IMAGES = 500  # of the lowest and of the highest scores each, with masks in a table of W&B
MOST_DRAWN = 16  # images at each validation; more would slow dashboards down

TYPE_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


@dataclass(frozen=True)
class Meaning:
    """A condition on a value beyond its type: ``words`` follow "must be", ``holds`` gets values of that type."""

    words: str
    holds: Callable[[Any], bool]


Positive = Annotated[float, Meaning("a number above 0", lambda value: value > 0)]
NonNegative = Annotated[float, Meaning("a number of at least 0", lambda value: value >= 0)]
Fraction = Annotated[float, Meaning("a fraction above 0, at most 1", lambda value: 0 < value <= 1)]

BelowOne = Annotated[float, Meaning("a number from 0 to less than 1", lambda value: 0 <= value < 1)]
Warmup = Annotated[float, Meaning(f"a fraction of the run, from 0 to {MOST_WARMUP}", lambda v: 0 <= v <= MOST_WARMUP)]
Degrees = Annotated[float, Meaning("an angle from 0 to 180 degrees", lambda value: 0 <= value <= 180)]
Percent = Annotated[float, Meaning("a percentage from 0 to 100", lambda value: 0 <= value <= 100)]
Count = Annotated[int, Meaning("a whole number of at least 1", lambda value: value >= 1)]
FoldCount = Annotated[int, Meaning("a whole number of at least 2", lambda value: value >= 2)]
Whole = Annotated[int, Meaning("a whole number of at least 0", lambda value: value >= 0)]
Pixels = Annotated[int, Meaning(f"a number of pixels from 1 to {MOST_PIXELS}", lambda value: 1 <= value <= MOST_PIXELS)]
NumClasses = Annotated[int, Meaning(f"2 to {MOST_CLASSES} classes", lambda value: 2 <= value <= MOST_CLASSES)]
Port = Annotated[int, Meaning("a port from 0 (any free one) to 65535", lambda value: 0 <= value <= 65_535)]
Byte = Annotated[int, Meaning("a whole number from 0 to 255", lambda value: 0 <= value <= 255)]
Seed = Annotated[int, Meaning("a whole number from 0 to 2^32 - 1", lambda value: 0 <= value <= LARGEST_SEED)]
Drawn = Annotated[int, Meaning(f"0 to {MOST_DRAWN}", lambda value: 0 <= value <= MOST_DRAWN)]
TableImages = Annotated[
    int | Literal["all"],
    Meaning(f"0 to {MOST_TABLE_IMAGES}, or all", lambda value: value == "all" or 0 <= value <= MOST_TABLE_IMAGES),
]
Samples = Annotated[int, Meaning("0 to 200", lambda value: 0 <= value <= 200)]
AlikeBits = Annotated[
    int,
    Meaning(
        "0 to 16: a number of bits of the 64-bit hash; unrelated images differ in about 32",
        lambda value: 0 <= value <= 16,
    ),
]
Names = Annotated[list[str], Meaning("a list that has each name once", lambda names: len(set(names)) == len(names))]
Resamples = Annotated[int, Meaning("100 to 1000000", lambda value: 100 <= value <= 1_000_000)]
Points = Annotated[float, Meaning("more than 0 and at most 100 points", lambda value: 0 < value <= 100)]
Confidence = Annotated[float, Meaning("0.5 to 0.999, such as 0.95", lambda value: 0.5 <= value < 1)]
Factor = Annotated[float, Meaning("a factor from 1/16 to 16", lambda value: 1 / 16 <= value <= 16)]
Scales = Annotated[
    Sequence[Factor],
    Meaning(
        "the smallest and the largest factor, such as [0.5, 2.0]", lambda pair: len(pair) == 2 and pair[0] <= pair[1]
    ),
]


def is_valid(value: Any, annotation: Any) -> bool:
    """Return whether a plain value matches an annotation, down to the last item; a boolean is not a number."""
    if annotation is inspect.Parameter.empty or annotation is Any:
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, *meanings = arguments
        return is_valid(value, kind) and all(
            meaning.holds(value) for meaning in meanings if isinstance(meaning, Meaning)
        )
    if origin in (Union, types.UnionType):
        return any(is_valid(value, kind) for kind in arguments)
    if isinstance(value, bool) and annotation in (int, float):
        return False
    return _is_bearable(value, annotation) and all(
        is_valid(item, kind) for item, kind in _nested_values(value, arguments)
    )


def _nested_values(value: Any, arguments: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """Return the items of a container with their annotations: beartype checks only one item of each."""
    if isinstance(value, Mapping) and len(arguments) == 2:
        return [(item, kind) for pair in value.items() for item, kind in zip(pair, arguments, strict=True)]
    if isinstance(value, tuple) and len(arguments) == len(value):
        return zip(value, arguments, strict=True)
    if isinstance(value, (list, tuple)) and len(arguments) == 1:
        return [(item, arguments[0]) for item in value]
    return []


def _is_bearable(value: Any, annotation: Any) -> bool:
    from beartype import BeartypeConf
    from beartype.door import is_bearable

    return is_bearable(value, annotation, conf=BeartypeConf(is_pep484_tower=True))


def has_meaning(annotation: Any) -> bool:
    """Return whether an annotation, or a part of it, has a ``Meaning``."""
    return isinstance(annotation, Meaning) or any(map(has_meaning, get_args(annotation)))


def description_of(annotation: Any) -> str | None:
    """Return the words for the values of an annotation; None if it has only a type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " and ".join(meaning.words for meaning in arguments[1:] if isinstance(meaning, Meaning)) or None
    inside = [description_of(argument) for argument in arguments]
    if not any(inside) or origin is Literal:
        return None
    if origin in (Union, types.UnionType):
        return " or ".join(words or describe_type(kind) for words, kind in zip(inside, arguments, strict=True))
    return f"a list or mapping whose values are each {inside[-1]}" if inside[-1] else None


def describe_type(annotation: Any) -> str:
    """Return the words for a type, such as "a float", "true or false or null" or "'fixed' or 'learned'"."""
    if annotation in TYPE_WORDS:
        return TYPE_WORDS[annotation]
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(map(describe_type, get_args(annotation)))
    name = str(annotation).replace("typing.", "").replace("collections.abc.", "")
    return f"of type {getattr(annotation, '__name__', name) if isinstance(annotation, type) else name}"
