"""What a run was set to, as far as it tells runs apart: the options of config groups, and values by dotted path."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fcnlab.config.components import Settings, iter_leaves

DIGITS = 12  # of a number: what differs behind them is rounding
# Settings that no score depends on: what is shown, how often is saved. Runs are paired by their seed; a seed of
# something else is a setting, unless it follows that one. Under another data.root, which is none of these, may lie
# another set. Which checkpoint was scored (checkpointing.score) the record tells: it becomes the setting "checkpoint"
# that evaluations have, so that either makes the same group.
WITHOUT_EFFECT = re.compile(
    r"seed|(logger|checkpointing|from_run|stages|sweep|needs|published|num_images|conventions|trust)(\..*)?"
    r"|data\.(num_workers|prefetch_factor|cache|cache_dir|download|archive|allow_overlap)|callbacks\.(sample_images|progress|top|last)\..*|trainer\.(log_every_n_steps|enable_\w+)"
    r"|trainer\.strategy\.(gradient_as_bucket_view|broadcast_buffers|static_graph)"
)
OF_THE_PLACE = re.compile(r"checkpoint|callbacks\.\w+\.(dirpath|folder)")  # where a run lies, not what it does
OF_THE_JOB = re.compile(r"\$\{hydra:(?!runtime\.)")  # such as its number; all composed runs ask for their folder
MOST_SHOWN = 3  # settings that a message names for one reason


class Change(NamedTuple):
    """A setting's value then and today; None where it has none."""

    old: Any
    new: Any


def is_free(path: str) -> bool:
    """Whether a run may have another value of a setting, and be the same run."""
    free = WITHOUT_EFFECT.fullmatch(path) or OF_THE_PLACE.fullmatch(path)
    return bool(free) and path.rpartition(".")[2] != "seed"  # which pairs runs there


def differences(then: Settings, today: Settings) -> dict[str, Change]:
    """The settings that have another value today."""
    found = {path: Change(then.get(path), today.get(path)) for path in then | today}
    return {path: change for path, change in found.items() if change.old != change.new}


def shown_changes(changed: Mapping[str, Change], old: str = "was") -> list[str]:
    """Changes as a message names them: few, and not endless. ``old`` says whose the other value is."""
    few = [f"{path}={_word(change.new)} ({old} {_word(change.old)})" for path, change in changed.items()]
    return few if len(few) <= MOST_SHOWN + 1 else [*few[:MOST_SHOWN], f"{len(few) - MOST_SHOWN} more"]


def _word(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def in_few_digits(value: Any) -> Any:
    """A value without the rounding of sums: ``range(0.1,0.5,0.1)`` adds its steps up to 0.30000000000000004."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def identifying_values(composed: Any, config: Any) -> Settings:
    """The values that tell a run from others.

    ``composed`` is the config as it was composed, which still shows which values are others' (``${seed}``): those are
    no settings of their own. What comes from the environment or is the number of a job is one. ``config`` has them put
    in.
    """
    linked = {
        path for path, value in iter_leaves(composed).items() if "${" in str(value) and not _from_outside(str(value))
    }
    return {
        path: value
        for path, value in iter_leaves(config).items()
        if not WITHOUT_EFFECT.fullmatch(path) and not linked & _prefixes(path)
    }


def _from_outside(value: str) -> bool:
    return "${oc." in value or bool(OF_THE_JOB.search(value))


def identifying_options(choices: Any) -> dict[str, str]:
    """The chosen options of config groups, without those of Hydra and of loggers."""
    return {
        str(group): "null" if option is None else str(option)
        for group, option in (choices if isinstance(choices, dict) else {}).items()
        if not str(group).startswith(("hydra/", "logger"))
    }


def _prefixes(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
