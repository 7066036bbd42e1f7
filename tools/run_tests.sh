#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat << 'END'
Usage: bash tools/run_tests.sh [--stack openmmlab|onedl] [pytest's arguments]

Runs the tests. The first call installs what they need. Paths are relative to the checkout.

  --stack      the package family to test with (default: openmmlab)
  -m slow      runs the slow tests, which are left out unless -m is given
  -m tutorials runs the notebooks of docs/en/tutorials
  -m campaign  kills runs, fills disks and passes hostile files, for --minutes (10) with --seed (0)
  -n 0         runs all in one process, for a debugger (default: one for each core, at most 4)

Without pytest's arguments, at least 90 % of mmkdx's lines must be covered. With onedl, only the
first case of each test that touches mmengine, mmcv or mmpretrain runs then, without coverage.
END
}

stack=openmmlab usual='not slow and not campaign and not tutorials'
args=()
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit
            ;;
        --stack)
            stack=${2:-}
            shift
            ;;
        --stack=*) stack=${1#*=} ;;
        *) args+=("$1") ;;
    esac
    shift $(($# > 0))
done

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null
source tools/setup_env.sh
setup_env "$stack" tests
if ((${#args[@]} == 0)); then
    case $stack in
        openmmlab) args=(tests --cov-fail-under=90) ;;
        onedl) args=(tests --no-cov -m "$usual and families" --first-cases) ;;
    esac
fi
# pytest takes the last -m and -n, so the user's replace these. The tests of a file share fixtures,
# so they stay in one process. They keep their order, so that long ones begin early.
exec "$PYTHON" -m pytest --cov=mmkdx --cov-report=term -m "$usual" \
    -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "${args[@]}"
