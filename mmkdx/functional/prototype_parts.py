"""Scores whether prototypes stand for annotated parts of objects.

A prototype *covers* a part of an image if at least half of the part's points in the image lie in
the prototype's region. The region is a square around the cell where the prototype is nearest. A key
point is a part with one point; a mask is a part with many. Boxes are [y0, y1, x0, x1]; y1 and x1
are exclusive.

There are N images, P prototypes and K parts, and three kinds of booleans:

- ``covered`` (N, P, K): whether a prototype covers a part;
- ``shown`` (N, K): whether an image shows a part;
- ``own`` (N, P): whether an image counts for a prototype; in the papers, if it is of its class.

A score is the ``nanmean`` of the values (P, ). NaN means that no image counts for the prototype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import integer, number


def region_boxes(
    cells: Tensor, grid: Sequence[int], image_size: Sequence[int], side: int = 72
) -> Tensor:
    """Squares around the centres of cells.

    EvalProtoPNet takes 72 pixels of 224 for consistency and stability. There the centre is the
    highest pixel of the resized map, some pixels away from the cell's centre. PIP-Net takes 32 for
    purity.

    Args:
        cells (Tensor): Flat indices ``row * width + column``, integers of any shape.
        grid (Sequence[int]): Height and width of the grid of cells.
        image_size (Sequence[int]): Height and width of the images.
        side (int): The side of the squares in pixels. Defaults to 72.

    Returns:
        Tensor: Boxes [y0, y1, x0, x1], int64 of shape ``(*cells.shape, 4)``, clipped to the image.

    Raises:
        ValueError: If ``side`` is below 1, or a cell is not in the grid.
    """
    integer('side', side, 1)
    cells, width = cells.long(), grid[1]
    if cells.numel() and not 0 <= int(cells.min()) <= int(cells.max()) < math.prod(grid):
        raise ValueError(
            f'cells range from {int(cells.min())} to {int(cells.max())}; a grid of {grid[0]}x{width} '
            f'has 0 to {math.prod(grid) - 1}'
        )
    ends = []
    for index, count, extent in zip((cells // width, cells % width), grid, image_size):
        # The centre minus half a side, in whole numbers
        low = ((2 * index + 1) * extent - side * count).div(2 * count, rounding_mode='floor')
        ends += [low.clamp(0, extent), (low + side).clamp(0, extent)]
    return torch.stack(ends, -1)


def covered_parts_from_points(
    points: Tensor, visible: Tensor, boxes: Tensor, image_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Finds the parts that prototypes cover, if parts are key points.

    Args:
        points (Tensor): Positions (x, y) in pixels, of shape (N, K, 2); the first pixel reaches from
            0 to 1.
        visible (Tensor): Booleans of shape (N, K).
        boxes (Tensor): Each prototype's region in each image, of shape (N, P, 4).
        image_size (Sequence[int]): Height and width of the images.

    Returns:
        tuple[Tensor, Tensor]: ``covered`` and ``shown``; a point outside of the image is not shown.
    """
    x, y = points.unbind(-1)
    height, width = image_size
    shown = visible.bool() & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y0, y1, x0, x1 = boxes[..., None].unbind(2)
    x, y = x[:, None], y[:, None]
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    return inside & shown[:, None], shown


