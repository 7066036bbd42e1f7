#!/usr/bin/env python
"""Times the prototype matching score at the size of CUB-200-2011, and against Python sets.

The sets follow the definition: each prototype's patches are a set, and each pair of prototypes has
its Jaccard indices. Cells are random but structured. Each part has a random cell in each image, and
a prototype is mostly at one of 20 parts.
"""

from __future__ import annotations

import numpy as np
import torch
from _timing import machine, measure, parser
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmkdx.functional.prototype_transfer import (
    cell_agreement,
    matching_caps,
    prototype_matching_score,
)

#: Number of cells of an image: a grid of 7 x 7.
CELLS = 49


def random_cells(images: int, prototypes: int, device: str) -> tuple[Tensor, Tensor]:
    """Cells of a teacher's and of a student's prototypes, int16 of shape (images, prototypes)."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randint(CELLS, (images, 20), generator=generator)

    def cells(share: float) -> Tensor:
        at_part = parts[:, torch.randint(20, (prototypes,), generator=generator)]
        elsewhere = torch.randint(CELLS, (images, prototypes), generator=generator)
        hits = torch.rand(images, prototypes, generator=generator) < share
        return torch.where(hits, at_part, elsewhere).short().to(device)

    return cells(0.9), cells(0.7)


def score_of_sets(teacher_cells: Tensor, student_cells: Tensor) -> float:
    """The prototype matching score by its definition."""
    teacher, student = (
        [set(enumerate(column)) for column in cells.T.tolist()]
        for cells in (teacher_cells, student_cells)
    )
    common = np.array([[len(a & b) for b in student] for a in teacher])
    union = 2 * len(teacher_cells) - common
    scores = []
    for cap in matching_caps(len(teacher_cells)):
        index = np.where(common >= cap, 1.0, common / np.minimum(union, cap))
        scores.append(index[linear_sum_assignment(index, maximize=True)].mean())
    return float(np.mean(scores))


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument('--images', type=int, default=5794, help='images of the large case')
    options.add_argument('--prototypes', type=int, default=2000, help='its prototypes')
    options.add_argument('--small-images', type=int, default=1000, help='images of the small case')
    options.add_argument('--small-prototypes', type=int, default=200, help='its prototypes')
    options.add_argument('--rounds', type=int, default=3, help='rounds of the small case')
    args = options.parse_args()
    print(machine(args.device))
    large = random_cells(args.images, args.prototypes, args.device)
    small = random_cells(args.small_images, args.small_prototypes, args.device)
    title = '{0} images, {1} x {1} prototypes'
    cell_agreement(*(cells[:200] for cells in large))  # warms up; the large case runs once
    runs = {
        'matching score': lambda: prototype_matching_score(*large),
        'of it, agreement': lambda: cell_agreement(*large),
    }
    print(measure(runs, args.device, warm_up=False).table(title.format(*large[0].shape)))
    runs = {
        'mmkdx': lambda: prototype_matching_score(*small),
        'sets': lambda: score_of_sets(*small),
    }
    print(measure(runs, args.device, args.rounds).table(title.format(*small[0].shape)))
    ours, sets = (run() for run in runs.values())
    print(f'score {ours:.12f}, by sets {sets:.12f}')


if __name__ == '__main__':
    main()
