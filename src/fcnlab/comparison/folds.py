"""Pool the held-out folds of a cross-validation: runs that differ only in ``data.fold`` become one record.

Each image then counts once, scored by the run that did not train on it. A fold is no seed: runs are pooled for each
seed, so all statistics see one record for each seed, as without folds.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison.grouping import ALWAYS, GroupingRules, identity, one_for_each_seed
from fcnlab.comparison.runs import COMPARABLE_PROTOCOL, ExcludedRun, Run
from fcnlab.metrics.conventions import ClassAreas
from fcnlab.metrics.scores import scores_of_areas
from fcnlab.runs.lineage import FOLD
from fcnlab.runs.selection import Facts, is_optimistic

MOST_NOTES, MOST_LISTED = 5, 10  # notes, and missing folds in each
Curves = dict[str, ndarray]


class PooledRuns(NamedTuple):
    """Runs of whole sets and pooled runs, in the order of the input, with the excluded runs and notes."""

    runs: list[Run]
    excluded: list[ExcludedRun]
    notes: list[str]


def pool_folds(runs: Sequence[Run], rules: GroupingRules) -> PooledRuns:
    """Pool the runs that differ only in the fold; all other runs stay as they are."""
    experiments: dict[tuple, list[Run]] = {}
    excluded = []
    for run in runs:
        leaks = run.fold is not None and (
            run.fold.is_trained_on or run.settings.get(FOLD) not in (None, run.fold.number)
        )
        if leaks:
            excluded.append(ExcludedRun(run.folder, _trained_on(run)))
        else:
            experiments.setdefault(_experiment(run, rules), []).append(run)
    pooled = []
    for members in experiments.values():
        for part in _cross_validations(members):
            pools, repeats = _pools(part) if part[0].fold is not None else (part, [])
            pooled += pools
            excluded += repeats
    notes = [_missing_note(run) for run in pooled if run.folds and len(run.folds) < _count(run)]
    more = [f"{len(notes) - MOST_NOTES} more runs lack folds."] if len(notes) > MOST_NOTES else []
    return PooledRuns(pooled, excluded, [*_pooled_note(pooled), *notes[:MOST_NOTES], *more])


def _experiment(run: Run, rules: GroupingRules) -> tuple:
    """Return a key that is equal for the folds of one cross-validation and one seed."""
    if run.fold is None:
        return (run.folder,)
    settings = {key: value for key, value in rules.settings(run).items() if key != FOLD}
    protocol = tuple(str(run.protocol.get(key)) for key in COMPARABLE_PROTOCOL)
    return identity(settings), run.seed, run.fold.count, run.classes, protocol


def _cross_validations(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs of one experiment, split by the settings that merge_over ignores if these repeat a fold.

    Folds without repeats are one cross-validation, whose code was changed in between, for example. With repeats they
    are several ones, and a pool of both would be the score of none of them.
    """
    by_settings: dict[frozenset, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in ALWAYS.settings(run).items() if key != FOLD}
        by_settings.setdefault(identity(settings), []).append(run)
    numbers = [number for part in by_settings.values() for number in {run.fold and run.fold.number for run in part}]
    return [list(runs)] if len(numbers) == len(set(numbers)) else list(by_settings.values())


