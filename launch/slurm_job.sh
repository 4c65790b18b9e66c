#!/usr/bin/env bash
# The batch job of slurm.sh: runs a command as one task for each GPU.
#
#   sbatch launch/slurm_job.sh STATUS COMMAND...
#
# A command that ends with STATUS was interrupted, and the job is queued again.
set -euo pipefail

interrupted=$1
shift
status=0
# When one task ends, the others have the time to finish a checkpoint, but not for ever.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=120 "$@" || status=$?
if [[ $status == "$interrupted" ]]; then
  # A job that its user cancels is COMPLETING by now.
  state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")
  [[ $state != RUNNING ]] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
