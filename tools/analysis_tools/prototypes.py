#!/usr/bin/env python
"""Shows the prototypes of a trained network, as pictures and a page.

- global: the source of each prototype, and its nearest patches of training and test images
- local: the patches of an image that look like prototypes, and what they add to a class's logit
- transfer: a teacher's prototypes beside the student's prototypes that match them
"""

import argparse

from mmengine.config import Config, DictAction

from mmkdx.apis import PrototypeAnalysis
from mmkdx.files import exit_on_write_error

PARTS = ('global', 'local', 'transfer')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a prototype network or of its distillation')
    parser.add_argument('checkpoint', help='checkpoint saved after a push')
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=PARTS,
        help='what to show (default: global and local, and transfer if there is a teacher)',
    )
    parser.add_argument('--out', default='prototypes', help='folder for the files')
    parser.add_argument(
        '--images', nargs='+', help='image files, or positions in the test data like 0 5'
    )
    parser.add_argument(
        '--prototypes', nargs='+', type=int, help="prototypes to show; for transfer, the teacher's"
    )
    parser.add_argument(
        '--num', type=int, default=10, help='number of images and prototypes, if they are not given'
    )
    parser.add_argument('--teacher-config', help="config of the teacher's training")
    parser.add_argument('--teacher-checkpoint', help='its checkpoint')
    parser.add_argument(
        '--cmap', default='viridis', help="colour map of similarities; papers use 'jet'"
    )
    parser.add_argument('--device', default='cpu', help='device, like cuda:0')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='key=value')
    args = parser.parse_args()
    if (args.teacher_config is None) != (args.teacher_checkpoint is None):
        parser.error('--teacher-config and --teacher-checkpoint belong together')
    return args


@exit_on_write_error()
def main() -> None:
    """Writes the pictures and prints their place."""
    args = parse_args()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    teacher = None
    if args.teacher_config is not None:
        teacher = dict(model=args.teacher_config, checkpoint=args.teacher_checkpoint)
    analysis = PrototypeAnalysis(config, args.checkpoint, teacher, args.device, args.cmap)
    images = args.images and [int(each) if each.isdigit() else each for each in args.images]
    page = analysis.write(args.out, args.parts, images, args.prototypes, args.num)
    print(f'The page is {page}')


if __name__ == '__main__':
    main()