def _pools(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """Return the pooled run of one experiment in a list, and the runs that repeat a fold."""
    by_fold: dict[int, list[Run]] = {}
    for run in runs:
        assert run.fold is not None
        by_fold.setdefault(run.fold.number, []).append(run)
    folds, excluded, seen = [], [], set()
    for number in sorted(by_fold):
        (run,), repeats = one_for_each_seed(by_fold[number])
        excluded += repeats
        if common := seen.intersection(run.names):
            reason = (
                f"fold {number} and an earlier fold of it contain the same image {min(common)}: the list was changed"
            )
            excluded.append(ExcludedRun(run.folder, reason))
        else:
            folds.append(run)
            seen |= set(run.names)
    return [_pooled(folds)], excluded


def _pooled(folds: Sequence[Run]) -> Run:
    """Return one run with the images of all folds; its costs and curves are means over the folds."""
    first = folds[0]
    areas = ClassAreas(*(np.concatenate(rows) for rows in zip(*(run.areas for run in folds), strict=True)))
    return replace(
        first,
        settings={key: value for key, value in first.settings.items() if key != FOLD},
        typed=frozenset().union(*(run.typed for run in folds)),
        environment={key: _joined(run.environment.get(key, "") for run in folds) for key in first.environment},
        weights=(_joined(run.weights[0] for run in folds), _joined(run.weights[1] for run in folds)),
        names=tuple(name for run in folds for name in run.names),
        areas=areas,
        scores=scores_of_areas(*(area.sum(axis=0) for area in areas)),
        protocol=first.protocol | {"images": sum(len(run.names) for run in folds)},
        selection=_selection([run.selection for run in folds], str(first.protocol["set"])),
        cost={
            name: float(np.mean([run.cost[name] for run in folds]))
            for name in first.cost
            if all(name in run.cost for run in folds)
        },
        curves=_mean_curves([run.curves for run in folds]),
        ended=max(run.ended for run in folds),
        fold=None,
        folds=tuple(folds),
    )


def _joined(values) -> str:
    """Return the distinct values in one text."""
    return "+".join(dict.fromkeys(filter(None, values)))


def _selection(selections: Sequence[Facts | None], title: str) -> Facts | None:
    """Return the selection of the fold whose score is most optimistic, over the images of all folds."""
    known = [selection for selection in selections if selection is not None]
    if len(known) < len(selections):
        return None
    return {
        **max(known, key=is_optimistic),
        "set": title,
        "among": max(selection["among"] for selection in known),
        "step": max(selection["step"] for selection in known),
        "same_images": all(selection["same_images"] for selection in known),
        "shared_images": sum(selection["shared_images"] for selection in known),
    }


def _mean_curves(folds: Sequence[Curves]) -> Curves:
    """Return the mean of each curve at the steps that all folds have."""
    means = {}
    for name in folds[0]:
        if all(name in curves for curves in folds):
            points = [dict(curves[name].T.tolist()) for curves in folds]
            if steps := sorted(set.intersection(*map(set, points))):
                means[name] = np.array([steps, [float(np.mean([each[step] for each in points])) for step in steps]])
    return means


def _trained_on(run: Run) -> str:
    if run.fold and run.fold.is_trained_on:
        return f"fold {run.fold.number} was scored by a run that has trained on these images: it held out no fold"
    return (
        f"fold {run.fold and run.fold.number} was scored by the run that held out fold {run.settings[FOLD]}, which has"
        " trained on these images"
    )


def _count(run: Run) -> int:
    """Return the number of folds that a pooled run should have."""
    return run.folds[0].fold.count if run.folds[0].fold else 0


def _pooled_note(pooled: Sequence[Run]) -> list[str]:
    counts = sorted({_count(run) for run in pooled if run.folds})
    if not counts:
        return []
    return [
        f"Scores are cross-validated ({' and '.join(map(str, counts))} folds): each image was scored by the run that"
        " did not train on it, and the folds of a seed count as one run. Costs and curves are means over folds."
    ]


def _missing_note(run: Run) -> str:
    there = {fold.fold.number for fold in run.folds if fold.fold}
    missing = (str(number) for number in range(_count(run)) if number not in there)
    numbers, count = ",".join(islice(missing, MOST_LISTED)), _count(run) - len(there)
    more = f" and {count - MOST_LISTED} more" if count > MOST_LISTED else ""
    return (
        f"The cross-validation of {run.folder} (seed {run.seed}) lacks {count} of {_count(run)} folds: {numbers}{more}."
        f" All runs are compared without their images. data.fold={numbers} trains them."
    )
