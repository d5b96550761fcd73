"""Check the headers of TIFF and JPEG files before decoding: a small file can declare hours of work."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 30  # bytes of a file: PIL's limit of pixels, each of four bytes and none packed, has 0.7e9
MOST_NUMBERS = 65_536  # in one list of a TIFF; of strips, an image has one to a row at most
MOST_SCANS = 100  # of a JPEG, as in libtiff; encoders make about 10
BIG_TIFF = 43  # the format's number, where offsets have 64 bits
LAYOUT = (273, 279, 324, 325)  # TIFF's tags: offsets and sizes of strips, and of tiles
SIZES = (256, 257, 322, 323)  # columns and rows of the image, and of a tile
# TIFF's types of integers; negative ones are too large.
INTEGERS = {1: "B", 6: "B", 3: "H", 8: "H", 4: "L", 9: "L", 16: "Q", 17: "Q"}
MOST_PADDING = 1 << 24  # pixels of tiles beyond four times those of the image
BYTES = (1, 2, 7)  # TIFF's types that stay bytes: PIL makes a Python number of each element of all others
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA  # JPEG's markers, behind 0xFF
WHOLE_FRAMES = (0xC0, 0xC1)  # sequential, with Huffman codes: one scan can hold all components
WITHOUT_SEGMENT = (0x01, *range(0xD0, START_OF_IMAGE))  # markers
MARKER = re.compile(rb"\xff([^\x00\xff])")  # in coded data a 0xFF is followed by zero


def check_work(path: Path) -> None:
    """Raise an error for a file whose header declares minutes of work or gigabytes.

    Raises
    ------
    ValueError
        A file of more than a gigabyte; a TIFF of more than 65,536 strips or tiles, or with another list as long, or
        with tiles much larger than the image; a JPEG of more than 100 scans.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    with path.open("rb") as file:
        start = file.read(16)
        if start[:2] in (b"II", b"MM"):
            _check_lists(file, start)
        elif start[:2] == b"\xff\xd8" and not _has_one_scan(file):
            file.seek(0)
            _check_scans(file.read())


def _check_lists(file: BinaryIO, start: bytes) -> None:
    """Check all lists of a TIFF's first image; PIL reports a file that ends earlier."""
    if start[:4] == b"MM\0+":  # PIL takes its 64 bits for 32
        raise ValueError("it is a big-endian BigTIFF, which PIL cannot read: save it as PNG")
    order, is_big = "<" if start[:1] == b"I" else ">", start[2:3] == bytes([BIG_TIFF])
    offset, count, entry = ("8xQ", "Q", "HHQ8s") if is_big else ("4xL", "H", "HHL4s")
    (place,) = struct.unpack_from(order + offset, start.ljust(16, b"\0"))
    file.seek(min(place, 2**63 - 1))
    (entries,) = struct.unpack(
        order + count, file.read(struct.calcsize(order + count)).ljust(8, b"\0")[: 8 if is_big else 2]
    )
    if entries > MOST_NUMBERS:
        raise ValueError(f"its header has {entries} entries, more than {MOST_NUMBERS}: save it as PNG")
    size = struct.calcsize(order + entry)
    stored = file.read(entries * size)
    sizes: dict[int, int] = {}
    for tag, kind, numbers, value in struct.iter_unpack(order + entry, stored[: len(stored) // size * size]):
        if numbers > MOST_NUMBERS and (tag in LAYOUT or kind not in BYTES):
            unit = "strips or tiles" if tag in LAYOUT else f"numbers in tag {tag}"
            raise ValueError(f"it declares {numbers} {unit}, more than {MOST_NUMBERS}: save it as PNG")
        if tag in SIZES and kind in INTEGERS:
            number = struct.Struct(order + INTEGERS[kind])
            if tag in sizes or number.size > len(value):  # PIL and libtiff would take different ones
                raise ValueError(f"its header has tag {tag} twice, or elsewhere in the file: save it as PNG")
            (sizes[tag],) = number.unpack_from(value)
    _check_tiles(*(sizes.get(tag, 0) for tag in SIZES))


def _check_tiles(cols: int, rows: int, tile_cols: int, tile_rows: int) -> None:
    """Check the pixels of all tiles: libtiff decodes whole ones, however small the image is."""
    if not tile_cols or not tile_rows:
        return
    pixels = -(-cols // tile_cols) * tile_cols * -(-rows // tile_rows) * tile_rows
    if pixels > 4 * rows * cols + MOST_PADDING:
        raise ValueError(f"its tiles have {pixels:,} pixels, but the image has {rows}x{cols}: save it as PNG")


def _has_one_scan(file: BinaryIO) -> bool:
    """Return whether libjpeg stops after a JPEG's first scan, from the header only, so that most files are read once.

    It does if the frame is sequential and the first scan has all components. False if unclear.
    """
    components = None
    file.seek(2)
    while (
        len(head := file.read(4)) == 4
        and head[0] == 0xFF
        and head[1] not in (0x00, *WITHOUT_SEGMENT, END_OF_IMAGE, 0xFF)
    ):
        marker, size = head[1], int.from_bytes(head[2:], "big") - 2
        if marker == START_OF_SCAN:
            return file.read(1) == components
        if marker in WHOLE_FRAMES and size > 5:
            components = file.read(size)[5:6]
        else:
            file.seek(max(size, 0), 1)
    return False


def _check_scans(data: bytes) -> None:
    scans, offset = 0, 2
    while match := MARKER.search(data, offset):
        marker, offset = match[1][0], match.end()
        if marker == END_OF_IMAGE:
            return
        if marker in WITHOUT_SEGMENT:
            continue
        scans += marker == START_OF_SCAN
        if scans > MOST_SCANS:
            raise ValueError(
                f"it is a JPEG with more than {MOST_SCANS} scans, which take minutes to read: save it as PNG"
            )
        offset += max(2, int.from_bytes(data[offset : offset + 2], "big"))
