"""The shell tools, with a Python that only writes down what it is asked to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# -S hides the installed packages from what setup_env.sh looks up
FAKE_PYTHON = f"""#!/bin/bash
echo "$0 $*" >> "$LOG"
case "$1 $2" in
    '-m venv')
        rm -rf "${{@: -1}}" && mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
    '-m pip')
        [[ $3 == install ]] && mkdir -p mmkdx/.mim
        [[ $3 != --version || -z $NO_PIP ]] && [[ $3 != install || -z $NO_NETWORK ]] ;;
    '-m ensurepip') false ;;
    -m*) ;;
    -c*sys.exit*) echo "$VERSION"; [[ $VERSION == 3.1* ]] ;;
    *) exec '{sys.executable}' -S "$@" ;;
esac
"""


class Checkout:
    """A copy of the files that matter, in a folder whose name holds a space."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / 'a checkout'
        self.log = folder / 'log'
        shutil.copytree(ROOT / 'tools', self.root / 'tools')
        shutil.copytree(ROOT / 'requirements', self.root / 'requirements')
        shutil.copy(ROOT / 'setup.py', self.root)
        for name in ('python', 'python3', 'srun'):
            self.add_python(folder / 'bin' / name)
        self.environment = dict(
            PATH=f'{folder / "bin"}{os.pathsep}{os.environ["PATH"]}',
            LOG=str(self.log),
            VERSION='3.11',
            NO_PIP='',
            NO_NETWORK='',
        )

    def add_python(self, path: Path) -> None:
        """Puts the fake at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)

    def bash(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs bash and empties the log before."""
        self.log.write_text('')
        return subprocess.run(
            ['bash', *command],
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
        )

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Calls setup_env as the tools do."""
        script = 'set -euo pipefail; source tools/setup_env.sh; setup_env "$@"; echo "$PYTHON"'
        return self.bash('-c', script, 'bash', *arguments, **environment)

    def calls(self, module: str) -> list[str]:
        """Lists the arguments that a module was called with."""
        return [
            line.partition(f'-m {module} ')[2]
            for line in self.log.read_text().splitlines()
            if f'-m {module} ' in line
        ]

    def installs(self) -> int:
        """Counts the installations since the log was emptied."""
        return sum(call.startswith('install') for call in self.calls('pip'))


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def assert_error(process, sentence):
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == sentence


def test_first_call_installs_and_second_finds_it_done(checkout):
    process = checkout.setup('openmmlab', 'tests')
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == str(checkout.root / '.venv/bin/python')
    assert f'Making {checkout.root}/.venv ... ' in process.stdout
    packages, mmkdx = (call for call in checkout.calls('pip') if call.startswith('install'))
    for name in ('runtime', 'mminstall', 'tests'):
        assert f'-r {checkout.root}/requirements/{name}.txt' in packages
    assert f'-c {checkout.root}/requirements/constraints.txt' in packages
    assert f'--no-deps --no-build-isolation -e {checkout.root}' in mmkdx

    process = checkout.setup('openmmlab', 'tests')
    assert process.stdout == f'{checkout.root}/.venv/bin/python\n'
    assert checkout.calls('pip') == []


def test_a_further_group_is_added(checkout):
    checkout.setup('openmmlab', 'tests')
    checkout.setup('openmmlab', 'tests', 'docs')
    assert checkout.installs() == 2
    for groups in (['docs', 'tests'], ['tests'], []):
        checkout.setup('openmmlab', *groups)
        assert checkout.installs() == 0


@pytest.mark.parametrize('name', ['requirements/runtime.txt', 'setup.py'])
def test_changed_requirements_are_installed(checkout, name):
    checkout.setup('openmmlab', 'tests')
    with (checkout.root / name).open('a') as file:
        file.write('# changed\n')
    checkout.setup('openmmlab')
    assert checkout.installs() == 2
    # of the old requirements, the group is not known to be there
    checkout.setup('openmmlab', 'tests')
    assert checkout.installs() == 2


def test_a_cleaned_checkout_is_installed_again(checkout):
    """`git clean -fdX` with the environment kept removes what mim needs."""
    checkout.setup('openmmlab', 'tests')
    shutil.rmtree(checkout.root / 'mmkdx/.mim')
    checkout.setup('openmmlab', 'tests')
    assert checkout.installs() == 2 and checkout.calls('venv') == []


def test_failed_installation_is_tried_again(checkout):
    process = checkout.setup('openmmlab', 'tests', NO_NETWORK='1')
    assert_error(
        process,
        'setup_env: Installing the packages failed; the reason is above, and the '
        'next call tries again.',
    )
    checkout.setup('openmmlab', 'tests')
    assert checkout.installs() == 2

    # one that was complete does not count either, after a failure
    checkout.setup('openmmlab', 'docs', NO_NETWORK='1')
    checkout.setup('openmmlab', 'tests')
    assert checkout.installs() == 2


def test_half_an_environment_is_made_anew(checkout):
    (checkout.root / '.venv/bin').mkdir(parents=True)
    (checkout.root / '.venv/bin/python').symlink_to('nowhere')
    assert checkout.setup('openmmlab').returncode == 0
    assert checkout.calls('venv') == [f'--clear {checkout.root}/.venv']
    # a working one without a stamp stays
    (checkout.root / '.venv/.mmkdx-setup').unlink()
    assert checkout.setup('openmmlab').returncode == 0
    assert checkout.calls('venv') == []


def test_unknown_stack_and_group(checkout):
    assert_error(
        checkout.setup('mmlab'), "setup_env: There is no stack 'mmlab': choose openmmlab or onedl."
    )
    assert_error(
        checkout.setup('openmmlab', 'test'), 'setup_env: There is no requirements/test.txt.'
    )
    assert checkout.calls('venv') == []


def test_unfit_python(checkout):
    assert_error(
        checkout.setup('openmmlab', VERSION='3.8'),
        'setup_env: mmkdx needs Python 3.10 or newer, but python3 is Python 3.8.',
    )
    assert_error(
        checkout.setup('openmmlab', VERSION=''),
        'setup_env: mmkdx needs Python 3.10 or newer, but python3 does not run.',
    )
    assert not (checkout.root / '.venv').exists()


@pytest.mark.parametrize('variable', ['VIRTUAL_ENV', 'CONDA_PREFIX'])
def test_active_environment_is_used_by_openmmlab_alone(checkout, variable, tmp_path):
    active = tmp_path / 'an environment'
    checkout.add_python(active / 'bin/python')
    process = checkout.setup('openmmlab', **{variable: str(active)})
    assert process.stdout.splitlines()[-1] == str(active / 'bin/python')
    assert not (checkout.root / '.venv').exists()

    process = checkout.setup('onedl', **{variable: str(active)})
    assert process.stdout.splitlines()[-1] == str(checkout.root / '.venv-onedl/bin/python')
    assert f'{checkout.root}/requirements/mminstall-onedl.txt' in checkout.log.read_text()


def test_active_environment_without_pip(checkout, tmp_path):
    checkout.add_python(tmp_path / 'active/bin/python')
    assert_error(
        checkout.setup('openmmlab', VIRTUAL_ENV=str(tmp_path / 'active'), NO_PIP='1'),
        f'setup_env: The active environment {tmp_path}/active has no pip: install it, or '
        'deactivate the environment.',
    )


def test_active_environment_with_the_other_family(checkout, tmp_path):
    checkout.add_python(tmp_path / 'active/bin/python')
    for name in ('onedl_mmengine', 'mmcv', 'mmcv_lite'):
        info = tmp_path / f'site/{name}-1.0.dist-info'
        info.mkdir(parents=True)
        info.joinpath('METADATA').write_text(f'Name: {name}\nVersion: 1.0\n')
    stamp = tmp_path / 'active/.mmkdx-setup'
    stamp.write_text('of the other family\n')
    process = checkout.setup(
        'openmmlab', VIRTUAL_ENV=str(tmp_path / 'active'), PYTHONPATH=str(tmp_path / 'site')
    )
    assert_error(
        process,
        f'setup_env: The active environment {tmp_path}/active holds mmcv, onedl-mmengine, '
        'which would be overwritten: deactivate it, and mmkdx makes one of its own.',
    )
    assert checkout.installs() == 0
    assert stamp.exists()


def test_run_tests(checkout):
    process = checkout.bash('tools/run_tests.sh')
    assert process.returncode == 0, process.stderr
    common = (
        '--cov=mmkdx --cov-report=term -m not slow and not campaign and not tutorials '
        '-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder '
    )
    assert checkout.calls('pytest') == [common + 'tests --cov-fail-under=90']
    checkout.bash('tools/run_tests.sh', '-m', 'slow', 'tests/test_registry.py')
    assert checkout.calls('pytest') == [common + '-m slow tests/test_registry.py']
    checkout.bash('tools/run_tests.sh', '--stack', 'onedl')
    assert checkout.calls('pytest') == [
        common
        + 'tests --no-cov -m not slow and not campaign and not tutorials and families --first-cases'
    ]
    for arguments in (['--stack', 'onedl', '-x'], ['-x', '--stack=onedl']):
        checkout.bash('tools/run_tests.sh', *arguments)
        assert checkout.calls('pytest') == [common + '-x']
        assert f'{checkout.root}/.venv-onedl/bin/python -m pytest' in checkout.log.read_text()
    process = checkout.bash('tools/run_tests.sh', '--stack')
    assert_error(process, "setup_env: There is no stack '': choose openmmlab or onedl.")


def test_dist_scripts(checkout):
    run = 'torch.distributed.run'
    process = checkout.bash('tools/dist_train.sh', 'a config.py', '2', '--work-dir', 'a folder')
    assert process.returncode == 0, process.stderr
    assert checkout.calls(run) == [
        '--nnodes=1 --node_rank=0 --master_addr=127.0.0.1 --master_port=29500 --nproc_per_node=2 '
        f'{checkout.root}/tools/train.py a config.py --launcher pytorch --work-dir a folder'
    ]
    checkout.bash(
        'tools/dist_test.sh',
        'config.py',
        'model.pth',
        '4',
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PORT='29511',
    )
    assert checkout.calls(run) == [
        '--nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=29511 --nproc_per_node=4 '
        f'{checkout.root}/tools/test.py config.py model.pth --launcher pytorch'
    ]


def test_slurm_scripts(checkout):
    checkout.bash('tools/slurm_train.sh', 'gpu', 'job', 'config.py', 'a folder', '--amp')
    resources = '--kill-on-bad-exit=1'
    assert checkout.log.read_text().partition('srun ')[2] == (
        '--partition=gpu --job-name=job --gres=gpu:8 --ntasks=8 --ntasks-per-node=8 '
        f'--cpus-per-task=5 {resources} python -u {checkout.root}/tools/train.py config.py '
        '--work-dir a folder --launcher slurm --amp\n'
    )
    checkout.bash(
        'tools/slurm_test.sh',
        'gpu',
        'job',
        'config.py',
        'model.pth',
        GPUS='2',
        GPUS_PER_NODE='1',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--quiet --time=5',
    )
    assert checkout.log.read_text().partition('srun ')[2] == (
        '--partition=gpu --job-name=job --gres=gpu:1 --ntasks=2 --ntasks-per-node=1 '
        f'--cpus-per-task=3 {resources} --quiet --time=5 python -u {checkout.root}/tools/test.py '
        'config.py model.pth --launcher slurm\n'
    )


@pytest.mark.parametrize(
    'name, arguments',
    [
        *(('dist_train', 2), ('dist_test', 3), ('slurm_train', 4), ('slurm_test', 4)),
        *(('run_tests', 0), ('test_wheel', 0), ('benchmarks/gpu', 0)),
    ],
)
def test_scripts_explain_themselves(checkout, name, arguments):
    for flag in ('--help', '-h'):
        process = checkout.bash(f'tools/{name}.sh', flag)
        assert process.returncode == 0
        assert process.stdout.startswith(f'Usage: bash tools/{name}.sh ')
    if arguments:
        process = checkout.bash(f'tools/{name}.sh', *['x'] * (arguments - 1))
        assert process.returncode == 1
        assert process.stderr.startswith(f'Usage: bash tools/{name}.sh ')
    assert checkout.log.read_text() == ''


def test_scripts_refuse_unknown_words(checkout):
    for name in ('test_wheel', 'benchmarks/gpu'):
        process = checkout.bash(f'tools/{name}.sh', '--gpu')
        assert process.returncode == 1
        assert process.stderr.startswith(f'Usage: bash tools/{name}.sh ')


def test_gpu_benchmark_needs_its_packages_and_a_gpu(checkout):
    script = 'tools/benchmarks/gpu.sh'
    assert_error(
        checkout.bash(script),
        'gpu.sh: There is no folder gpu_packages: run gpu.sh --pack where PyPI can be reached.',
    )
    (checkout.root / 'gpu_packages').mkdir()
    # the fake refuses to import torch as it refuses a version
    assert_error(
        checkout.bash(script, VERSION='no GPU'),
        'gpu.sh: PyTorch of python3 finds no GPU; --tiny rehearses on a CPU.',
    )


def test_gpu_benchmark_goes_on_after_a_stage_that_fails(checkout):
    """The fake installs and tests, and the benchmarks lack torch."""
    (checkout.root / 'gpu_packages').mkdir()
    process = checkout.bash('tools/benchmarks/gpu.sh', '--tiny')
    assert process.returncode == 1
    ends = [line.partition(': ') for line in process.stdout.splitlines() if line.startswith('Fai')]
    assert [title for _, _, title in ends] == [
        'Steps and caches, fp32',
        *('Explainers, fp32', 'Explainers, bf16', 'Explainers, other tables'),
        'Steps and caches, compiled',
    ]
    assert checkout.calls('pytest') == ['-q -m gpu']
    (install,) = checkout.calls('pip')
    assert install.endswith(str(checkout.root))
