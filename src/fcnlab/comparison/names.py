"""Names of groups for readers: with short paths, or those that the user chose; settings that all runs share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fcnlab.comparison.grouping import Group, find_group, is_option, word
from fcnlab.comparison.runs import Run
from fcnlab.errors import UserError

LONGEST_NAME = 40  # characters; settings that most groups share are left out of longer names


def with_names(groups: Sequence[Group], chosen: Mapping[str, str]) -> list[Group]:
    """Return the groups with short names, and with those that the user chose: ``{"fcn8s": "FCN-8s"}``.

    Raises
    ------
    UserError
        A key of ``chosen`` matches no group or several, or two groups would have the same name.
    """
    named = _with_short_names(groups)
    titles = {find_group(named, requested, "names").settings_name: title for requested, title in chosen.items()}
    if len(titles) < len(chosen):
        raise UserError("names= gives one group two names: name each group once")
    named = [replace(group, title=titles.get(group.settings_name, group.title)) for group in named]
    name, count = Counter(group.name for group in named).most_common(1)[0]
    if count > 1:
        raise UserError(f"names= gives {count} groups the name {name!r}: each needs a name of its own")
    return named


def _with_short_names(groups: Sequence[Group]) -> list[Group]:
    usual = usual_settings(groups)
    return [
        replace(group, title=_without(usual, parts) or None)
        for group, parts in zip(groups, _short_parts(groups), strict=True)
    ]


def _without(usual: Mapping[str, str], parts: Mapping[str, str]) -> str:
    return _joined({key: value for key, value in parts.items() if usual.get(key) != value})


def _short_parts(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Return the settings of each group with short paths."""
    keys = dict.fromkeys(key for group in groups for key in group.parts)
    short = {key: short_values(key, [group.parts[key] for group in groups if key in group.parts]) for key in keys}
    return [{key: short[key][value] for key, value in group.parts.items()} for group in groups]


def usual_settings(groups: Sequence[Group]) -> dict[str, str]:
    """Return the settings that the names of groups leave out, because more than half of the groups have this value.

    There are none if all names are short anyway. All groups have each of these settings, so that names stay distinct,
    and every name keeps a setting. What saves most characters is left out first.
    """
    parts = _short_parts(groups)
    if all(len(_joined(each)) <= LONGEST_NAME for each in parts):
        return {}
    shared = [key for key in parts[0] if all(key in each for each in parts)]
    most = {key: Counter(each[key] for each in parts).most_common(1)[0] for key in shared}
    saved = {key: count * len(f"{key}={value}") for key, (value, count) in most.items() if 2 * count > len(parts)}
    usual: dict[str, str] = {}
    for key in sorted(saved, key=lambda key: -saved[key]):
        more = {**usual, key: most[key][0]}
        if not any(each.items() <= more.items() for each in parts):
            usual = more
    return {key: usual[key] for key in shared if key in usual}


def usual_line(groups: Sequence[Group]) -> str:
    """Return the settings that names leave out, as they would be typed; empty if no name does."""
    usual = usual_settings(groups)
    names = [_without(usual, parts) for parts in _short_parts(groups)] if usual else []
    is_left_out = any(
        group.title == name for group, name in zip(groups, names, strict=False)
    )  # not by the user's names
    return _joined(usual) if is_left_out else ""


def _joined(parts: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in parts.items())


def short_values(key: str, values: Sequence[str]) -> dict[str, str]:
    """Return each value of a setting with paths as base names; longer ones where two would be equal.

    The values of an option, such as ``experiment=paper/fcn8s``, are names and not paths.
    """
    distinct = list(dict.fromkeys(values))
    others = {value: [other for other in distinct if other != value] for value in distinct}
    return {value: value if is_option(key) else _shortest_end(value, others[value]) for value in distinct}


def _shortest_end(path: str, others: Sequence[str]) -> str:
    if path.startswith("["):  # a list
        return path
    parts = path.split("/")
    for count in range(1, len(parts)):
        end = "/".join(parts[-count:])
        if end and not any(other == end or other.endswith(f"/{end}") for other in others):
            return end
    return path


def common_settings(runs: Sequence[Run]) -> str:
    """Return the typed settings that have the same value in all runs, as they would be typed; paths as base names."""
    typed = set().union(*(run.typed for run in runs))
    described = [run.options | run.settings for run in runs]
    first = described[0]
    common = {
        key: word(value)
        for key, value in first.items()
        if key in typed and all(key in settings and settings[key] == value for settings in described)
    }
    return _joined({key: short_values(key, [value])[value] for key, value in common.items()})
