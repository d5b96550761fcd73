"""Where a run's numbers come from: the code and the machine that computed them, and what was scored.

What is read here was written by others: anything that is not as expected counts as unknown.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fcnlab.config.components import Settings

UNKNOWN = "unknown"
ENVIRONMENT = ("commit", "torch", "device")  # named for each run; a setting on request only
SCORING = "scoring."  # before the name of what a scoring has of its own, beside the training's

# Values of data.* that say which images are scored, or how a net is trained on others. The record itself says the
# former: its protocol names the set, and it names each image. All others may change what an image or its ground truth
# is: where they lie, and how they are read.
NO_PART_IN_SCORING = re.compile(
    r"data\.(_\w+_|(train|val|test)_list|num_classes|augment(\..*)?|crop_size|batch_size|eval_batch_size|seed"
    r"|dataset\.(num_train|num_val|lists|fractions(\..*)?|split_seed|convert))"
)


def source_settings(starts: Sequence[Any]) -> Settings:
    """``source.PACKAGE``: the fingerprint of the code that a run was computed by, from each of its starts' facts.

    A run that was resumed under other code has the fingerprints of both; a record without any is of unknown code.
    """
    known = [dict(_texts(start.get("source") if isinstance(start, dict) else None)) for start in starts]
    packages = dict.fromkeys(["fcnlab", *(package for found in known for package in found)])
    return {
        f"source.{package}": "+".join(dict.fromkeys(found.get(package, UNKNOWN) for found in known)) or UNKNOWN
        for package in packages
    }


def environment(record: Mapping[str, Any] | None) -> dict[str, str]:
    """Commit, torch version and device of a ``metrics.json``."""
    found = nested_map(record, "provenance")
    values = {
        "commit": found.get("commit"),
        "torch": nested_map(found, "versions").get("torch"),
        "device": found.get("device"),
    }
    return {key: str(value) if value else UNKNOWN for key, value in values.items()}


def scored_data(settings: Settings) -> Settings:
    """The values of ``data.*`` that decide what was scored, by their own paths."""
    return {
        path: value
        for path, value in settings.items()
        if path.startswith("data.") and not NO_PART_IN_SCORING.fullmatch(path)
    }


def as_scoring_settings(settings: Settings) -> Settings:
    """Settings of a scoring under names that no setting of a training has."""
    return {f"{SCORING}{path}": value for path, value in settings.items()}


def _texts(value: Any) -> list[tuple[str, str]]:
    return [(str(key), str(found)) for key, found in value.items()] if isinstance(value, dict) else []


def nested_map(tree: Any, key: str) -> dict[str, Any]:
    """A map inside a tree; empty where there is none."""
    value = tree.get(key) if isinstance(tree, Mapping) else None
    return value if isinstance(value, dict) else {}
