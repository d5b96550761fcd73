"""Run folders as they are found: what each one scored, cost and was set to, and why one cannot be used.

Everything in a run's folder is foreign: it may be half written, or somebody else's. What cannot
be used is named with its reason, and the rest goes on.
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
from fcnlab.cores import visible_cores
from fcnlab.errors import first_line
from fcnlab.files.reading import Unreadable, open_arrays, path_inside, read_json, read_rows, read_yaml
from fcnlab.metrics.conventions import ClassAreas, class_areas
from fcnlab.metrics.scores import SCORES, Scores, scores
from fcnlab.runs.lineage import DISPLAYED_SETTINGS, TrainingRun, describe_training_run, from_facts, why_not_finished
from fcnlab.runs.origins import as_scoring_settings, environment, nested_map, scored_data, source_settings
from fcnlab.runs.selection import Facts, recorded_selection

VERBS = ("train", "eval")  # the others leave no scores
LOG = "job.log"  # what a job of a sweep said, of a failed one perhaps all that there is
SIGNS = {"metrics.json", "confusions.npz", "run.json", LOG}  # each makes a folder a run's
BEHIND_LINKS = {*SIGNS, ".hydra", "sweep.json", "multirun.yaml"}  # of a run, or of a sweep
DEEPEST = 40  # folders in each other
NO_RUNS_INSIDE = {"checkpoints", "predictions", "wandb"}
CURVES = ("val/miou", "train/loss")
SAME = ("set", "resolution", "void", "absent_classes", "padded_samples")  # of two protocols that can be compared
# How a training scores its own images; an evaluation may do otherwise.
AS_TRAINED = {"inference": "whole", "postprocess": "none"}
LARGEST = 1e15  # of a number that a chart has an axis for
MOST_SETTINGS, LONGEST_SETTING = 2_000, 10_000  # of a run, and characters of one; there are some 200, of some 20


class ExcludedRun(NamedTuple):
    """A folder that is no part of a comparison."""

    folder: Path
    reason: str


class Unusable(ValueError):
    """Why a folder's record cannot be used."""


@dataclass(frozen=True)
class Run:
    """One training or evaluation.

    ``selection`` is how the scored weights were selected, None where that is not known. ``options`` are the chosen
    options of config groups, ``settings`` all values by dotted path, both without what no score depends on; ``typed``
    the paths among them that its command named. They are those of the training; how its checkpoint was scored is under
    ``scoring.``. ``environment`` has commit, torch and device, of an evaluation also those under ``scoring.``.
    ``weights`` are hashes of what the training started from, and of an evaluated checkpoint; "" where that is not told.
    ``areas`` has a row for each image.
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

    @cached_property
    def target_digest(self) -> bytes:
        """A hash of the pixels of each class in each image's ground truth."""
        return hashlib.sha256(self.areas.target.tobytes()).digest()

    def panel(self, name: str) -> Path | None:
        """Its drawing of a image beside truth and prediction, where it left one."""
        try:
            path = path_inside(self.folder, f"predictions/{name}.png")
            return path if path.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            return None


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[ExcludedRun]]:
    """The runs below some folders, in the order of their names, and what was found there but cannot be used."""
    found: dict[str, Path | ExcludedRun] = {}
    for entry in (entry for folder in folders for entry in run_folders(folder.absolute())):
        path = entry.folder if isinstance(entry, ExcludedRun) else entry
        found.setdefault(os.path.realpath(path), entry)  # two links to a run are one run
    with ThreadPoolExecutor(min(8, visible_cores())) as pool:  # unpacking and summing leave Python's lock alone
        read = list(pool.map(_read_or_reason, found.values()))
    return [run for run in read if isinstance(run, Run)], [out for out in read if isinstance(out, ExcludedRun)]


def run_folders(root: Path) -> Iterator[Path | ExcludedRun]:
    """Folders that a run left or began, and empty ones; job 2 of a sweep before job 10; what is not looked into.

    A link is followed where a run or a sweep is behind it: any other could lead through the whole disk.
    """
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        try:
            known = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: _natural(entry.name))
        except OSError as error:
            yield ExcludedRun(folder, f"cannot be read: {first_line(error)}")
            continue
        if (known.st_dev, known.st_ino) in seen:  # a link leads back to it
            continue
        seen.add((known.st_dev, known.st_ino))
        within = [entry for entry in entries if _may_hold_runs(entry)]
        is_run = any(entry.name in SIGNS | {".hydra"} for entry in entries)
        if is_run or not (within or any(not _is_folder(entry) for entry in entries)):
            yield folder
        reasons = {entry.path: _why_not(entry, root) for entry in within if not (is_run and _is_dangling(entry))}
        yield from (ExcludedRun(Path(path), reason) for path, reason in reasons.items() if reason)
        waiting += [Path(path) for path, reason in reversed(reasons.items()) if not reason]


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


