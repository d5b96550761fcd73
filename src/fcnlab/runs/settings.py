"""The settings that identify a run: options of config groups, and values by dotted path."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fcnlab.config.components import Settings, leaves_of

DIGITS = 12  # significant digits of numbers; further digits are rounding errors
# Settings without effect on scores, such as logging and checkpoint frequency. Runs are paired by their seed; other
# seeds are settings, unless they refer to it. data.root is not among these, because another root may contain other
# data. The record names the evaluated checkpoint (checkpointing.score): it becomes the setting "checkpoint" that
# evaluations have, too, so that both form the same group.
WITHOUT_EFFECT = re.compile(
    r"seed|(logger|checkpointing|from_run|stages|sweep|needs|published|num_images|conventions|trust)(\..*)?"
    r"|evaluation\.keep_predictions"
    r"|data\.(num_workers|prefetch_factor|cache|cache_dir|download|archive|allow_overlap)|callbacks\.(sample_images|progress|top|last)\..*|trainer\.(log_every_n_steps|enable_\w+)"
    r"|trainer\.strategy\.(gradient_as_bucket_view|broadcast_buffers|static_graph)"
)
# Settings of the trainer and the data that only training reads.
TRAINING_ONLY = re.compile(
    r"trainer\.(m(ax|in)_(steps|epochs)|max_time|val_check_interval|accumulate_grad_batches|gradient_clip_\w+"
    r"|log_every_n_steps|limit_(train|val)_batches|num_sanity_val_steps|sync_batchnorm|reload_\w+)"
    r"|data\.(train_list|batch_size|crop_size|allow_overlap|fraction)|(data\.)?augment(\..*)?"
)
# Where a run is stored, not what it does.
LOCATION_SETTINGS = re.compile(r"checkpoint|callbacks\.\w+\.(dirpath|folder)")
JOB_INTERPOLATION = re.compile(r"\$\{hydra:(?!runtime\.)")  # such as its number; every run refers to its folder
MOST_SHOWN = 3  # settings listed in a message


class Change(NamedTuple):
    """The recorded and the present value of a setting; None if it is not set."""

    old: Any
    new: Any


def is_free(path: str) -> bool:
    """Return whether a setting may change within the same run."""
    free = WITHOUT_EFFECT.fullmatch(path) or LOCATION_SETTINGS.fullmatch(path)
    return bool(free) and path.rpartition(".")[2] != "seed"  # seeds pair runs


def differences(recorded: Settings, present: Settings) -> dict[str, Change]:
    """Return the settings whose present value differs."""
    changes = {path: Change(recorded.get(path), present.get(path)) for path in recorded | present}
    return {path: change for path, change in changes.items() if change.old != change.new}


def shown_changes(changed: Mapping[str, Change], old: str = "was") -> list[str]:
    """Format changes for a message, a few of them; ``old`` labels the other value."""
    texts = [f"{path}={_word(change.new)} ({old} {_word(change.old)})" for path, change in changed.items()]
    return texts if len(texts) <= MOST_SHOWN + 1 else [*texts[:MOST_SHOWN], f"{len(texts) - MOST_SHOWN} more"]


def _word(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def in_few_digits(value: Any) -> Any:
    """Round a float to ``DIGITS``: ``range(0.1,0.5,0.1)`` yields 0.30000000000000004 by summation."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def identifying_values(composed: Any, config: Any) -> Settings:
    """Return the values that identify a run.

    ``composed`` is the config as composed, which still contains interpolations. A value that refers to another one
    (``${seed}``) is not a setting of its own; a value from the environment or a job number is. ``config`` is resolved.
    """
    linked = {
        path for path, value in leaves_of(composed).items() if "${" in str(value) and not _from_outside(str(value))
    }
    return {
        path: value
        for path, value in leaves_of(config).items()
        if not WITHOUT_EFFECT.fullmatch(path) and not linked & _prefixes(path)
    }


def _from_outside(value: str) -> bool:
    return "${oc." in value or bool(JOB_INTERPOLATION.search(value))


def identifying_options(choices: Any) -> dict[str, str]:
    """Return the chosen options of config groups, except those of Hydra and of loggers."""
    return {
        str(group): "null" if option is None else str(option)
        for group, option in (choices if isinstance(choices, dict) else {}).items()
        if not str(group).startswith(("hydra/", "logger"))
    }


def _prefixes(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
