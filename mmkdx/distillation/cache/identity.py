"""By what a cache knows its teacher and its images again."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.distillation.input_bridge import input_bridge
from mmkdx.distillation.teachers import BaseTeacher, Teacher
from mmkdx.models.families import describe, preprocessed

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
    pooled = F.adaptive_avg_pool2d(inputs.detach().float(), 8).flatten(1)
    # numpy's older generator makes the same numbers in all its versions
    vectors = np.random.RandomState(0).standard_normal((pooled.shape[1], 4))
    vectors = torch.from_numpy(vectors / pooled.shape[1] ** 0.5).to(pooled)
    # Not a matrix product, which a GPU may compute with 10 bits
    return (pooled[:, :, None] * vectors).sum(1)


def other_images(found: Tensor, stored: Tensor) -> list[int]:
    """The rows in which two signatures are not of one image."""
    scale = stored.abs().amax(1).clamp(min=1e-6)
    return ((found - stored).abs().amax(1) > TOLERANCE * scale).nonzero().flatten().tolist()


def conversions(teacher: BaseTeacher, student: nn.Module) -> str:
    """How a teacher's models convert the student's images; '' where it follows from the preprocessors.

    Caches do not depend on the version for ``normalize=None``, ``resize=None`` and two preprocessors with
    a mean. Their first version had no other conversion.
    """
    found, given = [], preprocessed(describe(student).model)
    for member in teacher.modules():
        if isinstance(member, Teacher):
            known = given.mean is not None and preprocessed(member.model).mean is not None
            usual = input_bridge(student, member.model) if known else nn.Identity()
            found.append('' if repr(usual) == repr(member.bridge) else repr(member.bridge))
    return repr(found) if any(found) else ''


def fingerprint(teacher: BaseTeacher, conversion: str = '') -> str:
    """A hash of all that a teacher's outputs depend on, beside the images.

    Args:
        teacher (BaseTeacher): The teacher: its models' weights and buffers and their precision.
        conversion (str): What ``conversions`` says. Defaults to ''.
    """
    found = hashlib.sha256(conversion.encode())
    for member in teacher.modules():
        model = getattr(member, 'model', None)
        if not isinstance(member, BaseTeacher) or not isinstance(model, nn.Module):
            continue
        found.update(f'{type(model).__name__} {getattr(member, "dtype", None)}'.encode())
        # Buffers that no checkpoint has are the normalisation
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            found.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(content.numpy())
    return found.hexdigest()
