"""Runs as processes of their own, one or many; it is loaded at every start of Hydra, so it imports little."""

from fcnlab.launching.processes import (
    as_typed,
    config_dir,
    finish,
    is_dictionary,
    key_of,
    options,
    quoted,
    setting,
    start,
    to_type,
    typed,
    unquoted,
)

__all__ = [
    "as_typed",
    "config_dir",
    "finish",
    "is_dictionary",
    "key_of",
    "options",
    "quoted",
    "setting",
    "start",
    "to_type",
    "typed",
    "unquoted",
]
