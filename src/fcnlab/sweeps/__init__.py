"""Sweeps: sweepers, launchers, the job queue and the record of a sweep."""
