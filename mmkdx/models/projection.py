"""A linear layer that keeps lengths and angles."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from mmkdx.functional import full_precision, no_autocast


class OrthogonalProjection(nn.Module):
    """A linear layer without bias, whose weight stays orthogonal while it is trained.

    With at least as many outputs as inputs it keeps lengths and angles. With fewer outputs its rows are
    orthonormal. The weight is a fixed orthogonal matrix times the Cayley transform of a skew-symmetric
    matrix, which is trained. So weight decay draws the weight to the fixed matrix and not to zero. A
    step solves a linear system with as many unknowns as the larger number of channels.

    Args:
        inputs (int): The number of the inputs' channels.
        outputs (int): The number of the outputs' channels.
        trained (bool): Whether the weight is trained, or else keeps its random initial value.
            Defaults to True.
    """

    def __init__(self, inputs: int, outputs: int, trained: bool = True) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs, bias=False)
        nn.init.orthogonal_(linear.weight)
        # Householder reflections, torch's default, would lose their signs by weight decay
        self.linear = orthogonal(linear, orthogonal_map='cayley') if trained else linear
        if not trained:
            linear.requires_grad_(False)

    def forward(self, values: Tensor) -> Tensor:
        """Projects maps (N, C, H, W), tokens (N, L, C) or vectors (N, C), in fp32 at least."""
        axis = 1 if values.dim() == 4 else -1
        with no_autocast(values):
            projected = self.linear(full_precision(values).movedim(axis, -1))
        return projected.movedim(-1, axis)
