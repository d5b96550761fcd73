"""Compare runs: select comparable runs, group them, and compare the groups.

All numbers of a comparison are computed on the same images, those that all of its runs share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison import notes
from fcnlab.comparison.comparability import restrict_to_common_images, split_comparable
from fcnlab.comparison.fine_grained_differences import fine_grained_differences
from fcnlab.comparison.folds import pool_folds
from fcnlab.comparison.grouping import (
    ALWAYS,
    Group,
    GroupingRules,
    find_group,
    group_runs,
    merged_values,
)
from fcnlab.comparison.intervals import Interval, resamples_needed
from fcnlab.comparison.names import LONGEST_NAME, with_names
from fcnlab.comparison.pairs import MOST_GROUPS_FOR_ALL_PAIRS, Pair, Sampling, compare_pairs, compared_runs
from fcnlab.comparison.runs import ExcludedRun, Run
from fcnlab.errors import UserError
from fcnlab.runs.selection import notes as selection_notes

MOST_CLASS_PAIRS = 10  # with tables of their classes: all pairs of five groups; class_differences.csv has all pairs
MANY_RUNS, RESAMPLES, RESAMPLES_OF_MANY = 100, 10_000, 2_000


class Effect(NamedTuple):
    """A value of a swept setting: the mean mIoU of its groups, and the difference to the setting's first value.

    ``matched`` counts the pairs of groups that agree in all other settings; ``difference`` is their mean difference,
    and None if there are no such pairs.
    """

    key: str
    value: str
    groups: list[Group]
    miou: float
    difference: float | None
    matched: int


@dataclass(frozen=True)
class Comparison:
    """Groups by descending mIoU, the compared pairs, and the excluded runs.

    ``of`` is the number of images in the set, as far as the records show; ``scored`` the number in each run's record.
    """

    groups: list[Group]
    baseline: Group | None
    pairs: list[Pair]
    effects: list[Effect]
    left_out: list[ExcludedRun]
    notes: list[str]
    resamples: int
    confidence: float
    of: int
    scored: Mapping[Path, int]

    @property
    def images(self) -> int:
        """Number of images that all numbers are computed on."""
        return len(self.groups[0].runs[0].names)

    @property
    def scope(self) -> str:
        """The data set and the number of images, for titles."""
        whole = f"{self.images} image{'s' if self.images != 1 else ''}"
        return f"{self.set}, {whole if self.images == self.of else f'{self.images} of {self.of} images'}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.groups[0].runs[0].classes

    @property
    def set(self) -> str:
        return str(self.groups[0].runs[0].protocol["set"])

    def label(self, group: Group) -> str:
        """Return the short label of a group: its name, or its rank if any group has a long name."""
        return self._labels[group.name]

    @cached_property
    def _labels(self) -> dict[str, str]:
        names = [group.name for group in self.groups]
        short = all(len(name) <= LONGEST_NAME for name in names)
        return {name: name if short else f"#{rank}" for rank, name in enumerate(names, start=1)}

    @cached_property
    def fine_grained(self) -> list[dict[str, Interval]]:
        """The differences in fine-grained mIoU of the first ``MOST_CLASS_PAIRS`` pairs, which have the best groups."""
        return fine_grained_differences(self.pairs[:MOST_CLASS_PAIRS], self.confidence)

    @property
    def selection(self) -> list[str]:
        """Notes on which images were used to select the scored checkpoints."""
        return selection_notes(run.selection for group in self.groups for run in group.runs)

    @property
    def runs(self) -> int:
        return sum(len(group.runs) for group in self.groups)


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    resamples: int | None = None,
    confidence: float = 0.95,
    rules: GroupingRules = ALWAYS,
    equivalence: float | None = None,
    names: Mapping[str, str] | None = None,
) -> Comparison:
    """Group the runs and compare each group with the baseline, or all pairs if there are few groups.

    ``equivalence`` is the largest difference in mIoU that does not matter, in percentage points. ``names`` gives groups
    names for readers: ``{"fcn8s": "FCN-8s"}``.

    Raises
    ------
    UserError
        There are no runs, the baseline or a name matches no group, or merge_over names a setting in which no runs
        differ.
    """
    if not runs:
        raise UserError("no finished run found: choose a folder with runs of fcnlab train or fcnlab eval")
    pooled = pool_folds(runs, rules)
    runs = pooled.runs
    if not runs:
        raise UserError(f"no run can be compared: {pooled.excluded[0].reason}")
    compared, left_out, merged = _on_same_images(runs, rules)
    groups = with_names(group_runs(compared, rules)[0], names or {})
    chosen = (
        find_group(groups, baseline) if baseline else (groups[0] if len(groups) > MOST_GROUPS_FOR_ALL_PAIRS else None)
    )
    group_pairs = [(group, chosen) for group in groups if chosen and group is not chosen] or _ranked_pairs(groups)
    needed = resamples_needed(len(group_pairs), 1 - confidence)
    resamples = resamples or _resamples(len(compared), needed)
    margin = None if equivalence is None else equivalence / 100
    pairs = compare_pairs(group_pairs, Sampling(len(compared[0].names), resamples), confidence, margin)
    most = _set_size([run for run in runs if run.protocol["set"] == compared[0].protocol["set"]])
    return Comparison(
        groups=sorted(groups, key=lambda group: -group.mean()),
        baseline=chosen,
        pairs=sorted(pairs, key=lambda pair: -pair.difference),
        effects=effects(groups),
        left_out=[*pooled.excluded, *left_out],
        notes=[
            *pooled.notes,
            *notes.of_groups(groups, chosen, was_set=baseline is not None),
            *notes.of_images(runs, compared, most),
            *notes.of_missing_seeds(pairs, compared),
            *notes.of_reliability(pairs, compared),
            *notes.of_resamples(pairs, resamples, needed),
            *notes.of_selection(groups),
            *notes.of_other_seeds(groups, rules),
            *notes.of_origins(groups, rules, merged),
        ],
        resamples=resamples,
        confidence=confidence,
        of=most,
        scored={run.folder: len(run.names) for run in runs},
    )


def _on_same_images(
    runs: Sequence[Run], rules: GroupingRules
) -> tuple[list[Run], list[ExcludedRun], Mapping[str, list[str]]]:
    """Return the runs restricted to their common images, the excluded runs, and the merged settings with their values.

    Repeated runs are excluded first, so that the smaller of two records does not reduce the common images.
    """
    comparable, incomparable = split_comparable(runs)
    merged = merged_values([fold for run in comparable for fold in run.folds or (run,)], rules.merge_over)
    _, repeats = group_runs(comparable, rules)
    repeated = {out.folder for out in repeats}
    restricted, too_few_in_common = restrict_to_common_images([run for run in comparable if run.folder not in repeated])
    return restricted, [*incomparable, *repeats, *too_few_in_common], merged


def _set_size(runs: Sequence[Run]) -> int:
    """Return the number of images in the data set, as far as the records show."""
    listed = [count for run in runs if isinstance(count := run.protocol.get("of"), int)]
    named = set().union(*{run.names for run in runs})
    return max([len(named), *listed])


def _ranked_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Return all pairs, the better group first."""
    return list(combinations(sorted(groups, key=lambda group: -group.mean()), 2))


