#!/usr/bin/env bash
# A run on a Cloud TPU slice, from its creation to its deletion.
#
#   launch/tpu_vm.sh [--dry-run] COMMAND [ARGUMENTS OF `mmssl train`]
#
#   create    asks for the slice and waits until it is there
#   install   copies this repository (HEAD) to all workers and installs it
#   run       starts `mmssl train ARGUMENTS` on all workers, and leaves it there
#   logs      the last lines of worker 0 (WORKER=all: of all)
#   status    the state of the slice
#   resume    create and install, where there is no slice, and run; again, whenever it is
#             preempted, until the run has ended; the exit code is the run's
#   delete    deletes the slice
#
# NAME, ZONE    of the slice
# TYPE          like v5litepod-16
# RUNTIME       like v2-alpha-tpuv5-lite
# SPOT=1        preemptible, cheaper
# SETUP         a command for every worker after installation, as a mount: all workers
#               need the dataset and the workdir under the same path
# MAX_RESTARTS  of the processes on one slice; default 100
set -euo pipefail

usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}

dry=false
if [[ ${1:-} == --dry-run ]]; then
  dry=true
  shift
fi
action=${1:-}
[[ -n $action ]] || usage
shift
need() {
  local variable
  for variable in "$@"; do
    [[ -n ${!variable:-} ]] || { echo "tpu_vm.sh: $variable is not set" >&2 && exit 2; }
  done
}
need NAME ZONE
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Prints a command; runs it, too, unless this is a dry run.
do_() {
  printf '+ %s\n' "$(printf '%q ' "$@")" >&2
  $dry || "$@"
}

tpu() { do_ gcloud compute tpus "$@" --zone="$ZONE"; }

ssh_all() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

# UNKNOWN where gcloud does not answer: that says nothing of the slice.
state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)' 2>"$scratch/errors"); then
    echo "$said"
  elif grep -q NOT_FOUND "$scratch/errors"; then
    echo ABSENT
  else
    echo UNKNOWN
  fi
}

create() {
  need TYPE RUNTIME
  local options=(--node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME")
  [[ -z ${SPOT:-} ]] || options+=(--spot)
  tpu queued-resources create "$NAME" "${options[@]}" && wait_for
}

wait_for() {
  $dry && return
  local now
  until now=$(state) && [[ $now == ACTIVE ]]; do
    case $now in
      ABSENT | FAILED | SUSPENDED) echo "tpu_vm.sh: the slice is $now" >&2 && return 1 ;;
    esac
    sleep 30
  done
}

install() {
  local archive=$scratch/mmssl.tar.gz
  do_ git archive --format=tar.gz --output="$archive" HEAD &&
    tpu tpu-vm scp "$archive" "$NAME:mmssl.tar.gz" --worker=all || return
  # The machines' own Python may be too old.
  ssh_all "mkdir -p mmssl && tar -xzf mmssl.tar.gz -C mmssl && cd mmssl && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --clear --python 3.12 && \
python3 -m uv pip install --quiet '.[tpu]' --constraint constraints.txt" || return
  [[ -z ${SETUP:-} ]] || ssh_all "$SETUP"
}

run() {
  local script=$scratch/run.sh
  cat >"$script" <<EOF
{ # read whole: a second call replaces this file
  cd mmssl
  exec 9>run.lock
  flock -n 9 || { echo "a run is under way here" && exit 1; }
  echo "starting"
  # Where one worker fails the others end, too. Each starts its own process again, and
  # waits for the others. Codes 0 (done) and 2 (bad input) are final.
  for ((i = 0; i <= ${MAX_RESTARTS:-100}; i++)); do
    .venv/bin/mmssl train --cluster tpu$(printf ' %q' "$@")
    code=\$?
    [[ \$code == 0 || \$code == 2 ]] && break
    sleep 10
  done
  echo "exit code \$code"
  exit
}
EOF
  if $dry; then sed 's/^/  /' "$script" >&2; fi
  tpu tpu-vm scp "$script" "$NAME:run.sh" --worker=all || return
  ssh_all "nohup bash run.sh >>train.log 2>&1 </dev/null & disown"
}

# Brings the slice into being, as far as it is not, and starts the run on it. What fails
# here (a preemption, the network) is tried again, so `set -e` must not be relied on.
start() {
  local now=SUSPENDED
  $dry || now=$(state)
  case $now in
    ACTIVE) ;;
    ABSENT) installed=false && create ;;
    FAILED | SUSPENDED) installed=false && delete && create ;;
    ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES) installed=false && wait_for ;;
    *) echo "tpu_vm.sh: the slice is $now; waiting" >&2 && return 1 ;;
  esac && { $installed || install; } && installed=true && run "$@"
}

resume() {
  need TYPE RUNTIME
  local installed=true said
  while true; do
    start "$@" || { sleep 60 && continue; }
    $dry && return
    while [[ $(state) =~ ^(ACTIVE|UNKNOWN)$ ]]; do
      if said=$(tpu tpu-vm ssh "$NAME" --worker=0 --command="tail -n 1 train.log" |
        grep '^exit code'); then
        echo "$said"
        exit "${said##* }"
      fi
      sleep 60
    done
  done
}

delete() { tpu queued-resources delete "$NAME" --force --quiet; }

case $action in
  create | install | delete) "$action" ;;
  run | resume) "$action" "$@" ;;
  logs) tpu tpu-vm ssh "$NAME" --worker="${WORKER:-0}" --command="tail -n 50 train.log" ;;
  status) tpu queued-resources describe "$NAME" ;;
  *) usage ;;
esac
