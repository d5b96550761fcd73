"""Names, groups and tags of W&B runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TAGGED = ("model", "backbone", "data", "experiment")  # groups whose options are tags


def run_name(options: Mapping[str, str | None], seed: Any) -> str:
    """Return the name of a run that belongs to no sweep; ``options`` are the chosen options by config group."""
    parts = [options.get(group) for group in ("model", "model/backbone", "data")]
    return "-".join([part for part in parts if part] + [f"s{seed}"])


def group_of_sweep(folder: Path) -> str:
    """Return the group of the jobs of a sweep."""
    return f"{folder.parent.name}/{folder.name}"


def tags(typed: Iterable[str], options: Mapping[str, str]) -> list[str]:
    """Return the typed tags, and of ``RunContext.identifying_options`` those that are tags."""
    return list(dict.fromkeys([*typed, *(options[group] for group in TAGGED if group in options)]))
