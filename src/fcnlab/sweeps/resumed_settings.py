"""Check that the missing jobs of a resumed sweep get the settings that the other jobs ran with."""

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, leaves_of
from fcnlab.config.overrides import shell_join
from fcnlab.config.validation import looked_up
from fcnlab.errors import UserError
from fcnlab.files.reading import Unreadable, display_path, read_json_facts, read_yaml
from fcnlab.runs.origins import nested_map
from fcnlab.runs.run_folder import has_scores
from fcnlab.runs.settings import Change, differences, is_free, shown_changes
from fcnlab.runs.source_fingerprint import source_fingerprints
from fcnlab.sweeps.job_checks import COMPOSED_CONFIG, JobErrors, compose_jobs, hydra_config_restored, without_hydra
from fcnlab.sweeps.manifest import NAME, Job, Manifest

log = logging.getLogger("fcnlab")
RESOLVED_CONFIG = "config.yaml"  # in a job's folder: its settings with interpolations resolved
DECIDED_BY_JOB = {"trainer.precision": ("auto", "fastest")}  # the job's record has the value it has chosen instead
FOLDER_KEYS = re.compile(r"[+~]*hydra\.(sweep\.subdir|job\.)")  # overrides that name the jobs' folders


def settings_of(cfg: DictConfig) -> Settings:
    """Return a job's composed settings by dotted path, interpolations not resolved."""
    return _compared_settings(
        leaves_of(OmegaConf.to_container(without_hydra(cfg), resolve=False)), str(cfg.hydra.job.config_name)
    )


def _compared_settings(settings: Settings, verb: str) -> Settings:
    """Return the settings that must not change: those with an effect on scores, and an evaluation's checkpoint.

    The checkpoint of a training run changes when it is resumed.
    """
    always = {"eval": ("checkpoint",)}.get(verb, ())
    return {path: value for path, value in settings.items() if path in always or not is_free(path)}


