"""MATLAB's files, written by scipy, which reads and writes them by code of its own."""

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from fcnlab.data.formats import mat_file
from fcnlab.data.formats.mat_file import LARGEST, read_field

NUMBERS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def written(compress: bool = False, **fields) -> bytes:
    """A file as SBD's are: a struct with a cell of sparse matrices, a mask, and a list."""
    cell = np.empty((2, 1), object)
    cell[:, 0] = [np.eye(3), np.zeros((3, 4))]
    buffer = io.BytesIO()
    struct_ = {"Boundaries": cell, "Segmentation": NUMBERS, "CategoriesPresent": np.array([[1.0]])} | fields
    savemat(buffer, {"other": 1.0, "GTcls": struct_, "last": "text"}, do_compression=compress)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    def reading(data: bytes, variable: str = "GTcls", field: str = "Segmentation"):
        (tmp_path / "x.mat").write_bytes(data)
        return read_field(tmp_path / "x.mat", variable, field)

    return reading


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 1), (37, 50)])
def test_values_are_those_that_scipy_wrote_and_reads(compress, kind, shape, read):
    values = np.random.default_rng(0).integers(0, 21, shape).astype(kind)
    data = written(compress, Segmentation=values)
    found = read(data)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(
        found, loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0]
    )  # as torchvision does


def test_big_endian(read):
    """By hand, after the format's own description."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(kind: int, shape: tuple, name: bytes, *content: bytes) -> bytes:
        head = element(6, struct.pack(">II", kind, 0)) + element(5, struct.pack(">ii", *shape)) + element(1, name)
        return element(14, head + b"".join(content))

    mask = matrix(9, (2, 2), b"", element(2, bytes([1, 2, 3, 4])))
    names = struct.pack(">HHi", 4, 5, 13) + element(1, b"Segmentation\0")  # a small element, and one of 13 bytes
    data = b"MATLAB".ljust(124) + b"\1\0MI" + matrix(2, (1, 1), b"GTcls", names, mask)
    assert read(data).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("compress", [False, True])
def test_files_cut_off_anywhere_give_the_whole_mask_or_none(compress, read):
    data = written(compress)
    for place in range(0, len(data), 7):
        with suppress(ValueError):
            np.testing.assert_array_equal(read(data[:place]), NUMBERS)  # what comes behind it is not needed
    with pytest.raises(ValueError, match="truncated"):
        read(data[: len(data) // 2])


@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files_end_in_a_value_error(compress, read):
    """scipy's reader ended the process on these."""
    rng, data = np.random.default_rng(0), written(compress)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        with suppress(ValueError):
            assert read(bytes(damaged)).dtype.kind in "iu"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a MATLAB file of level 5"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "not a MATLAB file of level 5"),  # MATLAB's newer kind
        (written(Segmentation=NUMBERS.astype(float) + 0.5), "does not contain integers"),
        (written(Segmentation="text"), "do not form a matrix|does not contain integers"),
        (written(Segmentation=np.zeros((0, 4), np.uint8)), "do not form a matrix of 0x4"),
        (written()[:128], "no variable GTcls"),
    ],
)
def test_what_is_no_mask_is_told(data, message, read):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_names_are_looked_for(read):
    with pytest.raises(ValueError, match="no variable GTinst"):
        read(written(), variable="GTinst")
    with pytest.raises(ValueError, match="its fields are Boundaries, Segmentation, CategoriesPresent"):
        read(written(), field="Instances")
    with pytest.raises(ValueError, match="not a struct"):
        read(written(), variable="other")


def test_a_bomb_is_not_unpacked(read):
    packed = zlib.compress(bytes(2 * LARGEST))
    data = written()[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match=f"more than {LARGEST} bytes"):
        read(data)


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def compressed(content: bytes) -> bytes:
    packed = zlib.compress(content)
    return struct.pack("<II", 15, len(packed)) + packed


def struct_with(shape: bytes = struct.pack("<ii", 1, 1), length: int = 13, names: bytes = b"Segmentation\0", more=b""):
    """A struct GTcls whose parts are given."""
    head = element(6, struct.pack("<II", 2, 0)) + element(5, shape) + element(1, b"GTcls")
    return element(14, head + element(5, struct.pack("<i", length)) + element(1, names) + more)


EMPTY = bytes(8)  # an element without content
BEGIN = b"MATLAB".ljust(124) + b"\0\1IM"
FILLING = {
    "another variable of empty elements": (element(14, EMPTY * 100_000), "no variable GTcls"),
    "empty elements": (struct_with(more=EMPTY * 100_000), "more than 1,000 elements"),
    "empty variables": (EMPTY * 1001, "more than 1,000 elements"),
    "fields": (struct_with(length=1, names=bytes(100_000)), "more than 1,000 fields"),
    "dimensions": (struct_with(shape=struct.pack("<i", 7) * 100_000), "100,000 dimensions"),
}


@pytest.mark.parametrize("kind", FILLING)
def test_what_says_more_than_it_holds_takes_no_memory(kind, read, monkeypatch):
    """65 kB that unpacked to 8 million elements without content took 34 s and 3 GB."""
    monkeypatch.setattr(mat_file, "LARGEST", 1 << 20)  # of which Python makes room to read
    content, output = FILLING[kind]
    data = BEGIN + (content if kind == "empty variables" else compressed(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match=output):
        read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_bombs_add_up(read, monkeypatch):
    monkeypatch.setattr(mat_file, "LARGEST", 1 << 20)
    one = compressed(element(14, EMPTY * 50_000))
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        read(BEGIN + one * 5 + written(True)[128:])
    assert read(BEGIN + one * 2 + written(True)[128:]).shape == (3, 4)
