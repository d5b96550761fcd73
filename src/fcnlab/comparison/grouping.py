"""Runs that differ in their seed alone are one group; a group is named by what sets it apart from the others."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison.runs import ExcludedRun, Run
from fcnlab.config.components import Settings
from fcnlab.errors import UserError
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.origins import SCORING
from fcnlab.runs.settings import DIGITS, in_few_digits

ALL = "all runs"  # the name of a group that is alone


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed; ``parts`` is what sets it apart, as the words that would be typed."""

    parts: dict[str, str]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.parts.items()) or ALL

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(run.seed for run in self.runs)

    def values(self, score: str) -> ndarray:
        """A score of each run."""
        return np.array([getattr(run.scores, score) for run in self.runs])

    def mean(self, score: str = "miou") -> float:
        return float(self.values(score).mean())

    def spread(self, score: str = "miou") -> float | None:
        """The standard deviation over seeds; None for one."""
        return float(self.values(score).std(ddof=1)) if len(self.runs) > 1 else None

    def iou(self) -> ndarray:
        """Of each class, over the runs that have one; nan where none has."""
        return mean_of_known([run.scores.iou for run in self.runs])

    def cost(self, name: str) -> float | None:
        """The mean over the runs that tell it."""
        known = [run.cost[name] for run in self.runs if name in run.cost]
        return sum(known) / len(known) if known else None

    def published(self) -> dict[str, float]:
        """Scores that the experiment says were published, in percent."""
        return {name: value for name, value in self.runs[0].published.items() if name in SCORES}


def mean_of_known(rows: Sequence[ndarray]) -> ndarray:
    """The mean of each column over what is no nan; nan where nothing is."""
    table = np.array(rows)
    count = (~np.isnan(table)).sum(axis=0)
    return np.divide(np.nansum(table, axis=0), count, out=np.full(table.shape[1:], np.nan), where=count > 0)


class GroupingRules(NamedTuple):
    """What makes groups beside the settings that always do, and which settings make none."""

    split_by: tuple[str, ...] = ()  # some of ENVIRONMENT
    merge_over: tuple[str, ...] = ()  # settings, or the beginnings of their paths

    def settings(self, run: Run) -> Settings:
        """What tells a run from those of other groups."""
        added = {key: value for key, value in run.environment.items() if key.removeprefix(SCORING) in self.split_by}
        every = added | run.options | run.settings
        return {
            key: value for key, value in every.items() if not any(self.merges(key, word) for word in self.merge_over)
        }

    @staticmethod
    def merges(key: str, word: str) -> bool:
        """Whether a setting is one that a word means; ``source`` is the training's code and the scoring's."""
        path = key.replace("/", ".")
        return any(f"{each}.".startswith(f"{word}.") for each in (path, path.removeprefix(SCORING)))


ALWAYS = GroupingRules()


def group(runs: Sequence[Run], division: GroupingRules = ALWAYS) -> tuple[list[Group], list[ExcludedRun]]:
    """The groups in the order of their first runs, and runs that were done twice, of which one counts."""
    described = [division.settings(run) for run in runs]
    keys = _differing(described)
    blocks: dict[tuple, list[int]] = {}
    for place, settings in enumerate(described):
        blocks.setdefault(_values(settings, keys), []).append(place)
    firsts = [described[places[0]] for places in blocks.values()]
    names = _naming(keys, firsts, {key for run in runs for key in run.typed})
    groups, repeats = [], []
    for settings, places in zip(firsts, blocks.values(), strict=True):
        kept, others = _one_for_each_seed([runs[place] for place in places])
        groups.append(Group({key: word(settings[key]) for key in names if key in settings}, tuple(kept)))
        repeats += others
    return groups, repeats


def merged_values(runs: Sequence[Run], merge_over: Sequence[str]) -> dict[str, list[str]]:
    """The settings that runs are merged over, and the values of each that were found.

    Raises
    ------
    UserError
        A word means no setting in which the runs differ.
    """
    described = [run.options | run.settings for run in runs]
    differing = {key: _found(described, key) for key in _differing(described)}
    merged = {}
    for wanted in merge_over:
        meant = {key: values for key, values in differing.items() if GroupingRules.merges(key, wanted)}
        if not meant:
            there = f"they differ in {_some(list(differing))}" if differing else "they differ in none"
            raise UserError(f"merge_over={wanted} is no setting in which these runs differ; {there}")
        merged |= meant
    return merged


def _found(described: Sequence[Settings], key: str) -> list[str]:
    kinds = {_kind(settings.get(key)): settings for settings in reversed(described)}
    return [word(settings[key]) if key in settings else "not set" for settings in reversed(kinds.values())]


def _differing(described: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for settings in described for key in settings)
    return [key for key in keys if _count(described, [key]) > 1]


