"""The checks of ``fcnlab doctor``."""
