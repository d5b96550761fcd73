"""The training behind some weights, as it was when they were saved.

A path is no description: another checkpoint may lie there later, the run may have gone on, a list may have got other
images. So a training describes itself when it starts, in ``run.json`` and in each of its checkpoints, and an evaluation
copies that into its ``metrics.json``, as ``trained``:

``run``
    An id of the run, the same for all its starts.
``seed``, ``options``, ``settings``
    See :mod:`fcnlab.runs.settings`. Among the settings are those that no config has: ``images.train``, the
    fingerprint of each package's source, changes at a resume, and instead of the path of weights what they are.
``environment``
    Commit, torch version and device.
``root``
    The absolute path of ``data.root``; None without one.
``files``
    Names, hashes and recipes of the files of weights that the training started from, by setting.
``sources``
    The source of each start, also of the run that this one's first checkpoint was of.
``status``, ``step``
    In a metrics.json: what the run's own record said when its checkpoint was scored, and the checkpoint's step.

What is read here was written by others: anything that is not as expected counts as unknown.
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

DISPLAYED_SETTINGS = 8  # hexadecimal digits of a hash
NOT_FINISHED = ("running", "interrupted", "failed")


class TrainingRun(NamedTuple):
    """What made some weights."""

    seed: int | None
    options: dict[str, str]
    settings: Settings
    environment: dict[str, str]
    root: str | None = None
    files: Mapping[str, Any] = {}

    @property
    def weights(self) -> str:
        """The hashes of the files that it started from; "" for none."""
        return "+".join(str(found.get("sha256")) for _, found in _known(self.files))


def describe_training_run(
    composed: Any, config: Mapping[str, Any], runtime: Mapping[str, Any], facts: Mapping[str, Any]
) -> TrainingRun:
    """A training by its config, as composed and with all values, Hydra's ``runtime`` and the facts of its run.json."""
    settings = {path: value for path, value in identifying_values(composed, config).items() if path != "checkpoint"}
    files = nested_map(facts, "weights")
    settings |= _weights(files, settings) | _images(facts) | _devices(facts, settings) | _resumed(facts)
    return TrainingRun(
        seed=_whole(config.get("seed")),
        options=identifying_options(runtime.get("choices")),
        settings=settings | source_settings(sources(facts)),
        environment={},
        root=absolute(nested_map(config, "data").get("root"), runtime.get("cwd")),
        files=files,
    )


def sources(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The source of every start that made a run's weights, as ``{"source": {PACKAGE: FINGERPRINT}}``, oldest first."""
    earlier = [facts.get(key) for key in ("inherited", "earlier")]
    starts = [start for found in earlier for start in (found if isinstance(found, list) else ())]
    return [{"source": nested_map(start, "source")} for start in (*starts, facts)]


def as_facts(training: TrainingRun, **more: Any) -> dict[str, Any]:
    """As a checkpoint and a metrics.json hold it."""
    return training._asdict() | more


def from_facts(found: Any) -> TrainingRun | None:
    """The training that a checkpoint or a metrics.json tells of; None where it tells of none."""
    if not isinstance(found, Mapping) or not isinstance(found.get("settings"), dict):
        return None
    root = found.get("root")
    return TrainingRun(
        seed=_whole(found.get("seed")),
        options={str(key): str(value) for key, value in nested_map(found, "options").items()},
        settings={str(key): value for key, value in found["settings"].items()},
        environment={str(key): str(value) for key, value in nested_map(found, "environment").items()},
        root=root if isinstance(root, str) else None,
        files=nested_map(found, "files"),
    )


def recipe(training: TrainingRun) -> str:
    """A hash of all that makes weights but for seeds: equal for the trainings of a group."""
    told = json.dumps([training.options, training.settings], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:DISPLAYED_SETTINGS]


def absolute(root: Any, cwd: Any) -> str | None:
    """Where a path that was typed in a folder leads, behind all links."""
    return os.path.realpath(Path(str(cwd or "."), root)) if isinstance(root, str) else None


def why_not_finished(trained: Any) -> str | None:
    """Why a scored checkpoint is none of a finished training, where the record says so."""
    status = trained.get("status") if isinstance(trained, Mapping) else None
    if status not in NOT_FINISHED:
        return None
    when = f"when its checkpoint of step {trained.get('step')} was scored"
    return f"its training was not finished {when} ({status}): finish it by checkpoint=auto, then score it again"


def _known(files: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, found) for path, found in files.items() if isinstance(found, dict)]


def _weights(files: Mapping[str, Any], settings: Settings) -> Settings:
    """What a training started from, in the place of a path: the recipe of a training of fcnlab's, which is the same
    for each seed, else the file itself. A path that follows the seed names another file for each."""
    return {
        path: f"{found.get('name')} ({found.get('recipe') or str(found.get('sha256'))[:DISPLAYED_SETTINGS]})"
        for path, found in _known(files)
        if found.get("recipe") or path in settings
    }


def _images(facts: Mapping[str, Any]) -> Settings:
    """How many images a run trains and validates on, and a hash of their names: a list may change under its name."""
    named = {split: found for split, found in nested_map(facts, "images").items() if isinstance(found, dict)}
    return {
        f"images.{split}": f"{found.get('count')} ({str(found.get('names'))[:DISPLAYED_SETTINGS]})"
        for split, found in named.items()
    }


def _devices(facts: Mapping[str, Any], settings: Settings) -> Settings:
    """How many devices were taken, where the setting leaves that to the machine."""
    free = settings.get("trainer.devices") in ("auto", -1, "-1")
    return {"trainer.devices": facts["devices"]} if free and "devices" in facts else {}


def _resumed(facts: Mapping[str, Any]) -> Settings:
    """What a run changed when it resumed, as a setting of its own: no uninterrupted run is its repetition.

    ``config.yaml`` holds the values of the last segment only.
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
