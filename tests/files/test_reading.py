"""Test files that would block, crash or fill the memory of an unguarded reader."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.lib import format as npy
from omegaconf import OmegaConf

from fcnlab.files import reading
from fcnlab.files.reading import Unreadable, open_arrays, read_json, read_rows, read_yaml, yaml_text

MAPS = 5000


def pipe(path: Path) -> None:
    os.mkfifo(path)


SPECIAL = {
    "a pipe": (pipe, "is not a regular file"),
    "a folder": (Path.mkdir, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a link that leads out of the folder"),
    "a foreign file": (lambda path: path.symlink_to("/etc/hostname"), "is a link that leads out of the folder"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a link to itself"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("read", [read_json, read_yaml, yaml_text, lambda *name: list(read_rows(*name))])
def test_other_things_than_files_of_the_run_are_refused(tmp_path, kind, read):
    make, message = SPECIAL[kind]
    make(tmp_path / "file")
    with pytest.raises(Unreadable, match=message):
        read(tmp_path, "file")


def test_links_inside_a_run_and_to_a_run_are_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "real").write_text('{"a": 1}')
    (tmp_path / "run" / "link").symlink_to("real")
    (tmp_path / "other").symlink_to("run")
    assert read_json(tmp_path / "other", "link") == read_yaml(tmp_path / "other", "link") == {"a": 1}


def test_missing_files_are_empty(tmp_path):
    assert read_json(tmp_path, "x") is None and read_yaml(tmp_path, "x") == {} and not list(read_rows(tmp_path, "x"))
    (tmp_path / "x").symlink_to("gone")
    assert read_json(tmp_path, "x") is None and yaml_text(tmp_path, "x") == ""


@pytest.mark.parametrize("written", [yaml.dump, lambda tree: OmegaConf.to_yaml(OmegaConf.create(tree))])
def test_a_name_that_is_not_utf8_is_read_unchanged(tmp_path, written):
    """Both YAML writers escape a surrogate, which libyaml, unlike the Python reader, refuses."""
    tree = {"path": os.fsdecode(b"/d\xe9j\xe0"), "list": [os.fsdecode(b"\xff'\"x")], "day": "2026-01-01", "seed": 1}
    (tmp_path / "config.yaml").write_text(written(tree), encoding="utf-8")
    assert "\\uDCE9" in yaml_text(tmp_path, "config.yaml")
    assert read_yaml(tmp_path, "config.yaml") == tree


def test_limits_hold_for_a_record_with_such_a_name(tmp_path):
    for text, message in HOSTILE_YAML.values():
        (tmp_path / "x").write_text(f'# "\\uDCE9"\n{text}', encoding="utf-8")
        with pytest.raises(Unreadable, match=message):
            read_yaml(tmp_path, "x")


HOSTILE_YAML = {
    "deep": ("[" * 200_000, "over 50 levels"),
    "nested": ("".join(f"{' ' * depth}a:\n" for depth in range(500)), "over 50 levels"),
    "aliases": ("a: &a [1]\nb: [*a, *a]", "aliases"),
    "a tag": ("a: !!set {b}", "tag"),
    "base 60": ("a: 1" + ":1" * 100_000, "a number of more than 300"),
    "base 16": ("a: 0x" + "f" * 200_000, "a number of more than 300"),
    "large": ("a" * 300_000, "more than 262,144 bytes"),
    "many": ("a: [" + "1," * 30_000 + "]", "20,000 values"),
    "null as a name": ("a: {null: 1}", "which is not a name"),
    "a list as a name": ("{[1]: 2}", "damaged"),
    "not text": ("\x00", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused(tmp_path, name):
    text, message = HOSTILE_YAML[name]
    (tmp_path / "x").write_text(text)
    for read in (read_yaml, yaml_text):
        with pytest.raises(Unreadable, match=message):
            read(tmp_path, "x")


def test_dates_stay_strings(tmp_path):
    (tmp_path / "x").write_text("a: 2026-11-24 10:00:00\nb: 2026-11-24\nc: 1.5\nd: [1, null, true]\n")
    assert read_yaml(tmp_path, "x") == {"a": "2026-11-24 10:00:00", "b": "2026-11-24", "c": 1.5, "d": [1, None, True]}


HOSTILE_JSON = {
    "deep": "[" * 200_000,
    "nested": '{"a": ' * MAPS + "1" + "}" * MAPS,
    "less deep": '{"a": ' * 100 + "1" + "}" * 100,
    "a list": "[]",
    "digits": '{"a": 1' + "0" * 5000 + "}",
    "too large a number": '{"a": 1' + "0" * 20 + "}",
    "many": json.dumps({"a": [0] * 600_000}),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_refused(tmp_path, name):
    (tmp_path / "x").write_text(HOSTILE_JSON[name])
    with pytest.raises(Unreadable):
        read_json(tmp_path, "x")


def test_rows_of_a_csv_are_read(tmp_path):
    (tmp_path / "x").write_bytes(b'step,val\n1,0.5\n"2,\n3,0.25,7\n\xff,1')
    steps = [row.get("step") for row in read_rows(tmp_path, "x")]
    assert steps[0] == "1" and steps[2:] == ["3", "\ufffd"]  # an open quote does not swallow the next rows


@pytest.mark.parametrize("text", ["a\n" + "1" * 100_000, "a\n" * 600_000, ("," * 50_000 + "\n") * 201])
def test_too_many_or_too_long_rows_or_cells_are_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(Unreadable, match="more than"):
        list(read_rows(tmp_path, "x"))


def zipped(path: Path, header: dict, content: bytes, kind: int = zipfile.ZIP_DEFLATED, name: str = "a.npy") -> None:
    data = io.BytesIO()
    npy.write_array_header_1_0(data, header)
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr(name, data.getvalue() + content)


@pytest.mark.parametrize(
    ("shape", "content"), [((1 << 30,), b""), ((1 << 40,), b""), ((5,), bytes(80)), ((-1, 2), bytes(80)), ((), b"1")]
)
def test_an_array_with_a_wrong_size_allocates_no_memory(tmp_path, shape, content):
    zipped(tmp_path / "x", {"descr": "<i8", "fortran_order": False, "shape": shape}, content)
    with pytest.raises(Unreadable, match="x is damaged"), open_arrays(tmp_path, "x") as file:
        list(file.parts("a"))


def test_gigabytes_of_zeros_are_refused_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "UNPACKED", 1 << 20)  # for a file that is created at once
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(200_000, np.int64))
    with pytest.raises(Unreadable, match="a would have 1,600,000 bytes"), open_arrays(tmp_path, "x.npz") as file:
        list(file.parts("a"))


def test_other_compressions_and_many_members_are_refused(tmp_path):
    zipped(tmp_path / "x", {"descr": "<i8", "fortran_order": False, "shape": (1,)}, bytes(8), zipfile.ZIP_LZMA)
    with pytest.raises(Unreadable, match="does not use"), open_arrays(tmp_path, "x") as file:
        list(file.parts("a"))
    with zipfile.ZipFile(tmp_path / "y", "w") as file:
        for place in range(200):
            file.writestr(f"{place}.npy", b"")
    with pytest.raises(Unreadable, match="too many members"), open_arrays(tmp_path, "y"):
        pass


def test_arrays_equal_those_of_numpy_whole_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART", 100)
    arrays = {"names": np.array(["a", "ö"]), "counts": np.arange(60).reshape(10, 2, 3), "none": np.empty((0, 3), int)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    with open_arrays(tmp_path, "x.npz") as file:
        for key, value in arrays.items():
            np.testing.assert_array_equal(file.whole(key), value, strict=True)
        assert [len(part) for part in file.parts("counts")] == [2] * 5


def test_a_flipped_bit_of_an_array_is_detected(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(100))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    place = data.index(struct.pack("<q", 77))
    data[place] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(Unreadable, match="damaged"), open_arrays(tmp_path, "x.npz") as file:
        file.whole("a")


def test_the_yaml_loader_in_c_is_available():
    """The Python loader recurses, and takes five times as long."""
    assert issubclass(reading._Loader, yaml.CSafeLoader)


def test_reading_imports_nothing_heavy_and_does_not_overflow_the_stack(tmp_path):
    """Runs in a separate process, which a stack overflow would end."""
    (tmp_path / "x").write_text("[" * 200_000)
    code = "import sys; from pathlib import Path; from fcnlab.files.reading import read_yaml, Unreadable\n"
    code += "try: read_yaml(Path(), 'x')\nexcept Unreadable: print('numpy' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (0, "False\n"), completed.stderr
