"""fcnlab's launchers, in the namespace in which Hydra looks for plugins; see ``fcnlab.sweeps``."""

from fcnlab.sweeps import launchers, slurm


class SlotsLauncher(launchers.SlotsLauncher):
    """``hydra/launcher=slots``"""


class InProcessLauncher(launchers.InProcessLauncher):
    """``hydra/launcher=basic``"""


class SlurmLauncher(slurm.SlurmLauncher):
    """``hydra/launcher=submitit_slurm``"""
