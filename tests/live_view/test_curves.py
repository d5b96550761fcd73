"""Test that the curves of a growing metrics.csv are those of the whole file, whatever happens to it."""

import csv
import os

import numpy as np
import pytest

from fcnlab.live_view import curves as module
from fcnlab.live_view.curves import Curves, thinned_places
from fcnlab.training.callbacks.metrics_file import MetricsCsv

HEADER = 'step,epoch,train/loss,"val/iou/a,b",val/miou\n'


def expected(path) -> dict:
    """Return the curves of a whole file, read by the csv module at once."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        for name in ("train/loss", "val/miou")
    }


def read(curves: Curves) -> dict:
    return {name: curves.thinned(name) for name in ("train/loss", "val/miou")}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_any_cut_of_the_file_is_read_as_the_whole_file(path):
    """Written one byte at a time, as a slow disk might show it."""
    text = HEADER + "10,0,1.5,,\n20,0,,0.25,0.5\n30,1,1.25,,\n"
    curves = Curves(path.parent)
    assert curves.update() is False and curves.step is None
    path.touch()
    for byte in text.encode():
        with path.open("ab") as file:
            file.write(bytes([byte]))
        curves.update()
    assert read(curves) == expected(path) == {"train/loss": [(10, 1.5), (30, 1.25)], "val/miou": [(20, 0.5)]}
    assert curves.step == 30 and curves.highest("val/miou") == (0.5, 20) and curves.update() is False


def test_a_half_written_line_is_read_when_it_is_complete(path):
    path.write_text(HEADER + "10,0,1.5,,\n20,0,1.")
    curves = Curves(path.parent)
    curves.update()
    assert read(curves)["train/loss"] == [(10, 1.5)]
    with path.open("a") as file:
        file.write("25,,\n")
    assert curves.update() and read(curves)["train/loss"] == [(10, 1.5), (20, 1.25)]


def test_only_new_bytes_are_read(path, monkeypatch):
    path.write_text(HEADER + "10,0,1.5,,\n")
    curves = Curves(path.parent)
    curves.update()
    lines = []
    original = module.cells_of
    monkeypatch.setattr(module, "cells_of", lambda line: lines.append(line) or original(line))
    with path.open("a") as file:
        file.write("20,0,1.25,,\n")
    curves.update()
    assert lines == [b"20,0,1.25,,"]


def test_the_writer_of_a_run_is_followed(path):
    """With a column that appears later and with rows that a resumed run drops: the file is then replaced."""
    writer, curves = MetricsCsv(path), Curves(path.parent)
    writer.log_metrics({"train/loss": 2.0, "epoch": 0}, 10)
    assert curves.update() and read(curves) == {"train/loss": [(10, 2.0)], "val/miou": []}
    writer.log_metrics({"val/miou": 0.5, "epoch": 0}, 20)
    writer.log_metrics({"val/miou": 0.75, "epoch": 0}, 30)
    assert curves.update() and read(curves) == expected(path)
    writer.cut(2)
    assert curves.update() and read(curves)["val/miou"] == [(20, 0.5)] and curves.step == 20
    assert curves.highest("val/miou") == (0.5, 20)


@pytest.mark.parametrize("change", ["shorter", "same size", "longer"])
def test_a_file_that_is_rewritten_in_place_starts_over(path, change):
    path.write_text(HEADER + "10,0,1.5,,\n20,0,1.25,,\n")
    curves = Curves(path.parent)
    curves.update()
    rows = {"shorter": "10,0,9.5,,\n", "same size": "10,0,9.5,,\n20,0,9.25,,\n", "longer": "10,0,9.5,,\n" * 9}
    with path.open("r+") as file:  # the same inode
        file.write(HEADER + rows[change])
        file.truncate()
    os.utime(path, ns=(1, 1))
    assert curves.update() and read(curves) == expected(path)


def test_a_file_that_disappears_leaves_no_curves(path):
    path.write_text(HEADER + "10,0,1.5,,\n")
    curves = Curves(path.parent)
    curves.update()
    path.unlink()
    assert curves.update() and read(curves)["train/loss"] == [] and curves.step is None


def test_a_long_file_is_read_in_parts(path, monkeypatch):
    monkeypatch.setattr(module, "READ_AT_A_TIME", 200)
    path.write_text(HEADER + "".join(f"{step},0,{step / 8},,\n" for step in range(100)))
    curves = Curves(path.parent)
    updates = 0
    while curves.update():
        updates += 1
    assert updates > 3 and read(curves) == expected(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", "metrics.csv has no column step: fcnlab did not write it"),
        ("step," + "x" * 70_000, "metrics.csv has more than 65,536 bytes in a row"),
        ("\0\1\2\xff\n", "metrics.csv has no column step: fcnlab did not write it"),
    ],
)
def test_a_foreign_file_is_reported(path, text, problem):
    path.write_text(text)
    curves = Curves(path.parent)
    curves.update()
    assert curves.problem == problem and read(curves)["train/loss"] == []
    path.write_text(HEADER + "10,0,1.5,,\n")
    assert curves.update() and curves.problem == "" and read(curves) == expected(path)


@pytest.mark.parametrize("row", ["x,0,1,,", "20,0,nan,inf,-inf", "20,0,1e300,,", '20,"0,1,,', "20", "", "nan,0,1,,"])
def test_cells_that_are_no_numbers_are_skipped(path, row):
    path.write_text(f"{HEADER}10,0,1.5,,\n{row}\n30,0,1.25,,\n")
    curves = Curves(path.parent)
    curves.update()
    assert read(curves) == {"train/loss": [(10, 1.5), (30, 1.25)], "val/miou": []} and curves.step == 30


def test_a_link_out_of_the_folder_is_not_followed(path, tmp_path):
    (tmp_path / "run").mkdir()
    path.write_text(HEADER + "10,0,1.5,,\n")
    (tmp_path / "run" / "metrics.csv").symlink_to(path)
    curves = Curves(tmp_path / "run")
    curves.update()
    assert "leads out of the folder" in curves.problem and read(curves)["train/loss"] == []


@pytest.mark.parametrize("count", [0, 1, 2, 499, 500, 501, 1000, 100_003])
def test_thinning_keeps_ends_and_extremes(count):
    values = np.random.default_rng(0).normal(size=count)
    places = thinned_places(list(values), 500)
    assert places == sorted(set(places)) and len(places) <= 500
    if count <= 500:
        assert places == list(range(count))
    else:
        kept = values[places]
        assert len(places) > 400 and places[0] == 0 and places[-1] == count - 1
        assert kept.min() == values.min() and kept.max() == values.max()
