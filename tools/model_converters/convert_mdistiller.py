#!/usr/bin/env python
"""Converts weights of mdistiller's CIFAR networks into a checkpoint for mmkdx's networks.

SRC is a released teacher (ckpt_epoch_240.pth) or a file from a training with mdistiller: student_*,
latest, best or epoch_*. From the last three only the student is taken. The new checkpoint fits
configs/_base_/models/NAME_cifar.py.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

import mmkdx
from mmkdx.checkpoints import save_checkpoint_file
from mmkdx.compat import CheckpointError, load_checkpoint_file
from mmkdx.distillation.models import build_model

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/models'
NAMES = (
    *('resnet20', 'resnet32', 'resnet56', 'resnet110', 'resnet8x4', 'resnet32x4', 'resnet50'),
    *('wrn_16_2', 'wrn_40_1', 'wrn_40_2', 'vgg8', 'vgg13'),
    *('mobilenetv2', 'shufflenetv1', 'shufflenetv2'),
)

# The layers of mmpretrain's units, by their number in mdistiller's units
UNIT = {0: '0.conv', 1: '0.bn', 3: '1.conv', 4: '1.bn', 6: '2.conv', 7: '2.bn'}
BRANCHES = ('branch1.0', 'branch1.1', 'branch2.0', 'branch2.1', 'branch2.2')
# The names of a module in mdistiller and in mmkdx, by the beginning of NAME. The first pattern that
# fits the beginning of a key counts; a key that fits no pattern stays.
RULES = {
    'resnet50': [(r'(layer\d\.\d+)\.shortcut', r'\1.downsample')],
    'wrn': [
        (r'(block\d)\.layer\.(\d+)\.convShortcut', r'\1.\2.shortcut'),
        (r'(block\d)\.layer', r'\1'),
    ],
    'mobilenetv2': [
        (r'(conv[12])\.0', r'\1.conv'),
        (r'(conv[12])\.1', r'\1.bn'),
        # The first unit's expansion, which expands nothing, is a layer before the unit
        (r'blocks\.0\.0\.conv\.0', 'blocks.0.0.conv'),
        (r'blocks\.0\.0\.conv\.1', 'blocks.0.0.bn'),
        *((rf'blocks\.0\.0\.conv\.{i + 3}', f'blocks.0.1.conv.{UNIT[i]}') for i in (0, 1, 3, 4)),
        *((rf'(blocks\.\d\.\d\.conv)\.{i}', rf'\1.{layer}') for i, layer in UNIT.items()),
    ],
    'shufflenetv2': [
        (rf'(layer\d\.{unit})\.(conv|bn){i}', rf'\1.{layer}.\2')
        for unit, branches in (('0', BRANCHES), ('[1-7]', BRANCHES[2:]))
        for i, layer in enumerate(branches, 1)
    ],
}


def rename(key: str, name: str) -> str:
    """Turns the public key of a tensor into its key in mmkdx's network."""
    if head := re.fullmatch(r'(?:fc|linear|classifier(?:\.0)?)\.(weight|bias)', key):
        return f'head.fc.{head[1]}'
    rules = next((rules for family, rules in RULES.items() if name.startswith(family)), [])
    for public, ours in rules:
        key, found = re.subn(rf'^{public}\.', f'{ours}.', key)
        if found:
            break
    return f'backbone.{key}'


def recognise(weights: dict[str, Tensor]) -> str:
    """Names the network that weights with public keys look like."""
    if 'block0.0.weight' in weights:
        return 'vgg13' if 'block0.3.weight' in weights else 'vgg8'
    if 'blocks.0.0.conv.0.weight' in weights:
        return 'mobilenetv2'
    if 'layer4.0.conv3.weight' in weights:
        return 'resnet50'
    if 'layer1.0.conv5.weight' in weights:
        return 'shufflenetv2'
    if 'layer1.0.conv3.weight' in weights:
        return 'shufflenetv1'

    def widths(pattern: str) -> list[int]:
        return [value.numel() for key, value in weights.items() if re.fullmatch(pattern, key)]

    if units := widths(r'block1\.layer\.\d+\.bn2\.weight'):
        return f'wrn_{6 * len(units) + 4}_{units[0] // 16}'
    if blocks := widths(r'layer1\.\d+\.bn2\.weight'):
        return f'resnet{6 * len(blocks) + 2}' + ('x4' if blocks[0] == 64 else '')
    return "none of mdistiller's networks"


def public_weights(checkpoint: Any, src: str) -> dict[str, Tensor]:
    """The weights in the content of a public file; for a whole distiller, the student's weights."""
    weights = checkpoint.get('model') if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError(f"{src} is none of mdistiller's files: it has no weights in 'model'.")
    prefix = 'module.student.'
    student = {key: value for key, value in weights.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in (student or weights).items()}


def convert(name: str, src: str, dst: str) -> int:
    """Converts a file; the new one appears, or replaces an earlier one, when it is whole.

    Args:
        name (str): The network, one of ``NAMES``.
        src (str): The public file.
        dst (str): The new file.

    Returns:
        int: The number of tensors.

    Raises:
        ValueError: If there is no such network.
        CheckpointError: If the public file is corrupt, or does not hold the network's tensors.
        WriteError: If the new file cannot be written.
    """
    if name not in NAMES:
        raise ValueError(f'There is no network {name!r}; NAME is one of {", ".join(NAMES)}.')
    public = public_weights(load_checkpoint_file(src), src)
    if (looks := recognise(public)) != name:
        raise CheckpointError(f'{src} does not hold {name}: it looks like {looks}.')

    model = build_model(Config.fromfile(CONFIGS / f'{name}_cifar.py').model.to_dict(), 'model')
    network = model.state_dict()
    renamed: dict[str, Tensor] = {}
    for key, value in public.items():
        ours = rename(key, name)
        # Two classifiers would have the same key
        if ours not in network or ours in renamed:
            raise CheckpointError(f'{src} has a tensor {key!r}, which {name} has not.')
        if value.shape != network[ours].shape:
            raise CheckpointError(
                f'{src}: {key!r} is of shape {tuple(value.shape)}, and {name} needs '
                f'{tuple(network[ours].shape)}.'
            )
        renamed[ours] = value
    for key in network:
        # Files of old torch versions have no such counters
        if key not in renamed and not key.endswith('.num_batches_tracked'):
            raise CheckpointError(f'{src} has no tensor for {key!r} of {name}.')
    meta = dict(mmkdx_version=mmkdx.__version__, network=name)
    save_checkpoint_file(dict(meta=meta, state_dict={**network, **renamed}), dst)
    return len(network)


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', metavar='NAME', help=f'the network: {", ".join(NAMES)}')
    parser.add_argument('src', metavar='SRC', help="mdistiller's file")
    parser.add_argument('dst', metavar='DST', help='the new file')
    args = parser.parse_args(argv)
    try:
        count = convert(args.name, args.src, args.dst)
    except (CheckpointError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f'Wrote {args.dst}: {count} tensors of {args.name}')


if __name__ == '__main__':
    main()
