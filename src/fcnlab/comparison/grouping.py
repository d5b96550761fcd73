"""Group runs that differ only in their seed, and name each group by the settings in which the groups differ."""

from collections import Counter
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
from fcnlab.runs.origins import SCORING, UNKNOWN
from fcnlab.runs.settings import DIGITS, in_few_digits

ONLY_GROUP = "all runs"  # the name of the only group


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed.

    ``parts`` are the settings that distinguish it, as they would be typed. ``title`` is a name for readers, which no
    other group of the comparison has.
    """

    parts: dict[str, str]
    runs: tuple[Run, ...]
    title: str | None = None

    def __repr__(self) -> str:
        runs = f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        return f"<Group: {self.name}, {runs}, mIoU {100 * self.mean():.2f} %>"

    @property
    def name(self) -> str:
        """The title, or else the settings that distinguish the group."""
        return self.title or self.settings_name

    @property
    def settings_name(self) -> str:
        """The settings that distinguish the group, with all values as they are."""
        return " ".join(f"{key}={value}" for key, value in self.parts.items()) or ONLY_GROUP

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(run.seed for run in self.runs)

    def values(self, score: str) -> ndarray:
        """Return a score of each run."""
        return np.array([run.score(score) for run in self.runs])

    def mean(self, score: str = "miou") -> float:
        return float(self.values(score).mean())

    def spread(self, score: str = "miou") -> float | None:
        """Return the standard deviation over seeds; None for a single run."""
        return float(self.values(score).std(ddof=1)) if len(self.runs) > 1 else None

    def iou(self) -> ndarray:
        """Return the mean IoU of each class over the runs that contain it; nan if none does."""
        return mean_of_known([run.scores.iou for run in self.runs])

    def cost(self, name: str) -> float | None:
        """Return the mean of a cost over the runs that recorded it; None if none did."""
        known = [run.cost[name] for run in self.runs if name in run.cost]
        return sum(known) / len(known) if known else None

    def published(self) -> dict[str, float]:
        """Return the published scores that the experiment quotes, in percent."""
        return {name: value for name, value in self.runs[0].published.items() if name in SCORES}


def mean_of_known(rows: Sequence[ndarray]) -> ndarray:
    """Return the mean of each column, ignoring nan; nan for a column of nan only."""
    table = np.array(rows)
    count = (~np.isnan(table)).sum(axis=0)
    return np.divide(np.nansum(table, axis=0), count, out=np.full(table.shape[1:], np.nan), where=count > 0)


class GroupingRules(NamedTuple):
    """Which environment facts split groups in addition to the settings, and which settings are ignored."""

    split_by: tuple[str, ...] = ()  # some of ENVIRONMENT
    merge_over: tuple[str, ...] = ()  # settings, or prefixes of their paths

    def settings(self, run: Run) -> Settings:
        """Return the settings that assign a run to a group."""
        added = {key: value for key, value in run.environment.items() if key.removeprefix(SCORING) in self.split_by}
        every = added | run.options | run.settings
        return {
            key: value for key, value in every.items() if not any(self.merges(key, word) for word in self.merge_over)
        }

    @staticmethod
    def merges(key: str, word: str) -> bool:
        """Return whether a word names a setting; ``source`` means the code of both training and evaluation."""
        path = key.replace("/", ".")
        return any(f"{each}.".startswith(f"{word}.") for each in (path, path.removeprefix(SCORING)))


ALWAYS = GroupingRules()


def group_runs(runs: Sequence[Run], rules: GroupingRules = ALWAYS) -> tuple[list[Group], list[ExcludedRun]]:
    """Return the groups in the order of their first runs, and repeated runs, which are excluded."""
    described = [rules.settings(run) for run in runs]
    keys = _differing(described)
    blocks: dict[tuple, list[int]] = {}
    for place, settings in enumerate(described):
        blocks.setdefault(_values(settings, keys), []).append(place)
    firsts = [described[places[0]] for places in blocks.values()]
    names = _naming(keys, firsts, {key for run in runs for key in run.typed})
    groups, repeats = [], []
    for settings, places in zip(firsts, blocks.values(), strict=True):
        kept, repeated = one_for_each_seed([runs[place] for place in places])
        groups.append(Group({key: word(settings[key]) for key in names if key in settings}, tuple(kept)))
        repeats += repeated
    return groups, repeats


def merged_values(runs: Sequence[Run], merge_over: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings that runs are merged over, with the values of each.

    Raises
    ------
    UserError
        An entry of merge_over names no setting in which the runs differ.
    """
    described = [run.options | run.settings for run in runs]
    differing = {key: _values_of(described, key) for key in _differing(described)}
    merged = {}
    for requested in merge_over:
        matching = {key: values for key, values in differing.items() if GroupingRules.merges(key, requested)}
        if not matching:
            alternatives = f"they differ in {_some(list(differing))}" if differing else "they differ in no setting"
            raise UserError(f"merge_over={requested} is not a setting in which these runs differ; {alternatives}")
        merged |= matching
    return merged


