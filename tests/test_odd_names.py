"""Test file names that are very long or not UTF-8, and folders that are not writable."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from fcnlab.data.formats.folder import split_of
from fcnlab.errors import unwritable_reason
from fcnlab.files.writing import write_json

LATIN1 = os.fsdecode(b"caf\xe9")  # how Python represents bytes that are not UTF-8


@pytest.fixture
def odd_data(tmp_path):
    """Write images of two classes, some with odd names."""
    rng = np.random.default_rng(0)
    for name in [*map(str, range(8)), LATIN1, "L" * 251, os.fsdecode(b"\xff\xfe")]:
        for folder, values in (("images", (16, 16, 3)), ("labels", (16, 16))):
            (tmp_path / "odd" / folder).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 2 if folder == "labels" else 256, values, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "odd" / folder / f"{name}.png")
    return [
        *("data=folder", f"data.root={tmp_path}/odd", "data.dataset.classes=[a,b]", "data.num_workers=0"),
        *("data.dataset.images='images/{name}.png'", "data.dataset.masks='labels/{name}.png'"),
        *("data.dataset.fractions={train:0.3,val:0.7}", "data.crop_size=32", "data.batch_size=2"),
    ]


@pytest.mark.slow
def test_all_commands_accept_odd_names(odd_data, fcnlab, tmp_path, capsys):
    run = tmp_path / "run"
    few = ("trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=1", "model.backbone.width=2", "logger=csv")
    assert fcnlab("train", *odd_data, *few, "data.crop_size=64", f"hydra.run.dir={run}") == 0
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert fcnlab("compare", f"runs={run}", f"hydra.run.dir={tmp_path}/page") == 0
    words = (f"checkpoint={run}/checkpoints/last.ckpt", f"input={tmp_path}/odd/images", "num_workers=0")
    assert fcnlab("predict", *words, f"output={tmp_path}/out") == 0
    assert {path.name for path in (tmp_path / "out/labels").iterdir()} >= {f"{LATIN1}.png", f"{'L' * 251}.png"}
    assert "Traceback" not in capsys.readouterr().err


def test_doctor_reports_odd_names(odd_data, fcnlab, tmp_path, capsys):
    (tmp_path / "odd/images" / f"{LATIN1}.png").write_bytes(b"no image")
    assert fcnlab("doctor", *odd_data, f"hydra.run.dir={tmp_path}/report") == 1
    output = capsys.readouterr()
    assert "Traceback" not in output.err and "caf\\udce9" in output.out + output.err


def test_the_split_of_usual_names_is_unchanged():
    """The split is a hash (blake2b) of the name in UTF-8, so images of earlier runs stay in their split."""
    names, splits = ("a", "b", "ä", "c", "é", "ö"), ["train", "train", "train", "train", "train", "val"]
    assert [split_of(name, {"train": 0.5, "val": 0.5}, 1) for name in names] == splits
    assert split_of(LATIN1, {"train": 1.0}, 0) == "train"


def test_records_keep_odd_names(tmp_path):
    write_json(tmp_path / "x.json", {LATIN1: "Krähe"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {LATIN1: "Krähe"}
    assert "Krähe" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.fixture
def nowhere(tmp_path):
    (tmp_path / "file").write_text("a file")
    return tmp_path / "file" / "x"


@pytest.mark.parametrize("verb", [["train"], ["doctor"], ["compare", "runs=x"], ["eval", "checkpoint=x"], ["bench"]])
def test_an_impossible_run_folder_is_reported(fcnlab, nowhere, capsys, verb):
    assert fcnlab(*verb, f"hydra.run.dir={nowhere}") == 1
    error = capsys.readouterr().err
    assert (
        f"hydra.run.dir={nowhere}: {nowhere.parent} is not a folder. Nothing was changed. Choose" in error
        and "Traceback" not in error
    )
    assert fcnlab(*verb, f"hydra.run.dir={nowhere}", "--cfg", "job") == 0


def test_an_impossible_output_folder_is_reported_before_the_checkpoint_is_read(fcnlab, nowhere, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for output in (nowhere, nowhere.parent):
        assert fcnlab("predict", "checkpoint=x", f"input={tmp_path}/a.png", f"output={output}") == 1
        assert f"output={output}: {nowhere.parent} is not a folder" in capsys.readouterr().err


def test_an_unusable_path_in_a_setting_is_reported(train_code, nowhere, capsys):
    assert train_code(f"data.root={nowhere}") == 1
    error = capsys.readouterr().err
    assert f"{nowhere.parent}" in error and "Not a directory" in error and "Traceback" not in error


def test_unwritable_reason(tmp_path, nowhere, monkeypatch):
    assert unwritable_reason(tmp_path) is unwritable_reason(tmp_path / "new" / "newer") is None
    assert unwritable_reason(nowhere) == f"{nowhere.parent} is not a folder"
    assert "too long" in str(unwritable_reason(tmp_path / ("n" * 300)))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a read-only disk, which also applies to root
    assert unwritable_reason(tmp_path / "new") == f"{tmp_path} is not writable"
