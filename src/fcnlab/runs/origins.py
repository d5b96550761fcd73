"""Read the origins of a run's scores from its record: code, environment and evaluation data.

Records are untrusted input: unexpected values count as unknown.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fcnlab.config.components import Settings

UNKNOWN = "unknown"
ENVIRONMENT = ("commit", "torch", "device")  # shown for each run; a grouping setting only with split_by
SCORING = "scoring."  # prefix of the settings of an evaluation, beside those of training

# Values of data.* that select the evaluated images, or only affect training. The record itself names the set and each
# image. All other values may change an image or its ground truth: where they are stored, and how they are read.
WITHOUT_EFFECT_ON_SCORES = re.compile(
    r"data\.(_\w+_|(train|val|test)_list|num_classes|augment(\..*)?|crop_size|batch_size|eval_batch_size|seed"
    r"|folds|fold|fold_group|stratify|fraction"
    r"|dataset\.(num_train|num_val|lists|fractions(\..*)?|split_seed|convert))"
)


def source_settings(starts: Sequence[Any]) -> Settings:
    """Return ``source.PACKAGE``, the fingerprint of the code of a run, from the facts of each of its starts.

    A run that was resumed with other code has both fingerprints; a record without fingerprints has unknown code.
    """
    known = [dict(_texts(start.get("source") if isinstance(start, dict) else None)) for start in starts]
    packages = dict.fromkeys(["fcnlab", *(package for fingerprints in known for package in fingerprints)])
    return {
        f"source.{package}": "+".join(dict.fromkeys(fingerprints.get(package, UNKNOWN) for fingerprints in known))
        or UNKNOWN
        for package in packages
    }


def environment(record: Mapping[str, Any] | None) -> dict[str, str]:
    """Return commit, torch version and device of a ``metrics.json``."""
    provenance = nested_map(record, "provenance")
    values = {
        "commit": provenance.get("commit"),
        "torch": nested_map(provenance, "versions").get("torch"),
        "device": provenance.get("device"),
    }
    return {key: str(value) if value else UNKNOWN for key, value in values.items()}


def scored_data(settings: Settings) -> Settings:
    """Return the values of ``data.*`` that determine the evaluated images and ground truth."""
    return {
        path: value
        for path, value in settings.items()
        if path.startswith("data.") and not WITHOUT_EFFECT_ON_SCORES.fullmatch(path)
    }


def as_scoring_settings(settings: Settings) -> Settings:
    """Return the settings of an evaluation with the prefix that distinguishes them from training settings."""
    return {f"{SCORING}{path}": value for path, value in settings.items()}


def _texts(value: Any) -> list[tuple[str, str]]:
    return [(str(key), str(text)) for key, text in value.items()] if isinstance(value, dict) else []


def nested_map(tree: Any, key: str) -> dict[str, Any]:
    """Return a map inside a tree; empty if there is none."""
    value = tree.get(key) if isinstance(tree, Mapping) else None
    return value if isinstance(value, dict) else {}
