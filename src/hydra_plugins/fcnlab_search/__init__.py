"""Hydra takes sweepers from this namespace alone; what this one does is in fcnlab.searching."""

from fcnlab import searching


class OptunaSweeper(searching.Search):
    """``hydra/sweeper=optuna``"""
