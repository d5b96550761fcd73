"""Short names for the jobs of a sweep, made of the settings in which they differ."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile

from fcnlab.config.overrides import override_key, unquote_value
from fcnlab.sweeps.job_overrides import user_overrides

DISTINCT_SUBDIR_HINT = ". Give each job its own hydra.sweep.subdir, such as ${hydra.job.num}"
MAX_NAME_LENGTH = 100
MIN_PART_LENGTH = 12  # of one setting in a shortened name


def job_names(jobs: Mapping[int, Sequence[str]], typed: Sequence[str], taken: Collection[str] = ()) -> dict[int, str]:
    """Return a short unique name for each job, made of the overrides that are not the same for all jobs.

    ``taken`` are the names of jobs of earlier batches. Folders shared by all values of a setting are left out, and
    long settings are shortened in the middle.
    """
    parts = {number: differing_overrides(overrides, typed) for number, overrides in jobs.items()}
    folders = _common_folders([word for words in parts.values() for word in words])
    names = {number: _short([_without_folder(word, folders) for word in words]) for number, words in parts.items()}
    count = Counter([*names.values(), *taken])
    return {number: name if count[name] == 1 else f"{name} #{number}".strip() for number, name in names.items()}


def differing_overrides(overrides: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return a job's overrides without those that were typed for all jobs."""
    fixed, differing = list(typed), []
    for override in user_overrides(overrides):
        if override in fixed:
            fixed.remove(override)  # once only: in `seed=1 seed=1,2` a value of the list equals the override before it
        else:
            differing.append(override.lstrip("+"))
    return differing


def _common_folders(words: Sequence[str]) -> dict[str, str]:
    """Return, by setting, the common parent folder of all its values; options of config groups are not shortened."""
    values: dict[str, set[str]] = {}
    for word in words:
        if "." in override_key(word) or override_key(word) == "checkpoint":
            values.setdefault(override_key(word), set()).add(unquote_value(word.partition("=")[2]))
    return {key: _common_folder(paths) for key, paths in values.items() if len(paths) > 1}


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
