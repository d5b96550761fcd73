"""Describe the training run that produced a checkpoint, as it was when the checkpoint was saved.

A path is not enough: later, another checkpoint may have this path, the run may have been resumed, or a list may contain
other images. So a training run describes itself at its start, in ``run.json`` and in each checkpoint, and an evaluation
copies that into its ``metrics.json``, as ``trained``:

``run``
    An id of the run, the same for all its starts.
``wandb_run``
    Where the run is in W&B: id, project, entity, group (:class:`fcnlab.tracking.links.TrackedRun`).
``seed``, ``options``, ``settings``
    See :mod:`fcnlab.runs.settings`. The settings include some that are not in the config: ``images.train``, the
    fingerprint of each package's source, changes at a resume, and a description of initial weights instead of a path.
``environment``
    Commit, torch version and device.
``root``
    The absolute path of ``data.root``; None without one.
``files``
    Names, hashes and recipes of the files of initial weights, by setting.
``sources``
    The source code of each start, including the run of the checkpoint that this run started from.
``status``, ``step``
    In a metrics.json: the status of the training run when its checkpoint was evaluated, and the checkpoint's step.

Records are untrusted input: unexpected values count as unknown.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.config.components import Settings
from fcnlab.runs.origins import nested_map, source_settings
from fcnlab.runs.settings import WITHOUT_EFFECT, identifying_options, identifying_values

FOLD = "data.fold"
HASH_DIGITS = 8  # hexadecimal digits of a hash
NOT_FINISHED = ("running", "interrupted", "failed")


class TrainingRun(NamedTuple):
    """The settings, code and environment that produced some weights."""

    seed: int | None
    options: dict[str, str]
    settings: Settings
    environment: dict[str, str]
    root: str | None = None
    files: Mapping[str, Any] = {}

    @property
    def weights(self) -> str:
        """Hashes of the files of initial weights; "" for none."""
        return "+".join(str(file.get("sha256")) for _, file in _known(self.files))


def describe_training_run(
    composed: Any, config: Mapping[str, Any], runtime: Mapping[str, Any], facts: Mapping[str, Any]
) -> TrainingRun:
    """Describe a training run from its config (composed and resolved), Hydra's ``runtime`` and its run.json."""
    settings = {path: value for path, value in identifying_values(composed, config).items() if path != "checkpoint"}
    files = nested_map(facts, "weights")
    settings |= _weights(files, settings) | _images(facts) | _devices(facts, settings) | _resumed(facts)
    settings = _of_all_folds(settings)
    return TrainingRun(
        seed=_whole(config.get("seed")),
        options=identifying_options(runtime.get("choices")),
        settings=settings | source_settings(sources(facts)),
        environment={},
        root=absolute(nested_map(config, "data").get("root"), runtime.get("cwd")),
        files=files,
    )


