#!/usr/bin/env bash
set -euo pipefail

if (($#)); then
    cat << 'END'
Usage: bash tools/quickstart.sh

The first call installs mmkdx. Each call runs it on the digits of scikit-learn:

1. It trains a teacher on all training images.
2. It trains three students on 100 of them: alone, with the teacher's logits (KD) and with its class
   maps (CAT-KD). Their layers have an eighth of the teacher's width.
3. It compares them on the test images.
4. It writes a report that shows where the CAT-KD student, its teacher and the student trained alone
   look.

Checkpoints, logs and the report are in work_dirs/. After the installation it takes about three
minutes on two CPU cores.
END
    [[ $1 == -h || $1 == --help ]]
    exit
fi

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null
source tools/setup_env.sh
setup_env openmmlab demo
# Waiting threads of several processes would take the cores from each other
export OMP_WAIT_POLICY=passive

trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

fail() {
    echo "$1 failed; the end of $2:" >&2
    tail -n 20 "$2" >&2
    exit 1
}

# Shows the progress lines of mmengine's log; the file has the whole log. The number of threads is
# fixed, since it changes how sums are rounded, and so the accuracies.
train() { # THREADS NAME CONFIG [ARGUMENT ...]
    local log=work_dirs/$3.txt
    echo "Training $2 (configs/digits/$3.py, log in $log)"
    OMP_NUM_THREADS=$1 "$PYTHON" tools/train.py "configs/digits/$3.py" "${@:4}" 2>&1 | tee "$log" |
        { grep --line-buffered -o 'Epoch(train).*\|Epoch(val).*top1: [0-9.]*' || true; } |
        sed -u "s/^/$2: /" || fail "Training $2" "$log"
}

both() { # Waits for two processes
    wait "$1" && wait "$2"
}

names=(teacher 'student alone' KD CAT-KD)
configs=(
    resnet18_digits
    resnet18-tiny_digits100
    kd-cached_resnet18_resnet18-tiny_digits100
    cat-cached_resnet18_resnet18-tiny_digits100
)
mkdir -p work_dirs
train 2 "${names[0]}" "${configs[0]}" &
teacher=$!
train 1 "${names[1]}" "${configs[1]}" &
both $! $teacher

echo "Computing what the students need of the teacher's outputs, once for both"
cache=(--cfg-options model.teacher.cache=work_dirs/caches/quickstart)
log=work_dirs/cache.txt
rm -rf work_dirs/caches/quickstart
OMP_NUM_THREADS=2 "$PYTHON" tools/cache_teacher.py "configs/digits/${configs[3]}.py" "${cache[@]}" \
    model.terms.kd.type=KLDivLoss model.terms.kd.at=logits > "$log" 2>&1 ||
    fail "Computing the teacher's outputs" "$log"
train 1 "${names[2]}" "${configs[2]}" "${cache[@]}" &
kd=$!
train 1 "${names[3]}" "${configs[3]}" "${cache[@]}" &
both $! $kd

# The report is made while the user reads the table
log=work_dirs/report.txt
rm -rf work_dirs/report
compare=()
for i in "${!configs[@]}"; do
    compare+=(--compare "${names[i]}=work_dirs/${configs[i]}")
done
"$PYTHON" tools/test.py "configs/digits/${configs[3]}.py" "work_dirs/${configs[3]}/epoch_20.pth" \
    --report "${compare[@]}" \
    --base "configs/digits/${configs[1]}.py" "work_dirs/${configs[1]}/epoch_20.pth" \
    "${cache[@]}" custom_hooks.1.out_dir=work_dirs/report custom_hooks.1.show_samples=20 \
    > "$log" 2>&1 &
report=$!

echo
echo 'Top-1 accuracy on 600 test images; the students were trained on 100 labelled ones:'
"$PYTHON" tools/analysis_tools/compare_runs.py "${configs[@]/#/work_dirs/}" --names "${names[@]}"

echo
echo 'Explaining the test images: CAT-KD beside its teacher and the student alone'
wait "$report" || fail Explaining "$log"
echo
cat work_dirs/report/verdict.txt
echo
echo "The report: $PWD/work_dirs/report/report.html"
