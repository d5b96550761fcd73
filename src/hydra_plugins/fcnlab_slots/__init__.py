"""Launchers of fcnlab. Hydra finds plugins only in this namespace; the code is in fcnlab.sweeps."""

from fcnlab.sweeps import launchers, slurm


class SlotsLauncher(launchers.SlotsLauncher):
    """``hydra/launcher=slots``"""


class InProcessLauncher(launchers.InProcessLauncher):
    """``hydra/launcher=basic``"""


class SlurmLauncher(slurm.SlurmLauncher):
    """``hydra/launcher=submitit_slurm``"""
