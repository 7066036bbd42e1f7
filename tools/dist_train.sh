#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

explain 2 "Usage: bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]

Trains with one process per GPU. On several nodes, run it on each of them with these variables:
$with_torch" "$@"
launch_with_torch "$2" train.py "$1" --launcher pytorch "${@:3}"
