"""A run as its folder records it, in the form that W&B takes. The folder is foreign: all of it is data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcnlab.comparison.runs import SCORED_TASKS, ExcludedRun, Run, Unusable, distinct_folders, read_run
from fcnlab.config.ranges import TableImages, is_valid
from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError, first_line, unwritable_reason
from fcnlab.files.locks import FolderLock
from fcnlab.files.reading import Unreadable, open_arrays, read_json, read_rows, read_yaml
from fcnlab.runs.origins import nested_map
from fcnlab.sweeps.manifest import NAME as SWEEP
from fcnlab.tracking.accepted_values import sendable
from fcnlab.tracking.contents import TABLE_IMAGES, settings
from fcnlab.tracking.labels import group_of_sweep, run_name, tags
from fcnlab.tracking.links import TrackedRun, common_group, run_config, scored_run_config, scored_runs
from fcnlab.tracking.links import recorded_run as tracked_run_of
from fcnlab.tracking.media import Evaluation
from fcnlab.tracking.run_ids import RunId, run_id

SWEEP_LEVELS = 3  # from a job's folder up to that of its sweep, at most


class RecordedRun(NamedTuple):
    """What W&B is given of a run, besides its curves and its scores.

    ``home`` is the folder that has ``wandb/``: that of the sweep, or of the run itself. ``without_scores`` is why there
    are no scores, such as that the run was interrupted.
    """

    folder: Path
    home: Path
    id: RunId
    status: str
    host: str
    labels: dict[str, Any]
    scored: Run | None
    without_scores: str | None


def recorded_runs(roots: Iterable[Path]) -> tuple[list[RecordedRun], list[ExcludedRun]]:
    """Return the runs below some folders, and the folders that cannot be used; no two runs have the same id."""
    runs: dict[str, RecordedRun] = {}
    excluded: list[ExcludedRun] = []
    for folder in distinct_folders(roots):
        run = folder if isinstance(folder, ExcludedRun) else _run_or_reason(folder)
        if isinstance(run, ExcludedRun):
            excluded.append(run)
        elif run is not None and (same := runs.setdefault(run.id.text, run)) is not run:
            excluded.append(ExcludedRun(run.folder, f"a copy of {same.folder}: both are the W&B run {run.id.text}"))
    return list(runs.values()), excluded


def _run_or_reason(folder: Path) -> RecordedRun | ExcludedRun | None:
    try:
        return recorded_run(folder)
    except Unusable as error:
        return ExcludedRun(folder, str(error))
    except Exception as error:  # one folder must not stop the others
        return ExcludedRun(folder, f"its record cannot be read: {first_line(error)}")


def recorded_run(folder: Path) -> RecordedRun | None:
    """Return what a folder records of a training run or of an evaluation; None for other commands and staged runs.

    The stages of a staged run are runs of their own.

    Raises
    ------
    Unusable
        There is no run yet, it is still running, or nothing can be written to its folder.
    OSError, Unreadable
        A file cannot be read, is damaged, or is over a limit.
    """
    hydra = nested_map(read_yaml(folder, ".hydra/hydra.yaml"), "hydra")
    verb = str(nested_map(hydra, "job").get("config_name", "train"))
    composed, facts = read_yaml(folder, ".hydra/config.yaml"), read_json(folder, "run.json") or {}
    config = read_yaml(folder, "config.yaml") or composed
    if verb not in SCORED_TASKS or config.get("stages"):
        return None
    if not config:
        raise Unusable("no configuration: .hydra/config.yaml is missing")
    scored, reason = _scores(folder)
    if scored is None and (verb != "train" or not facts):
        raise Unusable(reason or "no scores")
    home = _home(folder)
    if reason_not_to_write := _unwritable(home):
        raise Unusable(reason_not_to_write)
    status = str(facts.get("status", "finished"))
    _check_not_running(folder, status)
    for _ in read_rows(folder, "metrics.csv"):  # whether all of it can be read, before W&B gets a part
        pass
    return RecordedRun(
        folder=folder,
        home=home,
        id=run_id(folder),
        status="killed" if status == "running" else status,
        host=_text(facts.get("host")) or "",
        labels=_labels(folder, home, verb, hydra, (composed, config), facts),
        scored=scored,
        without_scores=reason,
    )


def _scores(folder: Path) -> tuple[Run | None, str | None]:
    """Return the scores in a folder, or why there are none."""
    try:
        return read_run(folder), None
    except (Unusable, Unreadable) as error:
        return None, str(error)


def _check_not_running(folder: Path, status: str) -> None:
    """Raise Unusable if the process of a run still works: it logs the run itself."""
    if status != "running":
        return
    try:
        FolderLock(folder).abandon()
    except UserError as error:
        raise Unusable("still running: its own process logs it") from error


def _home(folder: Path) -> Path:
    """Return the folder of the sweep that a run is a job of; the run's own folder outside of a sweep."""
    parents = folder.absolute().parents[:SWEEP_LEVELS]
    return next((parent for parent in parents if (parent / SWEEP).is_file()), folder)


