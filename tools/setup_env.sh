# Sourced, not run: `setup_env STACK GROUP...` prepares a Python environment with mmkdx in it and
# puts its interpreter into $PYTHON.
#
# STACK is the package family, `openmmlab` or `onedl`. Each GROUP is a file requirements/GROUP.txt
# that is needed in addition to runtime.txt. requirements/constraints.txt sets the versions.
#
# The environment is the active one (venv or conda) or else .venv in the checkout. The two families
# hold modules of the same names, so `onedl` always has an environment of its own, .venv-onedl.

MMKDX_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)

setup_env() {
    local stack=$1 family own_env=yes env stamp key old_key='' groups='' group start=$SECONDS
    shift
    case $stack in
        openmmlab) family=mminstall env=$MMKDX_ROOT/.venv ;;
        onedl) family=mminstall-onedl env=$MMKDX_ROOT/.venv-onedl ;;
        *)
            _env_error "There is no stack '$stack': choose openmmlab or onedl."
            return 1
            ;;
    esac
    for group in "$@"; do
        if [[ ! -f $MMKDX_ROOT/requirements/$group.txt ]]; then
            _env_error "There is no requirements/$group.txt."
            return 1
        fi
    done
    if [[ $stack == openmmlab && -n ${VIRTUAL_ENV:-${CONDA_PREFIX:-}} ]]; then
        own_env=no env=${VIRTUAL_ENV:-$CONDA_PREFIX}
    fi
    PYTHON=$env/bin/python
    # Packages are installed without bytecode (see below). Container images often forbid to write it
    # later; then each of many processes would compile all of torch.
    unset PYTHONDONTWRITEBYTECODE
    stamp=$env/.mmkdx-setup

    # The stamp names what is installed, so that the next call has nothing to do. `git clean` removes
    # the links to tools and configs, which only an installation makes.
    if [[ -f $stamp && -d $MMKDX_ROOT/mmkdx/.mim ]] && key=$(_env_key "$stack" 2> /dev/null); then
        read -r old_key groups < "$stamp" || true
        if [[ $old_key != "$key" ]]; then
            groups=''
        elif _env_has_groups "$groups" "$@"; then
            return 0
        fi
    fi

    if [[ $own_env == yes ]]; then
        _env_make "$env" || return 1
    else
        _env_check_active "$env" || return 1
    fi
    rm -f -- "$stamp"
    echo "Setting up $env for $stack with Python $("$PYTHON" -c 'import platform as p; print(p.python_version())')"
    # --no-compile, because Python compiles what it imports, and all of torch takes longer than that
    local pip=("$PYTHON" -m pip install -qq --disable-pip-version-check --no-compile)
    # setuptools, because mmkdx itself is installed without a build environment of its own
    local packages=(setuptools -c "$MMKDX_ROOT/requirements/constraints.txt")
    for group in runtime "$family" "$@"; do
        packages+=(-r "$MMKDX_ROOT/requirements/$group.txt")
    done
    _env_stage 'Installing the packages' "${pip[@]}" "${packages[@]}" || return 1
    _env_stage 'Installing mmkdx' \
        "${pip[@]}" --no-deps --no-build-isolation -e "$MMKDX_ROOT" || return 1

    key=$(_env_key "$stack") || return 1
    for group in "$@"; do
        _env_has_groups "$groups" "$group" || groups+=" $group"
    done
    echo "$key $groups" > "$stamp"
    echo "Ready after $((SECONDS - start)) s"
}

_env_error() {
    echo "setup_env: $*" >&2
}

# Runs a command and prints what it does and how long it took.
_env_stage() {
    local text=$1 start=$SECONDS
    shift
    printf '%s ... ' "$text"
    if ! "$@"; then
        echo 'failed'
        _env_error "$text failed; the reason is above, and the next call tries again."
        return 1
    fi
    echo "$((SECONDS - start)) s"
}

# Prints a hash of everything that decides what is installed, except the groups.
_env_key() {
    "$PYTHON" - "$MMKDX_ROOT" "$1" << 'END'
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
key = hashlib.sha256(repr((sys.argv, sys.version)).encode())
for path in [root / 'setup.py', *sorted(root.glob('requirements/*.txt'))]:
    key.update(path.read_bytes())
print(key.hexdigest())
END
}

# Tells whether the words of the first argument contain all others.
_env_has_groups() {
    local present=" $1 " group
    shift
    for group in "$@"; do
        [[ $present == *" $group "* ]] || return 1
    done
}

_env_require_version() {
    local version
    if version=$("$1" -c 'import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(sys.version_info < (3, 10))' 2> /dev/null); then
        return 0
    fi
    if [[ -n $version ]]; then
        _env_error "mmkdx needs Python 3.10 or newer, but $1 is Python $version."
    else
        _env_error "mmkdx needs Python 3.10 or newer, but $1 does not run."
    fi
    return 1
}

_env_has_pip() {
    "$PYTHON" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m ensurepip > /dev/null 2>&1
}

# Makes an environment, unless a working one exists.
_env_make() {
    if ! _env_has_pip; then
        _env_require_version python3 || return 1
        # --clear, because an interrupted call may have left half an environment
        _env_stage "Making $1" python3 -m venv --clear "$1" || return 1
    fi
    _env_require_version "$PYTHON"
}

_env_check_active() {
    _env_require_version "$PYTHON" || return 1
    if ! _env_has_pip; then
        _env_error "The active environment $1 has no pip: install it, or deactivate the environment."
        return 1
    fi
    local others
    others=$("$PYTHON" - << 'END'
from importlib.metadata import distributions

others = {'mmcv', 'mmcv-full', 'onedl-mmcv', 'onedl-mmengine', 'onedl-mmpretrain'}
names = {str(dist.metadata['Name']).replace('_', '-') for dist in distributions()}
print(*sorted(others & names), sep=', ')
END
    ) || return 1
    if [[ -n $others ]]; then
        _env_error "The active environment $1 holds $others, which would be overwritten:" \
            'deactivate it, and mmkdx makes one of its own.'
        return 1
    fi
}