def _why_not(entry: os.DirEntry, root: Path) -> str | None:
    """Why a folder is not looked into, if it is not."""
    if _is_dangling(entry):
        return "a link to what is not there"
    if entry.is_symlink() and not any(os.path.lexists(f"{entry.path}/{sign}") for sign in BEHIND_LINKS):
        return f"a link to a folder that is neither a run nor a sweep: give that one itself, {os.path.realpath(entry)}"
    if entry.path.count(os.sep) - str(root).count(os.sep) > DEEPEST:
        return f"{DEEPEST} folders below {root}: give one further down"
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_or_reason(folder: Path | ExcludedRun) -> Run | ExcludedRun | None:
    """None for what holds no scores by its nature: a prediction, a comparison, a staged training's frame."""
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
    except Exception as error:  # whatever a folder holds, the others go on
        return ExcludedRun(folder, f"its record is damaged, or not one of fcnlab's: {first_line(error)}")


def read_run(folder: Path) -> Run | None:
    """A run's record.

    Raises
    ------
    Unusable
        It is empty, half written, of a run that did not finish, damaged or not ours.
    OSError, Unreadable
        A file of it cannot be read, or is over a limit.
    """
    if not any(folder.iterdir()):
        raise Unusable("an empty folder")
    hydra = _hydra(folder)
    job, facts = nested_map(hydra, "job"), read_json(folder, "run.json") or {}
    if job.get("config_name", "train") not in VERBS:
        return None
    _check_finished(facts)
    configuration = _configuration(folder)
    config = configuration[1]
    if config.get("stages"):
        return None
    record = _scored(folder)
    names, classes, counted, total = _confusions(folder)
    found = scores(total)
    _check_agreement(record, found, classes)
    training, typed, scored = _described(configuration, hydra, facts, record)
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
        scores=found,
        protocol=record["protocol"],
        selection=recorded_selection(record),
        cost=_numbers(record.get("cost")) | _minutes(facts),
        published=_published(record, config, set(_typed(hydra))),
        curves=_curves(folder),
        ended=_time(facts.get("ended")) or _written(folder / "metrics.json"),
    )


def _check_finished(facts: dict[str, Any]) -> None:
    status = facts.get("status", "finished")
    if status == "running":
        raise Unusable("killed, or still running: it has not said that it ended")
    if status == "interrupted":
        raise Unusable("interrupted: checkpoint=auto hydra.run.dir=FOLDER goes on with it")
    if status != "finished":
        raise Unusable(f"{status}: {facts.get('reason')}")


def _check_settings(training: TrainingRun) -> None:
    """Every comparison of settings and every table takes its time from them."""
    settings = training.options | training.settings
    if len(settings) > MOST_SETTINGS or any(len(f"{key}{value}") > LONGEST_SETTING for key, value in settings.items()):
        raise Unusable(f"its record has over {MOST_SETTINGS:,} settings, or one of over {LONGEST_SETTING:,} characters")


def _scored(folder: Path) -> dict[str, Any]:
    record = read_json(folder, "metrics.json")
    if record is None:
        raise Unusable("no metrics.json: half written, or killed before it was scored")
    if not isinstance(record.get("iou"), dict) or not all(name in record for name in SCORES):
        raise Unusable("its metrics.json is not one of fcnlab's")
    missing = [key for key in SAME if key not in nested_map(record, "protocol")]
    if missing:
        raise Unusable(f"its metrics.json is not one of fcnlab's: its protocol has no {', '.join(missing)}")
    if record["miou"] is None:
        raise Unusable("nothing was scored: no pixel of its images counts")
    return record


