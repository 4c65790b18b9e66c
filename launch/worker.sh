#!/usr/bin/env bash
# Keeps one program running in the background of one machine; tpu_pod.sh calls it through ssh.
#
#   launch/worker.sh start DIR COMMAND...    unless it runs already: then that is an error
#   launch/worker.sh ensure DIR COMMAND...   unless it runs already
#   launch/worker.sh idle DIR                is an error while it runs
#   launch/worker.sh status DIR              one line
#   launch/worker.sh logs DIR                the end of its log, and what follows
#   launch/worker.sh stop DIR                SIGTERM, and waits until it has ended
#
# The command runs in DIR/source; DIR/log.txt, DIR/pid and DIR/exit_status are its traces.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The command runs for as long as its keeper does, who writes down how it ended. A process of that
# number in that directory is the keeper: numbers come again after a reboot.
running() {
  local keeper
  read -r _ keeper 2>/dev/null <"$DIR/pid" || return 1
  [[ $(readlink "/proc/$keeper/cwd") == "$DIR/source" ]]
}

idle() {
  ! running || fail "$(hostname): $DIR runs; stop it first" 1
}

start() {
  rm -f "$DIR/pid" "$DIR/exit_status"
  # A session of its own outlives the one of ssh.
  setsid "${BASH_SOURCE[0]}" keep "$DIR" "$@" </dev/null >>"$DIR/log.txt" 2>&1 &
  until [[ -s $DIR/pid ]]; do
    kill -0 "$!" 2>/dev/null || [[ -s $DIR/pid ]] || fail "cannot start; see $DIR/log.txt" 1
    sleep 0.1
  done
  echo "$(hostname): started"
}

keep() {
  local child status signalled=true
  cd "$DIR/source"
  "$@" &
  child=$!
  trap 'signalled=true' TERM
  echo "$child $$" >"$DIR/pid"
  # A wait that a signal ends says nothing of the child.
  while $signalled; do
    signalled=false status=0
    wait "$child" || status=$?
  done
  echo "$status" >"$DIR/exit_status"
}

status() {
  if running; then
    echo "$(hostname): running"
  elif [[ -s $DIR/exit_status ]]; then
    echo "$(hostname): ended with exit status $(<"$DIR/exit_status")"
  elif [[ -s $DIR/pid ]]; then
    echo "$(hostname): was killed"
  else
    echo "$(hostname): has not been started"
  fi
}

stop() {
  local child
  if running; then
    read -r child _ <"$DIR/pid"
    # It may have ended by now.
    kill -TERM "$child" 2>/dev/null || true
    while running; do sleep 0.5; done
  fi
  status
}

[[ $# -ge 2 ]] || {
  usage
  exit 0
}
ACTION=$1
DIR=$(cd "$2" && pwd -P)
shift 2
case $ACTION in
  start)
    idle
    start "$@"
    ;;
  ensure) running || start "$@" ;;
  idle) idle ;;
  keep) keep "$@" ;;
  logs) exec tail -n 100 -F "$DIR/log.txt" ;;
  status) status ;;
  stop) stop ;;
  *) fail "'$ACTION': no such action" ;;
esac
