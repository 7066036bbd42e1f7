"""Runs mmpretrain's command-line tools, so mmkdx's tools have the installed version's options."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import mmpretrain
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from mmkdx.apis.config_keys import check_keys
from mmkdx.apis.runs import find_run
from mmkdx.checkpoints import CheckpointError
from mmkdx.compat import finish_launch, prepare_cpu_launch
from mmkdx.data_configs import DataConfigError
from mmkdx.files import WriteError, exit_on_write_error
from mmkdx.lock import FolderInUseError, FolderLock

#: The exit statuses of a run that a signal stopped.
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
#: The environment variable that holds the process's rank, for each launcher.
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')

SIGNALS = """On SIGTERM or SIGINT (Ctrl-C) the run ends the current step, writes a checkpoint and
exits with status 143 or 130. --resume then continues with the next step. A second signal ends it
at once. On a cluster, let Slurm send the signal before the time limit: --signal=TERM@120 for
srun, and --signal=B:TERM@120 for a batch script that starts tools/dist_train.sh (see "Train at
scale" in the docs)."""


def run_tool(name: str) -> None:
    """Runs a script of mmpretrain's ``tools`` after preparing its config for this machine.

    ``--resume`` without a checkpoint takes the last complete one. On a machine without CUDA,
    launchers use gloo. 'test' also takes ``--report``, ``--compare`` and ``--base``. 'train' locks
    its work folder and saves with mmkdx's ``CheckpointHook``. On SIGTERM or SIGINT it writes a
    checkpoint and stops.

    Args:
        name (str): 'train' or 'test'.

    Raises:
        SystemExit: With a message, if another run trains in the work folder, the config has a
            mistake, a checkpoint cannot be loaded or a file cannot be written. With status 143 or
            130 after a signal.
    """
    own = _own_options(name)
    tool = mmpretrain_tool(name)
    merge_args = tool.merge_args
    locks = []

    def merge(cfg: Config, args: argparse.Namespace) -> Config:
        cfg = merge_args(cfg, args)
        try:
            check_keys(cfg)
        except ValueError as error:
            sys.exit(f'{args.config}: {error}')
        if name == 'train' and os.environ.get(RANKS.get(args.launcher, ''), '0') == '0':
            advice = 'wait for it, choose another --work-dir, or start with --force'
            locks.append(FolderLock(cfg.work_dir, advice, own.force))
        prepare_cpu_launch(cfg, args.launcher)
        if name == 'test':
            cfg.resume = False  # the saved config of a resumed run says True
            _change_hooks(cfg, own)
        else:
            _add_hooks(cfg)
        return cfg

    tool.merge_args = merge
    handle_error = logging.FileHandler.handleError
    logging.FileHandler.handleError = _cannot_log
    try:
        with exit_on_write_error():
            tool.main()
        finish_launch()
    except (CheckpointError, DataConfigError, FolderInUseError) as error:
        sys.exit(str(error))
    except SystemExit as leave:
        if leave.code in STOPPED:
            # Neither a worker nor a thread of gloo may change the exit status
            logging.shutdown()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(leave.code)
        raise
    finally:
        logging.FileHandler.handleError = handle_error
        for lock in locks:
            lock.release()


def _cannot_log(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Ends a run whose log cannot be written; Python would print a traceback for each line and go on."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise WriteError(f'cannot write {handler.baseFilename}: {error.strerror}') from error
    logging.Handler.handleError(handler, record)


def mmpretrain_tool(name: str) -> ModuleType:
    """Imports a script of the installed mmpretrain's ``tools``, with ``parse_args`` and ``main``.

    Raises:
        FileNotFoundError: If this mmpretrain was installed without its tools.
    """
    path = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    if not path.is_file():
        raise FileNotFoundError(
            f'mmpretrain is installed without its tools (no {path}); install it from its wheel'
        )
    spec = spec_from_file_location(f'mmpretrain_tools_{name}', path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _own_options(name: str) -> argparse.Namespace:
    """Takes mmkdx's options out of ``sys.argv``, since mmpretrain's parser refuses them."""
    parser = argparse.ArgumentParser(
        add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if name == 'train':
        group = parser.add_argument_group('interrupted runs', SIGNALS)
        group.add_argument(
            '--force',
            action='store_true',
            help='train even though another run seems to use the work directory',
        )
    else:
        _add_report_options(parser)
    if {'-h', '--help'} & set(sys.argv):
        print(parser.format_help())
    own, sys.argv[1:] = parser.parse_known_args()
    bad = next((text for text in getattr(own, 'compare', ()) if '=' not in text), None)
    if bad is not None:
        parser.error(f'--compare {bad}: write NAME=WORK_DIR')
    names = [text.partition('=')[0] for text in getattr(own, 'compare', ())]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f'--compare gives the name {twice[0]} to two runs')
    if getattr(own, 'base', None) and len(own.base) > 2:
        parser.error('--base: write WORK_DIR, or CONFIG CHECKPOINT')
    return own


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    """The options of tools/test.py."""
    group = parser.add_argument_group('explanations')
    group.add_argument(
        '--report',
        action='store_true',
        help="write the ExplainHook's report, <log dir>/explain/report.html",
    )
    group.add_argument(
        '--compare',
        action='append',
        default=[],
        metavar='NAME=WORK_DIR',
        help='another run whose curves the report shows; may be given several times',
    )
    group.add_argument(
        '--base',
        nargs='+',
        metavar='PATH',
        help='the student trained alone, to see what was distilled (see ExplainHook.base): its work '
        'directory, or CONFIG CHECKPOINT; without an ExplainHook in the config, one is added',
    )


def _add_hooks(cfg: Config) -> None:
    """Adds mmkdx's ``CheckpointHook`` and ``InterruptionHook`` to a training config.

    Configs with another scope than mmkdx or mmpretrain cannot name these hooks and do not change.
    """
    if cfg.get('default_scope') not in ('mmkdx', 'mmpretrain'):
        return
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint and checkpoint['type'] in (
        *('CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook'),
        CheckpointHook,
    ):
        checkpoint['type'] = 'mmkdx.CheckpointHook'
    hooks.setdefault('interruption', dict(type='mmkdx.InterruptionHook'))


def _change_hooks(cfg: Config, own: argparse.Namespace) -> None:
    """Applies mmkdx's options to the config's ``ExplainHook``."""
    changes = {}
    if own.report:
        changes['report'] = dict(text.split('=', 1) for text in own.compare) or True
    if own.base:
        base = find_run(own.base[0]) if len(own.base) == 1 else own.base
        changes['base'] = dict(zip(('model', 'checkpoint'), base))
    hooks = [hook for hook in cfg.get('custom_hooks', ()) if hook.get('type') == 'ExplainHook']
    if own.base and not hooks:
        hook = dict(type='ExplainHook', target='label', show_samples=16, **changes)
        cfg.custom_hooks = [*cfg.get('custom_hooks', ()), hook]
    elif changes and not hooks:
        raise ValueError(
            f'--{next(iter(changes))} needs an ExplainHook, and custom_hooks of the config has none'
        )
    for hook in hooks:
        hook.update(changes)
