#!/usr/bin/env bash
# Shared by the scripts here. DRY_RUN=1 prints the commands instead of running them.

dry_run() { [[ "${DRY_RUN:-0}" != 0 ]]; }
show() { printf '%s\n' "$(printf '%q ' "$@")"; } # in one write: commands in the background print too
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
refuse() {
  say "$@"
  exit 2
}

GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
RAY_PORT="${RAY_PORT:-6379}"
DASHBOARD_PORT="${DASHBOARD_PORT:-8265}"
AGENT_PORT="${AGENT_PORT:-52365}"
# Access to the dashboard means code execution, so jobs are submitted from the head node over loopback.
DASHBOARD_HOST="${DASHBOARD_HOST:-127.0.0.1}"
# After a stop, the time for the run to finish its step and write a checkpoint (--run.grace_seconds).
GRACE_SECONDS="${GRACE_SECONDS:-600}"
# The time for nodes to join.
JOIN_SECONDS="${JOIN_SECONDS:-300}"
URL="http://127.0.0.1:${DASHBOARD_PORT}"
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "${HERE}/../.." && pwd)"

# Use the environment of `make setup-gpu`, unless one with Ray is active.
if ! command -v ray >/dev/null && [[ -x "${ROOT}/.venv/bin/ray" ]]; then
  export PATH="${ROOT}/.venv/bin:${PATH}"
fi
dry_run || command -v ray >/dev/null || refuse "ray is not installed here: run make setup-gpu, or activate its environment"
for name in GPUS_PER_NODE RAY_PORT DASHBOARD_PORT AGENT_PORT GRACE_SECONDS JOIN_SECONDS; do
  [[ "${!name}" =~ ^[1-9][0-9]{0,5}$ ]] || refuse "${name}=${!name}: give a whole number above 0"
done
unset RAY_ADDRESS # it may name another cluster; these scripts pass addresses explicitly
ulimit -S -n 65536 2>/dev/null || true # Ray needs several descriptors per worker
ulimit -S -l unlimited 2>/dev/null || true # RDMA and CUDA lock memory

# check_config FILE USAGE: refuse a missing configuration before a cluster starts.
check_config() {
  [[ -n "$1" ]] || refuse "usage: $2 CONFIG [options]"
  [[ -f "$1" ]] || refuse "$1: no such file; give a configuration, such as configs/grpo_ktae/qwen2.5-math-7b.yaml"
}

# wait_for PID: wait for its end, even if a trapped signal interrupts the wait; return its exit code.
wait_for() {
  local code
  while true; do
    if wait "$1"; then code=0; else code=$?; fi
    kill -0 "$1" 2>/dev/null || return "${code}"
  done
}

# attended COMMAND...: run it while still handling signals.
attended() {
  if dry_run; then
    show "$@"
    return
  fi
  "$@" &
  wait_for $!
}

# Ray processes started by this script; `stop_ours` ends only these.
ours=()
stop_ours() {
  local pid
  trap '' INT TERM HUP
  for pid in "${ours[@]}"; do kill -TERM "${pid}" 2>/dev/null || true; done
  for pid in "${ours[@]}"; do wait_for "${pid}" || true; done
}
trap stop_ours EXIT
trap 'exit 130' INT TERM HUP

# own_address NAME: the IPv4 address at which other nodes reach this machine; HEAD_ADDRESS wins if set.
# Debian and Ubuntu resolve a machine's own name to 127.0.1.1, which other nodes cannot reach.
own_address() {
  local given="${HEAD_ADDRESS:-}" address
  address="$({
    getent ahostsv4 "${given:-$1}" | awk '{print $1}'
    [[ -n "${given}" ]] || hostname -I | tr ' ' '\n'
  } 2>/dev/null | grep --max-count 1 --invert-match --extended-regexp '^(127\.|0\.|.*:|$)')" || true
  [[ -n "${address}" ]] || refuse "${given:+HEAD_ADDRESS=}${given:-$1}: found no address of this machine for other nodes;" \
    "set HEAD_ADDRESS to its IPv4 address"
  printf '%s\n' "${address}"
}

# fill_head_command [ADDRESS]: set `head_command` to the command that starts Ray's head in the foreground.
fill_head_command() {
  # shellcheck disable=SC2034 # read by the scripts
  head_command=(ray start --head --block --disable-usage-stats ${1:+--node-ip-address "$1"} --port "${RAY_PORT}"
    --num-gpus "${GPUS_PER_NODE}" --dashboard-host "${DASHBOARD_HOST}" --dashboard-port "${DASHBOARD_PORT}"
    --dashboard-agent-listen-port "${AGENT_PORT}")
}

# in_background LOG COMMAND...: start a part of the cluster; it ends with this script.
in_background() {
  local log="$1"
  shift
  if dry_run; then
    show "$@"
    return
  fi
  mkdir -p "$(dirname "${log}")"
  "$@" >"${log}" 2>&1 </dev/null &
  ours+=($!)
}

# wait_for_nodes N LOGS: wait until N nodes have joined; exit after JOIN_SECONDS, or when a Ray process dies.
wait_for_nodes() {
  local code=0
  attended python "${HERE}/cluster.py" nodes "${URL}" "$1" "${JOIN_SECONDS}" "${ours[@]}" || code=$?
  if ((code)); then
    say "the cluster did not start; logs are in $2"
    tail --lines 5 "$2"/*.log >&2 || true
    exit "${code}"
  fi
}

# stop_job ID: have Ray send SIGTERM to the run, which writes a checkpoint. A second signal ends this script at once.
stop_job() {
  trap 'exit 130' INT TERM HUP
  say "stopping $1: at most ${GRACE_SECONDS} s until its checkpoint is written"
  for _ in {1..15}; do # the job may be about to be submitted
    ray job stop --no-wait --address "${URL}" "$1" >/dev/null 2>&1 && return
    sleep 2
  done &
}

# submit CONFIG [options]: run the training command as a job of the cluster, follow it, and return the run's exit code;
# `ray job submit` returns 1 for every failure. Relative paths refer to this folder, wherever the cluster was started.
submit() {
  local config="$1" job code=0
  shift
  job="ktae-${SLURM_JOB_ID:-$(date +%s)}-$$"
  # Without this Ray kills a stopped job after 3 s.
  local settings="{\"env_vars\": {\"RAY_JOB_STOP_WAIT_TIME_S\": \"$((GRACE_SECONDS + 60))\"}}"
  # shellcheck disable=SC2064 # this job
  dry_run || trap "stop_job ${job}" INT TERM HUP
  local command=(ray job submit --address "${URL}" --submission-id "${job}" --runtime-env-json "${settings}" --
    env --chdir "${PWD}" "$(command -v python)" -m openrlhf_ktae.cli.train_ppo_ray --config "${config}" "$@"
    --run.grace_seconds "${GRACE_SECONDS}")
  # Ray quotes a job's command as for Windows, so the head's shell would interpret $, ;, ' and \ in options.
  dry_run || command=(python "${HERE}/cluster.py" "${command[@]:1}")
  attended "${command[@]}" || code=$?
  dry_run && return
  attended python "${HERE}/cluster.py" job "${URL}" "${job}" || code=$?
  say "the run ended with exit code ${code}"
  return "${code}"
}
