"""Archives of torch's, which must have one reading only.

torch's reader takes a zip's directory from the place that its end states, Python's takes what lies before the end: a
file with two directories is two archives, of which one is checked and the other is loaded. What torch writes has one.
"""

import os
import struct
import zipfile
from typing import IO

END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCAL = struct.Struct("<4s5H3L2H")
IN_64_BITS = 0xFFFFFFFF  # what a field of 32 bits says whose value is elsewhere
STREAMED = 0x8  # the flag of a member whose sizes follow it, so that its own header has zeros
FLAGS = STREAMED | 0x800  # and that of names in UTF-8


def checked_members(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """The members of an archive, of which torch's reader finds the same.

    Raises
    ------
    zipfile.BadZipFile
        It is none; another reader could find other members in it; a member is compressed.
    """
    count, start = _directory(file)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    names = {record.filename.lower() for record in records}  # torch's reader does not tell cases apart
    if len(records) != count or len(names) != count:
        raise zipfile.BadZipFile("its directory lists a member twice, or not all of them")
    place = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.header_offset < place or (place == 0 and record.header_offset != 0):
            raise zipfile.BadZipFile("its members overlap, or something lies before them")
        place = _end_of(file, record)
    if place > start:
        raise zipfile.BadZipFile("its members overlap with its directory")
    return records


def _directory(file: IO[bytes]) -> tuple[int, int]:
    """How many members the directory has, and where it begins; it ends where the file's last records begin."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END.size - LOCATOR.size - END64.size))
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place != len(tail) - END.size:
        raise zipfile.BadZipFile("it does not end with the end of a zip file: it is cut off, or something follows")
    _, disk, other, here, count, length, start, comment = END.unpack(tail[place:])
    stop = size - END.size
    if tail[place - LOCATOR.size :].startswith(b"PK\6\7") and len(tail) == END64.size + LOCATOR.size + END.size:
        _, first, stated, _ = LOCATOR.unpack(tail[place - LOCATOR.size : place])
        long = END64.unpack(tail[: END64.size])
        stop = size - len(tail)
        pairs = zip((here, count, length, start), long[6:], strict=True)
        agree = all(short in (value, 0xFFFF, IN_64_BITS) for short, value in pairs)
        if long[:2] != (b"PK\6\6", END64.size - 12) or stated != stop or first or long[4] or long[5] or not agree:
            raise zipfile.BadZipFile("its last records contradict each other")
        here, count, length, start = long[6:]
    if here != count or disk or other or comment or start + length != stop:
        raise zipfile.BadZipFile("its directory is not where its end says")
    return count, start


def _end_of(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """Where a member's bytes end; its own header must say what the directory says (zipfile compares the names)."""
    name = record.orig_filename
    if record.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} in it is compressed, which torch does not write; unpacked it could be large")
    large = [value for value in (record.file_size, record.compress_size, record.header_offset) if value >= IN_64_BITS]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    file.seek(record.header_offset)
    fixed = file.read(LOCAL.size)
    if len(fixed) < LOCAL.size:
        raise zipfile.BadZipFile(f"{name} lies outside of it")
    signature, _, flags, method, _, _, _, packed, unpacked, length, more = LOCAL.unpack(fixed)
    stated = [(record.compress_size, record.file_size), (IN_64_BITS, IN_64_BITS)]
    if flags & STREAMED:
        stated.append((0, 0))
    if (
        signature != b"PK\3\4"
        or (record.filename, record.file_size, record.extra) != (name, record.compress_size, extra)
        or (record.flag_bits | flags) & ~FLAGS
        or (method, record.comment) != (zipfile.ZIP_STORED, b"")
        or (packed, unpacked) not in stated
    ):
        raise zipfile.BadZipFile(f"{name} in it is described in two ways, or as torch describes none")
    return record.header_offset + LOCAL.size + length + more + record.file_size
