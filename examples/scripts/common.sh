#!/usr/bin/env bash
# Shared by the scripts here: print in a dry run, else do.

GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
RAY_PORT="${RAY_PORT:-6379}"
DASHBOARD_PORT="${DASHBOARD_PORT:-8265}"
# Whoever reaches the dashboard can run code: jobs are submitted from the head node, over loopback.
DASHBOARD_HOST="${DASHBOARD_HOST:-127.0.0.1}"

do_or_show() {
  if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%s\n' "$(printf '%q ' "$@")" # in one write: commands in the background print too
  else
    "$@"
  fi
}

# submit ADDRESS CONFIG [options]: run the training command as a job of the cluster and follow it.
submit() {
  local address="$1" config="$2"
  shift 2
  do_or_show ray job submit --address "http://${address}:${DASHBOARD_PORT}" -- \
    python -m openrlhf_ktae.cli.train_ppo_ray --config "${config}" "$@"
}
