#!/usr/bin/env bash
# A folder of shards, pruned by the jobs of a SLURM array, each of which writes its part of them.
#
#     sbatch --wait --array=1-4 examples/array.sh MODEL OUTPUT
#     sbatch --dependency=afterok:JOBID examples/array.sh MODEL OUTPUT
#
# Outside of an array the same script puts the parts together. A job that failed is run again by its
# number: sbatch --array=3 asks for part 3 of 1, so it says --part 3/4 by PARTS=4.
#SBATCH --job-name=prune
#SBATCH --cpus-per-task=2
#SBATCH --mem=2G
set -euo pipefail
prune() { prune-cli random-structured "$1" --amount 0.25 --dim 0 --output "$2" "${@:3}"; }

if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    prune "$1" "$2" --finish
elif [ -n "${PARTS:-}" ]; then
    prune "$1" "$2" --part "$SLURM_ARRAY_TASK_ID/$PARTS"
else
    prune "$1" "$2" # its part is SLURM_ARRAY_TASK_ID of SLURM_ARRAY_TASK_COUNT
fi
