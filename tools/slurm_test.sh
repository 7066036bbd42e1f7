#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat << 'END'
Usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]

Tests as a Slurm job. Variables:

  GPUS           GPUs of the job, one process each (8)
  GPUS_PER_NODE  GPUs on each node (8)
  CPUS_PER_TASK  CPU cores of a process (5)
  SRUN_ARGS      further arguments of srun, separated by spaces
END
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit
elif (($# < 4)); then
    usage >&2
    exit 1
fi

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# SRUN_ARGS is unquoted because it holds several arguments
exec srun \
    --partition="$1" \
    --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$root/tools/test.py" "$3" "$4" --launcher slurm "${@:5}"
