"""A resumed sweep runs its missing jobs with the settings that the others ran with."""

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, iter_leaves
from fcnlab.config.overrides import (
    shell_join,
)
from fcnlab.config.validation import (
    looked_up,
)
from fcnlab.errors import UserError
from fcnlab.files.reading import Unreadable, display_path, read_json_facts, read_yaml
from fcnlab.runs.settings import Change, differences, is_free, shown_changes
from fcnlab.sweeps.job_checks import COMPOSED_CONFIG, JobErrors, compose_jobs, hydra_config_restored, without_hydra
from fcnlab.sweeps.manifest import NAME, Job, Manifest

log = logging.getLogger("fcnlab")
RESOLVED_CONFIG = "config.yaml"  # and with what it has looked up
DECIDED_BY_JOB = {"trainer.precision": ("auto", "fastest")}  # whose record has what it has decided on
FOLDER_KEYS = re.compile(r"[+~]*hydra\.(sweep\.subdir|job\.)")  # words that jobs' folders are named by


def settings_of(cfg: DictConfig) -> Settings:
    """What a job is composed of by dotted path, with the interpolations that it looks up itself."""
    return _compared_settings(
        iter_leaves(OmegaConf.to_container(without_hydra(cfg), resolve=False)), str(cfg.hydra.job.config_name)
    )


def _compared_settings(settings: Settings, verb: str) -> Settings:
    """The settings that no job may change. An evaluation's checkpoint is one; a training that goes on has its own."""
    counts = {"eval": ("checkpoint",)}.get(verb, ())
    return {path: value for path, value in settings.items() if path in counts or not is_free(path)}


def hash_of(settings: Settings) -> str:
    text = json.dumps(settings, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(
    context: HydraContext, config: DictConfig, jobs: Mapping[int, Sequence[str]], launcher: Any
) -> None:
    """Refuse to go on with a sweep whose files have changed: the jobs that have begun ran with other settings.

    What only today's fcnlab has as a setting is warned of, as where a single run resumes, and so is what settings look
    up remote: in the environment, which may be each machine's own.

    Raises
    ------
    UserError
        It names the settings, and the jobs that had other ones; or jobs would get folders of another kind.
    """
    manifest: Manifest | None = getattr(launcher, "manifest", None)
    changed, added, outside = JobErrors(), JobErrors(), JobErrors()
    for number in sorted(jobs.keys() & (manifest.jobs if manifest else {})):
        assert manifest
        job = manifest.jobs[number]
        folder = manifest.folder / job.folder
        with hydra_config_restored():
            cfg = compose_jobs(context, config, [jobs[number]], number)[number]
            found_now = _compared_settings(looked_up(without_hydra(cfg)), manifest.verb)
        check_same_folder(manifest, job, str(cfg.hydra.sweep.subdir), config)
        if not has_begun(folder):
            continue
        outside.note(shown_changes(changed_lookups(folder, found_now, manifest.verb)), number)
        today = settings_of(cfg)
        if job.settings in (None, hash_of(today)):  # None: of an older record
            continue
        if then := recorded_settings(folder, COMPOSED_CONFIG, manifest.verb):
            found = differences(then, today)
            found = {path: change for path, change in found.items() if change.new not in DECIDED_BY_JOB.get(path, ())}
            changed.note(shown_changes({path: change for path, change in found.items() if path in then}), number)
            added.note(shown_changes({path: change for path, change in found.items() if path not in then}), number)
        else:
            changed.note([f"{display_path(folder / COMPOSED_CONFIG)} no longer says which"], number)
    if added.jobs:
        log.warning("Warning: settings that were not there when these jobs began:\n%s", added)
    if outside.jobs:
        assert manifest
        log.warning(
            "Warning: these jobs have begun with other values of settings that are looked up, as ${oc.env:NAME} is; the"
            " jobs that are left get today's:\n%s\nTo have one value in all jobs, stop and set it back, or start a"
            " new sweep with today's: %s",
            outside,
            manifest.command,
        )
    if changed.jobs:
        assert manifest
        raise UserError(
            f"sweep.resume={display_path(manifest.folder)}: files of its configuration, or fcnlab's, have changed, so that the"
            f" jobs that are left would run with other settings than these:\n{changed}\nSet them back to go on, or use"
            f" the fcnlab that ran these jobs, or start a new sweep with them: {manifest.command}"
        )


def check_same_folder(manifest: Manifest, job: Job, subdir: str, config: DictConfig) -> None:
    """Refuse to go on with another ``hydra.sweep.subdir``, in whose folders the jobs that are not planned yet would be.

    One that looks at the clock or into the environment names other folders each time.
    """
    template = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # pyright: ignore
    if PurePath(subdir) == PurePath(job.folder) or re.search(r"\$\{(now|oc\.)", template):
        return
    there, here = (display_path(manifest.folder / name) for name in (job.folder, subdir))
    raise UserError(
        f"sweep.resume={display_path(manifest.folder)}: job {job.number} is in {there}, and would be in {here} today, as the"
        f" sweep's other jobs. Type again {_recorded_folder_overrides(manifest.folder)}"
    )


def _recorded_folder_overrides(folder: Path) -> str:
    """What a sweep had typed for the names of its folders, by its record."""
    with suppress(ValueError):
        words = shlex.split(str(read_json_facts(folder, NAME).get("command")))
        if of_folders := [word for word in words if FOLDER_KEYS.match(word)]:
            return shell_join(of_folders)
    return f"hydra.sweep.subdir=... as it was: the command in {display_path(folder / NAME)} no longer has it"


def has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in (COMPOSED_CONFIG, "run.json", "metrics.json"))


def recorded_settings(folder: Path, name: str, verb: str) -> Settings:
    """The settings in a file of a run's folder; nothing where that cannot be read."""
    try:
        return _compared_settings(iter_leaves(read_yaml(folder, name)), verb)
    except (OSError, Unreadable):
        return {}


def changed_lookups(folder: Path, found_now: Settings, verb: str) -> dict[str, Change]:
    """The settings for which a run that has begun found another value than is found now."""
    found_then = recorded_settings(folder, RESOLVED_CONFIG, verb) if found_now else {}
    both = found_then.keys() & found_now.keys()
    changed = differences(*({path: found[path] for path in sorted(both)} for found in (found_then, found_now)))
    return {path: change for path, change in changed.items() if change.new not in DECIDED_BY_JOB.get(path, ())}