def _unwritable(home: Path) -> str | None:
    if (home / "wandb").is_symlink():
        return f"{home / 'wandb'} is a link, and fcnlab does not write through links"
    if sendable(str(home)) != str(home):
        return "W&B cannot write to a folder whose name is not UTF-8"
    return unwritable_reason(home / "wandb")


def _labels(
    folder: Path,
    home: Path,
    verb: str,
    hydra: Mapping[str, Any],
    configs: tuple[dict[str, Any], dict[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return config, name, group, kind, tags and the number of drawn images, as a live run has them."""
    config = configs[1]
    logger, sweep = nested_map(nested_map(config, "logger"), "wandb"), nested_map(config, "sweep")
    choices = nested_map(nested_map(hydra, "runtime"), "choices")
    options = {str(group): None if option is None else str(option) for group, option in choices.items()}
    identifying = RunContext(verb, folder, options=options).identifying_options
    segments, typed, drawn = facts.get("segments"), logger.get("tags"), logger.get("table_images")
    record = read_json(folder, "metrics.json") or {}
    scored = _scored_runs(record)
    links = run_config(_text(facts.get("id"))) if verb == "train" else scored_run_config(scored)
    live = tracked_run_of(facts.get("wandb_run")) or tracked_run_of(record.get("wandb_run"))
    return {
        "config": settings(*configs, identifying, segments if isinstance(segments, list) else ()) | links,
        "name": _text(logger.get("name")) or _text(sweep.get("name")) or run_name(options, config.get("seed")),
        "group": live.group if live else _text(logger.get("group")) or _usual_group(folder, home, scored),
        "job_type": verb,
        "tags": tags([each for each in typed if _text(each)] if isinstance(typed, list) else [], identifying),
        "table_images": drawn if is_valid(drawn, TableImages) else TABLE_IMAGES,
    }


def _scored_runs(record: Mapping[str, Any]) -> list[TrackedRun]:
    """Return the training runs in W&B that an evaluation has scored: one, or those of an ensemble."""
    ensemble = record.get("ensemble")
    origins = ensemble if isinstance(ensemble, list) else [record]
    return list(scored_runs(nested_map(each, "trained") for each in origins).values())


def _usual_group(folder: Path, home: Path, scored: Sequence[TrackedRun]) -> str | None:
    """Return the group of a run that was in none by its own settings: of its sweep, its stages or what it scores."""
    return group_of_sweep(home) if home != folder else _group_of_stages(folder) or common_group(scored)


def _group_of_stages(folder: Path) -> str | None:
    """Return the name of the staged run that a folder is a stage of; None if it is none."""
    parent = folder.absolute().parent
    return parent.name if read_yaml(parent, "config.yaml").get("stages") else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def evaluation(run: Run, step: int) -> Evaluation:
    """Return the scores of a run with all matrices; ``step`` is its last optimiser step.

    Raises
    ------
    OSError, Unreadable
        A file was changed or removed since the run was read.
    """
    with open_arrays(run.folder, "confusions.npz") as file:
        matrices = np.concatenate(list(file.parts("matrices")))
    if matrices.shape != (len(run.names), len(run.classes), len(run.classes)):
        raise Unreadable("confusions.npz has other images or classes than before")
    record = read_json(run.folder, "metrics.json") or {}
    return Evaluation(record, run.names, run.classes, matrices, run.folder, step)
