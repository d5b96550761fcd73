"""Find run folders and read their scores, costs and settings; report why a folder cannot be used.

The content of a run folder is untrusted: it may be incomplete, or from someone else. Folders that cannot be used are
listed with a reason, and do not affect the others.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.config.components import Settings
from fcnlab.config.overrides import resume_override
from fcnlab.cores import visible_cores
from fcnlab.errors import first_line, shortened
from fcnlab.files.reading import Unreadable, display_path, open_arrays, read_json, read_rows, read_yaml
from fcnlab.metrics.conventions import ClassAreas, class_areas
from fcnlab.metrics.fine_grained import FineGrainedScores, fine_grained_of_areas
from fcnlab.metrics.scores import SCORES, Scores, scores
from fcnlab.runs.lineage import (
    FOLD,
    HASH_DIGITS,
    TrainingRun,
    describe_training_run,
    from_facts,
    has_folds,
    may_share_list,
    why_not_finished,
)
from fcnlab.runs.origins import as_scoring_settings, environment, nested_map, scored_data, source_settings
from fcnlab.runs.selection import Facts, recorded_selection

SCORED_TASKS = ("train", "eval")  # other tasks write no scores
JOB_LOG = "job.log"  # the output of a sweep job; a failed job may leave nothing else
RUN_FILES = {"metrics.json", "confusions.npz", "run.json", JOB_LOG}  # a folder with any of these belongs to a run
# A linked folder is followed if it contains any of these.
FOLLOWED_LINK_FILES = {*RUN_FILES, ".hydra", "sweep.json", "multirun.yaml"}
MAX_DEPTH = 40  # nested folders
NO_RUNS_INSIDE = {"checkpoints", "predictions", "wandb"}
CURVES = ("val/miou", "train/loss")
# These must be equal in two protocols.
COMPARABLE_PROTOCOL = ("set", "resolution", "ignored_pixels", "absent_classes", "padded_samples")
# How a training run evaluates itself; fcnlab eval may choose otherwise.
DEFAULT_INFERENCE = {"inference": "whole", "postprocess": "none"}
MAX_NUMBER = 1e15  # beyond this a chart has no usable axis
MOST_SETTINGS, LONGEST_SETTING = 2_000, 10_000  # settings of a run, characters of one; usual are 200 and 20


class ExcludedRun(NamedTuple):
    """A folder that is excluded from a comparison, and why."""

    folder: Path
    reason: str


class Unusable(ValueError):
    """A folder's record cannot be used; the message is the reason."""


class Fold(NamedTuple):
    """The held-out part of a list that a run was scored on: its number, from 0, and the count of all parts."""

    number: int
    count: int
    is_trained_on: bool = False  # whether the weights have been trained on the whole list


@dataclass(frozen=True)
class Run:
    """One training run or evaluation, or the pooled folds of a cross-validation.

    ``selection`` is how the evaluated checkpoint was selected, None if unknown. ``options`` are the chosen options of
    config groups, ``settings`` all values by dotted path, both without settings that cannot affect scores; ``typed``
    are the paths that the command line set. They describe the training run; how its checkpoint was evaluated is under
    ``scoring.``. ``environment`` has commit, torch and device, and for an evaluation also those under ``scoring.``.
    ``weights`` are hashes of the initial weights and of an evaluated checkpoint; "" if not recorded. ``areas`` has a
    row for each image. ``fold`` is the fold that was scored, None without folds; ``folds`` are the runs that a pooled
    run consists of, whose first one gives it its folder.
    """

    folder: Path
    seed: int | None
    options: dict[str, str]
    settings: Settings
    typed: frozenset[str]
    environment: dict[str, str]
    weights: tuple[str, str]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    areas: ClassAreas
    scores: Scores
    protocol: dict[str, Any]
    selection: Facts | None
    cost: dict[str, float]
    published: dict[str, float]
    curves: dict[str, ndarray]
    ended: str
    fold: Fold | None = None
    folds: tuple["Run", ...] = ()

    @property
    def location(self) -> str:
        """The folder, and how many others a pooled run consists of."""
        more = len(self.folds) - 1
        return f"{self.folder} and {more} other fold{'s' if more > 1 else ''}" if more > 0 else str(self.folder)

    def __repr__(self) -> str:
        return f"<Run: {display_path(self.folder)}, mIoU {100 * self.scores.miou:.2f} %>"

    @cached_property
    def target_digest(self) -> bytes:
        """Hash of the number of pixels of each class in the ground truth of each image."""
        return hashlib.sha256(self.areas.target.tobytes()).digest()

    @cached_property
    def fine_grained(self) -> FineGrainedScores:
        return fine_grained_of_areas(*self.areas)

    def score(self, name: str) -> float:
        """Return one of the four scores of the set, or of the fine-grained ones."""
        return getattr(self.fine_grained if name in FineGrainedScores._fields else self.scores, name)


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[ExcludedRun]]:
    """Return the runs below some folders, in the order of their names, and the folders that cannot be used."""
    with ThreadPoolExecutor(min(8, visible_cores())) as pool:  # unpacking and summing release the GIL
        read = list(pool.map(read_or_reason, distinct_folders(folders)))
    return [run for run in read if isinstance(run, Run)], [out for out in read if isinstance(out, ExcludedRun)]


