#!/usr/bin/env bash
# Runs a command, and runs it again after a failure.
#
#   launch/retry.sh COMMAND...
#
# Statuses 0, 2 (the command or its configuration is wrong) and 75 (interrupted, a checkpoint is
# written) end it at once, and so does any status after SIGTERM, which goes to the command. After
# other failures, such as a lost connection, it waits 15 s, 30 s, 60 s, ...; the failure number
# MAX_FAILURES (5) ends it. A command that has run for an hour starts the count again.
set -u

failures=0
stopped=false
child=""

stop() {
  stopped=true
  again=true
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

while :; do
  started=$SECONDS
  "$@" &
  child=$!
  again=true
  while [[ $again == true ]]; do
    # A signal interrupts `wait` and sets `again`.
    again=false
    wait "$child"
    status=$?
  done
  # Under srun 254 is the 2 of one of the tasks; see slurm.sbatch.
  ((status != 254)) || status=2
  case $status in 0 | 2 | 75) exit "$status" ;; esac
  [[ $stopped == false ]] || exit "$status"
  ((SECONDS - started < 3600)) || failures=0
  failures=$((failures + 1))
  ((failures < ${MAX_FAILURES:-5})) || exit "$status"
  pause=$((${RETRY_SECONDS:-15} << (failures - 1)))
  sleep "$pause" &
  child=$!
  echo "retry.sh: status $status, failure $failures; the next attempt is in $pause s" >&2
  # A signal may have come before `child` was the pause.
  [[ $stopped == true ]] || wait "$child"
  if [[ $stopped == true ]]; then
    kill "$child" 2>/dev/null
    exit "$status"
  fi
done
