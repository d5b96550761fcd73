"""Obtain published archives, from mirrors or from the user, and unpack them below ``data.root``.

Incomplete data are never used: archives are downloaded as ``NAME.part``, checked by md5, and unpacked in a temporary
folder. The list file that marks a data set as complete is moved into place last.
"""

import errno
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from fcnlab.data.image_files import DataError
from fcnlab.data.locks import exclusive_lock
from fcnlab.errors import first_line
from fcnlab.files.in_place import check_own, open_own
from fcnlab.files.reading import md5
from fcnlab.library_internals.python import StrictTarInfo

log = logging.getLogger("fcnlab")

ATTEMPTS = 5  # per mirror, as long as each attempt receives data
TIMEOUT = 30.0  # seconds without data
BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_FILES = 200_000  # limit per archive; VOC2012 has 40,000
UNPACKED_TO = 100  # limit on the unpacked size, in archive sizes; images are compressed, so that 2 is usual
HEADER = 64 << 10  # limit on a long name or on extended headers of a member, in bytes
EXTENDED_HEADER_BYTES = 256 << 20  # limit on all extended headers together
GLOBAL_HEADERS = 100  # limit on extended headers that apply to all files
TOPS = ("VOCdevkit", "benchmark_RELEASE")  # top folders that are unpacked, without parent folders (VOC2011 has one)


@dataclass(frozen=True)
class Archive:
    """A published tar file.

    Attributes
    ----------
    urls
        Mirrors, tried in order; empty if a download requires a login.
    witness
        A list file in it, as a path below the root, which exists once the archive is unpacked.
    largest
        Limit on the bytes, packed and unpacked. The largest published archive, VOC2012 trainval, has 2.0e9.
    """

    name: str
    md5: str
    urls: tuple[str, ...]
    witness: str
    largest: int = 4 << 30


def downloads_enabled(
    dataset: Callable[..., Any], download: bool, archive: str | Sequence[str] | None
) -> Callable[[str, str], Any]:
    """Return a function that opens a split like ``dataset``, and downloads missing data.

    Raises
    ------
    DataError
        The data set cannot be downloaded.
    """
    if not download and not archive:
        return dataset
    if "download" not in signature(dataset).parameters:
        name = getattr(dataset, "func", dataset).__name__
        raise DataError(f"data.download and data.archive have no effect: {name} has no archives. Leave them out.")
    return partial(dataset, download=download, archive=archive)


def read_only_data(dataset: Callable[..., Any]) -> Callable[[str, str], Any]:
    """Return a function that opens a split like ``dataset``, without downloading, drawing or converting anything."""
    writes_nothing = {"download": False, "archive": None, "draw": False, "convert": False}
    known = signature(dataset).parameters
    return partial(dataset, **{name: value for name, value in writes_nothing.items() if name in known})


def obtain_archive(root: Path, expected: Archive, download: bool, archive: str | Sequence[str] | None) -> None:
    """Unpack an archive under ``root`` unless its witness exists: from the user's tar files, or from a mirror.

    A second process waits for the first, and then uses its data.

    Raises
    ------
    DataError
        The user's tar files do not contain it, or are truncated, damaged or malicious; no mirror provides it; ``root``
        cannot be written to.
    """
    witness = root / expected.witness
    archives = [archive] if isinstance(archive, str) else list(archive or ())
    if witness.is_file():
        return
    with exclusive_folder(root):
        for path in sorted(map(Path, archives), key=lambda path: path.name != expected.name):
            if not witness.is_file():
                unpack(path, root, expected)
        if witness.is_file():
            return
        if not download:
            raise DataError(
                f"data.archive={', '.join(archives)} does not contain {expected.witness}: set a tar file like"
                f" {expected.name}, or add data.download=true"
            )
        path = fetch(expected, root)
        unpack(path, root, expected)
        if path.name != expected.name:  # a file with its own name existed before, and is kept
            path.unlink()


