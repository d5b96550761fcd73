"""``sweep.confirm=FOLDER sweep.best=3 seed=101,102``: train the best settings of a sweep again, with fresh seeds.

The best of many settings is selected partly by luck, so its score is too high. Seeds that took no part in the selection
have no such bias.
"""

import math
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import combinations_override, override_key, sets_dictionary, shell_join, unquote_value
from fcnlab.config.recorded_overrides import (
    CONFIRM,
    check_own_folders,
    check_recorded_overrides,
    read_only_data,
    read_record,
    refuse_settings,
    typed_settings,
)
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.files.reading import display_path, read_json_facts
from fcnlab.runs.origins import nested_map
from fcnlab.sweeps.job_overrides import user_overrides
from fcnlab.sweeps.manifest import Job, Manifest, read_manifest
from fcnlab.sweeps.more_seeds import parse_seeds, without_seed
from fcnlab.sweeps.resumed_settings import check_unchanged

OPTION, BEST = CONFIRM.removesuffix("="), "sweep.best"
DEFAULT_BEST = 3


class ScoredSetting(NamedTuple):
    """The overrides of a setting without the seed, its finished jobs, and their mean score."""

    overrides: tuple[str, ...]
    jobs: list[Job]
    score: float


def apply_sweep_confirm(argv: list[str], verb: str) -> None:
    """Add the best settings of the sweep of ``sweep.confirm=FOLDER`` to the command line, and print them.

    Raises
    ------
    UserError
        There is no record of a sweep, or it contains forbidden overrides; its jobs are evaluations, or differ in the
        fold; too few settings have a score; the typed seeds are not new, or other settings are typed.
    """
    place = next((place for place, word in enumerate(argv) if word.startswith(CONFIRM)), None)
    if place is None:
        return
    request, folder = argv[place], Path(unquote_value(argv[place].removeprefix(CONFIRM)))
    if verb != "train":
        raise UserError(f"{request}: only training runs have seeds. Use fcnlab train")
    record, manifest = read_record(request, folder / "sweep.json"), read_manifest(folder, OPTION)
    if manifest.verb != "train":
        raise UserError(
            f"{request}: the jobs of that sweep are no training runs, and have no seeds. Give the folder of a sweep of"
            " fcnlab train"
        )
    _check_one_fold(request, manifest)
    ranked = ranked_settings(manifest)
    best = ranked[: _count(argv, len(ranked), request)]
    _check_typed(argv, request, manifest)
    common, combinations = split_common([setting.overrides for setting in best])
    words = [*common, *chain(*combinations)]
    differing = [combinations_override(combinations)] if len(best) > 1 else []
    advice = check_own_folders("sweep", record, argv, verb) or (
        f"If the sweep is yours, train these settings in sweeps of their own: {shell_join(words)}"
    )
    check_recorded_overrides(words, argv, lambda: advice)
    argv[place + 1 : place + 1] = [*common, *differing, *read_only_data(words, argv)]
    if not {"-m", "--multirun"} & set(argv):
        argv.insert(1, "--multirun")
    which = f"The {len(best)} best" if len(best) > 1 else "The best"
    print(f"{which} of {len(ranked)} settings in {display_path(folder)}, by the mean validation mIoU of their jobs:")
    of_all, _ = split_common([setting.overrides for setting in ranked])
    for setting in best:
        name = escape_line(shell_join([word for word in setting.overrides if word not in of_all]))
        print(f"  {100 * setting.score:6.2f} % ({len(setting.jobs)} job{'s'[: len(setting.jobs) > 1]})  {name}")


def _check_one_fold(request: str, manifest: Manifest) -> None:
    """Raise a UserError if the jobs differ in ``data.fold``: folds would be ranked, and not settings."""
    folds = list(dict.fromkeys(_fold_overrides(job.overrides) for _, job in sorted(manifest.jobs.items())))
    if len(folds) > 1:
        different = " and ".join(" ".join(words) or "no fold" for words in folds[:2])
        raise UserError(
            f"{request}: the jobs differ in the fold ({different}), so that the best ones would be those with the"
            " easiest images. Compare the settings over all folds with fcnlab compare"
            f" runs={display_path(manifest.folder)}, and train the best ones with all folds and new seeds: fcnlab train"
            " -m SETTINGS data.fold=0,1,2 seed=101,102,103"
        )