def _confusions(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...], ClassAreas, ndarray]:
    """Names of images and classes, the areas of each image, and the sum of all matrices, which are never held."""
    try:
        with open_arrays(folder, "confusions.npz") as file:
            names, classes = (file.whole(key).tolist() for key in ("names", "classes"))
            parts = [_summed(part, len(classes)) for part in file.parts("matrices")]
    except FileNotFoundError as error:
        raise Unusable("no confusions.npz: half written") from error
    counted = [part for part in parts if part is not None]
    images = sum(len(found.intersection) for found, _ in counted)
    if len(counted) < len(parts) or images != len(names) or not all(isinstance(name, str) for name in classes):
        raise Unusable("its confusions.npz does not hold a matrix of counts for each image")
    if len(set(names)) < len(names):
        raise Unusable("its confusions.npz counts a image twice")
    found = ClassAreas(*(np.concatenate(rows) for rows in zip(*(found for found, _ in counted), strict=True)))
    return tuple(map(str, names)), tuple(classes), found, np.sum([total for _, total in counted], axis=0)


def _summed(matrices: ndarray, classes: int) -> tuple[ClassAreas, ndarray] | None:
    """The areas of some images, and the sum of their matrices; None for what is no matrices of counts."""
    if matrices.shape[1:] != (classes, classes) or matrices.dtype.kind not in "iu" or not len(matrices):
        return None
    if matrices.min() < 0 or matrices.max() > LARGEST:
        return None
    return ClassAreas(*map(np.ascontiguousarray, class_areas(matrices))), matrices.sum(axis=0)


def _check_agreement(record: dict[str, Any], found: Scores, classes: tuple[str, ...]) -> None:
    """A run that was killed between its two files leaves a new one beside an old one."""
    stored = [record[name] for name in SCORES]
    same = all(isinstance(value, float) and math.isclose(value, new) for value, new in zip(stored, found, strict=False))
    if not same or list(record["iou"]) != list(classes):
        raise Unusable("its metrics.json and confusions.npz are not of the same scoring: killed between the two")


# What a run was set to


def _hydra(folder: Path) -> dict[str, Any]:
    return nested_map(read_yaml(folder, ".hydra/hydra.yaml"), "hydra")


