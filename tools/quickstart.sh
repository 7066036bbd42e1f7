#!/usr/bin/env bash
set -euo pipefail

if (($#)); then
    cat << 'END'
Usage: bash tools/quickstart.sh

Installs mmkdx, at the first call, and runs it on the digits that ship in scikit-learn: trains a teacher
on all training images, then students sixteen times as slim on 100 of them, alone, with the teacher's
logits (KD) and with its class maps (CAT-KD). Compares them on the test images, and shows in a report
where the distilled student looks, beside its teacher and beside the student trained alone.

Checkpoints, logs and the report are written to work_dirs/. Takes five to ten minutes on two CPU cores,
after the installation.
END
    [[ $1 == -h || $1 == --help ]]
    exit
fi

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null
source tools/setup_env.sh
setup_env openmmlab demo

fail() {
    echo "$1 failed; the end of $log:" >&2
    tail -n 20 "$log" >&2
    exit 1
}

names=(teacher 'student alone' KD CAT-KD)
configs=(
    resnet18_digits
    resnet18-tiny_digits100
    kd_resnet18_resnet18-tiny_digits100
    cat_resnet18_resnet18-tiny_digits100
)
mkdir -p work_dirs
for i in "${!configs[@]}"; do
    config=${configs[i]}
    log=work_dirs/$config.txt
    echo "Training ${names[i]} (configs/digits/$config.py, log in $log)"
    # Of mmengine's log the lines of progress are shown; all of it is in the file.
    if ! "$PYTHON" tools/train.py "configs/digits/$config.py" 2>&1 | tee "$log" |
        { grep --line-buffered -o 'Epoch(.*' || true; }; then
        fail "Training ${names[i]}"
    fi
done

echo
echo 'Top-1 accuracy on 600 test images; the students were trained on 100 labelled ones:'
"$PYTHON" tools/analysis_tools/compare_runs.py "${configs[@]/#/work_dirs/}" --names "${names[@]}"

echo
echo 'Explaining 100 test images: CAT-KD beside its teacher and the student alone'
log=work_dirs/report.txt
rm -rf work_dirs/report
compare=()
for i in "${!configs[@]}"; do
    compare+=(--compare "${names[i]}=work_dirs/${configs[i]}")
done
if ! "$PYTHON" tools/test.py "configs/digits/${configs[3]}.py" "work_dirs/${configs[3]}/epoch_20.pth" \
    --report "${compare[@]}" \
    --base "configs/digits/${configs[1]}.py" "work_dirs/${configs[1]}/epoch_20.pth" \
    --cfg-options custom_hooks.1.out_dir=work_dirs/report custom_hooks.1.show_samples=30 \
    > "$log" 2>&1; then
    fail Explaining
fi
echo
echo "The report: $PWD/work_dirs/report/report.html"
