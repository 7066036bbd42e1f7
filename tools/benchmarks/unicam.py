#!/usr/bin/env python
"""Times the distance correlation of two models' features and its gradient, for n samples of width d.

It is compared with three other methods. UniCAM's closed form takes the gradient of features
averaged over 49 positions and never one of full width. The naive form is autograd through the
(n, n, d) tensor of differences. dcor runs in fp64 on the CPU and without a gradient. Features are
random fp32 and correlated.

Time should grow as n² d, and memory as n d + n². The last two columns are the measurements divided
by these. A method is left out if it needs more than --memory by estimate.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import torch
from _timing import Timings, machine, measure, parser
from terminaltables import AsciiTable
from torch import Tensor

from mmkdx.functional.distance_correlation import bias_corrected_dcor, u_center, u_correlation
from mmkdx.functional.distances import distance_gradient, pairwise_distances


def features(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Features of two models for the same samples, fp32 of shape (n, d)."""
    generator = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator, device=device) for _ in range(2))
    for first, second in zip(x.split(4096, dim=1), y.split(4096, dim=1)):
        second += first  # in parts, which do not raise the peak
    return x.requires_grad_(), y


def ours(x: Tensor, y: Tensor) -> float:
    """The correlation, and its gradient with respect to x."""
    score = bias_corrected_dcor(x, y)
    score.backward()
    return score.item()


def closed_form(x: Tensor, y: Tensor) -> float:
    """The correlation, and its gradient with respect to features averaged over positions."""
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

    # dcor 0.7 sums over an (n, n, d) array in the type of the features, and fp32 is too coarse
    pair = (each.detach().double().cpu().numpy() for each in (x, y))
    return float(dcor.u_distance_correlation_sqr(*pair))


#: The measured methods, and the bytes that each needs by estimate in addition to the features.
METHODS: dict[str, tuple[Callable[[Tensor, Tensor], float], Callable[[int, int], float]]] = {
    'mmkdx': (ours, lambda n, d: 4 * n * d + 120 * n * n),
    'closed form': (closed_form, lambda n, d: 120 * n * n),
    'naive': (naive, lambda n, d: 16 * n * n * d),
    'dcor': (peer, lambda n, d: 8 * n * n * d),
}


def time_methods(methods: list[str], n: int, d: int, device: str) -> tuple[Timings, dict]:
    """Measures the time, peak memory and score of each method."""
    x, y = features(n, d, device)
    scores: dict[str, float] = {}

    def run(method: str) -> None:
        scores[method] = METHODS[method][0](x, y)
        x.grad = None

    for method in methods:
        METHODS[method][0](*features(8, 98, device))  # imports what it needs
    runs = {method: lambda method=method: run(method) for method in methods}
    return measure(runs, device, rounds=3, warm_up=False), scores


def table(n: int, d: int, found: Timings, scores: dict[str, float]) -> str:
    """A table of the methods, compared with the first one."""
    head = ['', 'seconds', 'peak MB', 'ratio of time', 'of memory', 'score']
    rows = [[*head, 'ps / (n² d)', 'bytes / (n d + n²)']]
    base = next(iter(scores))
    for method, score in scores.items():
        seconds, memory = found.median(method), found.memory[method]
        row = [method, f'{seconds:.4f}', f'{memory:.0f}', f'{found.ratio(method, base):.2f}']
        row += [f'{memory / max(found.memory[base], 1):.2f}', f'{score:.6f}']
        row += [f'{1e12 * seconds / (n * n * d):.2f}', f'{1e6 * memory / (n * d + n * n):.1f}']
        rows.append(row)
    return AsciiTable(rows, f'n = {n}, d = {d}').table


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    sizes = dict(type=int, nargs='+')
    options.add_argument('--n', default=[32, 128, 512, 2048], help='samples', **sizes)
    options.add_argument('--d', default=[25088, 100352, 802816], help='features', **sizes)
    options.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    options.add_argument('--memory', type=float, default=8, help='largest memory of a method in GB')
    args = options.parse_args()
    print(machine(args.device), flush=True)
    known = [each for each in args.methods if each != 'dcor' or importlib.util.find_spec('dcor')]
    for d in args.d:
        for n in args.n:
            need = {method: (METHODS[method][1](n, d) + 8 * n * d) / 1e9 for method in known}
            methods = [method for method in known if need[method] <= args.memory]
            if methods:
                print(table(n, d, *time_methods(methods, n, d, args.device)), flush=True)
            for method in known:
                if method not in methods:
                    print(f'n = {n}, d = {d}: {method} needs {need[method]:.1f} GB', flush=True)


if __name__ == '__main__':
    main()
