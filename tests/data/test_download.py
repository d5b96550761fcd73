"""Archives from servers that stall, cut off, lie or ignore what they are asked; tars that are cut, damaged or hostile.

Whatever happens, what is under the root afterwards is the whole data set or none, and the same command goes on.
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
from fcnlab.data.download import Archive, exclusive_folder, fetch, md5, obtain_archive, unpack
from fcnlab.data.transforms import standard
from fcnlab.errors import WriteError

WITNESS = "VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt"
FILES = {
    "VOCdevkit/VOC2012/JPEGImages/a.jpg": bytes(range(256)) * 40,
    "VOCdevkit/VOC2012/SegmentationClass/a.png": b"mask",
    WITNESS: b"a\n",
}


def tar(files: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w") -> bytes:
    """The bytes of a tar with these files; ``more`` are members without content."""
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
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


WHOLE = tar(FILES)
WANTED = Archive("mine.tar", "", (), WITNESS)


class Mirror(BaseHTTPRequestHandler):
    """Serves ``server.content`` with ``server.fault``, and keeps what it was asked for."""

    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        self.server.fault(self, int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0)

    def send(self, content: bytes, start: int = 0, promised: int | None = None) -> None:
        """The bytes from ``start``; fewer than are promised end the connection too early."""
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


def cuts_off(request: Mirror, start: int) -> None:
    rest = request.server.content[start:]
    request.send(rest[: len(rest) // 2], start, promised=len(rest))


def cuts_off_once(request: Mirror, start: int) -> None:
    (honest if start else cuts_off)(request, start)


def stalls(request: Mirror, start: int) -> None:
    rest = request.server.content[start:]
    request.send(rest[:100], start, promised=len(rest))
    request.wfile.flush()
    request.server.closing.wait(20)


def stalls_once(request: Mirror, start: int) -> None:
    (honest if start else stalls)(request, start)


def is_gone(request: Mirror, start: int) -> None:
    request.send_error(404)


def shows_a_page(request: Mirror, start: int) -> None:
    request.send(b"<html>blocked by firewall policy</html>")


def answers_elsewhere(request: Mirror, start: int) -> None:
    request.send(request.server.content[1:], 1)


def lies(request: Mirror, start: int) -> None:
    request.send(bytes(len(request.server.content)))


@pytest.fixture
def serve(monkeypatch):
    """Start a server on this machine; give its URL and what it is asked for."""
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:

        def start(fault=honest, content: bytes = WHOLE) -> tuple[str, list]:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Mirror))
            server.content, server.fault, server.asked, server.closing = content, fault, [], threading.Event()
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(server.closing.set)
            return f"http://127.0.0.1:{server.server_port}/x.tar", server.asked

        yield start


@pytest.fixture
def archive(tmp_path):
    """The published archive, as these mirrors have it."""
    (tmp_path / "whole").write_bytes(WHOLE)
    return lambda *urls: Archive("voc.tar", md5(tmp_path / "whole"), urls, WITNESS)


def contents(root: Path) -> dict[str, bytes]:
    """What is there, but for the lock and downloads that have begun."""
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.endswith((".lock", ".part"))}


def test_md5_is_the_published_kind(tmp_path):
    (tmp_path / "x").write_bytes(b"The quick brown fox jumps over the lazy dog")
    assert md5(tmp_path / "x") == "9e107d9d372bb6826bd81d3542a419d6"


def test_an_archive_is_fetched_unpacked_and_removed(serve, archive, tmp_path):
    root = tmp_path / "new/root"
    url, asked = serve()
    for _ in range(2):
        obtain_archive(root, archive(url), True, None)
    assert contents(root) == FILES and asked == [None]
    assert not (root / "voc.tar").exists() and not (root / "voc.tar.part").exists()


def test_an_archive_that_is_there_is_used_and_left_alone(archive, tmp_path):
    """As torchvision leaves it."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/voc.tar").write_bytes(WHOLE)
    obtain_archive(tmp_path / "root", archive(), True, None)
    assert contents(tmp_path / "root") == {**FILES, "voc.tar": WHOLE}


