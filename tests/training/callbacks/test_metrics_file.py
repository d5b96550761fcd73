"""metrics.csv: rows as they come, columns as they are needed, nothing lost and nothing twice."""

import csv
import os
from pathlib import Path

import pytest

from fcnlab.errors import WriteError
from fcnlab.training.callbacks import MetricsCsv


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def read(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_header_and_rows(path):
    log = MetricsCsv(path)
    log.log_metrics({"epoch": 0, "train/loss": 0.5}, step=1)
    assert read(path) == [["step", "epoch", "train/loss"], ["1", "0", "0.5"]]  # on disk at once
    log.log_metrics({"train/loss": 0.25, "epoch": 1}, step=2)
    assert read(path)[2:] == [["2", "1", "0.25"]]
    assert list(log.rows())[1] == {"step": "2", "epoch": "1", "train/loss": "0.25"}


def test_new_column_keeps_old_rows(path):
    log = MetricsCsv(path)
    log.log_metrics({"epoch": 0, "train/loss": 0.5}, step=1)
    log.log_metrics({"epoch": 0, "val/miou": 0.125}, step=1)
    log.log_metrics({"epoch": 0, "train/loss": 0.25}, step=2)
    assert read(path) == [
        ["step", "epoch", "train/loss", "val/miou"],
        ["1", "0", "0.5", ""],
        ["1", "0", "", "0.125"],
        ["2", "0", "0.25", ""],
    ]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_nan_is_left_out(path):
    MetricsCsv(path).log_metrics({"epoch": 0, "val/miou": float("nan"), "val/loss": 1.0}, step=3)
    assert read(path) == [["step", "epoch", "val/loss"], ["3", "0", "1.0"]]


def test_values_keep_every_digit(path):
    log, value = MetricsCsv(path), 0.1 + 0.2
    log.log_metrics({"x": value}, step=0)
    assert float(next(log.rows())["x"]) == value


def test_names_with_commas_and_quotes(path):
    names = ["iou/chair, dining", 'iou/"other"']
    MetricsCsv(path).log_metrics(dict.fromkeys(names, 1.0), step=0)
    assert read(path)[0] == ["step", "epoch", *names]


def test_another_process_appends(path):
    MetricsCsv(path).log_metrics({"epoch": 0, "a": 1.0}, step=1)
    MetricsCsv(path).log_metrics({"epoch": 0, "b": 2.0}, step=2)
    assert read(path) == [["step", "epoch", "a", "b"], ["1", "0", "1.0", ""], ["2", "0", "", "2.0"]]


def test_resuming_drops_what_will_be_logged_again(path):
    log = MetricsCsv(path)
    for step in range(1, 6):
        log.log_metrics({"epoch": 0, "loss": 1 / step}, step=step)
    resumed = MetricsCsv(path)
    resumed.cut(3)  # a checkpoint that was written after three rows
    resumed.log_metrics({"epoch": 0, "loss": 9.0}, step=4)
    assert [row["step"] for row in resumed.rows()] == ["1", "2", "3", "4"]
    assert [row["loss"] for row in resumed.rows()][2:] == [str(1 / 3), "9.0"]


def test_resuming_without_a_file_is_a_start(path):
    log = MetricsCsv(path)
    log.cut(7)
    assert list(log.rows()) == [] and log.count == 0 and not path.exists()


def test_resuming_mends_a_row_cut_short(path):
    """A kill may come in the middle of a row."""
    log = MetricsCsv(path)
    for step in (1, 2):
        log.log_metrics({"epoch": 0, "loss": 0.5}, step=step)
    path.write_text(path.read_text() + "3,0")
    log = MetricsCsv(path)
    log.cut(2)
    log.log_metrics({"epoch": 0, "loss": 0.25}, step=3)
    assert read(path)[2:] == [["2", "0", "0.5"], ["3", "0", "0.25"]]


def test_nothing_is_written_through_a_link(path, tmp_path):
    """Half a row at the end would be cut off, and others appended, in whatever file a foreign folder's link names."""
    (tmp_path / "mine").write_text("all my\nwork")
    path.symlink_to("mine")
    with pytest.raises(WriteError, match="is a link, or not a regular file"):
        MetricsCsv(path)
    path.unlink()
    path.hardlink_to(tmp_path / "mine")
    with pytest.raises(WriteError, match="is a hard link"):
        MetricsCsv(path)
    assert (tmp_path / "mine").read_text() == "all my\nwork"


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_nothing_is_written_through_a_link_that_comes_later(path, tmp_path, link):
    """By a backup of links that is made while the run goes on, say."""
    log = MetricsCsv(path)
    log.log_metrics({"loss": 1.0}, step=1)
    path.rename(tmp_path / "mine")
    before = (tmp_path / "mine").read_text()
    link(path, tmp_path / "mine")
    with pytest.raises(WriteError, match=r"is a (hard )?link"):
        log.log_metrics({"loss": 1.0}, step=2)
    assert (tmp_path / "mine").read_text() == before


def test_a_table_over_a_limit_is_not_read(path):
    wide = ",".join(f"{number}" for number in range(10_000))
    for limit in ("bytes", "rows", "cells"):
        many = "1,2\n" * 500_001 * (limit == "rows")
        path.write_text(wide + ("\n" + "," * 9_999) * 1_001 + "\n" if limit == "cells" else f"step,epoch\n{many}")
        if limit == "bytes":
            os.truncate(path, 20 << 30)  # which takes no room on the disk
        with pytest.raises(WriteError, match=rf"metrics\.csv has more than .*[\d,]+ {limit}.*move it away"):
            MetricsCsv(path)
