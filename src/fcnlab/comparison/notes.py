"""Notes of a comparison for its reader: what was selected, what is missing, and what is less reliable."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from numpy import ndarray

from fcnlab.comparison.best_of_many import SPLITS, best_of_many
from fcnlab.comparison.formats import counted, listed
from fcnlab.comparison.grouping import Group, GroupingRules, environments, groups_split_by_one_setting
from fcnlab.comparison.intervals import FEW_CLASS_IMAGES, FEWEST_IMAGES, FEWEST_SEEDS, are_rare
from fcnlab.comparison.pairs import MOST_GROUPS_FOR_ALL_PAIRS, Pair
from fcnlab.comparison.runs import Run
from fcnlab.config.overrides import format_path, shell_join
from fcnlab.files.reading import read_json_facts
from fcnlab.runs.origins import ENVIRONMENT, UNKNOWN

MOST_NOTES = 5  # of each kind
MOST_NAMED = 6  # classes in a note
MANY_GROUPS = 10  # with more groups, the selection of the best one is discussed
MANY_IMAGES = 100  # with fewer, intervals are less reliable
MOST_MISSING_SEEDS, MOST_LISTED_SEEDS = 50, 5


def of_groups(groups: Sequence[Group], baseline: Group | None, was_set: bool) -> list[str]:
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
            options = ", ".join(f"{setting}={value}" for value in values)
            notes.append(f"Not all runs were scored with the same {key}: {options}.")
    if all(len(group.runs) == 1 for group in groups):
        notes.append("Each group has only one seed: no interval over seeds, no claim about retraining.")
    elif any(len(group.runs) < FEWEST_SEEDS for group in groups):
        notes.append(
            "Groups with one or two seeds have no interval over seeds: these are too few for a claim about retraining."
        )
    if len({frozenset(group.seeds) for group in groups}) > 1:
        notes.append(
            "The groups have different seeds. A pair with three common seeds or more is compared on these. If it has"
            " fewer, all seeds of both groups are used, provided that both have three or more, or none in common. Any"
            " other pair is compared on its one or two common seeds. Scores are means over all seeds of a group."
        )
    return notes


def _scored_with(runs: Sequence[Run], key: str) -> list[str]:
    """Return the different values of a protocol entry: as options, or in full where these are not distinct."""
    options = {str(run.protocol.get(key)): run.options.get(key, str(run.protocol.get(key))) for run in runs}
    distinct = len(set(options.values())) == len(options)
    return sorted(options.values() if distinct else options)


def of_images(runs: Sequence[Run], compared: Sequence[Run], set_size: int) -> list[str]:
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


def of_reliability(pairs: Sequence[Pair], compared: Sequence[Run]) -> list[str]:
    """Return notes where intervals are less reliable, from the simulations in docs/explanation/comparing-runs.md."""
    judged, notes = [pair for pair in pairs if pair.interval], []
    if not judged:
        return notes
    having = np.max([(run.areas.union > 0).sum(axis=0) for run in compared], axis=0)
    if rare := of_rare_classes(compared[0].classes, having):
        notes.append(
            f"{rare} With such classes, 95 % intervals contained the true difference in only 82 to 96 % of simulations."
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
            f" of 5 %: {counted(len(liberal), 'pair')} of this comparison."
        )
    return notes


def of_rare_classes(classes: Sequence[str], images: ndarray) -> str | None:
    """Return sentences on the rare classes; ``images`` counts those with each class, in ground truth or prediction."""
    rare = [name for name, is_rare in zip(classes, are_rare(images), strict=True) if is_rare]
    if not rare:
        return None
    return (
        f"Fewer than {FEW_CLASS_IMAGES} images contain {listed(rare, MOST_NAMED)}. In the mIoU, a rare class has the"
        " same weight as any other, and other images might not contain it."
    )


def of_resamples(pairs: Sequence[Pair], resamples: int, needed: int) -> list[str]:
    """Return a note if the resamples are too few for any pair to be significant over images only."""
    if resamples >= needed or not any(pair.over_images and not pair.two_factor for pair in pairs):
        return []
    return [
        f"With {len(pairs)} pairs, {resamples} resamples are too few for a difference to be significant over images:"
        f" the smallest possible p value, corrected for the number of pairs, is not below {pairs[0].alpha:.2g}. Set"
        f" resamples={needed} or more, or compare fewer groups."
    ]


def of_selection(groups: Sequence[Group]) -> list[str]:
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
    return format_path(of_sweep[0]) if len(folders) == len(of_sweep) == 1 else None


def _new_seeds(runs: Sequence[Run], count: int) -> str:
    """Return an override with seeds that no run has."""
    first = max((run.seed for run in runs if run.seed is not None), default=0) + 1
    seeds = ",".join(map(str, range(first, first + count)))
    return f"seed={seeds if count <= MOST_LISTED_SEEDS else f'range({first},{first + count})'}"


def of_missing_seeds(pairs: Sequence[Pair], runs: Sequence[Run]) -> list[str]:
    """Return a note with the command that adds to a sweep as many seeds as one of the undecided pairs needs."""
    missing = [count for pair in pairs if (count := _missing_seeds(pair))]
    sweep = _sweep_of(runs) if missing else None
    if sweep is None:
        return []
    command = shell_join(["fcnlab", "train", "-m", f"sweep.extend={sweep}", _new_seeds(runs, min(missing))])
    return [f"More seeds might decide {counted(len(missing), 'pair')}. This command adds them to the sweep: {command}"]


def _missing_seeds(pair: Pair) -> int:
    """Return how many more seeds an undecided or untested pair needs; 0 if that is unknown, or more than is usual."""
    if pair.interval is None or None in (*pair.first.seeds, *pair.second.seeds):
        return 0
    if pair.two_factor is None:
        return max(FEWEST_SEEDS - min(pair.seeds), 0)
    needed = pair.design.seeds if pair.design and pair.verdict == "undecided" else None
    missing = (needed or 0) - pair.two_factor.fewest_seeds
    return missing if 0 < missing <= MOST_MISSING_SEEDS else 0


def of_other_seeds(groups: Sequence[Group], rules: GroupingRules) -> list[str]:
    """Return a note on each setting that alone splits groups with different seeds, perhaps unintentionally."""
    by_key: dict[str, list[tuple[Group, Group]]] = {}
    for key, *pair in groups_split_by_one_setting(groups, rules):
        by_key.setdefault(key, []).append((pair[0], pair[1]))
    notes = []
    for key, ((first, second), *others) in islice(by_key.items(), MOST_NOTES):
        more = f", and so do {counted(len(others), 'other pair')} of groups with different seeds" if others else ""
        notes.append(
            f"{_with_seeds(first)} and {_with_seeds(second)} differ only in {key}{more}. merge_over=[{key}] makes one"
            " group of those that differ in nothing else."
        )
    return notes


def _with_seeds(group: Group) -> str:
    return f"{group.name} (seed {', '.join(map(str, group.seeds))})"


def _short(value: str) -> str:
    """Return a value of the environment with the first digits of a commit only."""
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]{30}", r"\1", value)


def of_origins(groups: Sequence[Group], rules: GroupingRules, merged: Mapping[str, list[str]]) -> list[str]:
    by_values: dict[str, list[str]] = {}
    for key, values in merged.items():  # an evaluation repeats the settings of its training run
        by_values.setdefault(", ".join(map(str, values)), []).append(key)
    notes = [f"Runs are merged over {listed(keys, MOST_NAMED)}: {values}." for values, keys in by_values.items()]
    if any(GroupingRules.merges(key, "source") for group in groups for key in group.parts):
        notes.append(
            "Some group names contain source, because the code differs: it is a hash of the Python files of fcnlab and"
            f" of the packages that the settings name ({UNKNOWN}: a record without a hash). If the change of code does"
            " not affect the scores, set merge_over=[source] to ignore it."
        )
    for key in ENVIRONMENT:
        count = environments(groups, key)
        if len(count) > 1 and key not in rules.split_by:
            values = ", ".join(f"{_short(value)} ({counted(number, 'run')})" for value, number in count.items())
            notes.append(f"The runs differ in {key}: {values}. Set split_by=[{key}] to group them by it.")
    return notes