def _resamples(runs: int, needed: int) -> int:
    """Return the default number of resamples: fewer for many runs, unless significance then becomes impossible."""
    if runs <= MANY_RUNS:
        return RESAMPLES
    return max(RESAMPLES_OF_MANY, needed) if needed <= RESAMPLES else RESAMPLES_OF_MANY


# Effects of settings


def effects(groups: Sequence[Group]) -> list[Effect]:
    """Return the effect of each value of each setting in which the groups differ, in the order of the runs."""
    keys = list(dict.fromkeys(key for group in groups for key in group.parts))
    return [effect for key in keys for effect in _effects_of(key, groups)]


def _effects_of(key: str, groups: Sequence[Group]) -> list[Effect]:
    values = list(dict.fromkeys(group.parts[key] for group in groups if key in group.parts))
    first = _by_other_settings(key, values[0], groups)
    effects_of_values = []
    for value in values:
        having = _by_other_settings(key, value, groups)
        pairs = [compared_runs(having[others], first[others]) for others in having if others in first]
        differences = [group.mean() - first_group.mean() for group, first_group in pairs]
        difference = float(np.mean(differences)) if differences else None
        miou = float(np.mean([group.mean() for group in having.values()]))
        effects_of_values.append(Effect(key, value, list(having.values()), miou, difference, len(differences)))
    return effects_of_values


def _by_other_settings(key: str, value: str, groups: Sequence[Group]) -> Mapping[frozenset, Group]:
    """Return the groups with a value of a setting, by their other settings."""
    return {
        frozenset((name, part) for name, part in group.parts.items() if name != key): group
        for group in groups
        if group.parts.get(key) == value
    }


# Learning curves


class Curve(NamedTuple):
    """A group's curve: mean, minimum and maximum over its seeds, at the steps that all of its runs have."""

    group: Group
    steps: ndarray
    mean: ndarray
    low: ndarray
    high: ndarray


def curve(group: Group, name: str) -> Curve | None:
    """Return a group's curve; None if one of its runs lacks it, or if the runs share no step."""
    runs = [dict(run.curves[name].T.tolist()) for run in group.runs if name in run.curves]
    steps = sorted(set.intersection(*map(set, runs))) if len(runs) == len(group.runs) else []
    if not steps:
        return None
    table = np.array([[run[step] for step in steps] for run in runs])
    return Curve(group, np.array(steps), table.mean(axis=0), table.min(axis=0), table.max(axis=0))