def _fold_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of a job that set its fold."""
    return tuple(
        word
        for word in user_overrides(overrides)
        if override_key(word) == "data.fold"
        or (override_key(word) == "data" and sets_dictionary(word) and re.search(r"\bfold\b", word))
    )


def ranked_settings(manifest: Manifest) -> list[ScoredSetting]:
    """Return the settings of a sweep that have a score, the best first."""
    by_setting: dict[tuple[str, ...], list[Job]] = {}
    for _, job in sorted(manifest.jobs.items()):
        if job.status == "finished" and isinstance(job.miou, float) and math.isfinite(job.miou):
            by_setting.setdefault(without_seed(user_overrides(job.overrides)), []).append(job)
    scored = [
        ScoredSetting(overrides, jobs, sum(job.miou or 0.0 for job in jobs) / len(jobs))
        for overrides, jobs in by_setting.items()
    ]
    search = nested_map(read_json_facts(manifest.folder, "search.json"), "settings")
    return sorted(scored, key=lambda setting: setting.score, reverse=search.get("direction") != "minimize")


def split_common(settings: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the overrides that all settings have, and the others of each setting.

    The common ones may come first: a sweep refuses a list of values that another override replaces.
    """
    common = [word for word in settings[0] if all(word in setting for setting in settings)]
    return common, [[word for word in setting if word not in common] for setting in settings]


def _count(argv: Sequence[str], settings: int, request: str) -> int:
    text = next((word.partition("=")[2] for word in reversed(argv) if override_key(word) == BEST), str(DEFAULT_BEST))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{BEST}={text} must be a whole number of at least 1")
    if int(text) > settings:
        raise UserError(
            f"{request}: {BEST}={text} is more than the {settings} settings of the sweep that have a score. Choose a"
            " smaller number, or finish the sweep first"
        )
    return int(text)


def _check_typed(argv: Sequence[str], request: str, manifest: Manifest) -> None:
    """Check that the seeds are new and that no other setting is typed."""
    refuse_settings(request, [word for word in typed_settings(argv) if override_key(word) != "seed"])
    typed = [word.partition("=")[2] for word in argv if override_key(word) == "seed"]
    used = seeds_of(manifest)
    fresh = ",".join(str(max(used, default=100) + more) for more in (1, 2, 3))
    if not typed:
        raise UserError(f"{request} needs seeds that the sweep does not have. Add, for example, seed={fresh}")
    if again := sorted(used.intersection(parse_seeds(typed[-1]))):
        raise UserError(
            f"{request}: the sweep already has seed={','.join(map(str, again))}. Scores of seeds that took part in the"
            f" selection are biased. Type new seeds, such as seed={fresh}"
        )


def seeds_of(manifest: Manifest) -> set[int]:
    """Return the seeds of all jobs of a sweep, by the record of each run, or else by its overrides."""
    return {
        seed
        for job in manifest.jobs.values()
        for seed in (_recorded_seed(manifest.folder / job.folder), *_typed_seeds(job.overrides))
        if isinstance(seed, int)
    }


def _recorded_seed(folder: Path) -> Any:
    return nested_map(read_json_facts(folder, "metrics.json"), "provenance").get("seed")


def _typed_seeds(overrides: Sequence[str]) -> list[int]:
    values = [word.partition("=")[2] for word in overrides if override_key(word) == "seed"]
    return [int(value) for value in values[-1:] if value.isdecimal()]


def check_confirmed(context: HydraContext, config: DictConfig, settings: Sequence[Sequence[str]]) -> None:
    """Check that the settings are composed as in the jobs of the confirmed sweep, if this sweep confirms one.

    ``settings`` are the overrides of the new jobs.

    Raises
    ------
    UserError
        Configuration files, or fcnlab itself, have changed since.
    """
    folder = OmegaConf.select(config, OPTION)
    if not folder:
        return
    manifest = read_manifest(Path(folder), OPTION)
    requested = {frozenset(without_seed(user_overrides(overrides))) for overrides in settings}
    earlier = [setting.jobs[0] for setting in ranked_settings(manifest) if frozenset(setting.overrides) in requested]
    check_unchanged(context, config, {job.number: job.overrides for job in earlier}, manifest, same_folders=False)
