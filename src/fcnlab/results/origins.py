"""Where a run's numbers come from: the code and the machine that computed them, and what was scored.

What is read here was written by others: anything that is not as expected counts as unknown.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
ENVIRONMENT = ("commit", "torch", "device")  # named for each run; a setting on request only
SCORING = "scoring."  # before the name of what a scoring has of its own, beside the training's
Settings = dict[str, Any]
DIGITS = 12  # of a number: what differs behind them is rounding

# Values of data.* that say which images are scored, or how a net is trained on others. The record itself says the
# former: its protocol names the set, and it names each image. All others may change what an image or its ground truth
# is: where they lie, and how they are read.
NO_PART_IN_SCORING = re.compile(
    r"data\.(_\w+_|(train|val|test)_list|num_classes|augment(\..*)?|crop_size|batch_size|eval_batch_size|seed"
    r"|pictures\.(num_train|num_val|lists|fractions(\..*)?|split_seed|convert))"
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
    found = part(record, "provenance")
    values = {
        "commit": found.get("commit"),
        "torch": part(found, "versions").get("torch"),
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


def same_folder(*roots: tuple[Any, Any]) -> bool:
    """Whether several ``data.root``, each with the folder that it was typed in, are one folder by several paths."""
    known = {os.path.normpath(Path(str(place), root)) for root, place in roots if isinstance(root, str)}
    return len(known) == 1 and all(isinstance(root, str) for root, _ in roots)


def under_scoring(settings: Settings) -> Settings:
    """Settings of a scoring under names that no setting of a training has."""
    return {f"{SCORING}{path}": value for path, value in settings.items()}


def _texts(value: Any) -> list[tuple[str, str]]:
    return [(str(key), str(found)) for key, found in value.items()] if isinstance(value, dict) else []


def part(tree: Any, key: str) -> dict[str, Any]:
    """A map inside a tree; empty where there is none."""
    value = tree.get(key) if isinstance(tree, Mapping) else None
    return value if isinstance(value, dict) else {}
