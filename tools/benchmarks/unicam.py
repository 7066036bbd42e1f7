#!/usr/bin/env python
"""Times the distance correlation of two models' features and its gradient, for n samples of width d.

The other ways are UniCAM's closed form, which takes the gradient of features averaged over 49 positions
and never one of full width; the naive form, autograd through the (n, n, d) tensor of differences; and
dcor, in fp64 on the CPU and without a gradient. Features are random fp32 and correlated.

Each case runs in a process of its own. Cost should grow as n² d, and memory as n d + n²; the last two
columns are the measurements divided by these.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable

import torch
from _timing import machine, parser
from _timing import measure as measure_runs
from terminaltables import AsciiTable
from torch import Tensor

from mmkdx.functional.distance_correlation import (
    bias_corrected_dcor,
    u_center,
    u_correlation,
)
from mmkdx.functional.distances import distance_gradient, pairwise_distances


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    options = parser(__doc__)
    sizes = dict(type=int, nargs='+')
    options.add_argument('--n', default=[32, 128, 512, 2048], help='samples', **sizes)
    options.add_argument('--d', default=[25088, 100352, 802816], help='features', **sizes)
    options.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    options.add_argument(
        '--memory', type=float, default=8, help='leaves out cases that need more GB by estimate'
    )
    options.add_argument(
        '--seconds', type=float, default=60, help='after which naive or dcor is stopped'
    )
    options.add_argument('--case', nargs=3, help=argparse.SUPPRESS)  # of a process of its own
    return options.parse_args()


def features(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Features of two models for the same samples, fp32 of shape (n, d)."""
    generator = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator, device=device) for _ in range(2))
    for first, second in zip(x.split(4096, dim=1), y.split(4096, dim=1)):
        second += first  # in parts, which leave no trace in the peak
    return x.requires_grad_(), y


def ours(x: Tensor, y: Tensor) -> float:
    """The correlation, and its gradient by x."""
    score = bias_corrected_dcor(x, y)
    score.backward()
    return score.item()


def closed_form(x: Tensor, y: Tensor) -> float:
    """The correlation, and its gradient by features that are averaged over positions."""
    positions = math.gcd(x.shape[1], 49)
    with torch.no_grad():
        pooled = x.view(len(x), -1, positions).mean(2)
        distances = pairwise_distances(x).requires_grad_()
        other = u_center(pairwise_distances(y))
    with torch.enable_grad():
        score = u_correlation(u_center(distances), other)
        weights = torch.autograd.grad(score, distances)[0]
    distance_gradient(weights, distances.detach(), pooled)
    return score.item()


def naive(x: Tensor, y: Tensor) -> float:
    """The same as ``ours``, through a tensor of all differences."""

    def distances(features: Tensor) -> Tensor:
        return ((features[:, None] - features).square().sum(-1) + 1e-18).sqrt()

    score = u_correlation(u_center(distances(x)), u_center(distances(y)))
    score.backward()
    return score.item()


def peer(x: Tensor, y: Tensor) -> float:
    """The correlation by dcor."""
    import dcor

    # dcor 0.7 sums over an (n, n, d) array in the type of the features, for which fp32 is too little
    pair = (each.detach().double().cpu().numpy() for each in (x, y))
    return float(dcor.u_distance_correlation_sqr(*pair))


#: What is measured, and the bytes that it needs by estimate beside the features.
METHODS: dict[str, tuple[Callable[[Tensor, Tensor], float], Callable[[int, int], float]]] = {
    'mmkdx': (ours, lambda n, d: 4 * n * d + 120 * n * n),
    'closed form': (closed_form, lambda n, d: 120 * n * n),
    'naive': (naive, lambda n, d: 16 * n * n * d),
    'dcor': (peer, lambda n, d: 8 * n * n * d),
}


def measure(method: str, n: int, d: int, device: str) -> dict[str, float]:
    """The median time, the growth of the peak memory in MB, and the score."""
    x, y = features(n, d, device)
    scores: list[float] = []

    def run() -> None:
        x.grad = None
        scores.append(METHODS[method][0](x, y))

    METHODS[method][0](*features(8, 98, device))  # imports what it needs
    found = measure_runs({method: run}, device, budget=1, warm_up=False)
    return dict(seconds=found.median(method), memory=found.memory[method], score=scores[0])


def case(method: str, n: int, d: int, args: argparse.Namespace) -> dict[str, float] | str:
    """What ``measure`` finds in a process of its own, or why there is nothing."""
    estimate = (METHODS[method][1](n, d) + 8 * n * d) / 1e9
    if estimate > args.memory:
        return f'{estimate:.1f} GB'
    command = [sys.executable, __file__, '--device', args.device]
    command += ['--case', method, str(n), str(d)]
    limit = args.seconds if method in ('naive', 'dcor') else None
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f'> {limit:g} s'
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        return f'exit {process.returncode}'
    return json.loads(process.stdout.splitlines()[-1])


def table(n: int, d: int, found: dict[str, dict[str, float] | str]) -> str:
    """The methods beside the first."""
    head = ['', 'seconds', 'peak MB', 'ratio of time', 'of memory', 'score']
    rows = [[*head, 'ps / (n² d)', 'bytes / (n d + n²)']]
    base = next(iter(found.values()))
    for method, values in found.items():
        if isinstance(values, str):
            rows.append([method, values, *[''] * 6])
            continue
        seconds, memory = values['seconds'], values['memory']
        row = [method, f'{seconds:.4f}', f'{memory:.0f}']
        if isinstance(base, str):
            row += ['', '']
        else:
            row += [f'{seconds / base["seconds"]:.2f}', f'{memory / max(base["memory"], 1):.2f}']
        row += [f'{values["score"]:.6f}', f'{1e12 * seconds / (n * n * d):.2f}']
        rows.append([*row, f'{1e6 * memory / (n * d + n * n):.1f}'])
    return AsciiTable(rows, f'n = {n}, d = {d}').table


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    if args.case:
        method, n, d = args.case
        print(json.dumps(measure(method, int(n), int(d), args.device)))
        return
    print(machine(args.device), flush=True)
    methods = [each for each in args.methods if each != 'dcor' or importlib.util.find_spec('dcor')]
    for d in args.d:
        stopped: dict[str, str] = {}
        for n in args.n:
            found = {}
            for method in methods:
                found[method] = stopped.get(method) or case(method, n, d, args)
                if str(found[method]).startswith('>'):
                    stopped[method] = found[method]  # more samples do not take less
            print(table(n, d, found), flush=True)


if __name__ == '__main__':
    main()
