"""Many runs: the jobs of a sweep, on this machine or on Slurm, and searches."""