def covered_parts_from_label_map(
    label_maps: Tensor, parts: Sequence[int], boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Finds the parts that prototypes cover, if a part is all pixels of a label.

    Memory holds N × K maps in int32.

    Args:
        label_maps (Tensor): Labels of pixels, integers of shape (N, H, W).
        parts (Sequence[int]): The K labels that are parts.
        boxes (Tensor): Each prototype's region in each image, of shape (N, P, 4).

    Returns:
        tuple[Tensor, Tensor]: ``covered`` and ``shown``.

    Raises:
        ValueError: If there are no parts, or boxes extend beyond the maps.
    """
    if not len(parts):
        raise ValueError('parts is empty; list the labels of the parts')
    height, width = label_maps.shape[1:]
    y0, y1, x0, x1 = boxes.unbind(-1)
    if boxes.numel() and (int(y1.max()) > height or int(x1.max()) > width):
        raise ValueError(
            f'boxes reach row {int(y1.max())} and column {int(x1.max())}; label_maps have only '
            f'{height}x{width} pixels'
        )
    labels = torch.as_tensor(parts, device=label_maps.device)[:, None, None]
    masks = label_maps[:, None] == labels
    # sums[y, x] counts the pixels above and to the left, so a box is four look-ups
    sums = F.pad(masks.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32), (1, 0, 1, 0))
    total, sums = sums[..., -1, -1], sums.flatten(2)

    def look_up(y: Tensor, x: Tensor) -> Tensor:
        index = (y * (width + 1) + x)[:, None].expand(-1, len(parts), -1)
        return sums.gather(2, index)

    inside = look_up(y1, x1) - look_up(y0, x1) - look_up(y1, x0) + look_up(y0, x0)
    shown = total > 0
    covered = (2 * inside >= total[..., None]) & shown[..., None]
    return covered.transpose(1, 2), shown


def purity(distances: Tensor, covered: Tensor, shown: Tensor, k: int = 10) -> Tensor:
    """The share of a prototype's nearest images in which it covers the same part.

    Source: Nauta et al., "PIP-Net: Patch-based intuitive prototypes for interpretable image
    classification", CVPR 2023, as its public code counts. The k images nearest to a prototype are
    found by its smallest distances (N, P); all images count if there are fewer. Among those that
    show a part, the share in which the prototype covers it is computed. The value is the largest
    share of all parts, in [0, 1]. It is 0 if none of the k images shows a part. In the paper left
    and right parts are merged, and a patch has the size that the backbone's stride suggests.

    Raises:
        ValueError: If k is below 1, or shapes do not fit.
    """
    integer('k', k, 1)
    _check(covered, shown=(shown, 'nk'), distances=(distances, 'np'))
    nearest = distances.topk(min(k, len(distances)), dim=0, largest=False).indices
    prototypes = torch.arange(distances.shape[1], device=distances.device)
    return _share(covered[nearest, prototypes], shown[nearest]).amax(1)


def consistency(covered: Tensor, shown: Tensor, own: Tensor, threshold: float = 0.8) -> Tensor:
    """Whether a prototype covers one and the same part in most images.

    Source: Huang et al., "Evaluation and improvement of interpretability for self-explainable
    part-prototype networks", ICCV 2023. A prototype's value is 1 or 0. It is 1 if the
    prototype covers some part in at least the share ``threshold``, in (0, 1], of its class's images
    that show this part.

    Raises:
        ValueError: If ``threshold`` is out of its range, or shapes do not fit.
    """
    number('threshold', threshold, 0, 1, open_low=True)
    _check(covered, shown=(shown, 'nk'), own=(own, 'np'))
    counted = own[..., None] & shown[:, None]
    consistent = (_share(covered, counted) >= threshold).any(1)
    return torch.where(own.any(0), consistent.float(), math.nan)


def stability(covered: Tensor, noisy: Tensor, own: Tensor) -> Tensor:
    """The share of images in which a prototype covers the same parts after noise is added.

    ``noisy`` is ``covered`` for the images with noise. Source: see ``consistency``. There the noise
    is normal with a standard deviation of 0.2, clipped to ±0.25, and added after normalisation.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(covered, own=(own, 'np'), noisy=(noisy, 'npk'))
    same = (covered == noisy).all(2)
    return torch.where(own.any(0), _share(same, own), math.nan)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """The share of ``whole`` that is in ``part``, over the first axis; 0 if ``whole`` is empty."""
    return (part & whole).sum(0) / whole.sum(0).clamp(min=1)


def _check(covered: Tensor, **others: tuple[Tensor, str]) -> None:
    """Refuses tensors with other numbers of images, prototypes or parts than ``covered``."""
    if covered.ndim != 3 or not covered.numel():
        raise ValueError(
            f'covered has the shape {tuple(covered.shape)}; it must be (images, prototypes, parts), '
            'with at least one of each'
        )
    sizes = dict(zip('npk', covered.shape))
    for name, (tensor, axes) in others.items():
        expected = tuple(sizes[axis] for axis in axes)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f'{name} has the shape {tuple(tensor.shape)}; with covered of {tuple(covered.shape)} it '
                f'must be {expected}'
            )
