#!/usr/bin/env bash
# Several machines: NODES="head worker1 worker2" multi_node.sh CONFIG [options]; the first node is this one. The others
# need ssh without a password, and this folder and its Python environment at the same paths (shared, or copies).
set -euo pipefail
# shellcheck source=examples/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

config="${1:-}"
check_config "${config}" 'NODES="head worker ..." multi_node.sh'
shift
names="${NODES:-}"
read -r -d '' -a nodes <<<"${names//,/ }" || true # spaces, commas or lines between names
((${#nodes[@]})) || refuse "NODES=${names}: name the nodes, this one first"
logs="${LOGS:-runs/ray-$(date +%Y%m%d-%H%M%S)}"
read -r -a ssh <<<"${SSH:-ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30 -o ServerAliveCountMax=10}"
# An ssh login lacks this shell's environment: pass the variables that training reads.
PASSED='^(PATH|PYTHONPATH|VIRTUAL_ENV|LD_LIBRARY_PATH|CUDA_HOME|.*_proxy|.*_PROXY|'
PASSED+='(NCCL|GLOO|UCX|FI|HF|HUGGING_FACE|VLLM|RAY|TORCH|PYTORCH|TRITON|DS|OMP|WANDB|KTAE)_.*)$'

# worker_script COMMAND...: print the script for a worker's shell. It has our environment, and it ends Ray there when our
# end of the connection closes for any reason.
worker_script() {
  local name
  while read -r name; do printf 'export %s=%q\n' "${name}" "${!name}"; done < <(compgen -e | grep -E "${PASSED}")
  # shellcheck disable=SC2016 # for the other shell
  printf 'cd %q || exit 1\nulimit -S -n 65536; ulimit -S -l unlimited\nexec 3<&0; %s </dev/null 3<&- & pid=$!\n%s\n' \
    "${PWD}" "$(printf '%q ' "$@")" \
    '{ read -r _ <&3; kill -TERM "$pid"; } >/dev/null 2>&1 & reader=$!; wait "$pid"; code=$?; kill "$reader"; exit "$code"'
}

address="$(own_address "${nodes[0]}")"
fill_head_command "${address}"
in_background "${logs}/head.log" "${head_command[@]}"
wait_for_nodes 1 "${logs}"
for worker in "${nodes[@]:1}"; do
  start=(ray start --block --disable-usage-stats --address "${address}:${RAY_PORT}" --num-gpus "${GPUS_PER_NODE}"
    --dashboard-agent-listen-port "${WORKER_AGENT_PORT:-${AGENT_PORT}}")
  if dry_run; then
    show "${ssh[@]}" "${worker}" "${start[*]}"
    continue
  fi
  # In a separate session, so that a terminal's Ctrl-C reaches only this script.
  exec {connection}> >(exec setsid "${ssh[@]}" "${worker}" bash -s >"${logs}/${worker}.log" 2>&1)
  ours+=($!)
  worker_script "${start[@]}" >&"${connection}"
done
wait_for_nodes "${#nodes[@]}" "${logs}"
submit "${config}" "$@"