def _configuration(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's config as it was composed, and with its values put in."""
    composed = read_yaml(folder, ".hydra/config.yaml")
    config = read_yaml(folder, "config.yaml") or composed
    if not config and (folder / LOG).is_file():
        raise Unusable(f"a job that ended before its run began, or has only just begun: see its {LOG}")
    if not config:
        raise Unusable("no configuration in it: .hydra/config.yaml is missing")
    return composed, config


def _typed(hydra: dict[str, Any]) -> Iterator[str]:
    words = nested_map(hydra, "overrides").get("task")
    for word in words if isinstance(words, list) else ():
        yield str(word).partition("=")[0].lstrip("+~")


class Described(NamedTuple):
    """What a record is of: a training, how its checkpoint was scored, and the settings that the command named."""

    training: TrainingRun
    typed: set[str]
    scored: str = ""  # a hash of the checkpoint, of an evaluation


def _described(
    configuration: tuple[dict[str, Any], dict[str, Any]],
    hydra: dict[str, Any],
    facts: dict[str, Any],
    record: dict[str, Any],
) -> Described:
    """A training as its own record scored it, or as an evaluation did.

    How it was scored (data, code, precision, checkpoint) are settings below ``scoring.``, whose names no training's
    setting has, so that they stand beside what the net was trained with and never in its place.
    """
    composed, config = configuration
    own = describe_training_run(
        composed, config, nested_map(hydra, "runtime"), {"weights": nested_map(record, "weights")} | facts
    )
    scored_in = {"precision": _precision(record, config), **source_settings([nested_map(record, "provenance")])}
    if "inference" in config:
        return _evaluated(config, own, set(_typed(hydra)), scored_in, record)
    if (selected := recorded_selection(record)) is None:
        raise Unusable("its metrics.json is not one of fcnlab's: it does not record how its weights were selected")
    scored_in |= {"checkpoint": f"{selected['checkpoint']}.ckpt"} | scored_data(own.settings)
    settings = own.settings | {"trainer.precision": _precision(record, config)} | as_scoring_settings(scored_in)
    return Described(
        own._replace(options=own.options | AS_TRAINED, settings=settings, environment=environment(record)),
        set(_typed(hydra)),
    )


def _evaluated(
    config: dict[str, Any], own: TrainingRun, typed: set[str], scored_in: Settings, record: dict[str, Any]
) -> Described:
    """The training whose checkpoint an evaluation scored, as its record tells, and how it did that."""
    found, machine = from_facts(record.get("trained")), environment(record)
    if why := why_not_finished(record.get("trained")):
        raise Unusable(why)
    training, scored = found or _untrained(own), scored_data(own.settings)
    if found:
        its_data = scored_data(found.settings)
        scored = scored or its_data  # without data=, that of its training
        if found.root is not None and found.root == own.root:  # however it was typed
            scored |= {path: value for path, value in its_data.items() if path == "data.root"}
    file = nested_map(nested_map(record, "weights"), "checkpoint")
    checkpoint = config.get("checkpoint") if isinstance(config.get("checkpoint"), str) else None
    if checkpoint:
        name = Path(checkpoint).name
        checkpoint = name if found else f"{name} ({str(file.get('sha256'))[:DISPLAYED_SETTINGS]})"
    chosen = {group: own.options.get(group, option) for group, option in AS_TRAINED.items()}
    inference = _only(own.settings, {group for group, option in chosen.items() if option != AS_TRAINED[group]})
    scored_in |= {"checkpoint": checkpoint, **scored}
    return Described(
        training._replace(
            options=training.options | chosen,
            settings=training.settings | inference | as_scoring_settings(scored_in),
            environment=(training.environment or machine) | as_scoring_settings(machine),
        ),
        {f"scoring.{path}" if path.partition(".")[0] == "data" else path for path in typed},
        str(file.get("sha256", "")),
    )


def _untrained(own: TrainingRun) -> TrainingRun:
    """Weights of which no training is known here: neither a seed nor what they were trained with."""
    of_scoring = {"checkpoint", "data", "trainer", "source", *AS_TRAINED}
    return own._replace(
        seed=None, options=_without(own.options, {"data", "trainer"}), settings=_without(own.settings, of_scoring)
    )


def _only(settings: Settings, roots: set[str]) -> Settings:
    return {path: value for path, value in settings.items() if path.split(".")[0] in roots}


def _without(settings: dict[str, Any], roots: set[str]) -> dict[str, Any]:
    return {path: value for path, value in settings.items() if path.split(".")[0] not in roots}


def _precision(record: dict[str, Any], config: dict[str, Any]) -> Any:
    """What a record was scored in, which a training's was trained in, too; "auto" stays where it does not tell."""
    return nested_map(record, "protocol").get("precision") or nested_map(config, "trainer").get("precision")


# What it cost, and how it got there


def _numbers(values: Any) -> dict[str, float]:
    """The numbers among some facts."""
    found = values.items() if isinstance(values, dict) else ()
    return {str(key): float(value) for key, value in found if type(value) in (int, float) and abs(value) < LARGEST}


def _published(record: dict[str, Any], config: dict[str, Any], typed: set[str]) -> dict[str, float]:
    """What its experiment says was published, unless other data than the experiment's were typed."""
    other = typed & {"data", "data.train_list", "data.val_list", "data.test_list"}
    return {} if other else _numbers(record.get("published") or config.get("published"))


def _minutes(facts: dict[str, Any]) -> dict[str, float]:
    """From start to end; nothing for a run that was resumed, also from another's checkpoint: its first part nobody
    timed."""
    try:
        started, ended = (datetime.fromisoformat(facts[key]) for key in ("started", "ended"))
        minutes = (ended - started).total_seconds() / 60
    except (KeyError, TypeError, ValueError):  # also where one of them has a zone, and the other has not
        return {}
    return {"minutes": minutes} if facts.get("starts", 1) == 1 and not facts.get("resumed_at") else {}


def _time(value: Any) -> str | None:
    """A time as runs write it; None for anything else."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _written(path: Path) -> str:
    """When a file was; an evaluation has no run.json that tells when it ended."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()


def _curves(folder: Path) -> dict[str, ndarray]:
    """Steps and values of each curve that is drawn, as two rows; what is no number is passed over."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    for row in read_rows(folder, "metrics.csv"):
        for name, found in points.items():
            if point := _point(row, name):
                found.append(point)
    return {name: np.array(found).T for name, found in points.items() if found}


def _point(row: dict[str, str], name: str) -> tuple[float, float] | None:
    try:
        step, value = float(row.get("step") or "nan"), float(row.get(name) or "nan")
    except ValueError:
        return None
    return (step, value) if abs(step) < LARGEST and abs(value) < LARGEST else None