@contextmanager
def exclusive_folder(root: Path) -> Iterator[None]:
    """Create ``root`` and lock it, so that only one process changes it; the lock of a killed process is free.

    Raises
    ------
    DataError
        The disk is full, or the folder cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(root / ".fcnlab.lock", f"prepares the data in {root}"):
            yield
    except OSError as error:
        if error.errno not in FULL:
            raise DataError(f"data.root={root} cannot be written to: {first_line(error)}") from error
        free = shutil.disk_usage(root).free / 2**30
        raise DataError(
            f"no space left in data.root={root} ({free:.1f} GiB free): free some space, or set another folder. The same"
            " command resumes the download"
        ) from error


def progress(things: Any = None, **options: Any) -> tqdm:
    """Return a progress bar, which is shown only in a terminal."""
    return tqdm(things, disable=None, **options)


def fetch(archive: Archive, folder: Path) -> Path:
    """Return a file in ``folder`` with the md5 of the archive: an existing file, or a downloaded ``.part``.

    Interrupted downloads are resumed. An existing file with the archive's name is never changed.

    Raises
    ------
    DataError
        No mirror provides it; the message contains the error of each.
    WriteError
        The ``.part`` is a symbolic or hard link.
    OSError
        The disk is full.
    """
    part = folder / f"{archive.name}.part"
    for path in (folder / archive.name, part):
        if path.is_file() and md5(path) == archive.md5:
            return path
    check_own(part)
    problems = []
    for url in archive.urls:
        for _ in range(ATTEMPTS):
            begun = _size(part)
            try:
                _append(url, part, archive.largest)
            except (OSError, HTTPException, ValueError) as error:
                if _is_local(error):
                    raise
                problems.append(f"{url}: {first_line(error)}")
                if _size(part) <= begun:
                    break
                continue
            if md5(part) == archive.md5:
                return part
            part.unlink(missing_ok=True)
            problems.append(f"{url}: the file is not {archive.name} (wrong md5)")
            if not begun:
                break
    kept = f" The partial file {part} is kept, and another try continues it." if part.exists() else ""
    raise DataError(
        f"{archive.name} cannot be downloaded:\n"
        + "".join(f"  {problem}\n" for problem in problems or ["it has no public URL"])
        + f"Download it elsewhere and set data.archive=PATH, or try again later.{kept}"
    )


def _append(url: str, part: Path, largest: int) -> None:
    """Append the missing part of the file at ``url`` to ``part``.

    Raises
    ------
    OSError, HTTPException
        The server does not answer, stalls, stops early, or sends more than ``largest`` bytes.
    """
    os.close(open_own(part, os.O_WRONLY))  # report errors of the folder before using the network
    have = _size(part)
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # no more bytes: the md5 is checked later
            return
        raise
    with response:
        start = _start(response, have)
        total = None if response.length is None else start + response.length
        if total is not None and total > largest:
            raise OSError(f"the file has {total:,} bytes, more than the limit of {largest:,}")
        if total is not None and total - start > (free := shutil.disk_usage(part.parent).free):
            raise OSError(errno.ENOSPC, f"{total - start:,} bytes are needed, but only {free:,} are free", str(part))
        log.info("Downloading %s from byte %d", url, start)
        with (
            os.fdopen(open_own(part, os.O_RDWR), "r+b") as file,
            progress(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True) as bar,
        ):
            file.truncate(start)
            file.seek(start)
            while block := response.read1(BLOCK):
                if file.tell() + len(block) > largest:
                    raise OSError(f"the server sends more than the limit of {largest:,} bytes")
                file.write(block)
                bar.update(len(block))
        if total is not None and _size(part) != total:
            raise OSError(f"the connection ended at byte {_size(part)} of {total}")


def _start(response: Any, have: int) -> int:
    """Return the first byte of a response: 0 if the server ignores the range and sends the whole file."""
    if response.status == 206:
        if not str(response.headers["Content-Range"]).startswith(f"bytes {have}-"):
            raise OSError(f"the server answers a request for byte {have} with {response.headers['Content-Range']}")
        return have
    if have and response.length is not None and response.length < have:  # an error page, probably
        raise OSError(f"the server sends {response.length} bytes, but {have} of the archive are downloaded already")
    return 0


def _is_local(error: Exception) -> bool:
    """Return whether this machine causes the error, not the mirror."""
    return isinstance(error, OSError) and error.errno in FULL


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def unpack(archive: Path, root: Path, expected: Archive) -> None:
    """Unpack a tar file into ``root``, without changing existing files.

    Sizes are checked before the first byte is written, and again while unpacking.

    Raises
    ------
    DataError
        The file is missing, not a tar file, truncated or damaged; a member is not a plain file or leads out of
        ``root``; it contains none of the expected files, or exceeds a limit.
    OSError
        The disk is full, or ``root`` is not writable.
    """
    if not archive.is_file():
        raise DataError(f"data.archive={archive} is not a file: set the path of a tar file, or leave it out")
    log.info("Unpacking %s in %s", archive, root)
    aside = root / ".unpacking"  # only the holder of the lock uses it
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)  # fails if there is a link
        _check_sizes(archive, root, expected.largest)
        _extract(archive, aside, expected.largest)
        _move(aside, root, expected.witness)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Header(StrictTarInfo):
    """A strict header: tarfile accepts a tar file that is truncated or damaged between two members.

    Sparse files, of which a few bytes declare terabytes, and extended headers that fill the memory are refused, too:
    these may follow each other, and some apply to all files.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if tar.fileobj is not None and tar.fileobj.tell() - tar.offset > HEADER:
            raise tarfile.ReadError(f"it has more than {HEADER:,} bytes of headers before a file")
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]  # the zeros by which a whole tar ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if len(tar.pax_headers) > GLOBAL_HEADERS:
            raise tarfile.ReadError(f"it has {len(tar.pax_headers)} extended headers that apply to all files")
        found._check_size()
        return found

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type == tarfile.GNUTYPE_SPARSE:
            header.refuse_sparse()
        header._check_size()
        return header

    def _check_size(self) -> None:
        if self.size < 0 or (self.type not in tarfile.REGULAR_TYPES and self.size > HEADER):
            raise tarfile.ReadError(f"the header of {self.name!r} declares {self.size:,} bytes")


