"""Runs as processes of their own, one or many; it is loaded at every start of Hydra, so it imports little."""

from fcnlab.launching.processes import config_dir, finish, quoted, setting, start, unquoted

__all__ = ["config_dir", "finish", "quoted", "setting", "start", "unquoted"]
