"""A mask is refused, or read as this file's encoder wrote it."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from fcnlab.data import DataError, SegmentationDataset
from fcnlab.data.formats.voc import CLASSES, voc_palette
from fuzz.damage import damaged

pytestmark = pytest.mark.filterwarnings("ignore")  # a run prints PIL's warnings and continues

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # as in the PNG specification, table 11.1
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
KINDS = [(colour, depth) for colour, depths in DEPTHS.items() for depth in depths]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
BOMB = zlib.compress(bytes(2**27), 9)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, cols: int, depth: int, colour: int, pixels: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", cols, rows, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3 * 2 ** min(depth, 8))) if colour == PALETTE else b""
    body = palette + before + chunk(b"IDAT", zlib.compress(pixels)) + after
    return SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def encoded(samples: np.ndarray, depth: int, colour: int) -> bytes:
    """Return a PNG of (rows, cols, channels) samples of ``depth`` bits."""
    rows, cols, _ = samples.shape
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    lines = np.packbits(bits.reshape(rows, -1).astype(np.uint8), axis=1)
    return png(rows, cols, depth, colour, b"".join(b"\0" + line.tobytes() for line in lines))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks_read, place = [], len(SIGNATURE)
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks_read.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    return chunks_read


def written(labels: np.ndarray, palette: bool, level: int) -> bytes:
    """Encode with PIL."""
    image, file = Image.fromarray(labels), BytesIO()
    if palette:
        image.putpalette(bytes(range(256)) * 3)
    image.save(file, "PNG", compress_level=level)
    return file.getvalue()


LABELS = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (12, 16))
VALID_FILES = [written(LABELS, palette, level) for palette in (False, True) for level in (0, 1, 9)]


@pytest.fixture
def read(tmp_path):
    """Return the mask in these bytes; None if they are refused."""

    def reading(data: bytes, ignore_index: int = 255) -> np.ndarray | None:
        path = tmp_path / "mask.png"
        path.write_bytes(data)
        try:
            return images(path, path, ignore_index).mask(0)
        except DataError as error:
            assert str(path) in str(error)
            return None

    return reading


def images(image: Path, mask: Path, ignore_index: int = 255) -> SegmentationDataset:
    return SegmentationDataset("toys", ("a",), (image,), (mask,), CLASSES, voc_palette(21), ignore_index)


@given(st.data(), st.sampled_from(KINDS), st.sampled_from((255, 21, 77)))
def test_every_kind_of_png_is_read_as_written_or_refused(read, data, kind, ignore_index):
    colour, depth = kind
    shape = (*data.draw(array_shapes(min_dims=2, max_dims=2, max_side=9)), CHANNELS[colour])
    values = data.draw(st.lists(st.sampled_from((0, 1, 2, 20, 21, 254, 255)), min_size=1, max_size=3))
    samples = data.draw(arrays(np.int64, shape, elements=st.sampled_from(values))) & (2**depth - 1)
    labels = samples[..., 0]
    mask = read(encoded(samples, depth, colour), ignore_index)
    if colour == PALETTE or kind in ((GREY, 8), (GREY, 16)):
        assert (mask is None) == bool(set(np.unique(labels)) - {*range(21), ignore_index})
    else:
        assert mask is None
    if mask is not None:
        np.testing.assert_array_equal(mask, np.where(labels == ignore_index, 255, labels))


@given(st.sampled_from(VALID_FILES).flatmap(damaged))
def test_a_damaged_mask_is_refused_or_unchanged(read, data):
    mask = read(data)
    assert mask is None or np.array_equal(mask, LABELS)


def written_as_tiff(compression: str | None) -> bytes:
    file = BytesIO()
    Image.fromarray(LABELS).save(file, "TIFF", compression=compression)
    return file.getvalue()


@given(st.sampled_from([written_as_tiff(way) for way in (None, "packbits", "tiff_lzw")]).flatmap(damaged))
def test_a_damaged_tiff_is_refused_or_contains_labels(read, data):
    """TIFF has no checksums: a flipped bit may give another label, but nothing else."""
    mask = read(data)
    assert mask is None or (mask.ndim == 2 and set(np.unique(mask)) <= {*range(21), 255})


@given(st.data(), st.sampled_from(VALID_FILES))
def test_odd_contents_with_valid_checksums_are_refused_or_labels(read, data, sound):
    parts = chunks(sound)
    place = data.draw(st.integers(0, len(parts) - 2))
    kind, content = parts[place]
    parts[place] = kind, data.draw(damaged(content))
    mask = read(SIGNATURE + b"".join(chunk(*part) for part in parts))
    assert mask is None or (mask.ndim == 2 and set(np.unique(mask)) <= {*range(21), 255})


BOMBS = {
    "900 million pixels": png(30_000, 30_000, 8, GREY, b"\0"),
    "100 million pixels": png(10_000, 10_000, 8, GREY, bytes(10_001 * 10_000)),
    "text before": png(1, 1, 8, GREY, b"\0\0", before=chunk(b"zTXt", b"k\0\0" + BOMB)),
    "text after": png(1, 1, 8, GREY, b"\0\0", after=chunk(b"zTXt", b"k\0\0" + BOMB)),
    "colour profile": png(1, 1, 8, GREY, b"\0\0", after=chunk(b"iCCP", b"k\0\0" + BOMB)),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_take_memory(read, little_memory, data):
    assert read(data) is None


def test_a_mask_of_another_size_is_refused_before_it_is_read(tmp_path, little_memory):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(9_000, 9_000, 8, GREY, bytes(9_001)))  # a line of them
    with pytest.raises(DataError, match="has 12x16 pixels, but its mask 9000x9000"):
        images(tmp_path / "a.png", tmp_path / "b.png").check()
