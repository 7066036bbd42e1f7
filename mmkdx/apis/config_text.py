"""The text of a config, in the layout of ruff, and the terms of the methods that a config can have."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmkdx.files import printable

WIDTH = 100


class Reference(str):
    """A name in a config that stands for a value above it, such as ``val_dataloader``."""


class Method(NamedTuple):
    """A method of distillation as terms for any pair of networks."""

    title: str
    terms: dict[str, dict]
    student_weight: float = 1.0


def methods(side: int, batch_size: int, num_images: int, epochs: int) -> dict[str, Method]:
    """The methods that are the same terms for every pair of networks, with published weights.

    Args:
        side (int): Height and width of the images.
        batch_size (int): Images in a batch.
        num_images (int): Images to train on.
        epochs (int): Epochs of the training.
    """

    def one(title: str, loss: str, at: str, student_weight: float = 1.0, **options: Any) -> Method:
        name = loss.removesuffix('Loss').lower()
        return Method(title, {name: dict(type=loss, at=at, **options)}, student_weight)

    warm_up = dict(type='linear', start_factor=0.05, end=min(20, max(2, epochs // 5)))
    maps, last = 'cam', 'features'
    kd = dict(type='KLDivLoss', at='logits', tau=4, weight=0.9)
    return {
        'kd': Method('knowledge distillation (Hinton et al., 2015)', dict(kd=kd), 0.1),
        'dkd': one(
            *('DKD (Zhao et al., CVPR 2022)', 'DKDLoss', 'logits'),
            **dict(tau=4, alpha=1.0, beta=8.0, weight=1.0, schedule=warm_up),
        ),
        'dist': one('DIST (Huang et al., NeurIPS 2022)', 'DISTLoss', 'logits', tau=1, weight=2.0),
        'logit-std': one(
            *('logit standardisation (Sun et al., CVPR 2024)', 'LogitStdLoss', 'logits', 0.1),
            **dict(tau=2, weight=9.0),
        ),
        'cat-kd': one(
            *('CAT-KD (Guo et al., CVPR 2023)', 'CATLoss', maps),
            **dict(resolution=2, normalize=False, weight=0.5),
        ),
        # The published weights belong to maps that are divided by the number of channels
        'exp-kd': one(
            *('Exp-KD (Sun et al., Pattern Recognition 2025)', 'ExpKDLoss', maps),
            **dict(channel_reduce='sum', weight=1.0),
        ),
        'e2kd': Method(
            'e²KD (Parchami-Araghi et al., ECCV 2024), with labels',
            dict(kd=kd, e2kd=dict(type='E2KDLoss', at=maps, size=side, weight=5.0)),
            0.1,
        ),
        'at': one('attention transfer (Zagoruyko, ICLR 2017)', 'ATLoss', last, weight=1000.0),
        'fitnet': one('FitNets (Romero et al., ICLR 2015)', 'FitNetLoss', last, weight=100.0),
        'sp': one('similarity-preserving (Tung, ICCV 2019)', 'SPLoss', last, weight=3000.0),
        'vid': one('VID (Ahn et al., CVPR 2019)', 'VIDLoss', last, weight=1.0),
        'nst': one('NST (Huang and Wang, 2017)', 'NSTLoss', last, weight=50.0),
        'pkt': one(
            *('PKT (Passalis and Tefas, ECCV 2018)', 'PKTLoss', 'embedding'),
            weight=30000 / batch_size,
        ),
        'rkd': one(
            *('RKD (Park et al., CVPR 2019)', 'RKDLoss', 'embedding'),
            **dict(distance=1.0, angle=2.0, weight=25.0),
        ),
        'crd': one(
            *('CRD (Tian et al., ICLR 2020)', 'CRDLoss', 'embedding'),
            **dict(num_samples=num_images, weight=0.8),
        ),
    }


def config_text(head: Sequence[str], parts: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text of a Python config.

    Args:
        head (Sequence[str]): The comment at the top, a line each.
        parts (Sequence[tuple[str, Mapping]]): A comment and the keys below it.
    """
    lines = [f'# {printable(line)}' for line in head]
    for comment, keys in parts:
        lines += ['', *(f'# {line}' for line in comment.splitlines())] if comment else []
        for key, value in keys.items():
            text = render(value, len(key) + 3)
            if '\n' not in text and len(key) + 3 + len(text) > WIDTH >= 4 + len(text):
                text = f'(\n    {text}\n)'
            lines.append(f'{key} = {text}')
    return '\n'.join(lines) + '\n'


def render(value: Any, used: int = 0, depth: int = 0, after: int = 0) -> str:
    """The source of a value: in one line where it fits, else with one part in each line.

    Args:
        value (Any): Dicts, lists, tuples, texts, numbers, booleans, None and ``Reference``.
        used (int): The characters before it in its line. Defaults to 0.
        depth (int): The levels that it is indented by. Defaults to 0.
        after (int): The characters after it in its line. Defaults to 0.
    """
    if isinstance(value, Reference):
        return str(value)
    if not isinstance(value, dict | list | tuple) or not value:
        return 'dict()' if value == {} else repr(value)
    named = isinstance(value, dict) and all(map(_is_name, value))
    if isinstance(value, dict):
        opening, closing = ('dict(', ')') if named else ('{', '}')
        parts = [(f'{k}=' if named else f'{k!r}: ', each) for k, each in value.items()]
    else:
        opening, closing = '[]' if isinstance(value, list) else '()'
        parts = [('', each) for each in value]
    flat = ', '.join(mark + render(each) for mark, each in parts)
    flat += ',' * (isinstance(value, tuple) and len(value) == 1)
    if '\n' not in flat and used + len(opening + flat + closing) + after <= WIDTH:
        return f'{opening}{flat}{closing}'
    indent = '    ' * (depth + 1)
    lines = [
        f'{indent}{mark}{render(each, len(indent + mark), depth + 1, 1)},\n' for mark, each in parts
    ]
    return f'{opening}\n{"".join(lines)}{"    " * depth}{closing}'


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
