"""Hydra takes launchers from this namespace alone; what they do is in fcnlab.launching."""

from fcnlab.launching import launchers, slurm


class SlotsLauncher(launchers.Slots):
    """``hydra/launcher=slots``"""


class InProcessLauncher(launchers.InProcess):
    """``hydra/launcher=basic`` of fcnlab"""


class SlurmLauncher(slurm.Slurm):
    """``hydra/launcher=submitit_slurm``"""