def _check_sizes(archive: Path, root: Path, largest: int) -> None:
    """Read a tar file completely, before anything is written.

    Raises
    ------
    DataError
        As :func:`_members`.
    OSError
        The disk is too full.
    """
    with _members(archive, largest, "checking") as members:
        needed = sum(member.size for _, member, _ in members)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{archive} unpacks to {needed:,} bytes, but only {free:,} are free", str(root))


def _extract(archive: Path, folder: Path, largest: int) -> None:
    """Write the plain files of a tar file; ``folder`` never contains links."""
    count = 0
    with _members(archive, largest, "unpacking") as members:
        for tar, member, name in members:
            content = tar.extractfile(member)
            if content is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with content, (folder / name).open("xb") as file:
                    shutil.copyfileobj(content, file, BLOCK)
                count += 1
    if not count:
        raise DataError(f"{archive} contains neither {'/ nor '.join(TOPS)}/: it is another archive")


Member = tuple[tarfile.TarFile, tarfile.TarInfo, PurePosixPath]


@contextmanager
def _members(archive: Path, largest: int, doing: str) -> Iterator[Iterator[Member]]:
    """Yield the expected plain files of a tar file and their paths below the root; every byte is read.

    Raises
    ------
    DataError
        The file is truncated, damaged, not a tar file, or over a limit.
    """
    try:
        with tarfile.open(archive, tarinfo=_Header) as tar:
            yield _expected_members(tar, archive, largest, doing)
            while tar.fileobj is not None and tar.fileobj.read(BLOCK):  # to the end, where gzip stores its checksum
                _check_ratio(tar.fileobj.tell(), archive)
    except DataError:
        raise
    except FileExistsError as error:
        raise DataError(
            f"{archive} contains {error.filename} twice, or below another file: fcnlab refuses to unpack it"
        ) from error
    except Exception as error:  # tarfile and its decompressors raise several kinds of errors
        if _is_local(error):
            raise
        raise DataError(
            f"{archive} is truncated, damaged or not a tar file: {first_line(error)}. Download it again"
        ) from error


def _expected_members(tar: tarfile.TarFile, archive: Path, largest: int, doing: str) -> Iterator[Member]:
    size = header_bytes = 0
    for count, member in enumerate(progress(_stream_members(tar), desc=f"{archive.name} {doing}", unit=" files")):
        _check_ratio(tar.offset, archive)
        header_bytes += member.offset_data - member.offset
        if header_bytes > EXTENDED_HEADER_BYTES:
            raise DataError(
                f"{archive} contains more than {EXTENDED_HEADER_BYTES:,} bytes of extended headers: fcnlab refuses to"
                " unpack it"
            )
        if count >= MOST_FILES:
            raise DataError(
                f"{archive} contains more than {MOST_FILES:,} files: fcnlab refuses to unpack it. Unpack it yourself"
            )
        name = _path_in_root(member, archive)
        if member.issparse():
            raise DataError(f"{archive} contains {member.name!r}, a sparse file: fcnlab refuses to unpack it")
        if member.isreg() and name is not None:
            size += member.size
            if size > largest:
                raise DataError(
                    f"{archive} unpacks to more than {largest:,} bytes, the limit for this data set: fcnlab refuses to"
                    " unpack it. If you trust it, unpack it yourself"
                )
            yield tar, member, name


def _stream_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file without keeping them, to limit memory."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  which typeshed leaves out
        yield member


def _check_ratio(read: int, archive: Path) -> None:
    if read > max(64 << 20, UNPACKED_TO * archive.stat().st_size):
        raise DataError(f"{archive} unpacks to more than {UNPACKED_TO} times its size: fcnlab refuses to unpack it")


def _path_in_root(member: tarfile.TarInfo, archive: Path) -> PurePosixPath | None:
    """Return the path of a member below the root; None for unexpected files.

    Raises
    ------
    DataError
        It is a link, a device or a pipe, or its name leads out of the folder.
    """
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{archive} contains {member.name!r}, which is not a plain file: fcnlab refuses to unpack it")
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or "\\" in member.name:
        raise DataError(
            f"{archive} contains {member.name!r}, which leads out of the folder: fcnlab refuses to unpack it"
        )
    tops = [place for place, part in enumerate(path.parts) if part in TOPS]
    return PurePosixPath(*path.parts[tops[0] :]) if tops else None


def _move(source: Path, root: Path, witness: str) -> None:
    """Move files into place, lists after other files and the witness last; existing files stay."""
    files = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: (name.suffix == ".txt", name == Path(witness), name)):
        if name == Path(witness) and hasattr(os, "sync"):
            os.sync()  # after a power failure, the witness must not exist without the other files
        if not (root / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(root / name)
