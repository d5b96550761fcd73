"""A comparison: which runs are in it, their groups, which of these are compared, and what is to be said of that.

All numbers of one comparison are of the same images, those that all of its runs have.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison.comparability import restrict_to_common_images, split_comparable
from fcnlab.comparison.grouping import (
    ALWAYS,
    Group,
    GroupingRules,
    find_group,
    group,
    groups_split_by_one_setting,
    merged_values,
)
from fcnlab.comparison.intervals import FEWEST_IMAGES, FEWEST_SEEDS, resamples_needed
from fcnlab.comparison.pairs import Pair, Sampling, compare_pairs, match_seeds
from fcnlab.comparison.runs import ExcludedRun, Run
from fcnlab.errors import UserError
from fcnlab.runs.origins import ENVIRONMENT, SCORING, UNKNOWN
from fcnlab.runs.selection import notes as selection_notes

FEW = 5  # groups: so many are compared all with all
MANY_RUNS, RESAMPLES, RESAMPLES_OF_MANY = 100, 10_000, 2_000
MOST_NOTES = 5  # of one kind
LONGEST = 40  # characters of a name that has room everywhere


class Effect(NamedTuple):
    """A value of a swept setting: the mean mIoU of its groups, and how far it is from the setting's first value.

    ``matched`` counts the pairs of groups that agree in all else; their mean difference is None where there are none.
    """

    key: str
    value: str
    groups: list[Group]
    miou: float
    difference: float | None
    matched: int


@dataclass(frozen=True)
class Comparison:
    """Groups by falling mIoU, the pairs that were compared, and what was not.

    ``of`` is how many images the set has, as far as the records tell; ``scored`` how many each run's record has.
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
        """That each number is of."""
        return len(self.groups[0].runs[0].names)

    @property
    def scope(self) -> str:
        """What all numbers are of, for titles."""
        whole = f"{self.images} image{'s' if self.images != 1 else ''}"
        return f"{self.set}, {whole if self.images == self.of else f'{self.images} of {self.of} images'}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.groups[0].runs[0].classes

    @property
    def set(self) -> str:
        return str(self.groups[0].runs[0].protocol["set"])

    def label(self, found: Group) -> str:
        """What a group is called where its name has no room: its rank, if any name is long."""
        return self._labels[found.name]

    @cached_property
    def _labels(self) -> dict[str, str]:
        names = [found.name for found in self.groups]
        short = all(len(name) <= LONGEST for name in names)
        return {name: name if short else f"#{place}" for place, name in enumerate(names, start=1)}

    @property
    def selection(self) -> list[str]:
        """On which images the scored weights were selected, in sentences."""
        return selection_notes(run.selection for found in self.groups for run in found.runs)

    @property
    def runs(self) -> int:
        return sum(len(found.runs) for found in self.groups)


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    resamples: int | None = None,
    confidence: float = 0.95,
    division: GroupingRules = ALWAYS,
) -> Comparison:
    """Group the runs, compare each group with the baseline, or all with all where they are few.

    Raises
    ------
    UserError
        There are no runs; the baseline is none of the groups; runs are to be merged over what is no setting.
    """
    if not runs:
        raise UserError("no finished run was found: give runs=FOLDER, one that holds runs of fcnlab train or eval")
    found, left_out, merged = _on_same_images(runs, division)
    groups, _ = group(found, division)
    chosen = find_group(groups, baseline) if baseline else (groups[0] if len(groups) > FEW else None)
    against = [(one, chosen) for one in groups if chosen and one is not chosen] or _ranked_pairs(groups)
    needed = resamples_needed(len(against), 1 - confidence)
    resamples = resamples or _resamples(len(found), needed)
    pairs = compare_pairs(against, Sampling(len(found[0].names), resamples), confidence)
    most = _set_size([run for run in runs if run.protocol["set"] == found[0].protocol["set"]])
    return Comparison(
        groups=sorted(groups, key=lambda one: -one.mean()),
        baseline=chosen,
        pairs=sorted(pairs, key=lambda pair: -pair.difference),
        effects=effects(groups),
        left_out=left_out,
        notes=[
            *_notes(groups, chosen, given=baseline is not None),
            *_notes_of_images(runs, found, most),
            *_notes_of_resamples(pairs, resamples, needed),
            *_notes_of_seeds(groups, division),
            *_notes_of_origins(groups, division, merged),
        ],
        resamples=resamples,
        confidence=confidence,
        of=most,
        scored={run.folder: len(run.names) for run in runs},
    )


