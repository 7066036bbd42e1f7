#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat << 'END'
Usage: bash tools/benchmarks/gpu.sh --pack    where PyPI can be reached
       bash tools/benchmarks/gpu.sh [--tiny]  on a GPU machine with PyTorch, no internet needed

--pack puts wheels into gpu_packages/ of the checkout: all pure Python packages that mmkdx, its GPU
tests and the benchmarks need. Copy the checkout with this folder to the GPU machine.

There, the script installs missing packages into a temporary folder, runs the tests that need CUDA,
and prints three kinds of tables within 8 minutes. Compiled packages (PyTorch, torchvision, NumPy,
SciPy, scikit-learn, OpenCV, Pillow, matplotlib, PyYAML) must be installed. The kinds of tables are:

  steps       ResNet-34 to 18 and ResNet-50 to MobileNetV2; fp32, bf16, bf16 compiled
              Swin-B to T; fp32, fp32 compiled
  caches      the column 'cached' of these tables: a step that reads the teacher's outputs from files
  explainers  ResNet-18 and ResNet-50 in fp32 and bf16, Swin-T in fp32

--tiny rehearses everything on a CPU with small sizes. A stage that fails or takes too long is named at
the end, and the exit status is 1.
END
}

tiny='' pack=''
for word in "$@"; do
    case $word in
        --tiny) tiny=yes ;;
        --pack) pack=yes ;;
        -h | --help)
            usage
            exit
            ;;
        *)
            usage >&2
            exit 1
            ;;
    esac
done

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." > /dev/null
wheels=$PWD/gpu_packages

if [[ $pack ]]; then
    source tools/setup_env.sh
    setup_env openmmlab tests
    rm -rf -- "$wheels"
    # Prints NAME==VERSION. Compiled packages must be there already, so they are left out with all
    # that they need.
    "$PYTHON" - << 'END' | xargs "$PYTHON" -m pip wheel -q --no-deps -w "$wheels"
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

names = ['pytest', 'timm', 'captum', 'grad-cam', 'torchcam', 'torchdistill']
for file in ('runtime', 'mminstall'):
    names += Path(f'requirements/{file}.txt').read_text().splitlines()
seen = set()
while names:
    line = names.pop().partition('#')[0].strip()
    if not line:
        continue
    needed = Requirement(line)
    wanted = needed.marker is None or needed.marker.evaluate(
        dict(extra='', python_version='3.12', python_full_version='3.12.0')
    )
    if not wanted or canonicalize_name(needed.name) in seen:
        continue
    seen.add(canonicalize_name(needed.name))
    found = distribution(needed.name)
    if 'Root-Is-Purelib: true' in found.read_text('WHEEL'):
        print(f'{found.name}=={found.version}')
        names += found.requires or []
END
    du -sh "$wheels"
    exit
fi

if [[ ! -d $wheels ]]; then
    echo 'gpu.sh: There is no folder gpu_packages: run gpu.sh --pack where PyPI can be reached.' >&2
    exit 1
fi
python=${PYTHON:-python3}
if [[ ! $tiny ]] && ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: PyTorch of $python finds no GPU; --tiny rehearses on a CPU." >&2
    exit 1
fi

site=$(mktemp -d)
trap 'rm -rf -- "$site"' EXIT
mapfile -t missing < <("$python" - "$wheels" << 'END'
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

for wheel in sorted(Path(sys.argv[1]).glob('*.whl')):
    try:
        distribution(wheel.name.partition('-')[0].replace('_', '-'))
    except PackageNotFoundError:
        print(wheel)
END
)
# Builds the package, since some configs name others as mmkdx::...
"$python" -m pip install -q --no-index --no-deps --no-build-isolation --no-compile --target "$site" \
    "${missing[@]}" "$PWD"
export PYTHONPATH=$site PYTHONUNBUFFERED=1
echo "Installed ${#missing[@]} packages and mmkdx ($SECONDS s)"

limit=470 failed=()
stage() { # CAP_SECONDS TITLE COMMAND...
    local cap=$1 title=$2 left=$((limit - SECONDS))
    shift 2
    if [[ $tiny ]]; then
        cap=3600
    elif ((left < cap)); then
        cap=$left
    fi
    echo
    echo "--- $title ($SECONDS s)"
    if ((cap < 10)) || ! timeout "$cap" "$@"; then
        failed+=("$title")
    fi
}

step=("$python" tools/benchmarks/step.py)
maps=("$python" tools/benchmarks/explainers.py)
resnets=(configs/{kd/kd,cat_kd/cat}_resnet34_resnet18_8xb32_in1k.py
    configs/{kd/kd,cat_kd/cat}_resnet50_mobilenet-v2_8xb32_in1k.py)
# Its teacher would run in bf16 without autocast, where mmpretrain's Swin adds a mask in fp32 and fails
swin=configs/kd/kd_swin-base_swin-tiny_16xb64_in1k.py
networks=(resnet18_8xb32_in1k resnet50_8xb32_in1k)
bf16=(--dtype bfloat16)
if [[ $tiny ]]; then
    step+=(--device cpu --batch-size 2 --seconds 0)
    maps+=(--device cpu --batch 1 --rounds 1 --channels 4)
    bf16=() # step.py has it on a GPU only
else
    step+=(--batch-size 32 --seconds 3)
fi

mapfile -t files < <(grep -rl 'pytest.mark.gpu' tests --include='test_*.py')
stage 90 'Tests that need CUDA' "$python" -m pytest -q -m gpu "${files[@]}"
stage 100 'Steps and caches, fp32' "${step[@]}" "${resnets[@]}" $swin
if [[ ! $tiny ]]; then
    stage 70 'Steps and caches, bf16' "${step[@]}" "${resnets[@]}" "${bf16[@]}" --channels-last
fi
stage 60 'Explainers, fp32' "${maps[@]}" --tables maps \
    --model "${networks[@]}" swin-tiny_16xb64_in1k
stage 60 'Explainers, bf16' "${maps[@]}" --tables maps --model "${networks[@]}" --dtype bfloat16
stage 40 'Explainers, other tables' "${maps[@]}" --tables score-cam pixels transformers training
# Last, since compiling takes the time that is left: one method for each pair
compiled=("${resnets[0]}" "${resnets[2]}")
if [[ $tiny ]]; then
    compiled=(configs/digits/kd_resnet18_resnet18-tiny_digits100.py)
fi
stage 150 'Steps and caches, compiled' "${step[@]}" "${compiled[@]}" "${bf16[@]}" --compile
if [[ ! $tiny ]]; then
    stage 150 'Steps and caches of Swin, compiled' "${step[@]}" $swin --compile
fi

echo
if ((${#failed[@]})); then
    printf 'Failed or out of time: %s\n' "${failed[@]}"
    exit 1
fi
echo "All stages ended ($SECONDS s)"
