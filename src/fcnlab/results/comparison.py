"""Which group of runs is better, and how sure that is.

Two questions that need two answers: would the difference hold on other pictures (a paired bootstrap over pictures, of
these trained nets), and would it hold for other trainings (a t interval over seeds)?
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.errors import UserError
from fcnlab.results.grouping import Group, choose, group
from fcnlab.results.intervals import (
    FEWEST_SEEDS,
    Interval,
    draws,
    holm,
    mean_iou,
    over_pictures,
    over_seeds,
    resampled_miou,
)
from fcnlab.results.runs import SAME, LeftOut, Run
from fcnlab.results.selection import notes as selection_notes

FEW = 5  # groups: so many are compared all with all
MANY_RUNS, RESAMPLES, RESAMPLES_OF_MANY = 100, 10_000, 2_000
MOST_PICTURES = 10  # that are named for a pair
LONGEST = 40  # characters of a name that has room everywhere


@dataclass(frozen=True)
class Pair:
    """One group against another: positive numbers say that the first is better.

    ``p_pictures`` and ``p_seeds`` are corrected for the number of pairs; ``apart`` are the pictures on which the two
    differ most: name, mean IoU of the first and of the other on it.
    """

    one: Group
    other: Group
    pictures: int
    over_pictures: Interval
    seed_differences: dict[int, float]
    over_seeds: Interval | None
    p_pictures: float
    p_seeds: float | None
    apart: list[tuple[str, float, float]]
    alpha: float

    @property
    def sure_of_pictures(self) -> bool:
        return self.p_pictures < self.alpha

    @property
    def sure_of_seeds(self) -> bool | None:
        """None where the seeds are too few to judge."""
        return None if self.p_seeds is None else self.p_seeds < self.alpha

    @property
    def agree(self) -> bool:
        return self.over_seeds is None or self.over_seeds.value * self.over_pictures.value > 0

    @property
    def leader(self) -> Group:
        return self.one if self.over_pictures.value > 0 else self.other

    @property
    def better(self) -> Group | None:
        """The one that is better on other pictures and, as far as that can be said, in other trainings."""
        undecided = not self.sure_of_pictures or self.sure_of_seeds is False or not self.agree
        return None if undecided else self.leader

    @property
    def verdict(self) -> str:
        """Of the first against the other; ``as trained`` where there are too few seeds to speak of other trainings."""
        ahead = self.leader is self.one
        if not self.sure_of_pictures:
            return "not told apart"
        if not self.better:
            return f"{'ahead' if ahead else 'behind'}, not surely"
        return ("better" if ahead else "worse") + ("" if self.sure_of_seeds else " as trained")

    @property
    def of_trainings(self) -> str:
        """What the seeds say."""
        count = len(self.seed_differences)
        if count == 0:
            return "no seed in common: nothing is known of other trainings"
        if count == 1:
            return "one seed: nothing is known of other trainings"
        if count < FEWEST_SEEDS:
            return "two seeds: shown, too few to judge"
        if not self.sure_of_seeds:
            return f"{count} seeds: another training could turn it"
        return f"{count} seeds: holds for other trainings" if self.agree else f"{count} seeds: say the opposite"


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
    """Groups by falling mIoU, the pairs that were compared, and what was not."""

    groups: list[Group]
    baseline: Group | None
    pairs: list[Pair]
    effects: list[Effect]
    left_out: list[LeftOut]
    notes: list[str]
    resamples: int
    confidence: float

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
) -> Comparison:
    """Group the runs, compare each group with the baseline, or all with all where they are few.

    Raises
    ------
    UserError
        There are no runs; the baseline is none of the groups.
    """
    if not runs:
        raise UserError("no finished run was found: give runs=FOLDER, one that holds runs of fcnlab train or eval")
    alike, refused = only_comparable(runs)
    groups, repeats = group(alike)
    resamples = resamples or (RESAMPLES if len(alike) <= MANY_RUNS else RESAMPLES_OF_MANY)
    chosen = choose(groups, baseline) if baseline else (groups[0] if len(groups) > FEW else None)
    against = [(found, chosen) for found in groups if chosen and found is not chosen] or _ranked_pairs(groups)
    sampling = Sampling(resamples)
    pairs, apart = _judged(against, sampling, confidence)
    return Comparison(
        groups=sorted(groups, key=lambda found: -found.mean()),
        baseline=chosen,
        pairs=sorted(pairs, key=lambda pair: -pair.over_pictures.value),
        effects=effects(groups),
        left_out=[*refused, *repeats],
        notes=[*_notes(groups, chosen, given=baseline is not None), *apart],
        resamples=resamples,
        confidence=confidence,
    )


def _ranked_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """All pairs, the better one first."""
    return list(combinations(sorted(groups, key=lambda found: -found.mean()), 2))


# Which runs mean the same by their numbers


def only_comparable(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs whose numbers mean what those of most runs do, and the others with what is different.

    The classes, the protocol and the truth of each picture must be the same; the pictures need not all be.
    """
    kinds = [_kind(run) for run in runs]
    usual = Counter(kinds).most_common(1)[0][0]
    reference = runs[kinds.index(usual)]
    alike, refused = [], []
    for run, kind in zip(runs, kinds, strict=True):
        difference = None if kind == usual else _difference(run, reference)
        if difference:
            refused.append(LeftOut(run.folder, f"not comparable: {difference}"))
        else:
            alike.append(run)
    return alike, refused