def _on_same_images(
    runs: Sequence[Run], division: GroupingRules
) -> tuple[list[Run], list[ExcludedRun], Mapping[str, list[str]]]:
    """The runs that are compared, each on the common images; those that are not; what settings are merged over.

    A run that was done twice is decided before, so that the smaller of two records takes no image from the others.
    """
    alike, refused = split_comparable(runs)
    merged = merged_values(alike, division.merge_over)
    _, repeats = group(alike, division)
    twice = {out.folder for out in repeats}
    found, apart = restrict_to_common_images([run for run in alike if run.folder not in twice])
    return found, [*refused, *repeats, *apart], merged


def _set_size(runs: Sequence[Run]) -> int:
    """How many images their set has, as far as the records tell: what they list, or name between them."""
    listed = [count for run in runs if isinstance(count := run.protocol.get("of"), int)]
    named = set().union(*{run.names for run in runs})
    return max([len(named), *listed])


def _ranked_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """All pairs, the better one first."""
    return list(combinations(sorted(groups, key=lambda found: -found.mean()), 2))


# What is to be said of it


def _notes(groups: Sequence[Group], baseline: Group | None, given: bool) -> list[str]:
    runs = [run for found in groups for run in found.runs]
    notes = []
    if baseline and not given:
        notes.append(
            f"There are more than {FEW} groups, so each is compared with one: with {baseline.name}, the first run's;"
            " baseline=NAME chooses another."
        )
    for key in ("precision", "inference", "postprocess"):
        kinds = sorted({str(run.protocol.get(key)) for run in runs})
        if len(kinds) > 1:
            notes.append(f"Not all runs were scored with the same {key}: {', '.join(kinds)}.")
    if all(len(found.runs) == 1 for found in groups):
        notes.append("Each group has one seed: there is no interval over seeds, and no claim about retraining.")
    elif any(len(found.runs) < FEWEST_SEEDS for found in groups):
        notes.append("Groups with one or two seeds have no interval over seeds: too few for a claim about retraining.")
    if len({frozenset(found.seeds) for found in groups}) > 1:
        notes.append(
            "The groups have different seeds. Two groups are compared by the runs of the seeds that both have (by all"
            " runs where they share none); scores are means over each group's own seeds."
        )
    return notes


def _notes_of_images(runs: Sequence[Run], found: Sequence[Run], most: int) -> list[str]:
    count, notes = len(found[0].names), []
    if count < FEWEST_IMAGES:
        notes.append(
            f"The runs have {count} images in common. There is no verdict on fewer than {FEWEST_IMAGES}: on so few,"
            " equal nets differ significantly more often than the level says."
        )
    kept = {run.folder for run in found}
    sizes = sorted(len(run.names) for run in runs if run.folder in kept)
    if sizes[-1] > count:
        notes.append(
            f"The runs were scored on different images (from {sizes[0]} to {sizes[-1]} of them). Every number here is"
            f" of the {count} that all have."
        )
    if count < most and any(run.published for run in found):
        notes.append("Published scores are of the whole set, and are not shown beside those of a part of it.")
    return notes


def _resamples(runs: int, needed: int) -> int:
    """How many are drawn by default: of many runs fewer, unless some more can show a pair to be significant."""
    if runs <= MANY_RUNS:
        return RESAMPLES
    return max(RESAMPLES_OF_MANY, needed) if needed <= RESAMPLES else RESAMPLES_OF_MANY


def _notes_of_resamples(pairs: Sequence[Pair], resamples: int, needed: int) -> list[str]:
    """Where no pair could be significant over images, whatever the runs."""
    if resamples >= needed or not any(pair.over_images for pair in pairs):
        return []
    return [
        f"With {len(pairs)} pairs, {resamples} resamples cannot show a difference to be significant over images: the"
        f" smallest p that they can give, corrected for so many pairs, is not below {pairs[0].alpha:.2g}. Give"
        f" resamples={needed} or more, or compare fewer groups."
    ]


