"""Read MATLAB files of level 5, as far as SBD's masks need: an array of integers in a struct.

scipy's reader is not used, because damaged files crash it: a few flipped bytes cause a segmentation fault (1.17.1). The
format is MathWorks' "MAT-File Format".
"""

import itertools
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
LARGEST = 1 << 26  # bytes of a file, and of all that is unpacked of it; SBD's have less than a million
MOST = 1000  # elements of a file or a matrix, and fields of a struct; an element without content has 8 bytes
DIMENSIONS = 32


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
    left = LARGEST
    try:
        for kind, content in _elements(data[HEADER:], order):
            if kind == COMPRESSED:
                content = _inflated(content, left)
                left -= len(content)
                kind, content = next(_elements(content, order))
            if kind == MATRIX and _name(content, order) == variable:
                return _numbers(list(_elements(content, order)), order, field)
    except (struct.error, zlib.error, StopIteration, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged: {first_line(error)}") from error
    raise ValueError(f"it has no variable {variable}")


Part = tuple[int, memoryview]


def _elements(data: memoryview, order: str) -> Iterator[Part]:
    """Yield kind and content of each element."""
    place = 0
    for count in itertools.count():
        if place >= len(data):
            return
        if count >= MOST:
            raise ValueError(f"it has more than {MOST:,} elements in a row")
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


def _inflated(data: memoryview, most: int) -> memoryview:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(data, most + 1)
    if not unpacking.eof or len(content) > most:
        raise ValueError(f"it is truncated, or has more than {LARGEST} bytes when it is unpacked")
    return memoryview(content)


def _name(data: memoryview, order: str) -> str:
    """Return the name of a matrix, whose elements are flags, dimensions, name, content."""
    return bytes(next(itertools.islice(_elements(data, order), 2, None))[1]).decode("ascii")


def _numbers(parts: list[Part], order: str, field: str) -> ndarray:
    """Return a field of a struct with one element."""
    if parts[0][1][0 if order == "<" else 3] != STRUCT or prod(_shape(parts[1], order)) != 1:
        raise ValueError("it is not a struct")
    length, names = int(_whole(parts[3], order)[0]), bytes(parts[4][1])
    if length < 1:
        raise ValueError("its fields have no names")
    if len(names) > MOST * length:
        raise ValueError(f"it has more than {MOST:,} fields")
    fields = [names[start : start + length].split(b"\0")[0].decode("ascii") for start in range(0, len(names), length)]
    if field not in fields:
        raise ValueError(f"its fields are {', '.join(fields[:5])}")
    inside = list(_elements(parts[5 + fields.index(field)][1], order))
    shape = _shape(inside[1], order)
    values = _whole(inside[3], order)
    if min(shape) < 1 or prod(shape) != len(values):
        raise ValueError(f"its {len(values)} numbers do not form a matrix of {'x'.join(map(str, shape))}")
    return values.reshape(shape, order="F")


def _shape(part: Part, order: str) -> list[int]:
    found = _whole(part, order)
    if len(found) > DIMENSIONS:
        raise ValueError(f"it has {len(found):,} dimensions")
    return found.tolist()


def _whole(part: Part, order: str) -> ndarray:
    """Return the numbers of an element."""
    kind, content = part
    if kind not in NUMBERS:
        raise ValueError("it does not contain integers")
    return np.frombuffer(content, f"{order}{NUMBERS[kind]}")
