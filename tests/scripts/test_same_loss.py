"""Test the comparison of make same-loss."""

import runpy

import pytest

ROWS = [{"step": "1", "train/loss": "0.1"}, {"step": "2", "train/loss": "0.25", "val/miou": "0.5"}]


@pytest.fixture(scope="module")
def first_difference(repository):
    return runpy.run_path(str(repository / "scripts" / "same_loss.py"))["first_difference"]


def test_equal_curves_have_no_difference(first_difference):
    reordered = [dict(reversed(row.items())) for row in ROWS]
    assert first_difference(ROWS, reordered) is None


@pytest.mark.parametrize(
    "changed, message",
    [
        ([ROWS[0], ROWS[1] | {"train/loss": "0.25000000000000006"}], "0.25 before, 0.25000000000000006 now"),
        ([ROWS[0], ROWS[1] | {"val/loss": "1.0"}], "val/loss: nothing before, 1.0 now"),
        ([ROWS[0]], "Row 2, step 2, step: 2 before, nothing now"),
        ([*ROWS, {"step": "3"}], "Row 3, step 3, step: nothing before, 3 now"),
    ],
    ids=["last bit", "new column", "row missing", "new row"],
)
def test_the_first_difference_is_named(first_difference, changed, message):
    assert message in first_difference(ROWS, changed)
