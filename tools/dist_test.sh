#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

explain 3 "Usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]

Tests with one process per GPU. On several nodes, run it on each of them with these variables:
$with_torch" "$@"
launch_with_torch "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
