"""Turning images in a student's normalisation into a teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InputBridge(nn.Module):
    """Converts normalised images to another normalisation: ``x · scale + shift``, channels flipped."""

    def __init__(self, scale: Tensor, shift: Tensor, flip: bool) -> None:
        super().__init__()
        self.register_buffer('scale', scale)
        self.register_buffer('shift', shift)
        self.flip = flip

    def forward(self, images: Tensor) -> Tensor:
        """Converts images of shape (N, 3, H, W)."""
        images = images.flip(1) if self.flip else images
        return images * self.scale + self.shift


def input_bridge(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """What turns the student's preprocessed images into the teacher's (the identity if they agree)."""
    source, goal = (getattr(model, 'data_preprocessor', None) for model in (student, teacher))
    if not hasattr(source, 'mean') or not hasattr(goal, 'mean'):
        return nn.Identity()
    flip = getattr(source, 'to_rgb', False) != getattr(goal, 'to_rgb', False)
    mean, std = (value.flip(0) if flip else value for value in (source.mean, source.std))
    if not flip and torch.equal(mean, goal.mean) and torch.equal(std, goal.std):
        return nn.Identity()
    return InputBridge(std / goal.std, (mean - goal.mean) / goal.std, flip)
