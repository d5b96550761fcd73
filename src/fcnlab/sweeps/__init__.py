"""Sweeps and hyperparameter searches, on this machine or on Slurm."""
