#!/usr/bin/env bash
#SBATCH --job-name=openrlhf-ktae
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
# sbatch --nodes N slurm.sh CONFIG [options]; submit it from the root of the repository.
set -euo pipefail
# Slurm runs a copy of this file; the folder it was submitted from is where the others are.
# shellcheck source=examples/scripts/common.sh
source "${SLURM_SUBMIT_DIR:?to be started by sbatch}/examples/scripts/common.sh"

config="${1:?usage: sbatch --nodes N slurm.sh CONFIG [options]}"
shift
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:?to be started by sbatch}")
head="${nodes[0]}"

do_or_show srun --nodes 1 --ntasks 1 --nodelist "${head}" ray start --head --block --node-ip-address "${head}" \
  --port "${RAY_PORT}" --num-gpus "${GPUS_PER_NODE}" --dashboard-host "${DASHBOARD_HOST}" --dashboard-port "${DASHBOARD_PORT}" &
do_or_show sleep "${HEAD_SECONDS:-20}"
if ((${#nodes[@]} > 1)); then
  workers=$((${#nodes[@]} - 1))
  do_or_show srun --nodes "${workers}" --ntasks "${workers}" --exclude "${head}" ray start --block \
    --address "${head}:${RAY_PORT}" --num-gpus "${GPUS_PER_NODE}" &
  do_or_show sleep "${WORKER_SECONDS:-20}"
fi
submit "127.0.0.1" "${config}" "$@"
