"""Reading the files of a run, which are foreign: limits keep each from hanging, crashing or filling memory.

A pipe blocks its reader, a device never ends, a few bytes of YAML expand without end, and 3 MB of a zip to 3 GB. A file
over a limit is refused with the reason; the limits are far above the files that fcnlab writes. Links are followed only
inside a run's folder. numpy is imported only when it is needed.
"""

import csv
import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml
from yaml import CSafeLoader, SafeLoader  # the former five times as fast

from fcnlab.errors import first_line

if TYPE_CHECKING:
    from numpy import ndarray

JSON_BYTES = 8 << 20  # a run's record has some 50 kB, the manifest of a sweep of 1,000 jobs 500 kB
YAML_BYTES = 256 << 10  # a configuration has some 10 kB
CSV_BYTES, CSV_ROWS, LINE = 64 << 20, 500_000, 1 << 16  # the curves of a million steps have some 10 MB
CSV_CELLS = 10_000_000  # and some million cells; an empty one is a byte of the file
NPZ_BYTES = 64 << 20  # 10,000 matrices of 150 classes have some 10 MB
UNPACKED = 2 << 30  # bytes of an array
WHOLE = 64 << 20  # bytes of an array that is kept as a whole
PART = 1 << 20  # bytes of an array that are held at a time: what fits a processor's cache is read in half the time
DEEPEST, MOST, MOST_IN_YAML = 50, 500_000, 20_000  # levels, values; a configuration has 10 and some hundred
NUMBER = 300  # characters of a number; YAML's of base 60 take a time that grows with the square
MEMBERS = 4096  # bytes of a zip's directory; three arrays have some 200
ZIP_BYTES, ZIP_MEMBERS = (
    2 << 30,
    8 << 20,
)  # of predictions.zip: 1,449 images of VOC have 36 MB, and a directory of 400 kB
ZIP_COUNT = 65_535  # members of a zip without the extension zip64
SCALARS = (str, bool, int, float)
NOT_UTF8 = re.compile(r"\\uDC[89A-F]")  # how a byte of a name begins that is not UTF-8, in a file that is


class Unreadable(ValueError):
    """A file is not used; the message begins with its name and gives the reason."""


class TooLarge(ValueError):
    """A file is over a limit; the message follows its name."""


def md5(path: str | Path) -> str:
    """Return the md5 of a file, which identifies published files but is no proof against forgery."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file.

    Raises
    ------
    OSError, Unreadable
        The file does not exist or cannot be opened; it is a folder, a pipe, a socket or a device.
    """
    _check_regular(path, path.stat())  # before opening: some devices react to that
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:  # another one by now
        os.close(handle)
        raise Unreadable(f"{path.name} is not a regular file")
    return file


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(f"{path.name} is not a regular file")


def bytes_of(path: Path, most: int) -> bytes:
    """Return the content of a file of at most ``most`` bytes.

    Raises
    ------
    OSError, Unreadable
        As :func:`open_regular`; the file is larger.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Unreadable(f"{path.name} has more than {most:,} bytes")
    return data


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a run's file; raise Unreadable if a link leads out of the folder."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Unreadable(f"{name} is a link that leads out of the folder")
    except RuntimeError as error:  # circular links
        raise Unreadable(f"{name} is a link to itself") from error
    return path


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the object in a JSON file of a run; None if the file does not exist.

    Raises
    ------
    OSError, Unreadable
        The file cannot be read, is over a limit or damaged, or contains no object.
    """
    try:
        record = json.loads(bytes_of(path_inside(folder, name), JSON_BYTES))
    except FileNotFoundError:
        return None
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{name} is damaged or half written: {first_line(error)}") from error
    return _record(record, name)


