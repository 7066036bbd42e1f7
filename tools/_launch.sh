# Shared by dist_*.sh and slurm_*.sh: prints help, and starts the processes of a job.

# LEAST USAGE [arguments]: prints the usage and ends if asked to, or if there are too few arguments.
explain() {
    local least=$1 usage=$2
    shift 2
    if [[ ${1:-} == -h || ${1:-} == --help ]]; then
        echo "$usage"
        exit
    elif (($# < least)); then
        echo "$usage" >&2
        exit 1
    fi
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

with_torch="
  NNODES       number of nodes (1)
  NODE_RANK    number of this node, from 0 (0)
  MASTER_ADDR  address of node 0 (127.0.0.1)
  PORT         a free port of node 0 (29500)"

# GPUS TOOL [arguments]; signals go directly to the processes, since torchrun would kill them after
# 30 seconds. The exit status is that of a process that the signal has stopped.
launch_with_torch() {
    set -m # a process group of its own, so that Ctrl-C reaches this script alone
    python -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$root/tools/$2" "${@:3}" &
    job=$! stopped=''
    trap 'pass_on TERM 143' TERM
    trap 'pass_on INT 130' INT
    local status=0
    wait "$job" || status=$?
    while [[ -n $stopped ]] && kill -0 "$job" 2> /dev/null; do # a signal ends the wait
        wait "$job" || status=$?
    done
    exit "${stopped:-$status}"
}

# SIGNAL STATUS
pass_on() {
    stopped=$2
    pkill "-$1" -P "$job" || kill "-$1" "$job"
}

with_slurm="
  GPUS           GPUs of the job, one process each (8)
  GPUS_PER_NODE  GPUs on each node (8)
  CPUS_PER_TASK  CPU cores of a process (5)
  SRUN_ARGS      further arguments of srun, separated by spaces"

# PARTITION JOB_NAME TOOL [arguments]; SRUN_ARGS is unquoted because it holds several arguments
launch_with_slurm() {
    exec srun \
        --partition="$1" \
        --job-name="$2" \
        --gres=gpu:"${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        python -u "$root/tools/$3" "${@:4}"
}
