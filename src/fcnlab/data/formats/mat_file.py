"""Read MATLAB files of level 5, as far as SBD's masks need: an array of integers in a struct.

scipy's reader is not used, because damaged files crash it: a few flipped bytes cause a segmentation fault (1.17.1). The
format is MathWorks' "MAT-File Format".
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from numpy import ndarray

from fcnlab.errors import first_line
from fcnlab.files.reading import bytes_of

HEADER = 128  # bytes, the last two of which say in which order the others' are
MATRIX, COMPRESSED = 14, 15  # kinds of elements
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"}
STRUCT = 2  # a class of matrices
LARGEST = 1 << 26  # bytes of an element, unpacked; SBD's have less than a million


def read_field(path: Path, variable: str, field: str) -> ndarray:
    """Return ``variable.field``, a matrix of integers.

    Raises
    ------
    OSError, ValueError
        The file is unreadable, of another format, damaged, or has other contents.
    """
    data = memoryview(bytes_of(path, LARGEST))
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[HEADER - 2 : HEADER]))
    if order is None:
        raise ValueError("it is not a MATLAB file of level 5")
    try:
        for kind, content in _elements(data[HEADER:], order):
            if kind == COMPRESSED:
                kind, content = next(_elements(_inflated(content), order))
            name, parts = _matrix(content, order)
            if kind == MATRIX and name == variable:
                return _numbers(parts, order, field)
    except (struct.error, zlib.error, StopIteration, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged: {first_line(error)}") from error
    raise ValueError(f"it has no variable {variable}")


Part = tuple[int, memoryview]


def _elements(data: memoryview, order: str) -> Iterator[Part]:
    """Yield kind and content of each element."""
    place = 0
    while place < len(data):
        (word,) = struct.unpack_from(f"{order}I", data, place)
        if word >> 16:  # up to 4 bytes lie in the tag itself
            kind, size, start = word & 0xFFFF, word >> 16, place + 4
        else:
            kind, start = word, place + 8
            (size,) = struct.unpack_from(f"{order}I", data, place + 4)
        if start + size > len(data):
            raise ValueError("it is truncated")
        yield kind, data[start : start + size]
        place = start + size if kind == COMPRESSED else start + size + -(start + size) % 8


def _inflated(data: memoryview) -> memoryview:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(data, LARGEST)
    if not unpacking.eof:
        raise ValueError(f"it is truncated, or a part has more than {LARGEST} bytes")
    return memoryview(content)


def _matrix(data: memoryview, order: str) -> tuple[str, list[Part]]:
    """Return the name of a matrix, and its elements: flags, dimensions, name, content."""
    parts = list(_elements(data, order))
    return bytes(parts[2][1]).decode("ascii"), parts


def _numbers(parts: list[Part], order: str, field: str) -> ndarray:
    """Return a field of a struct with one element."""
    if parts[0][1][0 if order == "<" else 3] != STRUCT or prod(_whole(parts[1], order).tolist()) != 1:
        raise ValueError("it is not a struct")
    length, names = int(_whole(parts[3], order)[0]), bytes(parts[4][1])
    if length < 1:
        raise ValueError("its fields have no names")
    fields = [names[start : start + length].split(b"\0")[0].decode("ascii") for start in range(0, len(names), length)]
    if field not in fields:
        raise ValueError(f"its fields are {', '.join(fields[:5])}")
    _, inside = _matrix(parts[5 + fields.index(field)][1], order)
    shape = _whole(inside[1], order).tolist()
    values = _whole(inside[3], order)
    if min(shape) < 1 or prod(shape) != len(values):
        raise ValueError(f"its {len(values)} numbers do not form a matrix of {'x'.join(map(str, shape))}")
    return values.reshape(shape, order="F")


def _whole(part: Part, order: str) -> ndarray:
    """Return the numbers of an element."""
    kind, content = part
    if kind not in NUMBERS:
        raise ValueError("it does not contain integers")
    return np.frombuffer(content, f"{order}{NUMBERS[kind]}")