def read_yaml(folder: Path, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML file of a run; empty if there is no such file, or no mapping in it.

    Dates and times stay strings, as in OmegaConf.

    Raises
    ------
    OSError, Unreadable
        As :func:`read_json`; the file has aliases or tags, which OmegaConf does not write.
    """
    return _loaded(folder, name)[1]


def yaml_text(folder: Path, name: str) -> str:
    """Return the text of a YAML file after the same checks, for OmegaConf."""
    return _loaded(folder, name)[0]


def _loaded(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    try:
        text = bytes_of(path_inside(folder, name), YAML_BYTES).decode()
        loader = _OfNamesNotInUtf8 if NOT_UTF8.search(text) else _Loader
        _check_events(text, name, loader)
        tree = yaml.load(text, loader)
    except FileNotFoundError:
        return "", {}
    except Unreadable:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Unreadable(f"{name} is damaged or half written: {first_line(error)}") from error
    return text, _record(tree, name) if isinstance(tree, dict) else {}


class _Loader(CSafeLoader):
    """A loader without dates: those with and without a time zone cannot be compared."""


class _OfNamesNotInUtf8(SafeLoader):
    """Python's own loader: libyaml refuses escaped surrogates, which stand for bytes of a path that are not UTF-8."""


_Loader.yaml_implicit_resolvers = _OfNamesNotInUtf8.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in CSafeLoader.yaml_implicit_resolvers.items()
}


def _check_events(text: str, name: str, loader: type[Any]) -> None:
    """Refuse YAML that expands without end or nests too deeply: the loader itself has no limits."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > MOST_IN_YAML:
            raise Unreadable(f"{name} has over {DEEPEST} levels or {MOST_IN_YAML:,} values: fcnlab did not write it")
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(f"{name} has YAML aliases: fcnlab did not write it")
        if getattr(event, "tag", None) is not None:
            raise Unreadable(f"{name} is damaged, or fcnlab did not write it: it has the YAML tag {event.tag!r:.60}")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > NUMBER and event.value[0] in "+-.0123456789":
            raise Unreadable(f"{name} has a number of more than {NUMBER} characters: fcnlab did not write it")


def _record(found: Any, name: str) -> dict[str, Any]:
    """Check that a tree has plain values and keys; level by level, because recursion is limited."""
    if not isinstance(found, dict):
        raise Unreadable(f"{name} was not written by fcnlab: it contains no mapping")
    level, count = [found], 0
    for _ in range(DEEPEST):
        count += len(level)
        if count > MOST:
            break
        level = [child for node in level for child in _children(node, name)]
        if not level:
            return found
    raise Unreadable(f"{name} has over {DEEPEST} levels or {MOST:,} values: fcnlab did not write it")


def _children(node: Any, name: str) -> list[Any]:
    if isinstance(node, dict):
        odd = [key for key in node if not isinstance(key, SCALARS)]
        if odd:
            raise Unreadable(f"{name} has the key {odd[0]!r:.60}, which is not a name: fcnlab did not write it")
        return list(node.values())
    if isinstance(node, list):
        return node
    if node is not None and not isinstance(node, SCALARS):
        raise Unreadable(f"{name} contains a {type(node).__name__}: fcnlab did not write it")
    if isinstance(node, int) and abs(node) >> 63:
        raise Unreadable(f"{name} has a number of more than 64 bits: fcnlab did not write it")
    return []


def read_rows(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file by column name; none if the file does not exist.

    Raises
    ------
    OSError, Unreadable
        The file cannot be read, or is over a limit.
    """
    try:
        file = open_regular(path_inside(folder, name))
    except FileNotFoundError:
        return
    with file:
        lines = lines_within_limits(file, name)
        header = cells_of(next(lines, b""))
        for line in lines:
            yield dict(zip(header, cells_of(line), strict=False))


