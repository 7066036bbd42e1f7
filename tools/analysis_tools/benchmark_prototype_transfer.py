#!/usr/bin/env python
"""Times the prototype matching score, at the size of CUB-200-2011 and beside Python sets, in one run.

The way of the sets is the definition: each prototype's patches are a set, and each pair of prototypes
has its Jaccard indices. Pairs are intersected once for all caps; the assignment is the same in both
ways. Cells are random, with a structure: a prototype mostly sits at one of 20 parts of an image, which
lie at cells of their own in each image. Memory is the growth of the peak: of the CUDA allocator, or of
the process on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from benchmark_explainers import measure, peak_memory, synchronize, table
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmkdx.functional.prototype_transfer import (
    cell_agreement,
    matching_caps,
    prototype_matching_score,
)

#: How many cells images have: a grid of 7 x 7.
CELLS = 49


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--images', type=int, default=5794, help='images of the large case')
    parser.add_argument('--prototypes', type=int, default=2000, help='its prototypes')
    parser.add_argument('--small-images', type=int, default=1000, help='images beside sets')
    parser.add_argument('--small-prototypes', type=int, default=200, help='prototypes beside sets')
    parser.add_argument('--rounds', type=int, default=3, help='how often both take their turn')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


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


def once(run: Callable[[], object], device: str) -> tuple[list[float], float]:
    """Time of one run, and the growth of its peak memory in MB."""
    times = []

    def timed() -> None:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)

    memory = peak_memory(timed, device)
    return times, memory


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    device = args.device
    name = torch.cuda.get_device_name() if device.startswith('cuda') else 'CPU'
    print(f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}')

    cells = random_cells(args.images, args.prototypes, device)
    scores: dict[str, float] = {}

    def score() -> None:
        scores['large'] = prototype_matching_score(*cells)

    cell_agreement(*(each[:200] for each in cells))  # warms up
    measured = {
        'matching score': once(score, device),
        'of it, agreement': once(lambda: cell_agreement(*cells), device),
    }
    title = f'{args.images} images, {args.prototypes} x {args.prototypes} prototypes'
    print(table(title, measured, 'matching score'))
    print(f'score {scores["large"]:.6f}')

    small = random_cells(args.small_images, args.small_prototypes, device)
    runs = {
        'mmkdx': lambda: prototype_matching_score(*small),
        'sets': lambda: score_of_sets(*small),
    }
    title = (
        f'{args.small_images} images, {args.small_prototypes} x {args.small_prototypes} prototypes'
    )
    print(table(title, measure(runs, args.rounds, device), 'mmkdx'))
    ours, sets = (run() for run in runs.values())
    print(f'score {ours:.12f}, by sets {sets:.12f}')


if __name__ == '__main__':
    main()