def hash_of(settings: Settings) -> str:
    text = json.dumps(settings, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(
    context: HydraContext,
    config: DictConfig,
    jobs: Mapping[int, Sequence[str]],
    manifest: Manifest | None,
    same_folders: bool = True,
) -> None:
    """Check that the configuration files of a recorded sweep have not changed since its jobs were started.

    ``same_folders``: the jobs run in the folders of the record.

    Settings that a newer fcnlab has added only cause a warning, and so do changed code and changed values of
    interpolations such as ``${oc.env:NAME}``, which may differ between machines.

    Raises
    ------
    UserError
        Settings have changed (it names them and the jobs), or the jobs would use other folders.
    """
    if manifest is None:
        return
    changed, added, looked_up_anew = JobErrors(), JobErrors(), JobErrors()
    configs: dict[int, DictConfig] = {}
    for number in sorted(jobs.keys() & manifest.jobs):
        job = manifest.jobs[number]
        folder = manifest.folder / job.folder
        with hydra_config_restored():
            cfg = configs[number] = compose_jobs(context, config, [jobs[number]], number)[number]
            lookups = _compared_settings(looked_up(without_hydra(cfg)), manifest.verb)
        if same_folders:
            check_same_folder(manifest, job, str(cfg.hydra.sweep.subdir), config)
        if not has_begun(folder):
            continue
        current, changes = settings_of(cfg), {}
        if job.settings != hash_of(current):
            recorded = recorded_settings(folder, COMPOSED_CONFIG, manifest.verb)
            if not recorded:
                unreadable = display_path(folder / COMPOSED_CONFIG)
                changed.add([f"unknown settings, since {unreadable} is not readable"], number)
                continue
            changes = _without_decided(differences(recorded, current))
            changed.add(shown_changes({path: change for path, change in changes.items() if path in recorded}), number)
            added.add(shown_changes({path: change for path, change in changes.items() if path not in recorded}), number)
        anew = changed_lookups(folder, lookups, manifest.verb)
        same_text = {path: anew[path] for path in anew if not any(f"{path}.".startswith(f"{key}.") for key in changes)}
        looked_up_anew.add(shown_changes(same_text), number)
    if changed.jobs:
        raise UserError(
            f"{manifest.request}: configuration files, or fcnlab itself, have changed since these jobs were started."
            f" Jobs that start now would get other settings:\n{changed}\nRestore the files, use the version of fcnlab"
            f" that ran these jobs, or start a new sweep: {manifest.command}"
        )
    if added.jobs:
        log.warning("Warning: these settings did not exist when the jobs were started:\n%s", added)
    if looked_up_anew.jobs:
        log.warning(
            "Warning: settings with interpolations such as ${oc.env:NAME} have changed since these jobs were started;"
            " the remaining jobs get the current values:\n%s\nTo use one value in all jobs, stop and restore the old"
            " value, or start a new sweep with the current one: %s",
            looked_up_anew,
            manifest.command,
        )
    if configs and same_folders:  # else the new jobs are compared with one another only
        warn_about_changed_code(manifest, configs)


def warn_about_changed_code(manifest: Manifest, configs: Mapping[int, DictConfig]) -> None:
    """Warn if jobs of the sweep ran with other code: ``fcnlab compare`` then puts the next ones into other groups."""
    current = source_fingerprints(
        *(OmegaConf.to_container(without_hydra(cfg), resolve=False) for cfg in configs.values())
    )
    changed: dict[str, dict[str, list[int]]] = {}  # jobs by package and by its former state
    for number in configs.keys() & manifest.jobs.keys():
        facts = read_json_facts(manifest.folder / manifest.jobs[number].folder, "run.json")
        for package, state in nested_map(facts, "source").items():
            # An evaluation also records the packages of its checkpoint, which the settings do not name.
            if current.get(package, state) != state:
                changed.setdefault(package, {}).setdefault(f"{state!s:.20}", []).append(number)
    for package, jobs in changed.items():
        states = (f"job {', '.join(map(str, sorted(numbers)))} ({state})" for state, numbers in jobs.items())
        log.warning(
            "Warning: the code of %s has changed since %s; now it is %s. So fcnlab compare puts the jobs that run"
            " now into other groups. Use the code of these jobs (their run.json has the commit), or, if the change does"
            " not affect scores, compare with merge_over=[source]",
            *(package, " and ".join(states), current[package]),
        )


def nothing_left_to_run(jobs: Mapping[int, Sequence[str]], manifest: Manifest | None) -> bool:
    """Return whether all jobs of a resumed sweep have finished, so that no settings are needed."""
    return manifest is not None and all(
        number in manifest.jobs and is_finished(manifest.jobs[number], manifest.folder / manifest.jobs[number].folder)
        for number in jobs
    )


def check_same_folder(manifest: Manifest, job: Job, subdir: str, config: DictConfig) -> None:
    """Check that ``hydra.sweep.subdir`` is still the same, since it also names the folders of jobs not planned yet.

    A template with the time or the environment in it is not checked: it gives other folders each time.
    """
    template = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # pyright: ignore
    if PurePath(subdir) == PurePath(job.folder) or re.search(r"\$\{(now|oc\.)", template):
        return
    recorded, current = (display_path(manifest.folder / name) for name in (job.folder, subdir))
    raise UserError(
        f"{manifest.request}: hydra.sweep.subdir has changed: the folder of job {job.number} was {recorded}, and would"
        f" now be {current}. Add {_recorded_folder_overrides(manifest.folder)}"
    )


def _recorded_folder_overrides(folder: Path) -> str:
    """Return the recorded overrides that name the jobs' folders."""
    with suppress(ValueError):
        words = shlex.split(str(read_json_facts(folder, NAME).get("command")))
        if folder_overrides := [word for word in words if FOLDER_KEYS.match(word)]:
            return shell_join(folder_overrides)
    return f"hydra.sweep.subdir=... with its old value, which is not in {display_path(folder / NAME)}"


def has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in (COMPOSED_CONFIG, "run.json", "metrics.json"))


def is_finished(job: Job, folder: Path) -> bool:
    """Return whether a run has finished and has scores.

    Its run.json has the status; a verb without one is in the sweep's record.
    """
    status = read_json_facts(folder, "run.json").get("status")
    return has_scores(folder) and (status == "finished" or (status is None and job.status == "finished"))


def recorded_settings(folder: Path, name: str, verb: str) -> Settings:
    """Return the settings in a file of a run's folder; none if it cannot be read."""
    try:
        return _compared_settings(leaves_of(read_yaml(folder, name)), verb)
    except (OSError, Unreadable):
        return {}


def changed_lookups(folder: Path, current: Settings, verb: str) -> dict[str, Change]:
    """Return the settings whose interpolations gave another value when the run in ``folder`` was started."""
    recorded = recorded_settings(folder, RESOLVED_CONFIG, verb) if current else {}
    common = sorted(recorded.keys() & current.keys())
    changed = differences(*({path: settings[path] for path in common} for settings in (recorded, current)))
    return _without_decided(changed)


def _without_decided(changes: Mapping[str, Change]) -> dict[str, Change]:
    return {path: change for path, change in changes.items() if change.new not in DECIDED_BY_JOB.get(path, ())}
