#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat << 'END'
Usage: bash tools/test_wheel.sh [--stack openmmlab|onedl]

Builds mmkdx's wheel, installs it and a plugin outside the checkout, and uses both from an empty folder:
mim trains, tests and explains, and each tool starts.

The new environment holds only mmkdx, the plugin and mim. All other packages are links to packages
that tools/run_tests.sh installs, since torch alone takes minutes. mmkdx's editable installation is
not linked. pip checks that the wheel's requirements are met.
END
}

case "$*" in
    '') stack=openmmlab ;;
    '--stack openmmlab' | '--stack onedl') stack=$2 ;;
    -h | --help)
        usage
        exit
        ;;
    *)
        usage >&2
        exit 1
        ;;
esac

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
source "$root/tools/setup_env.sh"
setup_env "$stack" tests
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
unset PYTHONPATH MMKDX_NO_PLUGINS
# The models are so small that threads would only wait for one another
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 OMP_NUM_THREADS=1

stage() {
    echo "--- $* ($SECONDS s)"
}

stage 'Building the wheel from the source archive, and the plugin'
build="import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
(cd "$root" && "$PYTHON" -c "$build" "$folder" > /dev/null)
cp -r "$root/projects/example_plugin" "$folder/plugin"
"$PYTHON" -m pip wheel --no-deps --no-build-isolation -w "$folder/wheels" \
    "$folder"/mmkdx-*.tar.gz "$folder/plugin"

stage 'Installing them in a new environment'
"$PYTHON" -m venv "$folder/env"
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
mkdir "$folder/linked" "$folder/empty"
for path in "$("$PYTHON" -c "$purelib")"/*; do
    # pip and setuptools are the new environment's own
    case ${path##*/} in
        *mmkdx* | *.pth | pip | pip-* | setuptools | setuptools-* | pkg_resources | _distutils_hack) ;;
        *) ln -s "$path" "$folder/linked" ;;
    esac
done
python=$folder/env/bin/python
echo "$folder/linked" > "$("$python" -c "$purelib")/linked.pth"
# openmim works with both families. onedl-mim 0.5.1 takes the first file in a package's RECORD for
# its folder, which is mmkdx-….dist-info. openmim needs pkg_resources, which setuptools 82 dropped.
# Its requirement opendatalab is left out: only `mim download` needs it, and it pins packages of 2022.
"$python" -m pip install click colorama model-index pandas requests rich 'setuptools>=80,<82' tabulate
"$python" -m pip install --no-deps openmim
"$python" -m pip install --no-index \
    "$(echo "$folder"/wheels/mmkdx-*.whl)[$stack]" "$folder"/wheels/mmkdx_example_plugin-*.whl

cd "$folder/empty"
export PATH=$folder/env/bin:$PATH
stage 'Importing it, and starting each tool'
python - "$folder/env" << 'END'
import runpy
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import mmkdx
import torch
from mmengine.config import Config
from mmkdx.distillation.models import build_model
from mmkdx.plugins import loaded_plugins
from mmkdx.registry import EXPLAINERS
from PIL import Image
from sklearn.datasets import load_digits

package = Path(mmkdx.__file__).parent
assert package.is_relative_to(sys.argv[1]), package
assert version('mmkdx') == mmkdx.__version__
print('version', mmkdx.__version__)

assert EXPLAINERS.get('RandomCAM').__module__ == 'mmkdx_example_plugin.explainers'
(plugin,) = loaded_plugins()
assert plugin.error is None, plugin

config = Config.fromfile('mmkdx::digits/resnet18_digits.py')
assert Path(config.filename).is_relative_to(package)
torch.save(build_model(config.model, 'model').state_dict(), 'teacher.pth')
digit = Image.fromarray((16 * load_digits().images[3]).clip(max=255).astype('uint8'))
digit.resize((32, 32)).save('digit.png')

tools = [path for path in (package / '.mim/tools').rglob('*.py') if path.name != '_timing.py']
for path in tools:
    sys.argv, sys.path[0] = [path.name, '--help'], str(path.parent)
    try:
        with redirect_stdout(StringIO()) as output:
            runpy.run_path(str(path), run_name='__main__')
    except SystemExit as end:
        assert not end.code, f'{path}: {end.code}'
    assert 'usage: ' in output.getvalue(), path
print(len(tools), 'tools started')
END

config=cat_resnet18_resnet18-tiny_digits100
options=(--cfg-options model.teacher.checkpoint=teacher.pth custom_hooks.1.num_samples=4)
run() { # its output only if it fails
    "$@" > log.txt 2>&1 || {
        cat log.txt
        exit 1
    }
}
stage "mim train mmkdx $config.py"
run mim train mmkdx $config.py --work-dir run \
    "${options[@]}" train_cfg.max_epochs=1 train_dataloader.dataset.times=1
grep -o 'Epoch(val).*top1: [0-9.]*' log.txt

stage "mim test mmkdx $config.py --report"
run mim test mmkdx $config.py --checkpoint run/epoch_1.pth --report --work-dir test "${options[@]}"
ls test/*/explain/report.html

stage "mim run mmkdx explain mmkdx::digits/$config.py"
run mim run mmkdx explain mmkdx::digits/$config.py run/epoch_1.pth digit.png \
    --explainer RandomCAM --out maps "${options[@]}"
ls maps/digit.png
stage 'The wheel works'
