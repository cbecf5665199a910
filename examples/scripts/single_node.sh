#!/usr/bin/env bash
# One machine: single_node.sh CONFIG [options]. Uses the Ray cluster running here, or starts one and ends it.
set -euo pipefail
# shellcheck source=examples/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

config="${1:-}"
check_config "${config}" single_node.sh
shift
if ! dry_run && python "${HERE}/cluster.py" alive "${URL}"; then
  say "using the existing Ray cluster at ${URL}; it keeps running afterwards"
else
  logs="${LOGS:-runs/ray-$(date +%Y%m%d-%H%M%S)}"
  fill_head_command "" # Ray detects its machine's address, as vLLM does
  in_background "${logs}/head.log" "${head_command[@]}"
  wait_for_nodes 1 "${logs}"
fi
submit "${config}" "$@"
