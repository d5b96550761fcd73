"""Run folders without a training, for all tests here."""

from run_folders import make_run, sweep  # noqa: F401
