#!/usr/bin/env bash
# Trains on Cloud TPU: on a pod slice of many hosts, or on one TPU VM.
#
#   launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- FLAGS OF vmoe_prc.main]
#
# Actions, in the order of their use; with a TPU VM that runs already, leave out create:
#   create    asks for TPUs as the queued resource and node NAME, and waits until they are there
#   install   copies the last commit of this checkout to all workers and installs it there
#   start     starts the same command on all workers, in the background
#   logs      shows the log of --worker, and goes on as it grows
#   status    shows the state of the queued resource, and of the program on each worker
#   stop      has the program write a checkpoint and end, on all workers
#   resume    preempted: deletes, creates, installs and starts; else starts what does not run
#   delete    gives the TPUs back
#
# Options:
#   --name=NAME               lower-case letters, digits and '-'
#   --zone=ZONE               such as us-central2-b
#   --project=PROJECT         by default that of gcloud
#   --accelerator_type=TYPE   such as v4-32, v5litepod-64, v5p-128, v6e-256; for create, resume
#   --runtime_version=NAME    software of the TPU VMs; by default that of the type
#   --spot                    cheaper, and may be preempted
#   --config=RECIPE           such as configs/imagenet_prc.py:k=1; for start, resume
#   --workdir=gs://PATH       where the run is kept; a run that is there is resumed
#   --data_dir=gs://PATH      where TFDS has prepared the data set
#   --worker=N                whose log is shown; by default 0
#   --poll_seconds=N          between two looks at the queue; by default 30
#   --dry_run                 prints the commands instead; of resume those after a preemption
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Directory of a run on a worker, in the user's home.
run_directory() {
  echo "vmoe_prc/${OPTION[name]}"
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "${OPTION[name]}" "${WHERE[@]}" --worker="$1" --command="$2"
}

# The state of the queued resource, nothing if there is none; a dry run assumes $1.
resource_state() {
  ask "$1" gcloud compute tpus queued-resources list "${WHERE[@]}" \
    --filter="name~/${OPTION[name]}\$" '--format=value(state.state)'
}

default_runtime_version() {
  case ${OPTION[accelerator_type]} in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

check_create() {
  check accelerator_type '(v[234]|v5litepod|v5p|v6e)-[1-9][0-9]*' "such as v4-32 or v5litepod-64"
  [[ -n ${OPTION[runtime_version]} ]] || OPTION[runtime_version]=$(default_runtime_version)
  check runtime_version '[a-z0-9][-a-z0-9.]*' "such as tpu-ubuntu2204-base"
  check spot 'true|false' "true or false"
}

check_start() {
  check_bucket workdir
  [[ -z ${OPTION[data_dir]} ]] || check_bucket data_dir
  train_command ../venv/bin/python
}

create() {
  local spot=()
  [[ ${OPTION[spot]} == false ]] || spot=(--spot)
  run gcloud compute tpus queued-resources create "${OPTION[name]}" "${WHERE[@]}" \
    --node-id="${OPTION[name]}" --accelerator-type="${OPTION[accelerator_type]}" \
    --runtime-version="${OPTION[runtime_version]}" "${spot[@]}"
  wait_until_active
}

wait_until_active() {
  local state
  while true; do
    state=$(resource_state ACTIVE)
    case $state in
      ACTIVE) return ;;
      ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES)
        note "${OPTION[name]} is $state"
        sleep "${OPTION[poll_seconds]}"
        ;;
      *) fail "the queued resource ${OPTION[name]} is ${state:-in no state}; try resume" 1 ;;
    esac
  done
}

install() {
  local archive directory
  archive=${TMPDIR:-/tmp}/${OPTION[name]}.tar.gz
  directory=$(run_directory)
  run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "${OPTION[name]}:" "${WHERE[@]}" --worker=all
  # The images have Python 3.10; uv brings the one that we need.
  on_workers all "$(
    quote test ! -e "$directory/source"
    printf ' || %s && ' "$(quote bash "$directory/source/launch/worker.sh" idle "$directory")"
    printf '%s && ' \
      "$(quote rm -rf "$directory/source")" \
      "$(quote mkdir -p "$directory/source")" \
      "$(quote tar -xzf "${OPTION[name]}.tar.gz" -C "$directory/source")" \
      "$(quote python3 -m pip install --quiet --user uv)" \
      "$(quote python3 -m uv venv --clear --python=3.11 "$directory/venv")"
    quote python3 -m uv pip install --python="$directory/venv/bin/python" \
      -r "$directory/source/requirements.txt" "jax[tpu]==$(jax_version)"
  )"
}

# Calls worker.sh on the workers $1, with the action $2 and a command.
worker() {
  on_workers "$1" "$(
    quote bash "$(run_directory)/source/launch/worker.sh" "$2" "$(run_directory)" "${@:3}"
  )"
}

resume() {
  local state
  state=$(resource_state SUSPENDED)
  while [[ $state == SUSPENDING || $state == DELETING ]]; do
    note "${OPTION[name]} is $state"
    sleep "${OPTION[poll_seconds]}"
    state=$(resource_state SUSPENDED)
  done
  case $state in
    ACTIVE | "")
      worker all ensure "${TRAIN[@]}"
      return
      ;;
    SUSPENDED | FAILED)
      delete
      create
      ;;
    *) wait_until_active ;;
  esac
  install
  worker all start "${TRAIN[@]}"
}

show_status() {
  local state
  state=$(resource_state ACTIVE)
  if [[ -n $state ]]; then
    note "${OPTION[name]} is $state"
  fi
  # A TPU VM that runs already need not be a queued resource.
  if [[ -z $state || $state == ACTIVE ]]; then
    worker all status
  fi
}

delete() {
  run gcloud compute tpus queued-resources delete "${OPTION[name]}" "${WHERE[@]}" --force --quiet
}

OPTION=(
  [name]="" [zone]="" [project]="" [accelerator_type]="" [runtime_version]="" [spot]=false
  [config]="" [workdir]="" [data_dir]="" [worker]=0 [poll_seconds]=30
)
parse_options "$@"
check_name
check zone '[a-z]+-[a-z]+[0-9]-[a-z]' "such as us-central2-b"
check worker 'all|[0-9]+' "a number, or all"
check_number poll_seconds
WHERE=(--zone="${OPTION[zone]}")
if [[ -n ${OPTION[project]} ]]; then
  check project '[a-z][-a-z0-9:.]*[a-z0-9]' "the ID of a Google Cloud project"
  WHERE+=(--project="${OPTION[project]}")
fi

case $ACTION in
  create)
    check_create
    create
    ;;
  install) install ;;
  start)
    check_start
    worker all start "${TRAIN[@]}"
    ;;
  logs) worker "${OPTION[worker]}" logs ;;
  status) show_status ;;
  stop) worker all stop ;;
  resume)
    check_create
    check_start
    resume
    ;;
  delete) delete ;;
  *) fail "'$ACTION': no such action; see $0 --help" ;;
esac
