#!/usr/bin/env python
"""Shows what a student learned from its teacher that the same network trained alone has not.

STUDENT, BASE and TEACHER are the work directories of finished runs. On the student's test data it writes
maps of distilled and residual features, the similarity of features (FSS) and their relevance (RS) as a
table, numbers and a page.
"""

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmkdx.compat import last_whole_checkpoint


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('student', help='work directory of the run with a teacher')
    parser.add_argument('base', help='work directory of the same network without one')
    parser.add_argument(
        'teacher', nargs='?', help="that of the teacher (default: the student's config says)"
    )
    parser.add_argument('--out', default='what_was_distilled', help='folder for the files')
    parser.add_argument(
        '--num-samples', type=int, default=512, help='test images that are compared (0: all)'
    )
    parser.add_argument(
        '--context-size', type=int, default=64, help='images that are compared with each other'
    )
    parser.add_argument('--show-samples', type=int, default=16, help='images whose maps are drawn')
    parser.add_argument('--seed', type=int, default=0, help='seed of the sample')
    parser.add_argument(
        '--unicam',
        nargs='+',
        action=DictAction,
        default={},
        help='arguments of UniCAM as key=value, like target=row_max',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help="changes of the student's config as key=value",
    )
    return parser.parse_args()


def find_run(work_dir: str) -> tuple[str, str]:
    """The config and the best, or else the last, checkpoint of a run.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(work_dir)
    configs = sorted(folder.glob('*.py'))
    if len(configs) != 1:
        raise FileNotFoundError(
            f'{work_dir} is no work directory of a run: it has {len(configs)} configs (*.py)'
        )
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = str(best[-1]) if best else last_whole_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(f'{work_dir} has no checkpoint')
    return str(configs[0]), checkpoint


def main() -> None:
    """Compares the runs."""
    args = parse_args()
    config, checkpoint = find_run(args.student)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.load_from, cfg.work_dir = checkpoint, args.out
    # The run may have been on several devices, or resumed, which its config keeps
    cfg.launcher, cfg.resume = 'none', False
    models = {}
    for name in ('base', 'teacher'):
        if getattr(args, name) is not None:
            found = find_run(getattr(args, name))
            models[name] = dict(model=found[0], checkpoint=found[1])
    hooks = [hook for hook in cfg.get('custom_hooks', ()) if hook.type != 'ExplainHook']
    cfg.custom_hooks = [
        *hooks,
        dict(
            type='ExplainHook',
            target='label',
            num_samples=args.num_samples or None,
            show_samples=args.show_samples,
            unicam=args.unicam or True,
            context_size=args.context_size,
            seed=args.seed,
            report=True,
            **models,
        ),
    ]
    Runner.from_cfg(cfg).test()


if __name__ == '__main__':
    main()
