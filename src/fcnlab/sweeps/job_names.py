"""Names of jobs: what differs, in few characters."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile

from fcnlab.config.overrides import override_key, unquote_value
from fcnlab.sweeps.job_overrides import user_overrides

DISTINCT_SUBDIR_HINT = ": let hydra.sweep.subdir tell the jobs apart, as ${hydra.job.num} does"
MAX_NAME_LENGTH = 100
MIN_PART_LENGTH = 12  # of a name that has lost its middle


def job_names(jobs: Mapping[int, Sequence[str]], typed: Sequence[str], taken: Collection[str] = ()) -> dict[int, str]:
    """Each job's name: its words, but for those that were typed for all of them; short, and no other job's.

    ``taken`` are the names of jobs of other batches.

    The folders that all values of a setting are in are left out, and what is still too long loses its middle.
    """
    parts = {number: differing_overrides(words, typed) for number, words in jobs.items()}
    folders = _common_folders([word for words in parts.values() for word in words])
    names = {number: _short([_without_folder(word, folders) for word in words]) for number, words in parts.items()}
    count = Counter([*names.values(), *taken])
    return {number: name if count[name] == 1 else f"{name} #{number}".strip() for number, name in names.items()}


def differing_overrides(words: Sequence[str], typed: Sequence[str]) -> list[str]:
    fixed, found = list(typed), []
    for word in user_overrides(words):
        if word in fixed:
            fixed.remove(word)  # once: a value of a list may be the very word before the list
        else:
            found.append(word.lstrip("+"))
    return found


def _common_folders(words: Sequence[str]) -> dict[str, str]:
    """By setting, the folders that all of its values are in, where there are several; options of groups stay whole."""
    values: dict[str, set[str]] = {}
    for word in words:
        if "." in override_key(word) or override_key(word) == "checkpoint":
            values.setdefault(override_key(word), set()).add(unquote_value(word.partition("=")[2]))
    return {key: _common_folder(found) for key, found in values.items() if len(found) > 1}


def _common_folder(paths: Iterable[str]) -> str:
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    return "".join(f"{names[0]}/" for names in takewhile(lambda names: len(set(names)) == 1, levels))


def _without_folder(word: str, folders: Mapping[str, str]) -> str:
    folder, (key, _, value) = folders.get(override_key(word)), word.partition("=")
    return f"{key}={unquote_value(value).removeprefix(folder)}" if folder else word


def _short(parts: Sequence[str]) -> str:
    if len(" ".join(parts)) <= MAX_NAME_LENGTH:
        return " ".join(parts)
    most = max(MAX_NAME_LENGTH // len(parts) - 1, MIN_PART_LENGTH)
    shorter = [part if len(part) <= most else f"{part[: most // 2]}…{part[1 - most // 2 :]}" for part in parts]
    return " ".join(shorter)[:MAX_NAME_LENGTH]
