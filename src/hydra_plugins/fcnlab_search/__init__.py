"""Hydra takes sweepers from this namespace alone; what they do is in fcnlab.launching.grid and fcnlab.searching."""

from fcnlab import searching
from fcnlab.launching import grid


class GridSweeper(grid.Grid):
    """``hydra/sweeper=basic`` of fcnlab"""


class OptunaSweeper(searching.Search):
    """``hydra/sweeper=optuna``"""
