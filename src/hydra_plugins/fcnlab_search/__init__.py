"""fcnlab's sweepers, in the namespace in which Hydra looks for plugins; see ``fcnlab.sweeps``."""

from fcnlab.sweeps import grid_sweeper, optuna_sweeper


class GridSweeper(grid_sweeper.GridSweeper):
    """``hydra/sweeper=basic``"""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """``hydra/sweeper=optuna``"""