def distinct_folders(roots: Iterable[Path]) -> list[Path | ExcludedRun]:
    """Return what :func:`run_folders` finds below some folders; two links to a run are one run."""
    entries: dict[str, Path | ExcludedRun] = {}
    for entry in (entry for root in roots for entry in run_folders(root.absolute())):
        path = entry.folder if isinstance(entry, ExcludedRun) else entry
        entries.setdefault(os.path.realpath(path), entry)
    return list(entries.values())


def run_folders(root: Path) -> Iterator[Path | ExcludedRun]:
    """Yield run folders (also incomplete or empty ones, job 2 before job 10) and folders that are not searched."""
    for searched in searched_folders(root):
        if isinstance(searched, ExcludedRun):
            yield searched
            continue
        folder, entries = searched
        if _is_run(entries) or all(_is_folder(entry) and not _may_hold_runs(entry) for entry in entries):
            yield folder


def searched_folders(root: Path) -> Iterator[tuple[Path, list[os.DirEntry]] | ExcludedRun]:
    """Yield the folders at and below ``root`` that may be or contain runs, with their entries, and those not searched.

    A link is followed only to a run or a sweep: any other link could lead through the whole disk.
    """
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: _natural_order(entry.name))
        except OSError as error:
            yield ExcludedRun(folder, f"cannot be read: {first_line(error)}")
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a parent folder
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, entries
        reasons = {
            entry.path: _reason_not_to_search(entry, root)
            for entry in entries
            if _may_hold_runs(entry) and not (_is_dangling(entry) and _is_run(entries))
        }
        yield from (ExcludedRun(Path(path), reason) for path, reason in reasons.items() if reason)
        waiting += [Path(path) for path, reason in reversed(reasons.items()) if not reason]


def _is_run(entries: list[os.DirEntry]) -> bool:
    return any(entry.name in RUN_FILES | {".hydra"} for entry in entries)


