"""The benchmarks run, and their arithmetic is right; how fast things are is no test's business."""

import json
import runpy
import time
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """What a script defines; it finds the module beside it as when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))


def test_ratios_are_taken_within_rounds(script):
    found = script("measuring")["summary"]({"old": np.array([1.0, 4, 9]), "new": np.array([1.0, 2, 3])}, "old", items=2)
    assert found["old"]["ratio"] == 1 and found["new"]["ratio"] == 2  # of 1, 2, 3: not of the medians or the sums
    assert (found["new"]["ratio_q25"], found["new"]["ratio_q75"]) == (1.5, 2.5)
    assert found["new"]["ms"] == 1000 and found["new"]["per_second"] == 1


def test_every_round_runs_every_variant_by_its_number(script):
    seen = {"spin": [], "sleep": []}

    def spin(number: int) -> None:
        seen["spin"].append(number)
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    def sleep(number: int) -> None:
        seen["sleep"].append(number)
        time.sleep(0.01)

    times = script("measuring")["in_turns"]({"spin": spin, "sleep": sleep}, 5)
    assert seen == {"spin": [0, 0, 1, 2, 3, 4], "sleep": [0, 0, 1, 2, 3, 4]}
    assert np.median(times["spin"]) >= 0.01 > 0.005 > np.median(times["sleep"])  # waiting is no work


def test_input_pipeline(script, tmp_path):
    made = script("input_pipeline")
    pictures = made["open_pictures"](str(tmp_path / "none"), 8, tmp_path)
    found = made["measure"](pictures, 64, tmp_path)
    assert len(found) == 5 and all(row["ratio"] > 0 for row in found.values())


def test_the_rival_is_the_papers_input(script, tmp_path):
    """BGR minus the mean, channels first, void -1."""
    made = script("input_pipeline")
    pictures = made["open_pictures"](str(tmp_path / "none"), 1, tmp_path)
    image, label = made["pytorch_fcn"](pictures, 0)
    rows, cols = pictures.size(0)
    assert image.shape == (3, rows, cols) and image.dtype.is_floating_point and label.shape == (rows, cols)
    blue = pictures.image(0)[..., 2]
    np.testing.assert_allclose(image[0].numpy(), blue - 104.00698793, atol=1e-4)
    np.testing.assert_array_equal(label.numpy() == -1, pictures.mask(0) == 255)


def test_confusion(script, tmp_path):
    """It compares the integers itself."""
    confusion = script("confusion")
    found = confusion["measure"](2, confusion["pictures"](1))
    assert len(found) == 3
    script("measuring")["report"]("title", found, tmp_path / "sub" / "found.json")
    assert json.loads((tmp_path / "sub" / "found.json").read_text())["found"] == found


def test_startup_is_told_as_multiples_of_torch(script):
    startup = script("startup")
    found = startup["times_torch"]({startup["TORCH"]: np.array([1.0, 2, 2]), "job": np.array([3.0, 4, 8])}, "job")
    assert (found["ratio"], found["ratio_q25"], found["ratio_q75"], found["seconds"]) == (3, 2.5, 3.5, 4)


def test_startup_ends_trainings_where_they_begin(script, tmp_path):
    words = script("startup")["words_of"]
    assert words(("train", "logger=csv"), tmp_path)[4].endswith("fit_begins.FitBegins")
    assert words(("train", "--cfg", "job"), tmp_path) == ["-m", "fcnlab", "train", "--cfg", "job"]