def lines_within_limits(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the lines of a table; raise Unreadable at the first one over a limit."""
    read = cells = 0
    for count, line in enumerate(iter(lambda: file.readline(LINE + 1), b"")):
        read, cells = read + len(line), cells + line.count(b",") + 1
        if len(line) > LINE or count > CSV_ROWS or read > CSV_BYTES or cells > CSV_CELLS:
            raise Unreadable(
                f"{name} has more than {CSV_ROWS:,} rows, {CSV_BYTES:,} bytes, {CSV_CELLS:,} cells or {LINE:,} bytes in"
                " a row"
            )
        yield line


def cells_of(line: bytes) -> list[str]:
    """Return the cells of one line, parsed by itself: an unclosed quote must not swallow the rest of the file."""
    try:
        return next(csv.reader([line.decode(errors="replace")]), [])
    except csv.Error:
        return []


@contextmanager
def open_arrays(folder: Path, name: str) -> Iterator["Arrays"]:
    """Open the arrays of an .npz file of a run.

    Raises
    ------
    OSError, Unreadable
        The file does not exist, cannot be read, is over a limit or damaged; also raised while it is open.
    """
    with open_regular(path_inside(folder, name)) as file, _errors_as_damage(name):
        yield Arrays(file)


@contextmanager
def open_members(folder: Path, name: str) -> Iterator["Members"]:
    """Open the members of a zip archive of a run.

    Raises
    ------
    OSError, Unreadable
        As :func:`open_arrays`.
    """
    with open_regular(path_inside(folder, name)) as file, _errors_as_damage(name):
        yield Members(file)


@contextmanager
def _errors_as_damage(name: str) -> Iterator[None]:
    try:
        yield
    except TooLarge as error:
        raise Unreadable(f"{name} {error}") from error
    except Exception as error:  # the parsers of zipfile, numpy and PIL raise a dozen kinds
        raise Unreadable(f"{name} is damaged: {first_line(error)}") from error


class Members:
    """Members of a zip archive that are stored without compression; they are looked up by name and never unpacked.

    Raises
    ------
    Exception
        Of any kind, here and in the methods, if the file is damaged or over a limit.
    """

    def __init__(self, file: BinaryIO):
        _check_directory(file, ZIP_BYTES, ZIP_MEMBERS)
        self._zip = zipfile.ZipFile(file)
        self._infos = self._zip.NameToInfo

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a member of at most ``most`` bytes."""
        member = self._infos[name]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > most or member.compress_size > most:
            raise ValueError(f"{name} is compressed, or has more than {most:,} bytes")
        return self._zip.read(member)  # also checks the checksum


class Arrays:
    """Arrays of an .npz file; sizes are checked before unpacking, and pickles are refused.

    Raises
    ------
    Exception
        Of any kind, here and in the methods, if the file is damaged or over a limit.
    """

    def __init__(self, file: BinaryIO):
        _check_directory(file, NPZ_BYTES, MEMBERS)
        self._zip = zipfile.ZipFile(file)

    def whole(self, key: str) -> "ndarray":
        """Return a small array."""
        import numpy as np

        parts = list(self.parts(key, WHOLE))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def parts(self, key: str, most: int | None = None) -> "Iterator[ndarray]":
        """Yield an array in parts along its first axis: at least one, which may be empty."""
        import numpy as np

        member = self._zip.getinfo(f"{key}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{key} is compressed in a way that numpy does not use")
        with self._zip.open(member) as stream:
            shape, dtype = _header(stream)
            size, row = prod(shape) * dtype.itemsize, prod(shape[1:]) * dtype.itemsize
            if size > (UNPACKED if most is None else most) or row > PART:
                raise ValueError(f"{key} would have {size:,} bytes")
            if stream.tell() + size != member.file_size:
                raise ValueError(f"{key} does not have the size in its header")
            rows = max(1, PART // max(1, row))
            for start in range(0, max(1, shape[0]), rows):
                count = min(rows, shape[0] - start)
                data = np.frombuffer(stream.read(count * row), dtype) if count * row else np.empty(0, dtype)
                yield data.reshape(count, *shape[1:])
            if stream.read(1):  # also checks the checksum
                raise ValueError(f"{key} has more bytes than its header says")


def _header(stream: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape and dtype of an array."""
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, by_columns, dtype = readers[npy.read_magic(stream)](stream)
    if by_columns or dtype.kind not in "biufU" or not shape or min(shape) < 0:
        raise ValueError(f"it holds an array of type {dtype} and shape {shape}")
    return shape, dtype


def _check_directory(file: BinaryIO, most: int, members: int) -> None:
    """Refuse a zip of more bytes, or with a directory of more bytes (``members``), before zipfile makes objects of it.

    numpy and fcnlab write no comment at the end.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    before, end = (tail := file.read())[:-22], tail[-22:]
    if size > most or before.startswith(b"PK\6\7"):
        raise TooLarge(f"is too large: it has more than {most:,} bytes or {ZIP_COUNT:,} members")
    if not end.startswith(b"PK\5\6"):
        raise ValueError("it is truncated, or was not written by fcnlab")
    if struct.unpack_from("<I", end, 12)[0] > members:
        raise ValueError("it has too many members")
    file.seek(0)


def texts(value: Any, name: str) -> list[str]:
    """Return a list of strings of a record.

    Raises
    ------
    TypeError
        The value is not a list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise TypeError(f"its {name} are not a list of strings")
    return list(value)


def read_json_facts(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a run; empty if the file is missing or damaged."""
    try:
        return read_json(folder, name) or {}
    except (OSError, Unreadable):
        return {}


def display_path(path: Path) -> str:
    """Return a path as a user would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