def _may_hold_runs(entry: os.DirEntry) -> bool:
    hidden = entry.name.startswith(".") or entry.name in NO_RUNS_INSIDE
    return not hidden and (_is_folder(entry) or _is_dangling(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_dangling(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110  (no OSError, whatever is there)


def _reason_not_to_search(entry: os.DirEntry, root: Path) -> str | None:
    """Return why a folder is not searched; None if it is."""
    if _is_dangling(entry):
        return "a broken link"
    if entry.is_symlink() and not any(os.path.lexists(f"{entry.path}/{sign}") for sign in FOLLOWED_LINK_FILES):
        return f"a link to a folder that is neither a run nor a sweep: to include it, name {os.path.realpath(entry)}"
    if entry.path.count(os.sep) - str(root).count(os.sep) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders below {root}: to include it, name a deeper folder"
    return None


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_or_reason(folder: Path | ExcludedRun) -> Run | ExcludedRun | None:
    """Return the run or why it is excluded; None for folders without scores (prediction, comparison, staged run)."""
    if isinstance(folder, ExcludedRun):
        return folder
    try:
        return read_run(folder)
    except Unusable as error:
        return ExcludedRun(folder, str(error))
    except Unreadable as error:
        return ExcludedRun(folder, f"its {error}")
    except OSError as error:
        return ExcludedRun(folder, f"cannot be read: {first_line(error)}")
    except Exception as error:  # one folder must not stop the others
        return ExcludedRun(folder, f"its record is damaged or was not written by fcnlab: {first_line(error)}")


def read_run(folder: Path) -> Run | None:
    """Return the run that a folder records; None if it is not a training run or an evaluation.

    Raises
    ------
    Unusable
        The record is empty, incomplete, unfinished, damaged, or not written by fcnlab.
    OSError, Unreadable
        A file cannot be read, or exceeds a limit.
    """
    if not any(folder.iterdir()):
        raise Unusable("an empty folder")
    hydra = _hydra(folder)
    job, facts = nested_map(hydra, "job"), read_json(folder, "run.json") or {}
    if job.get("config_name", "train") not in SCORED_TASKS:
        return None
    _check_finished(facts, folder)
    configuration = _configuration(folder)
    config = configuration[1]
    if config.get("stages"):
        return None
    record = _read_scores(folder)
    names, classes, counted, total = read_confusions(folder)
    run_scores = scores(total)
    _check_agreement(record, run_scores, classes)
    training, typed, scored, is_of_whole_list = _describe(configuration, hydra, facts, record)
    _check_settings(training)
    return Run(
        folder=folder,
        seed=training.seed,
        options=training.options,
        settings=training.settings,
        typed=frozenset(typed),
        environment=training.environment,
        weights=(training.weights, scored),
        names=names,
        classes=classes,
        areas=counted,
        scores=run_scores,
        protocol=record["protocol"],
        selection=recorded_selection(record),
        cost=_numbers(record.get("cost")) | _minutes(facts),
        published=_published(record, config, set(_overridden_keys(hydra))),
        curves=_curves(folder),
        ended=_time(facts.get("ended")) or _modification_time(folder / "metrics.json"),
        fold=_fold(record["protocol"], is_of_whole_list),
    )


def _fold(protocol: dict[str, Any], is_of_whole_list: bool) -> Fold | None:
    """Return the fold that was scored; None without folds.

    Raises
    ------
    Unusable
        The protocol contains no valid fold.
    """
    number, count = protocol.get("fold"), protocol.get("folds")
    if number is None and count is None:
        return None
    if type(number) is not int or type(count) is not int or not 0 <= number < count <= MAX_NUMBER:
        raise Unusable("its metrics.json was not written by fcnlab: its protocol contains an invalid fold")
    return Fold(number, count, is_of_whole_list)


def _check_finished(facts: dict[str, Any], folder: Path) -> None:
    status = facts.get("status", "finished")
    if status == "running":
        raise Unusable("still running, or killed before it ended")
    if status == "interrupted" and (folder.parent / "sweep.json").is_file():
        raise Unusable(f"interrupted: fcnlab train -m {resume_override(folder.parent)} resumes the sweep")
    if status == "interrupted":
        raise Unusable("interrupted: its command with checkpoint=auto, in the same folder, resumes it")
    if status != "finished":
        raise Unusable(shortened(f"{status}: {facts.get('reason')}"))


def _check_settings(training: TrainingRun) -> None:
    """Limit the size of the settings, which determines the time of each comparison and table."""
    settings = training.options | training.settings
    if len(settings) > MOST_SETTINGS or any(len(f"{key}{value}") > LONGEST_SETTING for key, value in settings.items()):
        raise Unusable(
            f"its record has over {MOST_SETTINGS:,} settings, or one with over {LONGEST_SETTING:,} characters"
        )


def _read_scores(folder: Path) -> dict[str, Any]:
    record = read_json(folder, "metrics.json")
    if record is None:
        raise Unusable("no metrics.json: incomplete, or killed before the evaluation")
    if not isinstance(record.get("iou"), dict) or not all(name in record for name in SCORES):
        raise Unusable("its metrics.json was not written by fcnlab")
    missing = [key for key in COMPARABLE_PROTOCOL if key not in nested_map(record, "protocol")]
    if missing:
        raise Unusable(f"its metrics.json was not written by fcnlab: its protocol has no {', '.join(missing)}")
    if record["miou"] is None:
        raise Unusable("no scores: all pixels of its images are ignored")
    return record


def read_confusions(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...], ClassAreas, ndarray]:
    """Return image names, class names, the areas of each image and the sum of all matrices, read part by part.

    Raises
    ------
    Unusable
        There is no confusions.npz, or it does not contain a matrix for each image.
    OSError, Unreadable
        The file cannot be read, or exceeds a limit.
    """
    try:
        with open_arrays(folder, "confusions.npz") as file:
            names, classes = (file.whole(key).tolist() for key in ("names", "classes"))
            parts = [_sum_matrices(part, len(classes)) for part in file.parts("matrices")]
    except FileNotFoundError as error:
        raise Unusable("no confusions.npz: incomplete") from error
    counted = [part for part in parts if part is not None]
    images = sum(len(areas.intersection) for areas, _ in counted)
    if len(counted) < len(parts) or images != len(names) or not all(isinstance(name, str) for name in classes):
        raise Unusable("its confusions.npz does not contain a confusion matrix for each image")
    if len(set(names)) < len(names):
        raise Unusable("its confusions.npz contains an image twice")
    areas = ClassAreas(*(np.concatenate(rows) for rows in zip(*(areas for areas, _ in counted), strict=True)))
    return tuple(map(str, names)), tuple(classes), areas, np.sum([total for _, total in counted], axis=0)


def _sum_matrices(matrices: ndarray, classes: int) -> tuple[ClassAreas, ndarray] | None:
    """Return the areas of some images and the sum of their matrices; None for invalid matrices."""
    if matrices.shape[1:] != (classes, classes) or matrices.dtype.kind not in "iu" or not len(matrices):
        return None
    if matrices.min() < 0 or matrices.max() > MAX_NUMBER:
        return None
    return ClassAreas(*map(np.ascontiguousarray, class_areas(matrices))), matrices.sum(axis=0)


def _check_agreement(record: dict[str, Any], computed: Scores, classes: tuple[str, ...]) -> None:
    """Check that both files are of one evaluation: a run killed between the two leaves a new and an old file."""
    stored = [record[name] for name in SCORES]
    same = all(
        isinstance(value, float) and math.isclose(value, new) for value, new in zip(stored, computed, strict=False)
    )
    if not same or list(record["iou"]) != list(classes):
        raise Unusable(
            "its metrics.json and confusions.npz are from different evaluations: killed between writing the two"
        )


# Settings


def _hydra(folder: Path) -> dict[str, Any]:
    return nested_map(read_yaml(folder, ".hydra/hydra.yaml"), "hydra")


def _configuration(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's config as composed, and with resolved values."""
    composed = read_yaml(folder, ".hydra/config.yaml")
    config = read_yaml(folder, "config.yaml") or composed
    if not config and (folder / JOB_LOG).is_file():
        raise Unusable(f"a sweep job that ended before its run started, or has just started: see its {JOB_LOG}")
    if not config:
        raise Unusable("no configuration: .hydra/config.yaml is missing")
    return composed, config


def _overridden_keys(hydra: dict[str, Any]) -> Iterator[str]:
    overrides = nested_map(hydra, "overrides").get("task")
    for override in overrides if isinstance(overrides, list) else ():
        yield str(override).partition("=")[0].lstrip("+~")


class RunDescription(NamedTuple):
    """A training run, how its checkpoint was evaluated, and the settings that the command line set."""

    training: TrainingRun
    typed: set[str]
    scored: str = ""  # for an evaluation, a hash of the checkpoint
    is_of_whole_list: bool = False  # for an evaluation of a fold, whether the weights have been trained on its list


def _describe(
    configuration: tuple[dict[str, Any], dict[str, Any]],
    hydra: dict[str, Any],
    facts: dict[str, Any],
    record: dict[str, Any],
) -> RunDescription:
    """Describe a training run, evaluated by itself or by fcnlab eval.

    The settings of the evaluation (data, code, precision, checkpoint) are under ``scoring.``, so that they never
    replace settings of the training run.
    """
    composed, config = configuration
    own = describe_training_run(
        composed, config, nested_map(hydra, "runtime"), {"weights": nested_map(record, "weights")} | facts
    )
    scored_in = {"precision": _precision(record, config), **source_settings([nested_map(record, "provenance")])}
    if "inference" in config:
        return _describe_evaluation(config, own, set(_overridden_keys(hydra)), scored_in, record)
    if (selection := recorded_selection(record)) is None:
        raise Unusable("its metrics.json was not written by fcnlab: it does not record how its weights were selected")
    scored_in |= {"checkpoint": f"{selection['checkpoint']}.ckpt"} | scored_data(own.settings)
    settings = own.settings | _ensemble([]) | {"trainer.precision": _precision(record, config)}
    settings |= as_scoring_settings(scored_in)
    return RunDescription(
        own._replace(options=own.options | DEFAULT_INFERENCE, settings=settings, environment=environment(record)),
        set(_overridden_keys(hydra)),
    )


def _describe_evaluation(
    config: dict[str, Any], evaluation: TrainingRun, typed: set[str], scored_in: Settings, record: dict[str, Any]
) -> RunDescription:
    """Describe the training run whose checkpoint was evaluated, as the record shows, and how it was evaluated."""
    networks, machine = _networks(record), environment(record)
    trained = _common_training(networks) if networks else from_facts(record.get("trained"))
    for each in networks or [record]:
        if why := why_not_finished(each.get("trained")):
            raise Unusable(why)
    training, scored = trained or _without_training(evaluation), scored_data(evaluation.settings)
    if trained:
        its_data = scored_data(trained.settings)
        scored = scored or its_data  # without data=, the data of the training run
        if trained.root is not None and trained.root == evaluation.root:  # also if the paths are written differently
            scored |= {path: value for path, value in its_data.items() if path == "data.root"}
    files = [nested_map(nested_map(each, "weights"), "checkpoint") for each in networks or [record]]
    checkpoint = config.get("checkpoint")
    if isinstance(checkpoint, list) and len(checkpoint) == 1:
        (checkpoint,) = checkpoint
    checkpoint = checkpoint if isinstance(checkpoint, str) else None
    if networks:
        checkpoint = ", ".join(map(_named_by_hash, files))
    elif checkpoint:
        name = str(files[0].get("name") or Path(checkpoint).name)  # the address of an artifact is no path
        checkpoint = name if trained else _named_by_hash(files[0] | {"name": name})
    chosen = {group: evaluation.options.get(group, option) for group, option in DEFAULT_INFERENCE.items()}
    inference = _only(
        evaluation.settings, {group for group, option in chosen.items() if option != DEFAULT_INFERENCE[group]}
    )
    scored_in |= {"checkpoint": checkpoint, **scored}
    return RunDescription(
        training._replace(
            options=training.options | chosen,
            settings=training.settings | _ensemble(networks) | inference | as_scoring_settings(scored_in),
            environment=(training.environment or machine) | as_scoring_settings(machine),
        ),
        {f"scoring.{path}" if path.partition(".")[0] == "data" else path for path in typed},
        "+".join(str(file.get("sha256", "")) for file in files),
        any(_is_of_whole_list(from_facts(each.get("trained")), evaluation, record) for each in networks or [record]),
    )


def _is_of_whole_list(trained: TrainingRun | None, evaluation: TrainingRun, record: dict[str, Any]) -> bool:
    """Return whether weights have been trained on the whole list of which an evaluation scores a fold."""
    if trained is None or has_folds(trained.settings) or "data.train_list" not in trained.settings:
        return False
    count = nested_map(record, "protocol").get("of")
    return "data.train_list" not in evaluation.settings or may_share_list(
        trained, evaluation.settings, evaluation.root, count
    )


def _networks(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the origins of the networks of an ensemble; empty for a single network."""
    networks = record.get("ensemble")
    return [each for each in networks if isinstance(each, dict)] if isinstance(networks, list) else []


def _ensemble(networks: list[dict[str, Any]]) -> Settings:
    """Return the number of networks as a setting, so that an ensemble is a group of its own."""
    return {"ensemble": max(1, len(networks))}


def _common_training(networks: list[dict[str, Any]]) -> TrainingRun | None:
    """Return what the training runs of all networks of an ensemble share, without a seed; None if one is unknown.

    An ensemble has no seed: it is one model, made of several.
    """
    runs = [from_facts(each.get("trained")) for each in networks]
    known = [run for run in runs if run is not None]
    if not known or len(known) < len(runs):
        return None
    roots = {run.root for run in known}
    return known[0]._replace(
        seed=None,
        options=_shared([run.options for run in known]),
        settings={path: value for path, value in _shared([run.settings for run in known]).items() if path != FOLD},
        environment=_shared([run.environment for run in known]),
        root=roots.pop() if len(roots) == 1 else None,
    )


def _shared(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries that all have with the same value."""
    first, *others = settings
    return {key: value for key, value in first.items() if all(key in each and each[key] == value for each in others)}


def _named_by_hash(file: dict[str, Any]) -> str:
    return f"{file.get('name')} ({str(file.get('sha256'))[:HASH_DIGITS]})"


def _without_training(evaluation: TrainingRun) -> TrainingRun:
    """Describe weights of an unknown training run: without seed and without training settings."""
    evaluation_roots = {"checkpoint", "data", "trainer", "source", *DEFAULT_INFERENCE}
    return evaluation._replace(
        seed=None,
        options=_without(evaluation.options, {"data", "trainer"}),
        settings=_without(evaluation.settings, evaluation_roots),
    )


def _only(settings: Settings, roots: set[str]) -> Settings:
    return {path: value for path, value in settings.items() if path.split(".")[0] in roots}


def _without(settings: dict[str, Any], roots: set[str]) -> dict[str, Any]:
    return {path: value for path, value in settings.items() if path.split(".")[0] not in roots}


def _precision(record: dict[str, Any], config: dict[str, Any]) -> Any:
    """Return the precision of an evaluation, or of a training run; "auto" if the record has no precision."""
    return nested_map(record, "protocol").get("precision") or nested_map(config, "trainer").get("precision")


# Costs and curves


def _numbers(values: Any) -> dict[str, float]:
    """Return the entries that are numbers."""
    entries = values.items() if isinstance(values, dict) else ()
    return {str(key): float(value) for key, value in entries if type(value) in (int, float) and abs(value) < MAX_NUMBER}


def _published(record: dict[str, Any], config: dict[str, Any], typed: set[str]) -> dict[str, float]:
    """Return the published scores of the experiment; empty if the command line chose other data."""
    data_overrides = typed & {"data", "data.train_list", "data.val_list", "data.test_list", "data.folds"}
    return {} if data_overrides else _numbers(record.get("published") or config.get("published"))


def _minutes(facts: dict[str, Any]) -> dict[str, float]:
    """Return the duration; empty for a resumed run, whose first part was not timed."""
    try:
        started, ended = (datetime.fromisoformat(facts[key]) for key in ("started", "ended"))
        minutes = (ended - started).total_seconds() / 60
    except (KeyError, TypeError, ValueError):  # also if only one of them has a time zone
        return {}
    return {"minutes": minutes} if facts.get("starts", 1) == 1 and not facts.get("resumed_at") else {}


def _time(value: Any) -> str | None:
    """Return a recorded time in UTC; None if it is invalid."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _modification_time(path: Path) -> str:
    """Return when a file was written; an evaluation has no run.json with its end."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()


def _curves(folder: Path) -> dict[str, ndarray]:
    """Return steps and values of each curve as two rows; entries that are not numbers are skipped."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    for row in read_rows(folder, "metrics.csv"):
        for name, curve in points.items():
            if point := _point(row, name):
                curve.append(point)
    return {name: np.array(curve).T for name, curve in points.items() if curve}


def _point(row: dict[str, str], name: str) -> tuple[float, float] | None:
    try:
        step, value = float(row.get("step") or "nan"), float(row.get(name) or "nan")
    except ValueError:
        return None
    return (step, value) if abs(step) < MAX_NUMBER and abs(value) < MAX_NUMBER else None
