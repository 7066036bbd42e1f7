"""mmpretrain's command-line tools, so that mmkdx's take the same options in every version."""

from __future__ import annotations

import argparse
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import mmpretrain
from mmengine.config import Config

from mmkdx.apis.runs import find_run
from mmkdx.compat import last_whole_checkpoint, prepare_cpu_launch


def run_tool(name: str) -> None:
    """Runs a script of mmpretrain's ``tools`` on a config that is made ready for this machine.

    ``--resume`` without a checkpoint takes the last one that is whole, and a launcher on a machine
    without CUDA connects its processes with gloo. 'test' takes ``--report``, ``--compare`` and
    ``--base``, too.

    Args:
        name (str): 'train' or 'test'.
    """
    own = _own_options() if name == 'test' else argparse.Namespace(report=False, base=None)
    tool = mmpretrain_tool(name)
    merge_args = tool.merge_args

    def merge(cfg: Config, args: argparse.Namespace) -> Config:
        cfg = merge_args(cfg, args)
        if getattr(args, 'resume', None) == 'auto':
            cfg.load_from = last_whole_checkpoint(cfg.work_dir)
        prepare_cpu_launch(cfg, args.launcher)
        if name == 'test':
            cfg.resume = False  # the config of a resumed run keeps it
        _change_hooks(cfg, own)
        return cfg

    tool.merge_args = merge
    tool.main()


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


def _own_options() -> argparse.Namespace:
    """Takes options of ours out of the command line, since mmpretrain's parser refuses them."""
    parser = argparse.ArgumentParser(add_help=False)
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
    if {'-h', '--help'} & set(sys.argv):
        print(parser.format_help())
    own, sys.argv[1:] = parser.parse_known_args()
    bad = next((text for text in own.compare if '=' not in text), None)
    if bad is not None:
        parser.error(f'--compare {bad}: write NAME=WORK_DIR')
    names = [text.partition('=')[0] for text in own.compare]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f'--compare gives the name {twice[0]} to two runs')
    if own.base and len(own.base) > 2:
        parser.error('--base: write WORK_DIR, or CONFIG CHECKPOINT')
    return own


def _change_hooks(cfg: Config, own: argparse.Namespace) -> None:
    """Tells the config's ``ExplainHook`` what options of ours say."""
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
