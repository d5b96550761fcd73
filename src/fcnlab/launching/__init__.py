"""Runs as processes of their own, one or many; it is loaded at every start of Hydra, so it imports little."""

from fcnlab.launching.processes import config_dir, finish, options, quoted, setting, start, typed, unquoted

__all__ = ["config_dir", "finish", "options", "quoted", "setting", "start", "typed", "unquoted"]
