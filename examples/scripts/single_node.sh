#!/usr/bin/env bash
# One machine: single_node.sh CONFIG [options]
set -euo pipefail
# shellcheck source=examples/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

config="${1:?usage: single_node.sh CONFIG [options]}"
shift
do_or_show ray start --head --num-gpus "${GPUS_PER_NODE}" --port "${RAY_PORT}" --dashboard-port "${DASHBOARD_PORT}"
submit 127.0.0.1 "${config}" "$@"