def _kind(run: Run) -> tuple:
    truth = hashlib.sha256(run.areas.truth.tobytes()).digest()
    return run.classes, *(str(run.protocol.get(key)) for key in SAME), run.names, truth


def _difference(run: Run, reference: Run) -> str | None:
    where = f"in {reference.folder}"
    for key in SAME:
        ours, usual = str(run.protocol.get(key)), str(reference.protocol.get(key))
        if ours != usual:
            return f"its {key.replace('_', ' ')} is {ours!r}, {usual!r} {where}"
    if run.classes != reference.classes:
        lacking = set(reference.classes) ^ set(run.classes)
        what = f"they differ in {', '.join(sorted(lacking)[:4])}" if lacking else "their order differs"
        return f"it has {len(run.classes)} classes, {len(reference.classes)} {where}: {what}"
    common = _common([run, reference])
    if not common:
        return f"it has no picture in common with {reference.folder}"
    truths = [_rows(one, common, one.areas.truth) for one in (run, reference)]
    other = np.flatnonzero((truths[0] != truths[1]).any(axis=1))
    if len(other):
        return f"the labels of {len(other)} of its pictures, such as {common[other[0]]}, are others than {where}"
    return None


def _common(runs: Sequence[Run]) -> tuple[str, ...]:
    """The pictures that all have, in the order of the first."""
    if all(run.names == runs[0].names for run in runs):
        return runs[0].names
    shared = set.intersection(*(set(run.names) for run in runs))
    return tuple(name for name in runs[0].names if name in shared)


def _rows(run: Run, names: tuple[str, ...], areas: ndarray) -> ndarray:
    """The rows of some pictures."""
    if names == run.names:
        return areas
    places = {name: place for place, name in enumerate(run.names)}
    return areas[[places[name] for name in names]]


def _notes(groups: Sequence[Group], baseline: Group | None, given: bool) -> list[str]:
    runs = [run for found in groups for run in found.runs]
    notes = []
    if baseline and not given:
        notes.append(
            f"There are more than {FEW} groups, so each is compared with one: with {baseline.name}, the first run's;"
            " baseline=NAME chooses another."
        )
    if any(run.names != runs[0].names for run in runs):
        sizes = sorted({len(run.names) for run in runs})
        notes.append(
            f"The runs were scored on different pictures (from {sizes[0]} to {sizes[-1]} of them). Scores are each"
            " run's own; two groups are compared on the pictures that both have."
        )
    for key, what in (("precision", "precision"), ("refinement", "refinement")):
        kinds = sorted({str(run.protocol.get(key)) for run in runs})
        if len(kinds) > 1:
            notes.append(f"Not all runs were scored with the same {what}: {', '.join(kinds)}.")
    if all(len(found.runs) == 1 for found in groups):
        notes.append(
            "Each group has one seed: there is no interval over seeds, and nothing is known of other trainings."
        )
    elif any(len(found.runs) < FEWEST_SEEDS for found in groups):
        notes.append("Groups with one or two seeds have no interval over seeds: too few to judge other trainings by.")
    return notes


# How sure a difference is


