"""``fcnlab watch``: follows runs and sweeps while they are computed, from the files in their folders, read-only."""
