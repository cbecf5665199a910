#!/usr/bin/env bash
#SBATCH --job-name=openrlhf-ktae
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@780
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# sbatch --nodes N slurm.sh CONFIG [options], from the root of the repository; sbatch options override the lines above.
# 780 s before the time limit, and at `scancel --batch --signal TERM JOB`, the run writes a checkpoint and ends with 130.
set -euo pipefail
GPUS_PER_NODE="${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}"
# Slurm runs a copy of this file. The other scripts are in the folder from which it was submitted.
# shellcheck source=examples/scripts/common.sh
if ! source "${SLURM_SUBMIT_DIR:-}/examples/scripts/common.sh"; then
  echo "${SLURM_SUBMIT_DIR:-no SLURM_SUBMIT_DIR}: start this with sbatch, from the root of the repository" >&2
  exit 2
fi

config="${1:-}"
check_config "${config}" "sbatch --nodes N slurm.sh"
shift
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:-}")
((${#nodes[@]})) || refuse "SLURM_JOB_NODELIST=${SLURM_JOB_NODELIST:-}: scontrol lists no nodes; start this with sbatch"
logs="${LOGS:-runs/ray-${SLURM_JOB_ID:-dry-run}}"
address="$(own_address "${nodes[0]}")"
# srun ignores sbatch's --cpus-per-task (since Slurm 22.05), and gives a step no memory without --mem 0 (all of it).
step=(srun --nodes 1 --ntasks 1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-64}" --mem 0 --export ALL --kill-on-bad-exit=1)

fill_head_command "${address}"
in_background "${logs}/${nodes[0]}.log" "${step[@]}" --nodelist "${nodes[0]}" "${head_command[@]}"
wait_for_nodes 1 "${logs}"
for worker in "${nodes[@]:1}"; do
  in_background "${logs}/${worker}.log" "${step[@]}" --nodelist "${worker}" ray start --block --disable-usage-stats \
    --address "${address}:${RAY_PORT}" --num-gpus "${GPUS_PER_NODE}" \
    --dashboard-agent-listen-port "${WORKER_AGENT_PORT:-${AGENT_PORT}}"
done
wait_for_nodes "${#nodes[@]}" "${logs}"
submit "${config}" "$@"
