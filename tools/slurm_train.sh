#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

explain 4 "Usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]

Trains as a Slurm job. Variables:
$with_slurm" "$@"
launch_with_slurm "$1" "$2" train.py "$3" --work-dir "$4" --launcher slurm "${@:5}"