def sources(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the source of every start of a run as ``{"source": {PACKAGE: FINGERPRINT}}``, oldest first."""
    earlier = [facts.get(key) for key in ("inherited", "earlier")]
    starts = [start for entries in earlier for start in (entries if isinstance(entries, list) else ())]
    return [{"source": nested_map(start, "source")} for start in (*starts, facts)]


def as_facts(training: TrainingRun, **more: Any) -> dict[str, Any]:
    """Return the entries of a checkpoint and a metrics.json."""
    return training._asdict() | more


def from_facts(record: Any) -> TrainingRun | None:
    """Return the training run that a checkpoint or a metrics.json describes; None if there is none."""
    if not isinstance(record, Mapping) or not isinstance(record.get("settings"), dict):
        return None
    root = record.get("root")
    return TrainingRun(
        seed=_whole(record.get("seed")),
        options={str(key): str(value) for key, value in nested_map(record, "options").items()},
        settings={str(key): value for key, value in record["settings"].items()},
        environment={str(key): str(value) for key, value in nested_map(record, "environment").items()},
        root=root if isinstance(root, str) else None,
        files=nested_map(record, "files"),
    )


def recipe(training: TrainingRun) -> str:
    """Return a hash of all options and settings except seeds and the fold: equal for all runs of a group."""
    settings = {path: value for path, value in training.settings.items() if path != FOLD}
    description = json.dumps([training.options, settings], sort_keys=True, default=str)
    return hashlib.sha256(description.encode()).hexdigest()[:HASH_DIGITS]


def may_share_list(training: TrainingRun, data: Settings, root: str | None, count: Any) -> bool:
    """Return whether a run may have trained on images of the list of ``count`` images that ``data`` divides into folds.

    Another root may contain a copy of the same list, but not one of another length.
    """
    own = training.settings
    if any(own.get(key) != data.get(key) for key in ("data.train_list", "data.dataset._target_")):
        return False
    if None in (training.root, root) or training.root == root:
        return True
    trained_on = own.get("images.train") if own.get("data.fraction") in (None, 1) else None
    known = own.get("images.folds") or trained_on
    return known is None or str(known).partition(" ")[0] == str(count)


def list_of(settings: Settings) -> str:
    """Return the data set and the list that a run has trained on, as one text."""
    return f"{settings.get('data.dataset._target_')} {settings.get('data.train_list')}"


def has_folds(settings: Settings) -> bool:
    """Return whether a training run held out a fold of its list."""
    return bool(settings.get("data.folds") or settings.get("images.folds"))


def absolute(root: Any, cwd: Any) -> str | None:
    """Return the absolute path of a path relative to ``cwd``, with links resolved."""
    return os.path.realpath(Path(str(cwd or "."), root)) if isinstance(root, str) else None


def why_not_finished(trained: Any) -> str | None:
    """Return why an evaluated checkpoint is not from a finished training run; None if it is or if unknown."""
    status = trained.get("status") if isinstance(trained, Mapping) else None
    if status not in NOT_FINISHED:
        return None
    when = f"when its checkpoint of step {trained.get('step')} was scored"
    return f"its training run was not finished {when} ({status}): resume it with checkpoint=auto, then evaluate again"


def _known(files: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, file) for path, file in files.items() if isinstance(file, dict)]


def _weights(files: Mapping[str, Any], settings: Settings) -> Settings:
    """Replace paths of initial weights: by the recipe of the training run (equal for all seeds), or by the file's hash.

    A path that contains the seed names another file for each seed. Weights of another fold have seen images that are
    held out, so their fold is named. So is that they were trained on the whole list of which this run holds out a fold.
    """
    own_list = list_of(settings)

    def fold(file: Mapping[str, Any]) -> str:
        number = file.get("fold")
        if number is None and settings.get("data.folds") and file.get("trained_on") == own_list:
            return ", trained on all folds"
        return "" if number in (None, str(settings.get(FOLD))) else f", fold {number}"

    return {
        path: f"{file.get('name')} ({file.get('recipe') or str(file.get('sha256'))[:HASH_DIGITS]}{fold(file)})"
        for path, file in _known(files)
        if file.get("recipe") or path in settings
    }


def _images(facts: Mapping[str, Any]) -> Settings:
    """Return the number of images of training and validation and a hash of their names, because a list may change."""
    splits = {split: images for split, images in nested_map(facts, "images").items() if isinstance(images, dict)}
    return {
        f"images.{split}": f"{images.get('count')} ({str(images.get('names'))[:HASH_DIGITS]})"
        for split, images in splits.items()
    }


def _of_all_folds(settings: Settings) -> Settings:
    """Return the settings without those that follow from the fold, or that have no effect without folds.

    ``images.folds`` has the whole list that is divided, of which the fold has the images of training and validation.
    """
    without_effect = ("images.train", "images.val", "data.val_list")
    if settings.get("data.folds") is None:
        without_effect = ("data.stratify",)  # which records of older versions do not have
    return {path: value for path, value in settings.items() if path not in without_effect}


def _devices(facts: Mapping[str, Any], settings: Settings) -> Settings:
    """Return the number of devices used, if the setting leaves it to the machine."""
    free = settings.get("trainer.devices") in ("auto", -1, "-1")
    return {"trainer.devices": facts["devices"]} if free and "devices" in facts else {}


def _resumed(facts: Mapping[str, Any]) -> Settings:
    """Return the changes at resumes as a setting: an uninterrupted run is not a repetition of such a run.

    ``config.yaml`` contains only the values of the last segment.
    """
    segments = facts.get("segments")
    changed = [
        f"from step {segment.get('from_step')} {path}={change[-1]} (was {change[0]})"
        for segment in (segments if isinstance(segments, list) else ())
        for path, change in sorted(nested_map(segment, "changed").items())
        if isinstance(change, list) and change and not WITHOUT_EFFECT.fullmatch(path)
    ]
    return {"resumed": ", ".join(changed)} if changed else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
