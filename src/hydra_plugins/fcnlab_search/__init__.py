"""Hydra takes sweepers from this namespace alone; what they do is in fcnlab.sweeps.grid_sweeper and fcnlab.sweeps.optuna_sweeper."""

from fcnlab.sweeps import grid_sweeper, optuna_sweeper


class GridSweeper(grid_sweeper.GridSweeper):
    """``hydra/sweeper=basic`` of fcnlab"""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """``hydra/sweeper=optuna``"""
