#!/bin/bash
# Ends what slurm_up.sh FOLDER started, and no other Slurm.
D=${1:?the folder that slurm_up.sh was given}
scancel --me 2>/dev/null
for pid in "$D/slurmd.pid" "$D/slurmctld.pid" /run/munge/munged.pid; do
    [ -s "$pid" ] && kill "$(cat "$pid")"
done
exit 0
