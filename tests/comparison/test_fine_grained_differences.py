"""Intervals of fine-grained mIoU: each resample has the scores of the drawn images, and gives one difference."""

import numpy as np
import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.fine_grained_differences import lowest_tenth, resampled_scores
from fcnlab.comparison.intervals import draws
from fcnlab.comparison.runs import read_runs
from fcnlab.metrics.conventions import class_areas
from fcnlab.metrics.fine_grained import fine_grained_miou
from run_folders import toy_matrices, write_run


def rare_matrices(quality: float, seed: int) -> np.ndarray:
    """Images some of which lack classes, and one of which has only ignored pixels."""
    matrices = toy_matrices(quality, 40, seed)
    matrices[np.random.default_rng(3).random((40, 4)) < 0.4] = 0
    matrices[5:, 3] = 0
    matrices[7] = 0
    return matrices


def test_a_resample_has_the_scores_of_its_images():
    """The images are repeated as they are drawn, and scored by the metric itself."""
    matrices, counts = rare_matrices(0.6, 1), draws(40, 50)
    found = resampled_scores(counts, class_areas(matrices))
    for drawn, scores in zip(counts.astype(int), found, strict=True):
        assert scores == pytest.approx(np.array(fine_grained_miou(np.repeat(matrices, drawn, axis=0))), rel=1e-5)


def test_the_lowest_tenth_of_many_values():
    """Also where the draws have so many of the lowest, or so few, that more values than usual are needed."""
    values = np.random.default_rng(0).random(500)
    counts = draws(500, 20)
    counts[0, np.argsort(values)[:400]] = 0
    for drawn, mean in zip(counts.astype(int), lowest_tenth(values, counts), strict=True):
        repeated = np.sort(np.repeat(values, drawn))
        assert mean == pytest.approx(repeated[: max(1, len(repeated) // 10)].mean())


def test_intervals_are_those_of_paired_resamples(tmp_path, monkeypatch):
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    monkeypatch.setattr("fcnlab.comparison.fine_grained_differences.RESAMPLES", 300)
    matrices = {model: rare_matrices(quality, 1) for model, quality in {"fcn8s": 0.8, "fcn32s": 0.6}.items()}
    for model, each in matrices.items():
        write_run(tmp_path / "runs" / model, each, model=model)
    comparison = compare(read_runs([tmp_path / "runs"])[0], resamples=200)
    (found,) = comparison.fine_grained
    counts = draws(40, 300).astype(int)
    resampled = [
        np.subtract(*(fine_grained_miou(np.repeat(matrices[model], drawn, axis=0)) for model in ("fcn8s", "fcn32s")))
        for drawn in counts
    ]
    whole = np.subtract(*(fine_grained_miou(matrices[model]) for model in ("fcn8s", "fcn32s")))
    bounds = np.quantile(resampled, [0.025, 0.975], axis=0)
    for place, each in enumerate(found.values()):
        assert each.value == pytest.approx(whole[place])
        assert (each.low, each.high) == pytest.approx(tuple(bounds[:, place]), rel=1e-4)
