#!/usr/bin/env bash
# Trains on a GPU cluster under Slurm, with one process for each GPU.
#
#   launch/slurm.sh ACTION --name=NAME [OPTIONS] [-- FLAGS OF vmoe_prc.main]
#
# Actions:
#   submit    queues the job, which goes on where a run in --workdir stopped
#   logs      shows the log NAME.log of the current directory, and goes on as it grows
#   status    shows the job in the queue
#   stop      has the program write a checkpoint and end
#
# A job that is preempted, or reaches its time limit, is queued again by itself.
#
# Options:
#   --name=NAME           lower-case letters, digits and '-'
#   --config=RECIPE       such as configs/imagenet_prc.py:k=1
#   --workdir=PATH        where the run is kept: a shared directory, or gs://PATH
#   --data_dir=PATH       where TFDS has prepared the data set, if not in its own place
#   --nodes=N             by default 1
#   --gpus_per_node=N     by default 8
#   --cpus_per_gpu=N      by default 8
#   --time=HH:MM:SS       time limit; by default that of the partition; also D-HH:MM:SS
#   --partition=NAME      by default that of the cluster
#   --account=NAME        by default the user's
#   --python=PATH         the interpreter where all is installed; by default python
#   --dry_run             prints the commands instead of running them
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The program ends with it after a checkpoint, when it was told to stop before the last step.
readonly INTERRUPTED=75
# Seconds from SIGTERM to the time limit.
readonly GRACE_SECONDS=300

submit() {
  local optional=() name
  for name in time partition account; do
    [[ -z ${OPTION[$name]} ]] || optional+=("--$name=${OPTION[$name]}")
  done
  run sbatch --job-name="${OPTION[name]}" --chdir="$ROOT" --output="$LOG" --open-mode=append \
    --nodes="${OPTION[nodes]}" --ntasks-per-node="${OPTION[gpus_per_node]}" \
    --gpus-per-node="${OPTION[gpus_per_node]}" --cpus-per-task="${OPTION[cpus_per_gpu]}" \
    --signal="TERM@$GRACE_SECONDS" --requeue "${optional[@]}" \
    "$ROOT/launch/slurm_job.sh" "$INTERRUPTED" "${TRAIN[@]}"
}

OPTION=(
  [name]="" [config]="" [workdir]="" [data_dir]="" [nodes]=1 [gpus_per_node]=8 [cpus_per_gpu]=8
  [time]="" [partition]="" [account]="" [python]=python
)
parse_options "$@"
check_name
LOG=$PWD/${OPTION[name]}.log

case $ACTION in
  submit)
    check_number nodes
    check_number gpus_per_node
    check_number cpus_per_gpu
    check time '|([0-9]+-)?[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]' "HH:MM:SS or D-HH:MM:SS"
    check partition '[-A-Za-z0-9_.,]*' "the name of a partition"
    check account '[-A-Za-z0-9_.]*' "the name of an account"
    check_directory workdir
    [[ -z ${OPTION[data_dir]} ]] || check_directory data_dir
    train_command "${OPTION[python]}"
    submit
    ;;
  logs) run tail -n 100 -F "$LOG" ;;
  status) run squeue --me --name="${OPTION[name]}" ;;
  stop) run scancel --me --name="${OPTION[name]}" ;;
  *) fail "'$ACTION': no such action; see $0 --help" ;;
esac
