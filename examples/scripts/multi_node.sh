#!/usr/bin/env bash
# Several machines: NODES="head worker1 worker2" multi_node.sh CONFIG [options]; the first node is this one.
set -euo pipefail
# shellcheck source=examples/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

config="${1:?usage: NODES=\"head worker ...\" multi_node.sh CONFIG [options]}"
shift
read -r -a nodes <<<"${NODES:?name the nodes, this one first}"
head="${nodes[0]}"
do_or_show ray start --head --node-ip-address "${head}" --num-gpus "${GPUS_PER_NODE}" --port "${RAY_PORT}" \
  --dashboard-host "${DASHBOARD_HOST}" --dashboard-port "${DASHBOARD_PORT}"
for worker in "${nodes[@]:1}"; do
  do_or_show ssh "${worker}" "cd '${PWD}' && ray start --address ${head}:${RAY_PORT} --num-gpus ${GPUS_PER_NODE}"
done
submit "127.0.0.1" "${config}" "$@"
