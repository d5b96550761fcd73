"""Confusion matrices of groups, which are read again from their runs: a comparison keeps only areas.

A cell is the part of a class's pixels, in the ground truth, that were predicted as a class: a row has the sum 1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.runs import Run
from fcnlab.files.reading import Unreadable, open_arrays


class Confusions(NamedTuple):
    """The row-normalised matrices of the best group and of the one that it is compared with; None: cannot be read."""

    groups: list[Group]
    matrices: list[Float[ndarray, "classes classes"] | None]


def confusions(comparison: Comparison) -> Confusions:
    """Return the matrices of the best group and of the baseline, or of the two best groups."""
    best = comparison.groups[0]
    others = [comparison.baseline] if comparison.baseline else comparison.groups[1:2]
    groups = [best, *(group for group in others if group.name != best.name)]
    return Confusions(groups, [confusion(group) for group in groups])


def confusion(group: Group) -> Float[ndarray, "classes classes"] | None:
    """Return the row-normalised matrix of all runs of a group; nan in the row of a class without pixels.

    None if a file was changed or removed since the comparison read it.
    """
    matrices = [matrix for run in group.runs if (matrix := _matrix(run)) is not None]
    if len(matrices) < len(group.runs):
        return None
    total = np.sum(matrices, axis=0)
    pixels = total.sum(axis=1, keepdims=True)
    return np.divide(total, pixels, out=np.full(total.shape, np.nan), where=pixels > 0)


def _matrix(run: Run) -> ndarray | None:
    """Return the sum of the matrices of a run's images; None if it is not the one that was compared."""
    try:
        with open_arrays(run.folder, "confusions.npz") as file:
            listed = [str(name) for name in file.whole("names").tolist()]
            matrices = _sum(file.parts("matrices"), np.isin(listed, run.names), len(run.classes))
    except (OSError, Unreadable):
        return None
    same = matrices is not None and np.array_equal(np.diag(matrices), run.areas.intersection.sum(axis=0))
    return matrices if same else None


def _sum(parts: Iterator[ndarray], selected: ndarray, classes: int) -> ndarray | None:
    total, start = np.zeros((classes, classes), np.int64), 0
    for part in parts:
        if part.shape[1:] != (classes, classes) or start + len(part) > len(selected):
            return None
        total += part[selected[start : start + len(part)]].sum(axis=0, dtype=np.int64)
        start += len(part)
    return total
