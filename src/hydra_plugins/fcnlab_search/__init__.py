"""Sweepers of fcnlab. Hydra finds plugins only in this namespace; the code is in fcnlab.sweeps."""

from fcnlab.sweeps import grid_sweeper, optuna_sweeper


class GridSweeper(grid_sweeper.GridSweeper):
    """``hydra/sweeper=basic``"""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """``hydra/sweeper=optuna``"""