def _values(settings: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(_kind(settings.get(key)) for key in keys)


def _kind(value: Any) -> str:
    """Equal for what is one setting: 0 and 0.0, 0.3 and a sum of 0.1, null and a missing key."""
    if isinstance(value, list):
        return f"[{','.join(map(_kind, value))}]"
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else word(value)


def _count(described: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    """How many kinds some settings tell apart."""
    return len({_values(settings, keys) for settings in described})


def word(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, float):
        return str(in_few_digits(value))
    return "null" if value is None else str(value)


def _naming(keys: Sequence[str], blocks: Sequence[dict[str, Any]], typed: set[str]) -> list[str]:
    """Which of the differing settings make a name: as few as tell all groups apart, those that a user chose first.

    An option stands for the values that come with it, an experiment for its options, and how a training scored itself
    (``scoring.*``) comes with the training's own settings.
    """
    options = [key for key in keys if _is_option(key)]
    covers = (SCORING, *(f"{option.replace('/', '.')}." for option in options))
    free = [key for key in keys if not _is_option(key) and not key.startswith(covers)]
    rest = sorted((key for key in keys if key not in options and key not in free), key=lambda key: key not in typed)
    names = ["experiment"] if "experiment" in keys else [*options, *free]
    for key in (*options, *free, *rest):
        if key not in names and _count(blocks, [*names, key]) > _count(blocks, names):
            names.append(key)
    return [key for key in keys if key in names]


def _is_option(key: str) -> bool:
    return "." not in key and key not in ("checkpoint", "seed")


def _one_for_each_seed(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """The run of each seed that was scored on most images; of equal ones a training's own record, then the newest."""
    by_seed: dict[int | None, list[Run]] = {}
    ranked = [(len(run.names), bool(run.curves), run.ended, place) for place, run in enumerate(runs)]
    for *_, place in sorted(ranked, reverse=True):
        run = runs[place]
        by_seed.setdefault(run.seed, []).append(run)
    seeds = sorted(by_seed, key=lambda seed: (seed is None, seed or 0))
    kept = [_with_its_training(*by_seed[seed]) for seed in seeds]
    others = [
        ExcludedRun(run.folder, _why_not(run, by_seed[run.seed][0])) for run in runs if run is not by_seed[run.seed][0]
    ]
    return kept, others


def _with_its_training(run: Run, *others: Run) -> Run:
    """An evaluation with the curves and the cost of the training itself, if that was done with the same settings."""
    training = next((other for other in others if other.curves and not run.curves), None)
    return replace(run, curves=training.curves, cost=training.cost | run.cost) if training else run


def _why_not(run: Run, taken: Run) -> str:
    fewer = len(taken.names) - len(run.names)
    if fewer:
        count = f"{len(run.names)} images, {len(taken.names)} in {taken.folder}"
        return f"scored on {count}, with the same settings and seed: the larger record counts"
    unlike = sorted(
        key for key in run.settings | taken.settings if _kind(run.settings.get(key)) != _kind(taken.settings.get(key))
    )
    if unlike:  # merge_over takes them for one
        values = ", ".join(f"{key}={_told(run, key)}, there {_told(taken, key)}" for key in unlike[:2])
        return f"the same seed as {taken.folder}, with which it is merged ({values}): the one that ended last counts"
    if any(one and other and one != other for one, other in zip(run.weights, taken.weights, strict=True)):
        return (
            f"the same settings and seed as {taken.folder}, but other weights: of two trainings, or of two moments of"
            " one. The one that ended last counts; compare them apart"
        )
    return f"done again with the same settings and seed in {taken.folder}"


def _told(run: Run, key: str) -> str:
    return word(run.settings[key]) if key in run.settings else "not set"


def groups_split_by_one_setting(
    groups: Sequence[Group], division: GroupingRules = ALWAYS
) -> Iterator[tuple[str, Group, Group]]:
    """Pairs of groups without a common seed that one setting alone sets apart, with that setting's name.

    Perhaps they were meant as one group, whose seeds would be pooled. A scoring may repeat the setting.
    """
    described = [division.settings(found.runs[0]) for found in groups]
    keys = list(dict.fromkeys(key.removeprefix(SCORING) for key in _differing(described)))
    told = [[_values(settings, (key, f"{SCORING}{key}")) for key in keys] for settings in described]
    for place, key in enumerate(keys):
        alike: dict[tuple, list[Group]] = {}
        for found, values in zip(groups, told, strict=True):
            alike.setdefault((*values[:place], *values[place + 1 :]), []).append(found)
        pairs = (pair for same in alike.values() for pair in combinations(same, 2) if not _is_option(key))
        yield from ((key, one, other) for one, other in pairs if not set(one.seeds) & set(other.seeds))


def find_group(groups: Sequence[Group], wanted: str) -> Group:
    """The group that a name means: all of it, or so many of its words or values that no other has them.

    Raises
    ------
    UserError
        None is meant, or several are.
    """
    exact = [found for found in groups if found.name == wanted]
    words = set(wanted.split())
    meant = exact or [found for found in groups if words and words <= set(_words(found))]
    if len(meant) == 1:
        return meant[0]
    problem = "is no group" if not meant else f"means {len(meant)} groups"
    raise UserError(f"baseline={wanted} {problem}; there are: {_some([found.name for found in groups])}")


def _words(found: Group) -> Iterable[str]:
    yield from found.name.split()
    yield from found.parts.values()


def _some(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
