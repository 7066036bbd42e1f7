#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat << 'END'
Usage: bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]

Trains with one process per GPU. On several nodes, run it on each of them with these variables:

  NNODES       number of nodes (1)
  NODE_RANK    number of this node, from 0 (0)
  MASTER_ADDR  address of node 0 (127.0.0.1)
  PORT         a free port of node 0 (29500)
END
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit
elif (($# < 2)); then
    usage >&2
    exit 1
fi

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$root/tools/train.py" "$1" --launcher pytorch "${@:3}"
