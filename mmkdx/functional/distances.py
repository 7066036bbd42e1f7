"""Euclidean distances between samples, and their gradient, without visible rounding errors.

Distances and sums are in fp64. Memory grows with n d + n², for n samples of d features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mmkdx.functional.precision import no_autocast

#: How many numbers a block of columns may hold (8 MB in fp32).
_BLOCK = 2**21
#: A squared distance below this share of the samples' own energy is too small for a Gram matrix.
_CLOSE = 1e-4


def pairwise_distances(x: Tensor) -> Tensor:
    """Euclidean distances between samples, in memory that grows with n d + n² and not with n² d.

    The Gram matrix of centred features is summed over blocks of columns. Products are in fp32
    without TF32 (fp64 for fp64 and integers), and sums in fp64. Samples much closer to each other
    than to the rest are compared directly, so that equal ones have a distance of exactly 0. The
    gradient is the closed form of ``distance_gradient``; it has no gradient itself.

    Args:
        x (Tensor): Features of shape (n, ...), of any type.

    Returns:
        Tensor: Distances in fp64 of shape (n, n), symmetric, with an exact 0 on the diagonal; all NaN
            if any feature is not finite.
    """
    # The order of columns does not matter; in memory order channels_last needs no copy either
    x = x[:, None]
    order = sorted(range(1, x.ndim), key=lambda axis: -x.stride(axis))
    return _Distances.apply(x.permute(0, *order).flatten(1))


def distance_gradient(weights: Tensor, distances: Tensor, features: Tensor) -> Tensor:
    r"""The gradient with respect to features, from that with respect to their distances.

    With :math:`Q = (W + W^T) / 2D` it is :math:`\sum_j (W_{ij} + W_{ji}) / D_{ij} \, (x_i - x_j) = 2
    (\mathrm{diag}(Q 1) - Q) X`. This is linear in X. So, with the same W and D, features averaged
    over positions yield the gradient averaged over positions. At a distance of 0 the
    subgradient is 0.

    Args:
        weights (Tensor): W, the derivatives with respect to the distances, of shape (n, n).
        distances (Tensor): D, of shape (n, n).
        features (Tensor): X, of shape (n, m).

    Returns:
        Tensor: The gradient, with the features' shape and type, but at least fp32.
    """
    return _gradient(weights, distances, features, _working_type(features))


class _Distances(torch.autograd.Function):
    """Distances of features of shape (n, d), with the gradient in closed form."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor) -> Tensor:
        gram = torch.zeros(2 * [len(features)], dtype=torch.float64, device=features.device)
        dtype = _working_type(features)
        with _exact_products(features):
            for columns in _blocks(features):
                block = columns.to(dtype)
                block = block - block.mean(0)
                gram += block @ block.T
        energy = gram.diagonal()
        squares = energy[:, None] + energy - (gram + gram.T)  # a product may not be symmetric
        pairs = _close_pairs(squares, energy)
        if pairs.numel():
            first, second = pairs
            squares[first, second] = squares[second, first] = _direct_squares(features, pairs)
        distances = squares.sqrt_()
        ctx.save_for_backward(features, distances)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, weights: Tensor) -> Tensor:
        features, distances = ctx.saved_tensors
        return _gradient(weights, distances, features, features.dtype)


def _close_pairs(squares: Tensor, energy: Tensor) -> Tensor:
    """Pairs (2, P) that are so close that matrix products would round their difference away."""
    return (squares < _CLOSE * (energy[:, None] + energy)).triu(1).nonzero().T


def _direct_squares(features: Tensor, pairs: Tensor) -> Tensor:
    """Squared distances of pairs, from the differences of their features."""
    n, dtype = len(features), _working_type(features)
    squares = torch.zeros(pairs.shape[1], dtype=torch.float64, device=features.device)
    for columns in _blocks(features):
        block = columns.to(dtype)
        # As many pairs as samples at a time, so that differences are of the size of a block
        for (first, second), total in zip(pairs.split(n, dim=1), squares.split(n)):
            total += (block[first] - block[second]).double().square_().sum(1)
    return squares


def _gradient(
    weights: Tensor, distances: Tensor, features: Tensor, out_type: torch.dtype
) -> Tensor:
    dtype, n = _working_type(features), len(features)
    matrix = torch.where(distances == 0, 0, (weights + weights.T) / distances)
    squares = distances.square()
    pairs = _close_pairs(squares, squares.mean(1))
    pairs = pairs[:, matrix[tuple(pairs)] != 0]  # without duplicates, which add nothing
    first, second = pairs
    factors = matrix[first, second].to(dtype)[:, None]
    matrix[first, second] = matrix[second, first] = 0
    matrix = (matrix.sum(1).diag() - matrix).to(dtype)
    gradient = torch.empty(features.shape, dtype=out_type, device=features.device)
    with _exact_products(features):
        for columns, out in zip(_blocks(features), _blocks(gradient)):
            block = columns.to(dtype)
            # Rows of the matrix sum to 0 up to rounding, which a common offset would amplify
            product = matrix @ (block - block.mean(0))
            for (first, second), factor in zip(pairs.split(n, dim=1), factors.split(n)):
                change = factor * (block[first] - block[second])
                product.index_add_(0, first, change).index_add_(0, second, change, alpha=-1)
            out.copy_(product)
    return gradient


def _blocks(features: Tensor) -> tuple[Tensor, ...]:
    """Views of columns."""
    return features.split(max(1, _BLOCK // max(1, len(features))), dim=1)


def _working_type(features: Tensor) -> torch.dtype:
    """Fp64 for fp64 and for integers, which are labels; fp32 for all else."""
    dtype = features.dtype if features.is_floating_point() else torch.float64
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def _exact_products(tensor: Tensor) -> Iterator[None]:
    """A context for matrix products without autocast, and in fp32 without TF32 or bf16."""
    with no_autocast(tensor), ExitStack() as stack:
        try:
            precision = torch.get_float32_matmul_precision()
            if precision != 'highest':
                torch.set_float32_matmul_precision('highest')
                stack.callback(torch.set_float32_matmul_precision, precision)
        except RuntimeError:
            # The newer switches were used, and torch does not allow both kinds
            for switch in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
                stack.callback(setattr, switch, 'fp32_precision', switch.fp32_precision)
                switch.fp32_precision = 'ieee'
        yield
