"""Corrections for many comparisons, compared with R and with a loop over the algorithm."""

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.multiple import holm, step_down


def test_holm_equals_r():
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1]) and holm([0.02]) == pytest.approx([0.02]) and holm([]) == []


def test_step_down_equals_the_algorithm():
    """Westfall and Young, algorithm 2.8, with loops."""
    rng = np.random.default_rng(1)
    p, null = rng.random(5), rng.random((200, 5))
    order, expected, largest = np.argsort(p), np.empty(5), 0.0
    for rank, place in enumerate(order):
        remaining = order[rank:]
        count = sum(min(row[other] for other in remaining) <= p[place] for row in null)
        largest = max(largest, (count + 1) / 201)
        expected[place] = largest
    assert step_down(p, null) == pytest.approx(expected.tolist())
    assert step_down([], np.empty((0, 0))) == []


def test_step_down_keeps_the_level_and_gains_from_dependence():
    """Ten comparisons with one baseline, none of which differs: some is rejected in 5 % of cases, by Holm in less."""
    rng = np.random.default_rng(2)

    def p_values(count: int) -> np.ndarray:
        scores = rng.normal(size=(count, 11))
        return 2 * stats.norm.sf(np.abs(scores[:, 1:] - scores[:, :1]) / np.sqrt(2))

    null = p_values(4000)
    observed = p_values(2000)
    stepped = np.mean([min(step_down(row, null)) < 0.05 for row in observed])
    by_holm = np.mean([min(holm(row)) < 0.05 for row in observed])
    assert stepped == pytest.approx(0.05, abs=0.015) and by_holm < stepped - 0.005
