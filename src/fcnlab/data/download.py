"""Published archives: fetched from whichever mirror answers, or the user's own, and unpacked below ``data.root``.

What is half done is never taken for the whole: archives grow as ``NAME.part`` and, when their md5 is right, are
unpacked in a folder aside; what is moved last from there is the list by which a data set is known to be there.
"""

import errno
import hashlib
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
from fcnlab.library_internals.python import StrictTarInfo

log = logging.getLogger("fcnlab")

ATTEMPTS = 5  # on each mirror, where some bytes come each time
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_FILES = 200_000  # in an archive; VOC2012 has 40,000
UNPACKED_TO = 100  # times its own size; images are packed already, so that hardly any comes to twice it
HEADER = 64 << 10  # bytes of a long name or of further facts in front of a member
FACTS, FACTS_OF_ALL = 256 << 20, 100  # bytes in front of all members, and how many hold for all that follow
TOPS = ("VOCdevkit", "benchmark_RELEASE")  # what is kept of an archive, without the folders above (VOC2011 has one)


@dataclass(frozen=True)
class Archive:
    """A tar that somebody publishes.

    Attributes
    ----------
    urls
        Mirrors, tried in turn; none where only the publisher's own pages, behind a login, have it.
    witness
        A list in it, as a path below the root: it is there when the archive was unpacked.
    largest
        Bytes that it may have, packed and unpacked. The largest published one, VOC2012's trainval, has 2.0e9.
    """

    name: str
    md5: str
    urls: tuple[str, ...]
    witness: str
    largest: int = 4 << 30


def downloads_enabled(
    images: Callable[..., Any], download: bool, archive: str | Sequence[str] | None
) -> Callable[[str, str], Any]:
    """A function that opens a split, told to fetch what is missing.

    Raises
    ------
    DataError
        It opens a data set that cannot be fetched.
    """
    if not download and not archive:
        return images
    if "download" not in signature(images).parameters:
        name = getattr(images, "func", images).__name__
        raise DataError(f"data.download and data.archive do nothing here: {name} has no archives. Leave them out.")
    return partial(images, download=download, archive=archive)


def read_only_data(images: Callable[..., Any]) -> Callable[[str, str], Any]:
    """A function that opens a split, told to fetch, draw and convert nothing."""
    writes_nothing = {"download": False, "archive": None, "draw": False, "convert": False}
    known = signature(images).parameters
    return partial(images, **{name: value for name, value in writes_nothing.items() if name in known})


def obtain_archive(root: Path, wanted: Archive, download: bool, archive: str | Sequence[str] | None) -> None:
    """Unpack an archive under ``root`` if its witness is not there: from the user's tars, else from a mirror.

    A second process waits for the first, and finds what that one left.

    Raises
    ------
    DataError
        The user's tars do not hold it, or are cut off, damaged or hostile; no mirror gave it whole; ``root`` cannot be
        written to.
    """
    witness = root / wanted.witness
    given = [archive] if isinstance(archive, str) else list(archive or ())
    if witness.is_file():
        return
    with exclusive_folder(root):
        for path in sorted(map(Path, given), key=lambda path: path.name != wanted.name):
            if not witness.is_file():
                unpack(path, root, wanted)
        if witness.is_file():
            return
        if not download:
            raise DataError(
                f"data.archive={', '.join(given)} holds no {wanted.witness}: name a tar like {wanted.name}, or add"
                " data.download=true"
            )
        path = fetch(wanted, root)
        unpack(path, root, wanted)
        if path.name != wanted.name:  # under its own name it was there before: somebody keeps it
            path.unlink()


@contextmanager
def exclusive_folder(root: Path) -> Iterator[None]:
    """One process at a time may change what lies under ``root``, which is made; a killed one's lock is free.

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
            f"no space left in data.root={root} ({free:.1f} GiB are free): make room there, or name another folder."
            " What was half done is not used; the same command goes on"
        ) from error


def progress(things: Any = None, **options: Any) -> tqdm:
    """A progress bar, where somebody looks at the terminal."""
    return tqdm(things, disable=None, **options)


def fetch(archive: Archive, folder: Path) -> Path:
    """A file in ``folder`` that is the archive by its md5: one that is there under its name, or else a ``.part``.

    What came before an interruption is gone on with. A file of the archive's name is never written to.

    Raises
    ------
    DataError
        No mirror gave it, with what each said.
    NotWritten
        The ``.part`` is a link, or another file as well.
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
            problems.append(f"{url}: what came is not {archive.name}, by its md5")
            if not begun:
                break
    kept = f" What came so far is kept in {part}: the same command goes on from there." if part.exists() else ""
    raise DataError(
        f"{archive.name} cannot be fetched:\n"
        + "".join(f"  {problem}\n" for problem in problems or ["it has no public address"])
        + f"Get it elsewhere and give data.archive=PATH, or try again later.{kept}"
    )


