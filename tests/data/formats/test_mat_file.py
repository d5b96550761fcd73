"""MATLAB files, mat_bytes by scipy, whose implementation is independent of fcnlab's."""

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


def mat_bytes(compress: bool = False, **fields) -> bytes:
    """Return a file like SBD's: a struct with a cell of sparse matrices, a mask, and a list."""
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
def test_values_equal_those_written_and_read_by_scipy(compress, kind, shape, read):
    values = np.random.default_rng(0).integers(0, 21, shape).astype(kind)
    data = mat_bytes(compress, Segmentation=values)
    loaded = read(data)
    np.testing.assert_array_equal(loaded, values)
    np.testing.assert_array_equal(
        loaded, loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0]
    )  # as torchvision does


def test_big_endian_files_are_read(read):
    """The file is built by hand from the format's specification."""

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
def test_truncated_files_give_the_whole_mask_or_an_error(compress, read):
    data = mat_bytes(compress)
    for place in range(0, len(data), 7):
        with suppress(ValueError):
            np.testing.assert_array_equal(read(data[:place]), NUMBERS)  # bytes after the mask are not needed
    with pytest.raises(ValueError, match="truncated"):
        read(data[: len(data) // 2])


@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files_raise_value_error(compress, read):
    """scipy's reader crashes the process on such files."""
    rng, data = np.random.default_rng(0), mat_bytes(compress)
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
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "not a MATLAB file of level 5"),  # MATLAB's newer format
        (mat_bytes(Segmentation=NUMBERS.astype(float) + 0.5), "does not contain integers"),
        (mat_bytes(Segmentation="text"), "do not form a matrix|does not contain integers"),
        (mat_bytes(Segmentation=np.zeros((0, 4), np.uint8)), "do not form a matrix of 0x4"),
        (mat_bytes()[:128], "no variable GTcls"),
    ],
)
def test_a_file_without_a_mask_is_explained(data, message, read):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_missing_variables_and_fields_are_explained(read):
    with pytest.raises(ValueError, match="no variable GTinst"):
        read(mat_bytes(), variable="GTinst")
    with pytest.raises(ValueError, match="its fields are Boundaries, Segmentation, CategoriesPresent"):
        read(mat_bytes(), field="Instances")
    with pytest.raises(ValueError, match="not a struct"):
        read(mat_bytes(), variable="other")


def test_a_decompression_bomb_is_not_unpacked(read):
    packed = zlib.compress(bytes(2 * LARGEST))
    data = mat_bytes()[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match=f"more than {LARGEST} bytes"):
        read(data)


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def compressed(content: bytes) -> bytes:
    packed = zlib.compress(content)
    return struct.pack("<II", 15, len(packed)) + packed


def struct_with(shape: bytes = struct.pack("<ii", 1, 1), length: int = 13, names: bytes = b"Segmentation\0", more=b""):
    """Return a struct GTcls with these parts."""
    head = element(6, struct.pack("<II", 2, 0)) + element(5, shape) + element(1, b"GTcls")
    return element(14, head + element(5, struct.pack("<i", length)) + element(1, names) + more)


EMPTY = bytes(8)  # an element without content
BEGIN = b"MATLAB".ljust(124) + b"\0\1IM"
EXCESSIVE = {
    "another variable of empty elements": (element(14, EMPTY * 100_000), "no variable GTcls"),
    "empty elements": (struct_with(more=EMPTY * 100_000), "more than 1,000 elements"),
    "empty variables": (EMPTY * 1001, "more than 1,000 elements"),
    "fields": (struct_with(length=1, names=bytes(100_000)), "more than 1,000 fields"),
    "dimensions": (struct_with(shape=struct.pack("<i", 7) * 100_000), "100,000 dimensions"),
}


@pytest.mark.parametrize("kind", EXCESSIVE)
def test_excessive_counts_take_no_memory(kind, read, monkeypatch):
    """Regression: 65 kB that unpack to 8 million empty elements took 34 s and 3 GB."""
    monkeypatch.setattr(mat_file, "LARGEST", 1 << 20)  # Python allocates this much before it reads
    content, output = EXCESSIVE[kind]
    data = BEGIN + (content if kind == "empty variables" else compressed(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match=output):
        read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_the_size_limit_holds_for_all_variables_together(read, monkeypatch):
    monkeypatch.setattr(mat_file, "LARGEST", 1 << 20)
    variable = compressed(element(14, EMPTY * 50_000))
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        read(BEGIN + variable * 5 + mat_bytes(True)[128:])
    assert read(BEGIN + variable * 2 + mat_bytes(True)[128:]).shape == (3, 4)
