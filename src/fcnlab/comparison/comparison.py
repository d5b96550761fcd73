"""Compare runs: select comparable runs, group them, compare the groups and collect notes for the reader.

All numbers of a comparison are computed on the same images, those that all of its runs share.
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

from fcnlab.comparison.best_of_many import SPLITS, best_of_many
from fcnlab.comparison.comparability import restrict_to_common_images, split_comparable
from fcnlab.comparison.folds import pool_folds
from fcnlab.comparison.grouping import (
    ALWAYS,
    Group,
    GroupingRules,
    find_group,
    group_runs,
    groups_split_by_one_setting,
    merged_values,
)
from fcnlab.comparison.intervals import FEWEST_IMAGES, FEWEST_SEEDS, resamples_needed
from fcnlab.comparison.names import with_names
from fcnlab.comparison.pairs import Pair, Sampling, compare_pairs, match_seeds
from fcnlab.comparison.runs import ExcludedRun, Run
from fcnlab.config.overrides import format_value, shell_join
from fcnlab.errors import UserError
from fcnlab.files.reading import display_path, read_json_facts
from fcnlab.runs.origins import ENVIRONMENT, SCORING, UNKNOWN
from fcnlab.runs.selection import notes as selection_notes

MOST_GROUPS_FOR_ALL_PAIRS = 5  # more groups are compared with a baseline only
MANY_RUNS, RESAMPLES, RESAMPLES_OF_MANY = 100, 10_000, 2_000
MOST_NOTES = 5  # of each kind
MANY_GROUPS = 10  # with more groups, the selection of the best one is discussed
FEW_IMAGES_OF_A_CLASS, MANY_IMAGES = 10, 100  # below these, intervals are less reliable
MOST_MISSING_SEEDS, MOST_LISTED_SEEDS = 50, 5
LONGEST_NAME = 40  # characters; longer names are replaced by ranks


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
            *_notes(groups, chosen, was_set=baseline is not None),
            *_notes_of_images(runs, compared, most),
            *_notes_of_more_seeds(pairs, compared),
            *_notes_of_reliability(pairs, compared),
            *_notes_of_resamples(pairs, resamples, needed),
            *_notes_of_selection(groups),
            *_notes_of_seeds(groups, rules),
            *_notes_of_origins(groups, rules, merged),
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


# Notes


def _notes(groups: Sequence[Group], baseline: Group | None, was_set: bool) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    notes = []
    if baseline and not was_set:
        notes.append(
            f"There are more than {MOST_GROUPS_FOR_ALL_PAIRS} groups, so each is compared only with the group of the"
            f" first run, {baseline.name}. Set baseline=NAME to choose another group."
        )
    for key, setting in {
        "precision": "trainer.precision",
        "inference": "inference",
        "postprocess": "postprocess",
    }.items():
        values = _scored_with(runs, key)
        if len(values) > 1:
            listed = ", ".join(f"{setting}={value}" for value in values)
            notes.append(f"Not all runs were scored with the same {key}: {listed}.")
    if all(len(group.runs) == 1 for group in groups):
        notes.append("Each group has only one seed: no interval over seeds, no claim about retraining.")
    elif any(len(group.runs) < FEWEST_SEEDS for group in groups):
        notes.append(
            "Groups with one or two seeds have no interval over seeds: these are too few for a claim about retraining."
        )
    if len({frozenset(group.seeds) for group in groups}) > 1:
        notes.append(
            "The groups have different seeds. Two groups are compared on the seeds that both have if these are three or"
            " more, otherwise on all runs if both have three or more, otherwise on the seeds that both have, or on all"
            " runs if they share none; scores are means over all seeds of a group."
        )
    return notes


def _scored_with(runs: Sequence[Run], key: str) -> list[str]:
    """Return the different values of a protocol entry: as options, or in full where these are not distinct."""
    options = {str(run.protocol.get(key)): run.options.get(key, str(run.protocol.get(key))) for run in runs}
    distinct = len(set(options.values())) == len(options)
    return sorted(options.values() if distinct else options)


def _notes_of_images(runs: Sequence[Run], compared: Sequence[Run], set_size: int) -> list[str]:
    count, notes = len(compared[0].names), []
    if count < FEWEST_IMAGES:
        notes.append(
            f"The runs have {count} images in common. No verdict is given on fewer than {FEWEST_IMAGES} images:"
            " intervals over so few images are unreliable."
        )
    kept = {run.folder for run in compared}
    sizes = sorted(len(run.names) for run in runs if run.folder in kept)
    if sizes[-1] > count:
        notes.append(
            f"The runs were scored on different images ({sizes[0]} to {sizes[-1]} per run). All numbers here are"
            f" computed on the {count} images that all runs share."
        )
    if count < set_size and any(run.published for run in compared):
        notes.append(
            "Published scores are not shown: they refer to the whole set, and this comparison covers only a part of it."
        )
    return notes


def _notes_of_reliability(pairs: Sequence[Pair], compared: Sequence[Run]) -> list[str]:
    """Return notes where intervals are less reliable, from the simulations in docs/explanation/comparing-runs.md."""
    judged, notes = [pair for pair in pairs if pair.interval], []
    if not judged:
        return notes
    having = np.max([(run.areas.union > 0).sum(axis=0) for run in compared], axis=0)
    rare = [name for name, count in zip(compared[0].classes, having, strict=True) if 0 < count < FEW_IMAGES_OF_A_CLASS]
    if rare:
        notes.append(
            f"Fewer than {FEW_IMAGES_OF_A_CLASS} images have {_some_names(rare)}. Each of these classes has the weight"
            " of any other in the mIoU, and many sets of images would not have all of them: 95 % intervals then contain"
            " the true difference in 82 to 96 % of simulations."
        )
    if judged[0].images < MANY_IMAGES:
        notes.append(
            f"On fewer than {MANY_IMAGES} images, 95 % intervals contain the true difference in 89 to 96 % of"
            " simulations."
        )
    liberal = [pair for pair in judged if pair.liberal]
    if liberal:
        notes.append(
            "With three seeds, where seeds vary more than images, 6 to 8 % of equal groups differ significantly instead"
            f" of 5 %: {_counted_pairs(len(liberal))} of this comparison."
        )
    return notes


def _some_names(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} other classes" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _counted_pairs(count: int) -> str:
    return f"{count} pair{'s' if count > 1 else ''}"


def _resamples(runs: int, needed: int) -> int:
    """Return the default number of resamples: fewer for many runs, unless significance then becomes impossible."""
    if runs <= MANY_RUNS:
        return RESAMPLES
    return max(RESAMPLES_OF_MANY, needed) if needed <= RESAMPLES else RESAMPLES_OF_MANY


def _notes_of_resamples(pairs: Sequence[Pair], resamples: int, needed: int) -> list[str]:
    """Return a note if the resamples are too few for any pair to be significant over images only."""
    if resamples >= needed or not any(pair.over_images and not pair.two_factor for pair in pairs):
        return []
    return [
        f"With {len(pairs)} pairs, {resamples} resamples are too few for a difference to be significant over images:"
        f" the smallest possible p value, corrected for the number of pairs, is not below {pairs[0].alpha:.2g}. Set"
        f" resamples={needed} or more, or compare fewer groups."
    ]


def _notes_of_selection(groups: Sequence[Group]) -> list[str]:
    """Return a note on the score of the best of many groups, and how to train the best ones with new seeds."""
    runs = [run for group in groups for run in group.runs]
    if len(groups) <= MANY_GROUPS or len(runs[0].names) < FEWEST_IMAGES:
        return []
    best = best_of_many([[run.areas for run in group.runs] for group in groups])
    one_seed = any(len(group.runs) == 1 for group in groups)
    luck = " Groups with one seed are selected and scored with it, so this includes its luck." if one_seed else ""
    return [
        f"The best of {len(groups)} groups is selected by chance in part, so its mIoU of {100 * best.observed:.2f} % is"
        " too high. If the best group is selected on half of the images and all seeds but one, it has"
        f" {100 * best.held_out:.2f} % on the other half and the other seed, as the mean of {2 * SPLITS} such"
        f" selections.{luck} To exclude the luck of the seeds, train the best groups again with new ones:"
        f" {confirm_command(runs)}"
    ]


def confirm_command(runs: Sequence[Run]) -> str:
    """Return the command that trains the best settings of a sweep with seeds that no run has."""
    words = [f"sweep.confirm={_sweep_of(runs) or 'FOLDER'}", "sweep.best=3", _new_seeds(runs, 3)]
    return shell_join(["fcnlab", "train", "-m", *words])


def _sweep_of(runs: Sequence[Run]) -> str | None:
    """Return the sweep of training runs whose jobs all runs are; None if there is none."""
    folders = {run.folder.parent for run in runs}
    of_sweep = [folder for folder in folders if read_json_facts(folder, "sweep.json").get("verb") == "train"]
    return format_value(display_path(of_sweep[0])) if len(folders) == len(of_sweep) == 1 else None


def _new_seeds(runs: Sequence[Run], count: int) -> str:
    """Return an override with seeds that no run has."""
    first = max((run.seed for run in runs if run.seed is not None), default=0) + 1
    listed = ",".join(map(str, range(first, first + count)))
    return f"seed={listed if count <= MOST_LISTED_SEEDS else f'range({first},{first + count})'}"


def _notes_of_more_seeds(pairs: Sequence[Pair], runs: Sequence[Run]) -> list[str]:
    """Return a note with the command that adds to a sweep as many seeds as one of the undecided pairs needs."""
    missing = [count for pair in pairs if (count := _missing_seeds(pair))]
    sweep = _sweep_of(runs) if missing else None
    if sweep is None:
        return []
    command = shell_join(["fcnlab", "train", "-m", f"sweep.extend={sweep}", _new_seeds(runs, min(missing))])
    return [f"More seeds might decide {_counted_pairs(len(missing))}. This command adds them to the sweep: {command}"]


def _missing_seeds(pair: Pair) -> int:
    """Return how many more seeds an undecided or untested pair needs; 0 if that is unknown, or more than is usual."""
    if pair.interval is None or None in (*pair.first.seeds, *pair.second.seeds):
        return 0
    if pair.two_factor is None:
        return max(FEWEST_SEEDS - min(pair.seeds), 0)
    needed = pair.design.seeds if pair.design and pair.verdict == "undecided" else None
    missing = (needed or 0) - pair.two_factor.fewest_seeds
    return missing if 0 < missing <= MOST_MISSING_SEEDS else 0


def _notes_of_seeds(groups: Sequence[Group], rules: GroupingRules) -> list[str]:
    """Return a note for groups with different seeds that differ in one setting only, perhaps unintentionally."""
    return [
        f"{_with_seeds(first)} and {_with_seeds(second)} differ only in {key}."
        f" Set merge_over=[{key}] to make them one group."
        for key, first, second in islice(groups_split_by_one_setting(groups, rules), MOST_NOTES)
    ]


def _with_seeds(group: Group) -> str:
    return f"{group.name} (seed {', '.join(map(str, group.seeds))})"


def _notes_of_origins(groups: Sequence[Group], rules: GroupingRules, merged: Mapping[str, list[str]]) -> list[str]:
    notes = [f"Runs are merged over {key}: {', '.join(map(str, values))}." for key, values in merged.items()]
    if any(GroupingRules.merges(key, "source") for group in groups for key in group.parts):
        notes.append(
            "Some group names contain source, because the code differs: it is a hash of the Python files of fcnlab and"
            f" of the packages that the settings name ({UNKNOWN}: a record without a hash). If the change of code does"
            " not affect the scores, set merge_over=[source] to ignore it."
        )
    for key in ENVIRONMENT:
        count = environments(groups, key)
        if len(count) > 1 and key not in rules.split_by:
            values = ", ".join(f"{value} ({number} run{'s' if number > 1 else ''})" for value, number in count.items())
            notes.append(f"The runs differ in {key}: {values}. Set split_by=[{key}] to group them by it.")
    return notes


def environments(groups: Sequence[Group], key: str) -> dict[str, int]:
    """Count the runs by commit, torch version or device, of training and of evaluation."""
    runs = [run.environment for group in groups for run in group.runs]
    count = Counter(
        value for run in runs for value in {run.get(key, UNKNOWN), run.get(SCORING + key, run.get(key, UNKNOWN))}
    )
    return dict(sorted(count.items()))


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
        pairs = [match_seeds(having[others], first[others]) for others in having if others in first]
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