class Sampling:
    """The resamples that all groups share, so that their differences are paired."""

    def __init__(self, resamples: int):
        self.resamples = resamples
        self._counts: dict[int, ndarray] = {}
        self._mious: dict[tuple[str, int], ndarray] = {}

    def miou(self, found: Group, names: tuple[str, ...]) -> tuple[float, ndarray]:
        """A group's mean IoU on some pictures: as it is, and in each resample; the mean over its seeds."""
        key = found.name, hash(names)
        if key not in self._mious:
            self._mious[key] = np.mean([self._run(run, names) for run in found.runs], axis=0)
        return float(self._mious[key][0]), self._mious[key][1:]

    def _run(self, run: Run, names: tuple[str, ...]) -> ndarray:
        hits, union = (_rows(run, names, area) for area in (run.areas.hits, run.areas.union))
        if len(names) not in self._counts:
            self._counts[len(names)] = draws(len(names), self.resamples)
        resampled = resampled_miou(self._counts[len(names)], hits, union)
        return np.concatenate([[mean_iou(hits.sum(axis=0), union.sum(axis=0))], resampled])


def _judged(
    against: Sequence[tuple[Group, Group]], sampling: Sampling, confidence: float
) -> tuple[list[Pair], list[str]]:
    """The pairs with their p values corrected for all of them, and what is to be said of pairs that are none."""
    pairs, notes = [], []
    for one, other in against:
        names = _common([*one.runs, *other.runs])
        if names:
            pairs.append(_pair(one, other, names, sampling, confidence))
        else:
            notes.append(f"{one.name} and {other.name} have no picture in common and are not compared.")
    pictures = holm([pair.over_pictures.p for pair in pairs])
    pairs = [replace(pair, p_pictures=p) for pair, p in zip(pairs, pictures, strict=True)]
    seeded = [place for place, pair in enumerate(pairs) if pair.over_seeds]
    for place, p in zip(seeded, holm([pairs[place].over_seeds.p for place in seeded]), strict=True):
        pairs[place] = replace(pairs[place], p_seeds=p)
    return pairs, notes


def _pair(one: Group, other: Group, names: tuple[str, ...], sampling: Sampling, confidence: float) -> Pair:
    (ours, our_resampled), (theirs, their_resampled) = (sampling.miou(found, names) for found in (one, other))
    pictures = over_pictures(ours - theirs, our_resampled - their_resampled, confidence)
    differences = _seed_differences(one, other, names)
    return Pair(
        one=one,
        other=other,
        pictures=len(names),
        over_pictures=pictures,
        seed_differences=differences,
        over_seeds=over_seeds(list(differences.values()), confidence),
        p_pictures=pictures.p,
        p_seeds=None,
        apart=_furthest_apart(one, other, names),
        alpha=1 - confidence,
    )


def _seed_differences(one: Group, other: Group, names: tuple[str, ...]) -> dict[int, float]:
    """By seed, of the seeds that both groups have."""
    ours, theirs = ({run.seed: run for run in found.runs if run.seed is not None} for found in (one, other))
    return {seed: _miou(ours[seed], names) - _miou(theirs[seed], names) for seed in ours if seed in theirs}


def _miou(run: Run, names: tuple[str, ...]) -> float:
    hits, union = (_rows(run, names, area).sum(axis=0) for area in (run.areas.hits, run.areas.union))
    return float(mean_iou(hits, union))


def _furthest_apart(one: Group, other: Group, names: tuple[str, ...]) -> list[tuple[str, float, float]]:
    ours, theirs = (picture_scores(found, names) for found in (one, other))
    order = np.argsort(-np.nan_to_num(np.abs(ours - theirs)), kind="stable")[:MOST_PICTURES]
    return [(names[place], float(ours[place]), float(theirs[place])) for place in order if ours[place] != theirs[place]]


def picture_scores(found: Group, names: tuple[str, ...]) -> ndarray:
    """The mean IoU of each picture by itself, over the group's seeds; nan where a picture is all void."""
    areas = [(_rows(run, names, run.areas.hits), _rows(run, names, run.areas.union)) for run in found.runs]
    return np.mean([mean_iou(hits, union) for hits, union in areas], axis=0)


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
        shared = [having[rest].mean() - first[rest].mean() for rest in having.keys() & first.keys()]
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