def _values_of(described: Sequence[Settings], key: str) -> list[str]:
    distinct = {_kind(settings.get(key)): settings for settings in reversed(described)}
    return [word(settings[key]) if key in settings else "not set" for settings in reversed(distinct.values())]


def _differing(described: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for settings in described for key in settings)
    return [key for key in keys if _count(described, [key]) > 1]


def _values(settings: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(_kind(settings.get(key)) for key in keys)


def _kind(value: Any) -> str:
    """Return equal text for equal values: 0 and 0.0, 0.3 and a sum of 0.1, null and a missing key."""
    if isinstance(value, list):
        return f"[{','.join(map(_kind, value))}]"
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else word(value)


def identity(settings: Settings) -> frozenset[tuple[str, str]]:
    """Return a key that is equal for equal settings; null equals a missing key."""
    return frozenset((key, _kind(value)) for key, value in settings.items() if value is not None)


def _count(described: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    """Return the number of different combinations of values of some settings."""
    return len({_values(settings, keys) for settings in described})


def word(value: Any) -> str:
    """Format a value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, float):
        return str(in_few_digits(value))
    return "null" if value is None else str(value)


def _naming(keys: Sequence[str], described: Sequence[dict[str, Any]], typed: set[str]) -> list[str]:
    """Return the differing settings that make up the names: as few as distinguish all groups, overridden ones first.

    An option covers the values that it sets, an experiment covers its options, and the settings of a training run cover
    how it evaluated itself (``scoring.*``). The version of a package that only some groups use is covered by what
    names the package.
    """
    options = [key for key in keys if is_option(key)]
    covers = (SCORING, *(f"{option.replace('/', '.')}." for option in options))
    covered_versions = [key for key in keys if GroupingRules.merges(key, "source") and _has_one_version(described, key)]
    free = [key for key in keys if not is_option(key) and not key.startswith(covers) and key not in covered_versions]
    covered = sorted((key for key in keys if key not in options and key not in free), key=lambda key: key not in typed)
    names = ["experiment"] if "experiment" in keys else [*options, *free]
    for key in (*options, *free, *covered):
        if key not in names and _count(described, [*names, key]) > _count(described, names):
            names.append(key)
    return [key for key in keys if key in names]


def _has_one_version(described: Sequence[Settings], key: str) -> bool:
    return len({_kind(settings[key]) for settings in described if key in settings}) == 1


def is_option(key: str) -> bool:
    """Return whether a setting is the choice of an option of a config group, such as ``model=fcn8s``."""
    return "." not in key and key not in ("checkpoint", "seed")


def one_for_each_seed(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """Select for each seed the run with most images; of equal ones a training run's own record, then the newest."""
    by_seed: dict[int | None, list[Run]] = {}
    ranked = [(len(run.names), bool(run.curves), run.ended, place) for place, run in enumerate(runs)]
    for *_, place in sorted(ranked, reverse=True):
        run = runs[place]
        by_seed.setdefault(run.seed, []).append(run)
    seeds = sorted(by_seed, key=lambda seed: (seed is None, seed or 0))
    kept = [_with_training_curves(*by_seed[seed]) for seed in seeds]
    excluded = [
        ExcludedRun(run.folder, _exclusion_reason(run, by_seed[run.seed][0]))
        for run in runs
        if run is not by_seed[run.seed][0]
    ]
    return kept, excluded


def _with_training_curves(run: Run, *others: Run) -> Run:
    """Add to an evaluation the curves and the cost of a training run with the same settings, if there is one."""
    training = next((other for other in others if other.curves and not run.curves), None)
    return replace(run, curves=training.curves, cost=training.cost | run.cost) if training else run


def _exclusion_reason(run: Run, selected: Run) -> str:
    fewer = len(selected.names) - len(run.names)
    if fewer:
        count = f"{len(run.names)} instead of {len(selected.names)}"
        return f"same settings and seed as {selected.folder}, but fewer images ({count}): the larger record is used"
    differing = sorted(
        key
        for key in run.settings | selected.settings
        if _kind(run.settings.get(key)) != _kind(selected.settings.get(key))
    )
    if differing:  # in a setting that merge_over ignores
        values = ", ".join(
            f"{key}={_setting_text(run, key)} instead of {_setting_text(selected, key)}" for key in differing[:2]
        )
        return f"same seed as {selected.folder}, with which it is merged ({values}): the run that ended last is used"
    if any(
        own and selected_hash and own != selected_hash
        for own, selected_hash in zip(run.weights, selected.weights, strict=True)
    ):
        return (
            f"same settings and seed as {selected.folder}, but different weights (another training run or checkpoint):"
            " the run that ended last is used. Compare the two separately"
        )
    return f"repeated with the same settings and seed in {selected.folder}"


def _setting_text(run: Run, key: str) -> str:
    return word(run.settings[key]) if key in run.settings else "not set"


def groups_split_by_one_setting(
    groups: Sequence[Group], rules: GroupingRules = ALWAYS
) -> Iterator[tuple[str, Group, Group]]:
    """Yield the pairs of groups without a common seed that differ in one setting only, with that setting.

    They were perhaps meant as one group, whose seeds would be pooled. An evaluation may repeat the setting.
    """
    described = [rules.settings(group.runs[0]) for group in groups]
    keys = list(dict.fromkeys(key.removeprefix(SCORING) for key in _differing(described)))
    values_of = [[_values(settings, (key, f"{SCORING}{key}")) for key in keys] for settings in described]
    for index, key in enumerate(keys):
        alike: dict[tuple, list[Group]] = {}
        for group, values in zip(groups, values_of, strict=True):
            alike.setdefault((*values[:index], *values[index + 1 :]), []).append(group)
        pairs = (pair for same in alike.values() for pair in combinations(same, 2) if not is_option(key))
        yield from ((key, first, second) for first, second in pairs if not set(first.seeds) & set(second.seeds))


def find_group(groups: Sequence[Group], requested: str, key: str = "baseline") -> Group:
    """Return the group with a name, or the only group with all the words of the name among its settings or values.

    ``key`` is the setting in which the user named it.

    Raises
    ------
    UserError
        No group matches, or several do.
    """
    exact = [group for group in groups if requested in (group.name, group.settings_name)]
    words = set(requested.split())
    matching = exact or [group for group in groups if words and words <= set(_words(group))]
    if len(matching) == 1:
        return matching[0]
    problem = "matches no group" if not matching else f"matches {len(matching)} groups"
    raise UserError(f"{key}={requested} {problem}; the groups are {_some([group.name for group in groups])}")


def _words(group: Group) -> Iterable[str]:
    yield from group.name.split()
    yield from group.settings_name.split()
    yield from group.parts.values()


def _some(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def environments(groups: Sequence[Group], key: str) -> dict[str, int]:
    """Count the runs by commit, torch version or device, of training and of evaluation."""
    runs = [run.environment for group in groups for run in group.runs]
    count = Counter(
        value for run in runs for value in {run.get(key, UNKNOWN), run.get(SCORING + key, run.get(key, UNKNOWN))}
    )
    return dict(sorted(count.items()))