def _notes_of_seeds(groups: Sequence[Group], division: GroupingRules) -> list[str]:
    """Where one setting keeps seeds from being pooled, which may not have been meant."""
    return [
        f"{one.name} (seed {', '.join(map(str, one.seeds))}) and {other.name} (seed {', '.join(map(str, other.seeds))})"
        f" differ in {key} alone: merge_over=[{key}] makes one group of them."
        for key, one, other in islice(groups_split_by_one_setting(groups, division), MOST_NOTES)
    ]


def _notes_of_origins(groups: Sequence[Group], division: GroupingRules, merged: Mapping[str, list[str]]) -> list[str]:
    notes = [f"Runs are merged over {key}: {', '.join(map(str, values))}." for key, values in merged.items()]
    if any(GroupingRules.merges(key, "source") for found in groups for key in found.parts):
        notes.append(
            "Some groups are named by their source: the same settings under other code, told apart by a hash of the"
            f" Python files of fcnlab and of the packages that the settings name ({UNKNOWN}: a record without one). If"
            " that change has no part in the scores, merge_over=[source] makes them one group."
        )
    for key in ENVIRONMENT:
        count = environments(groups, key)
        if len(count) > 1 and key not in division.split_by:
            said = ", ".join(f"{value} ({number} run{'s' if number > 1 else ''})" for value, number in count.items())
            notes.append(f"The runs differ in {key}: {said}; split_by=[{key}] makes groups of them.")
    return notes


def environments(groups: Sequence[Group], key: str) -> dict[str, int]:
    """The commits, torch versions or devices that the runs were trained or scored with, and of how many runs each."""
    runs = [run.environment for found in groups for run in found.runs]
    count = Counter(
        value for run in runs for value in {run.get(key, UNKNOWN), run.get(SCORING + key, run.get(key, UNKNOWN))}
    )
    return dict(sorted(count.items()))


# What a setting does


def effects(groups: Sequence[Group]) -> list[Effect]:
    """For each setting that the groups differ in, each of its values, in the order in which they ran."""
    keys = list(dict.fromkeys(key for found in groups for key in found.parts))
    return [effect for key in keys for effect in _effects_of(key, groups)]


def _effects_of(key: str, groups: Sequence[Group]) -> list[Effect]:
    values = list(dict.fromkeys(found.parts[key] for found in groups if key in found.parts))
    first = _by_rest(key, values[0], groups)
    found = []
    for value in values:
        having = _by_rest(key, value, groups)
        pairs = [match_seeds(having[rest], first[rest]) for rest in having if rest in first]
        shared = [ours.mean() - theirs.mean() for ours, theirs in pairs]
        difference = float(np.mean(shared)) if shared else None
        miou = float(np.mean([member.mean() for member in having.values()]))
        found.append(Effect(key, value, list(having.values()), miou, difference, len(shared)))
    return found


def _by_rest(key: str, value: str, groups: Sequence[Group]) -> Mapping[frozenset, Group]:
    """The groups that have a value, by what else they have."""
    return {
        frozenset((name, part) for name, part in found.parts.items() if name != key): found
        for found in groups
        if found.parts.get(key) == value
    }


# The way there


class Curve(NamedTuple):
    """A group's curve: the mean over its seeds, and the lowest and highest of them, at the steps that all have."""

    group: Group
    steps: ndarray
    mean: ndarray
    low: ndarray
    high: ndarray


def curve(found: Group, name: str) -> Curve | None:
    """None where one of its runs has no such curve, or they have no step in common."""
    runs = [dict(run.curves[name].T.tolist()) for run in found.runs if name in run.curves]
    steps = sorted(set.intersection(*map(set, runs))) if len(runs) == len(found.runs) else []
    if not steps:
        return None
    table = np.array([[run[step] for step in steps] for run in runs])
    return Curve(found, np.array(steps), table.mean(axis=0), table.min(axis=0), table.max(axis=0))
