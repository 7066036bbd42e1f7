"""By what a cache knows its teacher and its images again."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.distillation.teachers import BaseTeacher

#: Side of the image and length of the vector that make a signature.
SIGNATURE_SIDE, SIGNATURE_LENGTH = 8, 4
#: By how much two signatures of one image may differ, relative to their length: rounding of other
#: devices is below 1e-5, an image that is moved by a pixel differs by some 1e-2.
TOLERANCE = 1e-3


def signature(inputs: Tensor) -> Tensor:
    """A few numbers by which images are known again, up to rounding.

    Args:
        inputs (Tensor): Images of shape (N, C, H, W).

    Returns:
        Tensor: Of shape (N, 4): products of the images, average-pooled to 8 × 8, with fixed random
        vectors whose expected length is 1.
    """
    pooled = F.adaptive_avg_pool2d(inputs.detach().float(), SIGNATURE_SIDE).flatten(1)
    # numpy's older generator makes the same numbers in all its versions
    vectors = np.random.RandomState(0).standard_normal((pooled.shape[1], SIGNATURE_LENGTH))
    vectors = torch.from_numpy(vectors / math.sqrt(pooled.shape[1])).to(pooled)
    # Not a matrix product, which a GPU may compute with 10 bits
    return (pooled[:, :, None] * vectors).sum(1)


def other_images(found: Tensor, stored: Tensor) -> list[int]:
    """The rows in which two signatures are not of one image."""
    scale = stored.abs().amax(1).clamp(min=1e-6)
    return ((found - stored).abs().amax(1) > TOLERANCE * scale).nonzero().flatten().tolist()


def fingerprint(teacher: BaseTeacher) -> str:
    """A hash of all weights and buffers of a teacher's models, and of the precision they run in."""
    models = [
        (member.model, getattr(member, 'dtype', None))
        for member in teacher.modules()
        if isinstance(member, BaseTeacher) and isinstance(getattr(member, 'model', None), nn.Module)
    ]
    found = hashlib.sha256()
    for model, dtype in models:
        found.update(f'{type(model).__name__} {dtype}'.encode())
        # Buffers that no checkpoint has are the normalisation
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            found.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(content.numpy())
    return found.hexdigest()