def _append(url: str, part: Path, largest: int) -> None:
    """Add to ``part`` what it lacks of the file at ``url``.

    Raises
    ------
    OSError, HTTPException
        The server does not answer, stalls, ends early, or sends more than ``largest`` bytes.
    """
    os.close(open_own(part, os.O_WRONLY))  # what is wrong with the folder is said before the network is asked
    have = _size(part)
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # there are no more bytes: the md5 will tell
            return
        raise
    with response:
        start = _start(response, have)
        total = None if response.length is None else start + response.length
        if total is not None and total > largest:
            raise OSError(f"it would send {total:,} bytes, and the archive has at most {largest:,}")
        if total is not None and total - start > (free := shutil.disk_usage(part.parent).free):
            raise OSError(errno.ENOSPC, f"it has {total - start:,} more bytes, and {free:,} are free", str(part))
        log.info("Fetching %s from byte %d", url, start)
        with (
            os.fdopen(open_own(part, os.O_RDWR), "r+b") as file,
            progress(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True) as bar,
        ):
            file.truncate(start)
            file.seek(start)
            while block := response.read1(BLOCK):
                if file.tell() + len(block) > largest:
                    raise OSError(f"it sends more than the {largest:,} bytes that the archive has at most")
                file.write(block)
                bar.update(len(block))
        if total is not None and _size(part) != total:
            raise OSError(f"it ended at byte {_size(part)} of {total}")


def _start(response: Any, have: int) -> int:
    """The byte that an answer starts with: 0 where the server sends the whole file whatever it is asked for."""
    if response.status == 206:
        if not str(response.headers["Content-Range"]).startswith(f"bytes {have}-"):
            raise OSError(f"it answers byte {have} with {response.headers['Content-Range']}")
        return have
    if have and response.length is not None and response.length < have:  # an error page, probably
        raise OSError(f"it answers with {response.length} bytes, and {have} of the archive are here already")
    return 0


def _is_local(error: Exception) -> bool:
    """Whether it is this machine's fault and not the mirror's."""
    return isinstance(error, OSError) and error.errno in FULL


def md5(path: Path) -> str:
    """The sum by which published archives are known."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def unpack(archive: Path, root: Path, wanted: Archive) -> None:
    """Add what a tar holds to ``root``, where nothing that is there already is touched.

    Its sizes are added up before the first byte is written, and again while it is unpacked.

    Raises
    ------
    DataError
        No such file, no tar, cut off, damaged; a member that is no plain file or leads out of ``root``; nothing in it
        that is looked for; more of it than the data set has.
    OSError
        The disk is full, or ``root`` not writable.
    """
    if not archive.is_file():
        raise DataError(f"data.archive={archive} is no file: give the path of a tar that you have, or leave it out")
    log.info("Unpacking %s in %s", archive, root)
    aside = root / ".unpacking"  # whoever holds the lock is alone with it
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)  # an error where a link is in its place
        _check_sizes(archive, root, wanted.largest)
        _extract(archive, aside, wanted.largest)
        _move(aside, root, wanted.witness)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Header(StrictTarInfo):
    """A header that must be whole: tarfile takes a tar that ends, or breaks, between two members for a whole one.

    Nor may it be of a sparse file, a few bytes of which say terabytes, or bring facts that fill the memory; these may
    come one behind the other, and some hold for all members that follow.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if tar.fileobj is not None and tar.fileobj.tell() - tar.offset > HEADER:
            raise tarfile.ReadError(f"it has more than {HEADER:,} bytes in front of a file")
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]  # the zeros by which a whole tar ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if len(tar.pax_headers) > FACTS_OF_ALL:
            raise tarfile.ReadError(f"it has {len(tar.pax_headers)} facts about all of its files")
        found._check_size()
        return found

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        found = super().frombuf(buf, encoding, errors)
        if found.type == tarfile.GNUTYPE_SPARSE:
            found.refuse_sparse()
        found._check_size()
        return found

    def _check_size(self) -> None:
        if self.size < 0 or (self.type not in tarfile.REGULAR_TYPES and self.size > HEADER):
            raise tarfile.ReadError(f"the header of {self.name!r} says {self.size:,} bytes")


