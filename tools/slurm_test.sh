#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

explain 4 "Usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]

Tests as a Slurm job. Variables:
$with_slurm" "$@"
launch_with_slurm "$1" "$2" test.py "$3" "$4" --launcher slurm "${@:5}"