def test_another_file_of_its_name_is_not_touched(serve, archive, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/voc.tar").write_bytes(b"the user's own")
    url, _ = serve()
    obtain_archive(tmp_path / "root", archive(url), True, None)
    assert contents(tmp_path / "root") == {**FILES, "voc.tar": b"the user's own"}
    assert not (tmp_path / "root/voc.tar.part").exists()


@pytest.mark.parametrize("fault", [cuts_off_once, stalls_once])
def test_a_broken_download_goes_on_where_it_was(fault, serve, archive, tmp_path):
    url, asked = serve(fault)
    assert fetch(archive(url), tmp_path).read_bytes() == WHOLE
    first, second = asked
    assert first is None and int(second.removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize("fault", [is_gone, shows_a_page, lies, cuts_off, stalls])
def test_the_next_mirror_is_tried(fault, serve, archive, tmp_path):
    url, asked = serve(fault)
    other, _ = serve()
    assert fetch(archive("http://127.0.0.1:9/refused", url, other), tmp_path).read_bytes() == WHOLE
    assert 1 <= len(asked) <= download.ATTEMPTS


@pytest.mark.parametrize("fault", [ignores_range, honest])
@pytest.mark.parametrize("have", [0, 1, len(WHOLE) // 2, len(WHOLE)])
def test_what_was_left_behind_is_gone_on_with(fault, have, serve, archive, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(WHOLE[:have])
    url, asked = serve(fault)
    assert fetch(archive(url), tmp_path).read_bytes() == WHOLE
    assert asked == ([f"bytes={have}-" if have else None] if have < len(WHOLE) else [])


@pytest.mark.parametrize("left", [b"foreign" * 9, WHOLE + b"more"])
def test_foreign_bytes_that_were_left_behind_are_thrown_away(left, serve, archive, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(left)
    url, asked = serve()
    assert fetch(archive(url), tmp_path).read_bytes() == WHOLE
    assert len(asked) == 2 and asked[-1] is None


@pytest.mark.parametrize(
    ("fault", "output", "kept"),
    [
        (is_gone, "HTTP Error 404: Not Found", True),
        (shows_a_page, "the server sends 39 bytes, but 5000 of the archive are downloaded already", True),
        (answers_elsewhere, r"the server answers a request for byte 5000 with bytes 1-", True),
        (cuts_off, rf"the connection ended at byte \d+ of {len(WHOLE)}", True),
        (stalls, "timed out", True),
        (lies, r"the file is not voc\.tar \(wrong md5\)", False),
    ],
)
def test_no_mirror(fault, output, kept, serve, archive, tmp_path):
    """Each says why; what came before stays for the next time, and nothing is taken for the data."""
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


def test_an_archive_that_nobody_gives_out(tmp_path):
    with pytest.raises(
        DataError, match=r"VOC2012test.tar cannot be downloaded:\n  it has no public URL\nDownload it elsewhere"
    ):
        open_voc(str(tmp_path), "test", download=True)


def given(tmp_path: Path, data: bytes, name: str = "mine.tar") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_that_the_user_has(mode, archive, tmp_path):
    path = given(tmp_path, tar(FILES, mode=mode))
    obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == FILES and path.is_file()


def test_folders_above_and_files_beside_are_dropped(archive, tmp_path):
    """VOC2011's has a folder above."""
    files = {f"./TrainVal/{name}": data for name, data in FILES.items()} | {"README": b"x"}
    obtain_archive(tmp_path / "root", archive(), False, [str(given(tmp_path, tar(files)))])
    assert contents(tmp_path / "root") == FILES


def test_what_is_there_already_stays(archive, tmp_path):
    """Of another archive of the same set, or the user's own."""
    mine = tmp_path / "root/VOCdevkit/VOC2012/SegmentationClass/a.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    obtain_archive(tmp_path / "root", archive(), False, [str(given(tmp_path, WHOLE))])
    assert mine.read_bytes() == b"mine" and len(contents(tmp_path / "root")) == len(FILES)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_cut_off_at_any_byte_leaves_nothing(mode, tmp_path):
    """But for the padding behind the zeros that end it; where it ends between two files, tarfile would take it."""
    data = tar({name: content[:600] for name, content in FILES.items()}, mode=mode)
    whole = len(data.rstrip(b"\0")) + 1 if mode == "w" else len(data)
    places = set(range(0, whole, 97)) | set(range(0, whole, 512)) | {whole - 1}
    for place in sorted(places):
        with pytest.raises(DataError, match=r"mine\.tar is truncated, damaged or not a tar file.*Download it again"):
            unpack(given(tmp_path, data[:place]), tmp_path / "root", WANTED)
        assert not (tmp_path / "root").exists() or contents(tmp_path / "root") == {}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_flipped_headers_and_streams_leave_nothing(mode, tmp_path):
    data = tar(FILES, mode=mode)
    places = (3, 517 + len(FILES["VOCdevkit/VOC2012/JPEGImages/a.jpg"])) if mode == "w" else (60, len(data) - 6)
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 4
        with pytest.raises(DataError, match="damaged"):
            unpack(given(tmp_path, bytes(flipped)), tmp_path / "root", WANTED)
        assert not (tmp_path / "root").exists() or contents(tmp_path / "root") == {}


HOSTILE = {
    "absolute": tar(FILES | {"/VOCdevkit/evil": b"x"}),
    "above": tar(FILES | {"VOCdevkit/../../evil": b"x"}),
    "above in what is dropped": tar(FILES | {"../VOCdevkit/evil": b"x"}),
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
        unpack(given(tmp_path, HOSTILE[kind]), tmp_path / "root", WANTED)
    assert [path.name for path in tmp_path.iterdir() if path.name != "root"] == ["mine.tar"]
    assert not (tmp_path / "root").exists() or list((tmp_path / "root").iterdir()) == []


FIRST = tarfile.TarInfo("a folder").tobuf()  # what is wrong with a first header tarfile tells in words of its own


def sparse() -> bytes:
    """A file of a terabyte in 10 kB, as GNU tar's old format says it: four pairs of place and length, the real size."""
    found = member("VOCdevkit/VOC2012/JPEGImages/a.jpg", tarfile.GNUTYPE_SPARSE)
    header = bytearray(found.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    return FIRST + bytes(header) + tar(FILES)


def sparse_by_pax() -> bytes:
    found = member("VOCdevkit/VOC2012/JPEGImages/a.jpg", tarfile.REGTYPE)
    facts = {"major": "1", "minor": "0", "name": found.name, "realsize": str(1 << 40)}
    found.pax_headers, found.size = {f"GNU.sparse.{name}": value for name, value in facts.items()}, 512
    return FIRST + found.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n0\n".ljust(512, b"\0") + tar(FILES)


def claims(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    found = member("VOCdevkit/VOC2012/JPEGImages/a.jpg", kind)
    found.size = size
    return FIRST + found.tobuf(tarfile.GNU_FORMAT)


def facts(*contents: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A file behind headers with these further facts (of pax, or long names)."""
    found = FIRST
    for content in contents:
        header = member("facts", kind)
        header.size = len(content)
        found += header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return found + WHOLE


def fact(name: bytes, value: bytes) -> bytes:
    """As pax has it: its own length in front of it."""
    size = len(name) + len(value) + 3
    return b"%d %s=%s\n" % (size + len(str(size + len(str(size)))), name, value)


LONG = fact(b"comment", b"x" * 40_000)
ZEROS = bytes(70 << 20)  # over the least that is let pass, and 70 kB packed
FILLING = {
    "sparse": (sparse, "sparse"),
    "sparse by pax": (sparse_by_pax, "sparse"),
    "too large a member": (lambda: claims(1 << 40), "100 times its size"),
    "too long a name": (lambda: claims(1 << 30, tarfile.GNUTYPE_LONGNAME), "says 1,073,741,824 bytes"),
    "long facts": (lambda: facts(LONG * 2), "says 80,0.. bytes"),
    "facts upon facts": (lambda: facts(*[LONG] * 30), "more than 65,536 bytes in front of"),
    "names upon names": (lambda: facts(*[b"x" * 40_000] * 30, kind=tarfile.GNUTYPE_LONGNAME), "more than 65,536 bytes"),
    "facts of all": (
        lambda: facts(b"".join(fact(b"%d" % n, b"") for n in range(101)), kind=tarfile.XGLTYPE),
        "101 facts",
    ),
    "facts inside facts": (lambda: facts(b"2 " * 30_000 + b"="), "facts that are none"),  # each a name of 60,000 to 1
    "facts of digits": (lambda: facts(fact(b"comment", b"1" * 60_000)), "100 digits"),  # read by digits squared
    "less than nothing": (lambda: facts(fact(b"size", b"-1024")), "says -1,024 bytes"),  # the same one again
    "zeros in it": (lambda: gzip.compress(tar({"other": ZEROS} | FILES), 1), "100 times its size"),
    "zeros behind it": (lambda: gzip.compress(tar(FILES) + ZEROS, 1), "100 times its size"),
}


@pytest.mark.parametrize("kind", FILLING)
def test_what_would_fill_the_disk_is_refused_before_a_byte_is_written(kind, tmp_path, monkeypatch):
    make, output = FILLING[kind]
    monkeypatch.setattr(download, "_extract", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match=output):
        unpack(given(tmp_path, make()), tmp_path / "root", WANTED)
    assert list((tmp_path / "root").iterdir()) == []


def test_more_than_the_data_set_has_is_refused(tmp_path):
    size = sum(map(len, FILES.values()))
    with pytest.raises(DataError, match=f"unpacks to more than {size - 1:,} bytes"):
        unpack(given(tmp_path, WHOLE), tmp_path / "root", replace(WANTED, largest=size - 1))
    unpack(given(tmp_path, tar(FILES | {"other": bytes(9999)})), tmp_path / "root", replace(WANTED, largest=size))
    assert contents(tmp_path / "root") == FILES


def test_more_facts_than_a_data_set_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FACTS", 100_000)
    with pytest.raises(DataError, match="more than 100,000 bytes of facts about its files"):
        unpack(given(tmp_path, facts(LONG)[:-10240] * 3 + WHOLE), tmp_path / "root", WANTED)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_facts_that_are_none_of_ours_are_not_kept(tmp_path, kind):
    """A tar of 30 long comments, which Python would keep with their members, four bytes to a letter."""
    one = FIRST + facts(fact(b"comment", ("x" * 40_000 + "\U0001f600").encode()), kind=kind)[512 : -len(WHOLE)]
    path = given(tmp_path, (one + member("x", tarfile.DIRTYPE).tobuf()) * 30 + WHOLE)
    tracemalloc.start()
    unpack(path, tmp_path / "root", WANTED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert contents(tmp_path / "root") == FILES and peak < 4e6


def test_more_files_than_a_data_set_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MOST_FILES", 2)
    with pytest.raises(DataError, match="more than 2 files"):
        unpack(given(tmp_path, WHOLE), tmp_path / "root", WANTED)


def test_what_has_no_room_is_not_begun(archive, tmp_path, monkeypatch):
    """To the byte."""
    free = SimpleNamespace(free=sum(map(len, FILES.values())) - 1)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: free)
    path = str(given(tmp_path, WHOLE))
    with pytest.raises(DataError, match=r"no space left in data\.root"):
        obtain_archive(tmp_path / "root", archive(), False, path)
    assert contents(tmp_path / "root") == {}
    free.free += 1
    obtain_archive(tmp_path / "root", archive(), False, path)
    assert contents(tmp_path / "root") == FILES


def test_a_folder_that_is_a_link_is_not_unpacked_into(archive, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".unpacking").symlink_to("../mine")
    with pytest.raises(DataError, match="cannot be written to"):
        obtain_archive(tmp_path / "root", archive(), False, str(given(tmp_path, WHOLE)))
    assert list((tmp_path / "mine").iterdir()) == []


def endless(request: Mirror, start: int) -> None:
    """No length, and no end until the other side has had enough."""
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
def test_a_mirror_that_sends_too_much_is_left(serve, archive, tmp_path, fault, output):
    wanted = replace(archive(serve(fault)[0]), largest=100_000)
    with pytest.raises(DataError, match=output):
        fetch(wanted, tmp_path)
    assert not (part := tmp_path / "voc.tar.part").exists() or part.stat().st_size <= 100_000


@pytest.mark.parametrize("name", ["voc.tar.part", ".fcnlab.lock"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_nothing_is_fetched_through_a_link(serve, archive, tmp_path, name, link):
    (tmp_path / "mine").write_text("all my work")
    (tmp_path / "root").mkdir()
    link(tmp_path / "root" / name, tmp_path / "mine")
    with pytest.raises(WriteError, match=f"{name} is a (hard )?link"):
        obtain_archive(tmp_path / "root", archive(serve()[0]), True, None)
    assert (tmp_path / "mine").read_text() == "all my work"


def test_a_file_below_a_file_is_refused(tmp_path):
    files = FILES | {"VOCdevkit/VOC2012/JPEGImages/a.jpg/b": b"x"}
    with pytest.raises(DataError):
        unpack(given(tmp_path, tar(files)), tmp_path / "root", WANTED)
    assert contents(tmp_path / "root") == {}


def test_a_file_that_comes_twice_is_refused(tmp_path):
    """One would hide the other."""
    twice = tarfile.TarInfo("VOCdevkit/VOC2012/SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"a\.png twice.*refuses"):
        unpack(given(tmp_path, tar(FILES, twice)), tmp_path / "root", WANTED)


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
def test_another_file_than_was_meant(data, message, archive, tmp_path):
    path = tmp_path / "mine.tar"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        obtain_archive(tmp_path / "root", archive(), False, str(path))


class Full:
    """Stands in for ``shutil.copyfileobj`` on a disk that is full from the second file on."""

    def __init__(self):
        self.left = 1

    def __call__(self, source, target, length):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        target.write(source.read())


def test_a_full_disk_while_unpacking(archive, tmp_path, monkeypatch):
    path = given(tmp_path, WHOLE)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "copyfileobj", Full())
        with pytest.raises(DataError, match=r"no space left in data\.root=.*GiB free.*free some space"):
            obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == {}
    obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == FILES


def test_a_full_disk_while_fetching_is_not_the_mirrors_fault(serve, archive, tmp_path, monkeypatch):
    (url, _), (other, asked) = serve(), serve()

    def full(things=None, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "progress", full)
    with pytest.raises(DataError, match="no space left"):
        obtain_archive(tmp_path / "root", archive(url, other), True, None)
    assert asked == []


def test_a_root_that_cannot_be_made(archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.root=.*file/root cannot be written to"):
        obtain_archive(tmp_path / "file/root", archive(), False, str(given(tmp_path, WHOLE)))


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_kill_while_files_are_moved_is_made_good_the_next_time(moved, archive, tmp_path, monkeypatch):
    """The list comes last: as long as it is not there, the data set is not either."""
    path, replace, left = given(tmp_path, WHOLE), Path.replace, iter(range(moved))

    def killed(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(download.shutil, "rmtree", lambda *args, **kwargs: None)  # SIGKILL clears nothing up
        with pytest.raises(KeyboardInterrupt):
            obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert not (tmp_path / "root" / WITNESS).exists()
    obtain_archive(tmp_path / "root", archive(), False, str(path))
    assert contents(tmp_path / "root") == FILES


def test_many_at_once_fetch_it_once(serve, archive, tmp_path):
    url, asked = serve()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: obtain_archive(tmp_path / "root", archive(url), True, None), range(4)))
    assert asked == [None] and contents(tmp_path / "root") == FILES


def test_a_second_one_says_that_it_waits(archive, tmp_path, caplog):
    root, path = tmp_path / "root", given(tmp_path, WHOLE)
    with caplog.at_level("INFO", "fcnlab"), ThreadPoolExecutor(1) as pool:
        with exclusive_folder(root):
            other = pool.submit(obtain_archive, root, archive(), False, str(path))
            until(lambda: "Waiting for another process that prepares the data" in caplog.text)
            assert contents(root) == {}
        other.result()
    assert contents(root) == FILES


def slow_at_first(request: Mirror, start: int) -> None:
    """Bytes in drops, for as long as nobody has gone on from somewhere."""
    if start:
        return honest(request, start)
    rest = request.server.content
    request.send(rest[:9000], promised=len(rest))  # more than files hold back
    for place in range(9000, len(rest), 100):
        if request.server.closing.wait(0.1):
            return
        with suppress(OSError):
            request.wfile.write(rest[place : place + 100])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # beside the server's threads
def test_a_killed_process_is_followed_by_the_one_that_waits(serve, archive, tmp_path, monkeypatch):
    url, asked = serve(slow_at_first)
    monkeypatch.setattr(download, "TIMEOUT", 30.0)
    root, fork = tmp_path / "root", multiprocessing.get_context("fork")
    first, second = (fork.Process(target=obtain_archive, args=(root, archive(url), True, None)) for _ in range(2))
    first.start()
    until(lambda: (root / "voc.tar.part").exists() and (root / "voc.tar.part").stat().st_size)
    second.start()
    time.sleep(0.5)
    assert first.is_alive() and second.is_alive() and asked == [None]
    first.kill()
    second.join(20)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    assert contents(root) == FILES and len(asked) == 2 and int(asked[1].removeprefix("bytes=").rstrip("-")) > 0


def until(met) -> None:
    """Wait for a condition, for some seconds."""
    for _ in range(500):
        if met():
            return
        time.sleep(0.02)
    pytest.fail("it did not come")


def test_a_data_set_without_archives_says_so():
    with pytest.raises(DataError, match="open_shapes has no archives"):
        DataModule(open_shapes, "root", "train", "val", 21, standard, download=True)