def _check_sizes(archive: Path, root: Path, largest: int) -> None:
    """Read a tar to its end, before anything of it is written.

    Raises
    ------
    DataError
        What :func:`_members` says.
    OSError
        The disk has not the room.
    """
    with _members(archive, largest, "looked through") as members:
        needed = sum(member.size for _, member, _ in members)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{archive} unpacks to {needed:,} bytes, and {free:,} are free", str(root))


def _extract(archive: Path, folder: Path, largest: int) -> None:
    """Write the plain files of a tar; there is never a link in ``folder`` that a name could lead out by."""
    found = 0
    with _members(archive, largest, "unpacked") as members:
        for tar, member, name in members:
            content = tar.extractfile(member)
            if content is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with content, (folder / name).open("xb") as file:
                    shutil.copyfileobj(content, file, BLOCK)
                found += 1
    if not found:
        raise DataError(f"{archive} holds neither {'/ nor '.join(TOPS)}/: it is another archive")


Member = tuple[tarfile.TarFile, tarfile.TarInfo, PurePosixPath]


@contextmanager
def _members(archive: Path, largest: int, doing: str) -> Iterator[Iterator[Member]]:
    """The plain files in a tar that are looked for, and where each goes below the root; every byte is read.

    Raises
    ------
    DataError
        It is cut off, damaged, no tar, or over a limit, also where that is found while it is read.
    """
    try:
        with tarfile.open(archive, tarinfo=_Header) as tar:
            yield _looked_for(tar, archive, largest, doing)
            while tar.fileobj is not None and tar.fileobj.read(BLOCK):  # to the end, where gzip keeps its sum
                _check_ratio(tar.fileobj.tell(), archive)
    except DataError:
        raise
    except FileExistsError as error:
        raise DataError(f"{archive} holds {error.filename} twice, or below another file: it is refused") from error
    except Exception as error:  # tarfile and its decompressors end in several kinds
        if _is_local(error):
            raise
        raise DataError(
            f"{archive} is cut off, damaged or no tar: {first_line(error)}. Nothing of it was used: get it again"
        ) from error


def _looked_for(tar: tarfile.TarFile, archive: Path, largest: int, doing: str) -> Iterator[Member]:
    size = facts = 0
    for count, member in enumerate(progress(_forgotten(tar), desc=f"{archive.name} {doing}", unit=" files")):
        _check_ratio(tar.offset, archive)
        facts += member.offset_data - member.offset
        if facts > FACTS:
            raise DataError(f"{archive} holds more than {FACTS:,} bytes of facts about its files: it is refused")
        if count >= MOST_FILES:
            raise DataError(f"{archive} holds more than {MOST_FILES:,} files: it is refused. Unpack it yourself")
        name = _name(member, archive)
        if member.issparse():
            raise DataError(f"{archive} holds {member.name!r}, which is a sparse file: it is refused")
        if member.isreg() and name is not None:
            size += member.size
            if size > largest:
                raise DataError(
                    f"{archive} unpacks to more than {largest:,} bytes, and the data set has no more: it is refused."
                    " If that is right, unpack it yourself"
                )
            yield tar, member, name


def _forgotten(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, which keeps none of them, with all that their headers say."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        yield member


def _check_ratio(read: int, archive: Path) -> None:
    if read > max(64 << 20, UNPACKED_TO * archive.stat().st_size):
        raise DataError(f"{archive} unpacks to more than {UNPACKED_TO} times its size: it is refused")


def _name(member: tarfile.TarInfo, archive: Path) -> PurePosixPath | None:
    """Where a member goes below the root; None for what is not looked for.

    Raises
    ------
    DataError
        It is a link, a device or a pipe, or its name leads out of the folder.
    """
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{archive} holds {member.name!r}, which is no plain file: it is refused")
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or "\\" in member.name:
        raise DataError(f"{archive} holds {member.name!r}, which leads out of the folder: it is refused")
    tops = [place for place, part in enumerate(path.parts) if part in TOPS]
    return PurePosixPath(*path.parts[tops[0] :]) if tops else None


def _move(source: Path, root: Path, witness: str) -> None:
    """Move files into place, lists behind the rest and the witness at the very end; what is there already stays."""
    files = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: (name.suffix == ".txt", name == Path(witness), name)):
        if name == Path(witness) and hasattr(os, "sync"):
            os.sync()  # a power failure must not leave the witness alone
        if not (root / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(root / name)
