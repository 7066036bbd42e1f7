"""The region of the image that a cell of a backbone's last feature map can see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from mmkdx.models.families import forward_tensor, image_channels
from mmkdx.models.intercept import fake_forward


class ReceptiveField(NamedTuple):
    """The receptive field of the cells of a square feature map.

    Args:
        n (int): The number of cells in a row.
        jump (int): The distance from one cell's centre to the next, in pixels.
        size (int): The side of the square that a cell sees, in pixels.
        start (float): The centre of the first cell; the first pixel has its centre at 0.5.
    """

    n: int
    jump: int
    size: int
    start: float


def receptive_field(backbone: nn.Module, size: int = 224) -> ReceptiveField:
    r"""The theoretical receptive field of the last feature map.

    Each convolution and pooling updates the size r, the start and the jump j, in the order of the
    forward. With kernel k, stride s and padding p, :math:`r' = r + (k - 1) j`,
    :math:`start' = start + ((k - 1) / 2 - p) j` and :math:`j' = s j`.

    Source: Araujo et al., "Computing receptive fields of convolutional neural networks", Distill
    2019. The public code of ProtoPNet (Chen et al., NeurIPS 2019) does the same.

    Modules named 'downsample' or 'shortcut' are left out. Other parallel branches of stride 1 count
    as if one followed the other. This is right for DenseNet's blocks, since their longest path goes
    through all branches.

    Args:
        backbone (nn.Module): A chain of 2-D convolutions and poolings, which yields a feature map or a
            tuple whose last element is one.
        size (int): Height and width of the images. Defaults to 224.

    Returns:
        ReceptiveField: (n, jump, size, start).

    Raises:
        ValueError: If the backbone is no chain of convolutions and poolings, because of linear
            layers (as in transformers), squeeze-and-excitation or strided parallel branches. Also
            if a layer is not the same in both directions, or the feature map is not square.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            raise ValueError(
                f'backbone is no chain of convolutions and poolings: {name} is a linear layer'
            )
    calls = []
    handles = [
        module.register_forward_hook(
            lambda layer, inputs, output, name=name: calls.append((name, layer, inputs[0], output))
        )
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
        and not {'downsample', 'shortcut'} & set(name.split('.'))
    ]
    try:
        with fake_forward(backbone):
            images = torch.empty(1, image_channels(backbone, 3), size, size)
            output = forward_tensor(backbone, images)
    finally:
        for handle in handles:
            handle.remove()

    width, jump, field, start, last = size, 1, 1, 0.5, 'the image'
    for name, layer, before, after in calls:
        if before.shape[-1] != width:
            raise ValueError(
                f'backbone has no receptive field of one size: {name} takes a map of '
                f'{before.shape[-1]} columns after {last} gave one of {width}'
            )
        settings = layer.kernel_size, layer.stride, layer.padding
        settings = [_pair(each) for each in (*settings, getattr(layer, 'dilation', 1))]
        if any(len(set(setting)) > 1 for setting in settings):
            raise ValueError(
                f'backbone has no square receptive field: {name} is {layer}, which is not the same '
                'in both directions'
            )
        kernel, stride, padding, dilation = (setting[0] for setting in settings)
        reach = dilation * (kernel - 1)
        field += reach * jump
        start += (reach / 2 - padding) * jump
        jump *= stride
        width, last = after.shape[-1], name
    output = output[-1] if isinstance(output, (tuple, list)) else output
    if output.ndim != 4 or tuple(output.shape[2:]) != (width, width):
        raise ValueError(
            f'backbone yields {tuple(output.shape)} after {last} gave {width} columns; it must yield a '
            'square feature map of its last convolution or pooling'
        )
    return ReceptiveField(width, jump, field, start)


def cell_box(field: ReceptiveField, cell: int, size: int = 224) -> tuple[int, int, int, int]:
    """The part of an image of height and width ``size`` that one cell sees.

    Args:
        field (ReceptiveField): The receptive field.
        cell (int): The cell's flat index ``row * n + column``.
        size (int): Height and width of the image. Defaults to 224.

    Returns:
        tuple[int, int, int, int]: (y0, y1, x0, x1) with y1 and x1 exclusive, clipped to the image.

    Raises:
        ValueError: If there is no such cell.
    """
    if not 0 <= cell < field.n**2:
        raise ValueError(
            f'cell is {cell}; a map of {field.n}x{field.n} has cells 0 to {field.n**2 - 1}'
        )
    box: list[int] = []
    for index in divmod(cell, field.n):
        center = field.start + index * field.jump
        box += [max(int(center - field.size / 2), 0), min(int(center + field.size / 2), size)]
    return tuple(box)
