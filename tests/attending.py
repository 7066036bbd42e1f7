"""Small transformers with known numbers, for the tests of what explains attention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Given(nn.Module):
    """A network whose attentions and whose score's gradients by them are given numbers.

    Args:
        attentions (Sequence[Tensor]): The attentions, of shape (N, heads, queries, keys) each.
        gradients (Sequence[Tensor]): The gradients of class 0 by them; class 1 has the negative ones.
        extra (int): The number of class tokens. Defaults to 1.
    """

    def __init__(
        self, attentions: Sequence[Tensor], gradients: Sequence[Tensor], extra: int = 1
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 1, 4, 4).double()
        self.logits, self.gradients = [each.log() for each in attentions], gradients
        self.num_prefix_tokens = extra

    def forward(self, images: Tensor) -> Tensor:
        """The scores (N, 2)."""
        drawn = 0 * self.patches(images).sum()
        weights = [(each + drawn).softmax(-1) for each in self.logits]
        score = sum((a * g).sum((1, 2, 3)) for a, g in zip(weights, self.gradients))
        return torch.stack([score, -score], 1)

    def images(self) -> Tensor:
        """Images (N, 3, 4, W) whose patches are the tokens that are no class tokens."""
        return torch.zeros(
            len(self.logits[0]), 3, 4, 4 * (self.logits[0].shape[3] - self.num_prefix_tokens)
        ).double()


#: The numbers of page "transformer-explainers", test T1: attentions and gradients of two layers.
LAYERS = (
    torch.tensor(
        [
            [[[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]],
             [[0.2, 0.4, 0.4], [0.5, 0.5, 0], [0.3, 0.3, 0.4]]],
            [[[0.6, 0.1, 0.3], [0.25, 0.5, 0.25], [0.4, 0.4, 0.2]],
             [[0.1, 0.7, 0.2], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]]],
        ],
        dtype=torch.float64,
    ),
    torch.tensor(
        [
            [[[1, -2, 3], [0, 1, -1], [2, 0, -1]], [[-1, 2, 1], [1, -3, 4], [0, 1, 2]]],
            [[[2, 1, -1], [0, 0, 0], [0, 0, 0]], [[-1, 1, 2], [0, 0, 0], [0, 0, 0]]],
        ]
    ).double(),
)  # fmt: skip


class Block(nn.Module):
    """Attention of two heads and an MLP, each behind a layer norm; products are ``x W``."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, o: Tensor, one: Tensor, two: Tensor
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = map(nn.Parameter, (q, k, v, o))
        self.one, self.two = nn.Parameter(one), nn.Parameter(two)
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        """The tokens (N, L, 4) behind the block."""
        y = F.layer_norm(x, (4,), eps=1e-6)
        q, k, v = ((y @ w).unflatten(2, (2, 2)).transpose(1, 2) for w in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.mT / 2**0.5).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2) @ self.o
        return x + F.gelu(F.layer_norm(x, (4,), eps=1e-6) @ self.one) @ self.two


class Sines(nn.Module):
    """Two blocks on a class token and 2 x 2 patches, whose numbers are the sines of 1, 2, ...

    Args:
        read (str): What the head reads behind the last norm: 'class', 'patches' or 'all', the mean of
            all tokens. Defaults to 'class'.
        fused (bool): Whether the fused kernel computes attention. Defaults to True.
        spread (float): The standard deviation of the patches' share in the tokens. Defaults to 0.
    """

    num_prefix_tokens = 1

    def __init__(self, read: str = 'class', fused: bool = True, spread: float = 0.0) -> None:
        super().__init__()
        numbers = itertools.count(1)

        def take(*shape: int) -> Tensor:
            count = torch.Size(shape).numel()
            return torch.tensor(list(itertools.islice(numbers, count))).double().sin().view(shape)

        self.read = read
        self.tokens = nn.Parameter(take(5, 4))
        shapes = [(4, 4)] * 4 + [(4, 6), (6, 4)]
        self.blocks = nn.ModuleList(Block(*(take(*shape) for shape in shapes)) for _ in range(2))
        self.head, self.bias = nn.Parameter(take(3, 4)), nn.Parameter(take(3))
        self.patches = nn.Conv2d(3, 4, 2, 2, bias=False).double()
        nn.init.normal_(self.patches.weight, std=spread or 0)
        for block in self.blocks:
            block.fused = fused

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, 3) of images of 4 x 4 pixels."""
        x = self.tokens + F.pad(self.patches(images).flatten(2).mT, (0, 0, 1, 0))
        for block in self.blocks:
            x = block(x)
        x = F.layer_norm(x, (4,), eps=1e-6)
        parts = {'class': slice(1), 'patches': slice(1, 5), 'all': slice(5)}
        return x[:, parts[self.read]].mean(1) @ self.head.T + self.bias

    @staticmethod
    def images(count: int = 1) -> Tensor:
        """Random images."""
        return torch.randn(
            count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
