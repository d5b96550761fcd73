"""Downloads from servers that stall, disconnect, send wrong data or ignore ranges; truncated, damaged or hostile tars.

In every case the root contains the complete data set or nothing, and the same command resumes.
"""

import errno
import gzip
import io
import multiprocessing
import signal
import tarfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcnlab.data import DataError, DataModule, download, open_shapes, open_voc
from fcnlab.data.download import Archive, exclusive_folder, fetch, obtain_archive, unpack
from fcnlab.data.transforms import standard
from fcnlab.errors import WriteError
from fcnlab.files.reading import md5

WITNESS = "VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt"
FILES = {
    "VOCdevkit/VOC2012/JPEGImages/a.jpg": bytes(range(256)) * 40,
    "VOCdevkit/VOC2012/SegmentationClass/a.png": b"mask",
    WITNESS: b"a\n",
}


def tar(files: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w") -> bytes:
    """Return the bytes of a tar with these files; ``more`` are members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return buffer.getvalue()


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


WHOLE = tar(FILES)
EXPECTED = Archive("mine.tar", "", (), WITNESS)


class Mirror(BaseHTTPRequestHandler):
    """Serve ``server.content`` with ``server.fault``, and record the requested ranges."""

    def do_GET(self):
        requested = self.headers["Range"]
        self.server.ranges.append(requested)
        self.server.fault(self, int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0)

    def send(self, content: bytes, start: int = 0, promised: int | None = None) -> None:
        """Send the bytes from ``start``; the connection ends too early if they are fewer than promised."""
        if start:
            self.send_response(206)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}"
            )
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) if promised is None else promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def honest(request: Mirror, start: int) -> None:
    if start >= len(request.server.content):
        return request.send_error(416)
    request.send(request.server.content[start:], start)


def ignores_range(request: Mirror, start: int) -> None:
    request.send(request.server.content)


def disconnects(request: Mirror, start: int) -> None:
    remaining = request.server.content[start:]
    request.send(remaining[: len(remaining) // 2], start, promised=len(remaining))


def disconnects_once(request: Mirror, start: int) -> None:
    (honest if start else disconnects)(request, start)


def stalls(request: Mirror, start: int) -> None:
    remaining = request.server.content[start:]
    request.send(remaining[:100], start, promised=len(remaining))
    request.wfile.flush()
    request.server.closing.wait(20)


def stalls_once(request: Mirror, start: int) -> None:
    (honest if start else stalls)(request, start)


def is_not_found(request: Mirror, start: int) -> None:
    request.send_error(404)


def sends_a_web_page(request: Mirror, start: int) -> None:
    request.send(b"<html>blocked by firewall policy</html>")


def sends_another_range(request: Mirror, start: int) -> None:
    request.send(request.server.content[1:], 1)


def sends_wrong_bytes(request: Mirror, start: int) -> None:
    request.send(bytes(len(request.server.content)))


@pytest.fixture
def serve(monkeypatch):
    """Start a local server; return its URL and the list of requested ranges."""
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:

        def start(fault=honest, content: bytes = WHOLE) -> tuple[str, list]:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Mirror))
            server.content, server.fault, server.ranges, server.closing = content, fault, [], threading.Event()
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(server.closing.set)
            return f"http://127.0.0.1:{server.server_port}/x.tar", server.ranges

        yield start


@pytest.fixture
def archive(tmp_path):
    """The published archive with these mirrors."""
    (tmp_path / "whole").write_bytes(WHOLE)
    return lambda *urls: Archive("voc.tar", md5(tmp_path / "whole"), urls, WITNESS)


def contents(root: Path) -> dict[str, bytes]:
    """Return the files under the root, except the lock and partial downloads."""
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.endswith((".lock", ".part"))}


def test_md5_of_a_known_text(tmp_path):
    (tmp_path / "x").write_bytes(b"The quick brown fox jumps over the lazy dog")
    assert md5(tmp_path / "x") == "9e107d9d372bb6826bd81d3542a419d6"


def test_an_archive_is_downloaded_unpacked_and_removed(serve, archive, tmp_path):
    root = tmp_path / "new/root"
    url, ranges = serve()
    for _ in range(2):
        obtain_archive(root, archive(url), True, None)
    assert contents(root) == FILES and ranges == [None]
    assert not (root / "voc.tar").exists() and not (root / "voc.tar.part").exists()


def test_an_existing_archive_is_used_and_kept(archive, tmp_path):
    """torchvision leaves such an archive."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/voc.tar").write_bytes(WHOLE)
    obtain_archive(tmp_path / "root", archive(), True, None)
    assert contents(tmp_path / "root") == {**FILES, "voc.tar": WHOLE}


