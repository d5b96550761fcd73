"""Archives and headers of which torch would read something other, or more, than fcnlab checks."""

import io
import json
import pickle
import pickletools
import struct
import warnings
import zipfile

import pytest
import torch

from fcnlab.models.weights import WeightsError, load_without_code

STATE = {"w": torch.arange(77.0)}
END = 22  # bytes of a zip's last record


def saved(zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def plain_zip(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # about a repeated name
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def two_directories() -> bytes:
    """Return an archive in which Python's reader finds the second pickle and torch's the first."""
    first, second = (pickle.dumps({"which": which}, 2) for which in ("first", "other"))
    data = plain_zip(("a/data.pkl", first), ("a/version", b"3\n"))
    start = struct.unpack("<L", data[-6:-2])[0]
    padded = plain_zip(("a/data.pkl", first), ("a/version", b"3\n"), ("b/data.pkl", second), ("b/version", b"3\n"))
    stated = struct.unpack("<L", padded[-6:-2])[0]
    directory, half = padded[stated:-END], (len(data) - END - start)
    entries = [directory[:half], bytearray(directory[half:])]
    place = 0
    while place < len(entries[1]):  # Python adds the difference between the stated and the real position to each offset
        offset = struct.unpack_from("<L", entries[1], place + 42)[0]
        struct.pack_into("<L", entries[1], place + 42, offset - half)
        place += 46 + struct.unpack_from("<H", entries[1], place + 28)[0]
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, half, stated, 0)
    return padded[:stated] + entries[0] + bytes(entries[1]) + end


def changed(data: bytes, place: int, form: str, value: int) -> bytes:
    result = bytearray(data)
    struct.pack_into(form, result, place, value)
    return bytes(result)


def overlapping() -> bytes:
    data = plain_zip(("a/data.pkl", pickle.dumps(plain_zip(("b", b"")), 2)), ("a/version", b"3\n"))
    start = struct.unpack("<L", data[-6:-2])[0]
    second = data.index(b"PK\1\2", start + 4)
    return changed(data, second + 42, "<L", data.index(b"PK\3\4", 4))


PLAIN = plain_zip(("a/data.pkl", pickle.dumps(STATE["w"].tolist(), 2)), ("a/version", b"3\n"))
ARCHIVES = {
    "two directories": two_directories(),
    "bytes before it": PLAIN[:4] + bytes(30) + PLAIN,
    "bytes after it": saved() + b"more",
    "a comment": changed(PLAIN, len(PLAIN) - 2, "<H", 4) + b"more",
    "a member twice": plain_zip(("a/data.pkl", b"N."), ("a/DATA.pkl", b"N.")),
    "overlapping members": overlapping(),
    "another count": changed(changed(PLAIN, len(PLAIN) - 14, "<H", 1), len(PLAIN) - 12, "<H", 1),
    "another method in a header": changed(PLAIN, 8, "<H", 8),
    "another size in a header": changed(PLAIN, 18, "<L", 1),
    "another directory in the 64-bit end": changed(saved(), len(saved()) - END - 20 - 8, "<Q", 0),
    "a 64-bit end elsewhere": changed(saved(), len(saved()) - END - 12, "<Q", 0),
}


@pytest.fixture
def no_torch_load(monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch built it"))


@pytest.mark.parametrize("data", ARCHIVES.values(), ids=ARCHIVES)
def test_an_ambiguous_archive_is_refused(tmp_path, no_torch_load, data):
    (tmp_path / "net.pth").write_bytes(data)
    with pytest.raises(WeightsError, match="no readable weights file"):
        load_without_code(tmp_path / "net.pth")


def test_python_and_torch_read_different_pickles():
    """The file above is effective: Python and torch disagree."""
    data = two_directories()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert pickle.loads(archive.read("b/data.pkl")) == {"which": "other"} and archive.testzip() is None
    assert torch.load(io.BytesIO(data), weights_only=True) == {"which": "first"}


def test_a_file_replaced_after_the_check_is_not_read(tmp_path, monkeypatch):
    from fcnlab.models import weights

    path, check = tmp_path / "net.pth", weights.check_pickle
    path.write_bytes(saved())
    torch.save({"w": "other"}, tmp_path / "other.pth")

    def replaced(*arguments):
        result = check(*arguments)
        (tmp_path / "other.pth").rename(path)
        return result

    monkeypatch.setattr(weights, "check_pickle", replaced)
    assert torch.equal(load_without_code(path)["w"], STATE["w"])


def legacy(keys: object, numbers: bytes | None = None) -> bytes:
    data, ends = saved(zipped=False), []
    file = io.BytesIO(data)
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    return data[: ends[3]] + pickle.dumps(keys, 2) + (data[ends[4] :] if numbers is None else numbers)


@pytest.mark.parametrize(
    "data",
    [
        legacy([]),
        legacy({}),
        legacy(["0"]),
        legacy([], b""),
        saved(False)[:-1],
        saved(False).replace(b"KM", b"J\0\0\0\x7f"),
    ],
    ids=["no keys", "no list", "another key", "no keys, no numbers", "cut off", "more numbers than bytes"],
)
def test_legacy_files_with_tensors_without_values_are_refused(tmp_path, no_torch_load, data):
    (tmp_path / "net.pth").write_bytes(data)
    with pytest.raises(WeightsError, match="a tensor without its numbers"):
        load_without_code(tmp_path / "net.pth")


def safetensors(header: object) -> bytes:
    words = json.dumps(header).encode()
    return struct.pack("<Q", len(words)) + words


EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (safetensors({str(index): EMPTY for index in range(50_001)}), "more than 50,000 tensors"),
        (safetensors({"w": EMPTY | {"shape": [1] * 64 + [0]}}), "more than 64 dimensions"),
        (safetensors({"w": EMPTY, "__metadata__": {"x": "x" * (8 << 20)}}), "header too large"),
    ],
    ids=["tensors", "dimensions", "bytes"],
)
def test_large_safetensors_headers_are_refused(tmp_path, monkeypatch, data, why):
    monkeypatch.setattr("fcnlab.models.weights.load_file", lambda *_: pytest.fail("safetensors read it"))
    (tmp_path / "net.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=why):
        load_without_code(tmp_path / "net.safetensors")
