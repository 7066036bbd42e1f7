"""Describes a head: which kind of function it is, and how much of a logit its maps hold."""

from __future__ import annotations

import torch

from mmkdx.distillation import Distiller
from mmkdx.functional import ClassMaps
from mmkdx.models.families import forward_tensor
from mmkdx.models.intercept import evaluating


@torch.no_grad()
def head_rows(distiller: Distiller, data: dict) -> list[list[str]]:
    """Makes a table row for each head whose class maps the terms compare.

    Args:
        distiller (Distiller): The distiller.
        data (dict): A preprocessed batch: ``inputs`` and ``data_samples``.

    Returns:
        list[list[str]]: The model, the kind of head ('affine', 'piecewise linear' or 'neither'),
            and the share of the class map's mean in the predicted class's logit. The rest is a
            bias, or for a curved head what its slope leaves out.
    """
    inputs, samples = data['inputs'], data.get('data_samples')
    student = distiller.student
    with evaluating(student), distiller._taps.record(student) as values:
        forward_tensor(student, inputs)
    found = {'student': values}
    for i, teacher in distiller._compared.items():
        found[f'teacher {i}'] = getattr(teacher, 'teacher', teacher)(inputs, samples)
    return [
        [owner, *_kind(value)]
        for owner, read in found.items()
        for value in read.values()
        if isinstance(value, ClassMaps)
    ]


def _kind(maps: ClassMaps) -> tuple[str, str]:
    mean, rest = maps.logits(bias=False), maps.remainder()
    rest = torch.zeros_like(mean) if rest is None else rest.expand_as(mean)
    share = (mean.abs() / (mean.abs() + rest.abs())).gather(
        1, maps.logits().argmax(1, keepdim=True)
    )
    form, scale_free = ('affine', False)
    if maps.head:
        form, scale_free = maps.head.kind(maps.features)
    elif maps.weight is None:
        form = 'of several models'
    return form + ', ignores the scale' * scale_free, f'{share.nanmean():.0%}'