def test_another_file_with_the_name_of_the_archive_is_kept(serve, archive, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/voc.tar").write_bytes(b"the user's own")
    url, _ = serve()
    obtain_archive(tmp_path / "root", archive(url), True, None)
    assert contents(tmp_path / "root") == {**FILES, "voc.tar": b"the user's own"}
    assert not (tmp_path / "root/voc.tar.part").exists()


@pytest.mark.parametrize("fault", [disconnects_once, stalls_once])
def test_a_broken_download_resumes(fault, serve, archive, tmp_path):
    url, ranges = serve(fault)
    assert fetch(archive(url), tmp_path).read_bytes() == WHOLE
    first, second = ranges
    assert first is None and int(second.removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize("fault", [is_not_found, sends_a_web_page, sends_wrong_bytes, disconnects, stalls])
def test_the_next_mirror_is_tried(fault, serve, archive, tmp_path):
    url, ranges = serve(fault)
    second_url, _ = serve()
    assert fetch(archive("http://127.0.0.1:9/refused", url, second_url), tmp_path).read_bytes() == WHOLE
    assert 1 <= len(ranges) <= download.ATTEMPTS


@pytest.mark.parametrize("fault", [ignores_range, honest])
@pytest.mark.parametrize("have", [0, 1, len(WHOLE) // 2, len(WHOLE)])
def test_a_partial_download_is_resumed(fault, have, serve, archive, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(WHOLE[:have])
    url, ranges = serve(fault)
    assert fetch(archive(url), tmp_path).read_bytes() == WHOLE
    assert ranges == ([f"bytes={have}-" if have else None] if have < len(WHOLE) else [])


@pytest.mark.parametrize("left", [b"foreign" * 9, WHOLE + b"more"])
def test_foreign_bytes_of_a_partial_download_are_discarded(left, serve, archive, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(left)
    url, ranges = serve()
    assert fetch(archive(url), tmp_path).read_bytes() == WHOLE
    assert len(ranges) == 2 and ranges[-1] is None


@pytest.mark.parametrize(
    ("fault", "output", "kept"),
    [
        (is_not_found, "HTTP Error 404: Not Found", True),
        (sends_a_web_page, "the server sends 39 bytes, but 5000 of the archive are downloaded already", True),
        (sends_another_range, r"the server answers a request for byte 5000 with bytes 1-", True),
        (disconnects, rf"the connection ended at byte \d+ of {len(WHOLE)}", True),
        (stalls, "timed out", True),
        (sends_wrong_bytes, r"the file is not voc\.tar \(wrong md5\)", False),
    ],
)
def test_an_error_explains_why_no_mirror_works(fault, output, kept, serve, archive, tmp_path):
    """The message gives the reason, a valid partial download is kept, and wrong data is never used."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/voc.tar.part").write_bytes(WHOLE[:5000])
    url, _ = serve(fault)
    with pytest.raises(DataError, match=output) as caught:
        obtain_archive(tmp_path / "root", archive(url), True, None)
    assert "data.archive=PATH" in str(caught.value) and ("is kept" in str(caught.value)) == kept
    assert contents(tmp_path / "root") == {}
    part = tmp_path / "root/voc.tar.part"
    assert (WHOLE.startswith(part.read_bytes()) and part.stat().st_size >= 5000) if kept else not part.exists()
    good, _ = serve()
    obtain_archive(tmp_path / "root", archive(good), True, None)
    assert contents(tmp_path / "root") == FILES


def test_an_archive_without_a_public_url_is_an_error(tmp_path):
    with pytest.raises(
        DataError, match=r"VOC2012test.tar cannot be downloaded:\n  it has no public URL\nDownload it elsewhere"
    ):
        open_voc(str(tmp_path), "test", download=True)


def write_archive(tmp_path: Path, data: bytes, name: str = "mine.tar") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_file_of_the_user_is_unpacked(mode, archive, tmp_path):
    path = write_archive(tmp_path, tar(FILES, mode=mode))
    obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == FILES and path.is_file()


def test_parent_folders_and_other_files_are_skipped(archive, tmp_path):
    """VOC2011's archive has a parent folder."""
    files = {f"./TrainVal/{name}": data for name, data in FILES.items()} | {"README": b"x"}
    obtain_archive(tmp_path / "root", archive(), False, [str(write_archive(tmp_path, tar(files)))])
    assert contents(tmp_path / "root") == FILES


def test_existing_files_are_kept(archive, tmp_path):
    """They may come from another archive of the data set, or from the user."""
    mine = tmp_path / "root/VOCdevkit/VOC2012/SegmentationClass/a.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    obtain_archive(tmp_path / "root", archive(), False, [str(write_archive(tmp_path, WHOLE))])
    assert mine.read_bytes() == b"mine" and len(contents(tmp_path / "root")) == len(FILES)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_truncated_at_any_byte_leaves_no_files(mode, tmp_path):
    """The padding after the final zeros may be missing; tarfile accepts a tar that ends between two files."""
    data = tar({name: content[:600] for name, content in FILES.items()}, mode=mode)
    whole = len(data.rstrip(b"\0")) + 1 if mode == "w" else len(data)
    places = set(range(0, whole, 97)) | set(range(0, whole, 512)) | {whole - 1}
    for place in sorted(places):
        with pytest.raises(DataError, match=r"mine\.tar is truncated, damaged or not a tar file.*Download it again"):
            unpack(write_archive(tmp_path, data[:place]), tmp_path / "root", EXPECTED)
        assert not (tmp_path / "root").exists() or contents(tmp_path / "root") == {}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_flipped_bits_in_headers_and_streams_leave_no_files(mode, tmp_path):
    data = tar(FILES, mode=mode)
    places = (3, 517 + len(FILES["VOCdevkit/VOC2012/JPEGImages/a.jpg"])) if mode == "w" else (60, len(data) - 6)
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 4
        with pytest.raises(DataError, match="damaged"):
            unpack(write_archive(tmp_path, bytes(flipped)), tmp_path / "root", EXPECTED)
        assert not (tmp_path / "root").exists() or contents(tmp_path / "root") == {}


HOSTILE = {
    "absolute": tar(FILES | {"/VOCdevkit/evil": b"x"}),
    "above": tar(FILES | {"VOCdevkit/../../evil": b"x"}),
    "above, in a skipped member": tar(FILES | {"../VOCdevkit/evil": b"x"}),
    "windows": tar(FILES | {"VOCdevkit\\..\\..\\evil": b"x"}),
    "symlink": tar(FILES, member("VOCdevkit/out", tarfile.SYMTYPE, "/tmp")),
    "symlink as a folder": tar({}, member("VOCdevkit", tarfile.SYMTYPE, "..")) + tar(FILES),
    "hard link": tar(FILES, member("VOCdevkit/out", tarfile.LNKTYPE, "/etc/passwd")),
    "device": tar(FILES, member("VOCdevkit/null", tarfile.CHRTYPE)),
    "pipe": tar(FILES, member("VOCdevkit/pipe", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused(kind, tmp_path):
    with pytest.raises(DataError, match="refuses to unpack it"):
        unpack(write_archive(tmp_path, HOSTILE[kind]), tmp_path / "root", EXPECTED)
    assert [path.name for path in tmp_path.iterdir() if path.name != "root"] == ["mine.tar"]
    assert not (tmp_path / "root").exists() or list((tmp_path / "root").iterdir()) == []


FIRST = tarfile.TarInfo("a folder").tobuf()  # tarfile has its own message for errors in the first header


def sparse() -> bytes:
    """Return 10 kB that declare a file of a terabyte in GNU tar's old sparse format: offsets, lengths and real size."""
    info = member("VOCdevkit/VOC2012/JPEGImages/a.jpg", tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    return FIRST + bytes(header) + tar(FILES)


def sparse_by_pax() -> bytes:
    info = member("VOCdevkit/VOC2012/JPEGImages/a.jpg", tarfile.REGTYPE)
    facts = {"major": "1", "minor": "0", "name": info.name, "realsize": str(1 << 40)}
    info.pax_headers, info.size = {f"GNU.sparse.{name}": value for name, value in facts.items()}, 512
    return FIRST + info.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n0\n".ljust(512, b"\0") + tar(FILES)


def declares(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = member("VOCdevkit/VOC2012/JPEGImages/a.jpg", kind)
    info.size = size
    return FIRST + info.tobuf(tarfile.GNU_FORMAT)


def facts(*contents: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return a file after headers with these extended facts (pax records or long names)."""
    data = FIRST
    for content in contents:
        header = member("facts", kind)
        header.size = len(content)
        data += header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return data + WHOLE


def fact(name: bytes, value: bytes) -> bytes:
    """Return a pax record, which starts with its own length."""
    size = len(name) + len(value) + 3
    return b"%d %s=%s\n" % (size + len(str(size + len(str(size)))), name, value)


LONG = fact(b"comment", b"x" * 40_000)
ZEROS = bytes(70 << 20)  # above the smallest limit, and 70 kB compressed
EXCESSIVE = {
    "sparse": (sparse, "sparse"),
    "sparse by pax": (sparse_by_pax, "sparse"),
    "too large a member": (lambda: declares(1 << 40), "100 times its size"),
    "too long a name": (lambda: declares(1 << 30, tarfile.GNUTYPE_LONGNAME), "declares 1,073,741,824 bytes"),
    "long facts": (lambda: facts(LONG * 2), "declares 80,0.. bytes"),
    "many headers of facts": (lambda: facts(*[LONG] * 30), "more than 65,536 bytes of headers before a file"),
    "many headers of names": (
        lambda: facts(*[b"x" * 40_000] * 30, kind=tarfile.GNUTYPE_LONGNAME),
        "more than 65,536 bytes",
    ),
    "global facts": (
        lambda: facts(b"".join(fact(b"%d" % n, b"") for n in range(101)), kind=tarfile.XGLTYPE),
        "101 extended headers",
    ),
    "facts inside facts": (
        lambda: facts(b"2 " * 30_000 + b"="),
        "invalid pax records",
    ),  # each has a name of 60,000 characters or fewer
    "facts of digits": (
        lambda: facts(fact(b"comment", b"1" * 60_000)),
        "100 digits",
    ),  # the time grows with the square of the digits
    "a negative size": (
        lambda: facts(fact(b"size", b"-1024")),
        "declares -1,024 bytes",
    ),  # tarfile would read the same header again
    "zeros in a member": (lambda: gzip.compress(tar({"other": ZEROS} | FILES), 1), "100 times its size"),
    "zeros after the end": (lambda: gzip.compress(tar(FILES) + ZEROS, 1), "100 times its size"),
}


@pytest.mark.parametrize("kind", EXCESSIVE)
def test_excessive_archives_are_refused_before_anything_is_written(kind, tmp_path, monkeypatch):
    make, output = EXCESSIVE[kind]
    monkeypatch.setattr(download, "_extract", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match=output):
        unpack(write_archive(tmp_path, make()), tmp_path / "root", EXPECTED)
    assert list((tmp_path / "root").iterdir()) == []


def test_more_bytes_than_the_data_set_has_are_refused(tmp_path):
    size = sum(map(len, FILES.values()))
    with pytest.raises(DataError, match=f"unpacks to more than {size - 1:,} bytes"):
        unpack(write_archive(tmp_path, WHOLE), tmp_path / "root", replace(EXPECTED, largest=size - 1))
    unpack(
        write_archive(tmp_path, tar(FILES | {"other": bytes(9999)})), tmp_path / "root", replace(EXPECTED, largest=size)
    )
    assert contents(tmp_path / "root") == FILES


def test_more_facts_than_a_data_set_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "EXTENDED_HEADER_BYTES", 100_000)
    with pytest.raises(DataError, match="more than 100,000 bytes of extended headers"):
        unpack(write_archive(tmp_path, facts(LONG)[:-10240] * 3 + WHOLE), tmp_path / "root", EXPECTED)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_unknown_facts_are_not_kept_in_memory(tmp_path, kind):
    """The tar has 30 long comments, which tarfile would keep in memory with four bytes per character."""
    commented = FIRST + facts(fact(b"comment", ("x" * 40_000 + "\U0001f600").encode()), kind=kind)[512 : -len(WHOLE)]
    path = write_archive(tmp_path, (commented + member("x", tarfile.DIRTYPE).tobuf()) * 30 + WHOLE)
    tracemalloc.start()
    unpack(path, tmp_path / "root", EXPECTED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert contents(tmp_path / "root") == FILES and peak < 4e6


def test_more_files_than_a_data_set_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MOST_FILES", 2)
    with pytest.raises(DataError, match="more than 2 files"):
        unpack(write_archive(tmp_path, WHOLE), tmp_path / "root", EXPECTED)


def test_too_little_space_is_an_error_before_unpacking(archive, tmp_path, monkeypatch):
    """The check is exact to the byte."""
    free = SimpleNamespace(free=sum(map(len, FILES.values())) - 1)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: free)
    path = str(write_archive(tmp_path, WHOLE))
    with pytest.raises(DataError, match=r"no space left in data\.root"):
        obtain_archive(tmp_path / "root", archive(), False, path)
    assert contents(tmp_path / "root") == {}
    free.free += 1
    obtain_archive(tmp_path / "root", archive(), False, path)
    assert contents(tmp_path / "root") == FILES


def test_nothing_is_unpacked_into_a_linked_folder(archive, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".unpacking").symlink_to("../mine")
    with pytest.raises(DataError, match="cannot be written to"):
        obtain_archive(tmp_path / "root", archive(), False, str(write_archive(tmp_path, WHOLE)))
    assert list((tmp_path / "mine").iterdir()) == []


def endless(request: Mirror, start: int) -> None:
    """Send bytes without a length until the client disconnects."""
    request.send_response(200)
    request.end_headers()
    with suppress(OSError):
        while True:
            request.wfile.write(bytes(1 << 16))


def huge(request: Mirror, start: int) -> None:
    request.send(b"x", promised=1 << 40)


@pytest.mark.parametrize(
    ("fault", "output"), [(endless, "sends more than the limit of 100,000"), (huge, "the file has 1,099")]
)
def test_a_mirror_that_sends_too_much_is_refused(serve, archive, tmp_path, fault, output):
    limited = replace(archive(serve(fault)[0]), largest=100_000)
    with pytest.raises(DataError, match=output):
        fetch(limited, tmp_path)
    assert not (part := tmp_path / "voc.tar.part").exists() or part.stat().st_size <= 100_000


@pytest.mark.parametrize("name", ["voc.tar.part", ".fcnlab.lock"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_nothing_is_downloaded_through_a_link(serve, archive, tmp_path, name, link):
    (tmp_path / "mine").write_text("all my work")
    (tmp_path / "root").mkdir()
    link(tmp_path / "root" / name, tmp_path / "mine")
    with pytest.raises(WriteError, match=f"{name} is a (hard )?link"):
        obtain_archive(tmp_path / "root", archive(serve()[0]), True, None)
    assert (tmp_path / "mine").read_text() == "all my work"


def test_a_file_below_a_file_is_refused(tmp_path):
    files = FILES | {"VOCdevkit/VOC2012/JPEGImages/a.jpg/b": b"x"}
    with pytest.raises(DataError):
        unpack(write_archive(tmp_path, tar(files)), tmp_path / "root", EXPECTED)
    assert contents(tmp_path / "root") == {}


def test_a_repeated_member_is_refused(tmp_path):
    """One file would overwrite the other."""
    twice = tarfile.TarInfo("VOCdevkit/VOC2012/SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"a\.png twice.*refuses"):
        unpack(write_archive(tmp_path, tar(FILES, twice)), tmp_path / "root", EXPECTED)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"data\.archive=.*mine\.tar is not a file"),
        (b"<html>", "mine.tar is truncated, damaged or not a tar file"),
        (tar({"else/a": b"x"}), "mine.tar contains neither VOCdevkit/ nor benchmark_RELEASE/: it is another archive"),
        (
            tar({"VOCdevkit/VOC2007/a": b"x"}),
            rf"does not contain {WITNESS}: set a tar file like voc\.tar, or add data\.download=true",
        ),
    ],
)
def test_a_wrong_archive_file_is_explained(data, message, archive, tmp_path):
    path = tmp_path / "mine.tar"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        obtain_archive(tmp_path / "root", archive(), False, str(path))


class Full:
    """Replace ``shutil.copyfileobj`` on a disk that is full from the second file on."""

    def __init__(self):
        self.left = 1

    def __call__(self, source, target, length):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        target.write(source.read())


def test_a_full_disk_while_unpacking_leaves_no_files(archive, tmp_path, monkeypatch):
    path = write_archive(tmp_path, WHOLE)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "copyfileobj", Full())
        with pytest.raises(DataError, match=r"no space left in data\.root=.*GiB free.*free some space"):
            obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == {}
    obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == FILES


def test_a_full_disk_while_downloading_does_not_try_other_mirrors(serve, archive, tmp_path, monkeypatch):
    (url, _), (second_url, ranges) = serve(), serve()

    def full(things=None, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "progress", full)
    with pytest.raises(DataError, match="no space left"):
        obtain_archive(tmp_path / "root", archive(url, second_url), True, None)
    assert ranges == []


def test_a_root_that_cannot_be_created_is_an_error(archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.root=.*file/root cannot be written to"):
        obtain_archive(tmp_path / "file/root", archive(), False, str(write_archive(tmp_path, WHOLE)))


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_the_next_call_completes_a_killed_move_of_files(moved, archive, tmp_path, monkeypatch):
    """The list is moved last: without it, the data set does not count as existing."""
    path, replace, left = write_archive(tmp_path, WHOLE), Path.replace, iter(range(moved))

    def killed(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(download.shutil, "rmtree", lambda *args, **kwargs: None)  # SIGKILL cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert not (tmp_path / "root" / WITNESS).exists()
    obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == FILES


def test_several_callers_at_once_download_once(serve, archive, tmp_path):
    url, ranges = serve()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: obtain_archive(tmp_path / "root", archive(url), True, None), range(4)))
    assert ranges == [None] and contents(tmp_path / "root") == FILES


def test_a_second_process_logs_that_it_waits(archive, tmp_path, caplog):
    root, path = tmp_path / "root", write_archive(tmp_path, WHOLE)
    with caplog.at_level("INFO", "fcnlab"), ThreadPoolExecutor(1) as pool:
        with exclusive_folder(root):
            waiting = pool.submit(obtain_archive, root, archive(), False, str(path))
            wait_for(lambda: "Waiting for another process that prepares the data" in caplog.text)
            assert contents(root) == {}
        waiting.result()
    assert contents(root) == FILES


def slow_at_first(request: Mirror, start: int) -> None:
    """Send the first request slowly, and requests for a range at once."""
    if start:
        return honest(request, start)
    remaining = request.server.content
    request.send(remaining[:9000], promised=len(remaining))  # more than the buffer of a file
    for place in range(9000, len(remaining), 100):
        if request.server.closing.wait(0.1):
            return
        with suppress(OSError):
            request.wfile.write(remaining[place : place + 100])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # the server uses threads
def test_a_waiting_process_resumes_after_the_first_is_killed(serve, archive, tmp_path, monkeypatch):
    url, ranges = serve(slow_at_first)
    monkeypatch.setattr(download, "TIMEOUT", 30.0)
    root, fork = tmp_path / "root", multiprocessing.get_context("fork")
    first, second = (fork.Process(target=obtain_archive, args=(root, archive(url), True, None)) for _ in range(2))
    first.start()
    wait_for(lambda: (root / "voc.tar.part").exists() and (root / "voc.tar.part").stat().st_size)
    second.start()
    time.sleep(0.5)
    assert first.is_alive() and second.is_alive() and ranges == [None]
    first.kill()
    second.join(20)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    assert contents(root) == FILES and len(ranges) == 2 and int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0


def wait_for(met) -> None:
    """Wait some seconds for a condition."""
    for _ in range(500):
        if met():
            return
        time.sleep(0.02)
    pytest.fail("it did not come")


def test_a_data_set_without_archives_is_an_error():
    with pytest.raises(DataError, match="open_shapes has no archives"):
        DataModule(open_shapes, "root", "train", "val", 21, standard, download=True)
