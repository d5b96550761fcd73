"""Names of groups for readers: with short paths, or those that the user chose; settings that all runs share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fcnlab.comparison.grouping import Group, find_group, is_option, word
from fcnlab.comparison.runs import Run
from fcnlab.errors import UserError


def with_names(groups: Sequence[Group], chosen: Mapping[str, str]) -> list[Group]:
    """Return the groups with short names, and with those that the user chose: ``{"fcn8s": "FCN-8s"}``.

    Raises
    ------
    UserError
        A key of ``chosen`` matches no group or several, or two groups would have the same name.
    """
    named = _with_short_paths(groups)
    titles = {find_group(named, requested, "names").settings_name: title for requested, title in chosen.items()}
    if len(titles) < len(chosen):
        raise UserError("names= gives one group two names: name each group once")
    named = [replace(group, title=titles.get(group.settings_name, group.title)) for group in named]
    name, count = Counter(group.name for group in named).most_common(1)[0]
    if count > 1:
        raise UserError(f"names= gives {count} groups the name {name!r}: each needs a name of its own")
    return named


def _with_short_paths(groups: Sequence[Group]) -> list[Group]:
    keys = dict.fromkeys(key for group in groups for key in group.parts)
    short = {key: short_values(key, [group.parts[key] for group in groups if key in group.parts]) for key in keys}
    return [
        replace(group, title=_joined({key: short[key][value] for key, value in group.parts.items()}) or None)
        for group in groups
    ]


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
