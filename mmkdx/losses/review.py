"""ReviewKD: each stage of the student also learns from the teacher's earlier stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss, integer
from mmkdx.registry import MODELS


class AttentionFusion(nn.Module):
    """Attention based fusion (ABF): merges a stage with what the later ones left.

    Args:
        channels (int): Channels of the stage.
        mid (int): Channels of what is passed from stage to stage.
        out (int): Channels of the teacher's stage.
        last (bool): Whether it is the last stage, which has no later ones.
    """

    def __init__(self, channels: int, mid: int, out: int, last: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid))
        leave = nn.Conv2d(mid, out, 3, 1, 1, bias=False)
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(out))
        self.attention = None if last else nn.Conv2d(2 * mid, 2, 1)
        for layer in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(
        self, features: Tensor, later: Tensor | None, size: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Returns what is compared with the teacher, at its size, and what is passed on."""
        features = self.enter(features)
        if self.attention is not None:
            later = F.interpolate(later, features.shape[2:], mode='nearest')
            weights = self.attention(torch.cat([features, later], 1)).sigmoid()
            features = features * weights[:, :1] + later * weights[:, 1:]
        if features.shape[2:] != size:
            features = F.interpolate(features, size, mode='nearest')
        return self.leave(features), features


@MODELS.register_module()
class ReviewKDLoss(DistillLoss):
    """ReviewKD, over the stages of both networks.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, Sec. 3. From the last
    stage to the first, each of the student's stages is fused by attention with what the later ones
    left, and compared with the teacher's stage by the hierarchical context loss: the mean squared
    error in full and average-pooled to 4 × 4, 2 × 2 and 1 × 1, with the weights 1, 1/2, 1/4, 1/8
    divided by their sum. The losses of the stages are summed up.

    The taps are lists, from the first stage to the last; an embedding (N, C) counts as a map of 1 × 1:
    ``at=(['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'embedding'], [...])``.

    Args:
        max_mid_channels (int): What is passed from stage to stage has the channels of the student's
            last stage, and at most so many. Defaults to 512.
    """

    compares = 'anything'

    def __init__(self, max_mid_channels: int = 512) -> None:
        super().__init__()
        self.max_mid_channels = integer('max_mid_channels', max_mid_channels, 1)

    def connect(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """Builds the fusions for these stages, whose tensors may be fake.

        Raises:
            ValueError: If these are not lists of equally many maps or embeddings.
        """
        for owner, stages in (('student', student), ('teacher', teacher)):
            good = isinstance(stages, list) and all(
                isinstance(each, Tensor) and each.dim() in (2, 4) for each in stages
            )
            if not good:
                raise ValueError(
                    f'the {owner} needs a list of taps that hold maps (N, C, H, W) or embeddings (N, C)'
                )
        if len(student) != len(teacher):
            raise ValueError(
                f'there are {len(student)} taps in the student and {len(teacher)} in the teacher; '
                'they are compared one with one'
            )
        mid = min(self.max_mid_channels, student[-1].shape[1])
        self.fusions = nn.ModuleList(
            AttentionFusion(s.shape[1], mid, t.shape[1], last=i == len(student) - 1)
            for i, (s, t) in enumerate(zip(student, teacher))
        ).to(student[0].device)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Compares maps (N, C, H, W) or embeddings (N, C) of both, from the first stage on."""
        later, loss = None, 0
        for fusion, features, goal in zip(reversed(self.fusions), student[::-1], teacher[::-1]):
            goal = _as_map(full_precision(goal.detach()))
            features, later = fusion(_as_map(full_precision(features)), later, goal.shape[2:])
            loss = loss + hierarchical_context(features, goal)
        return loss


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss (HCL) between maps of one shape (N, C, H, W)."""
    loss, total, weight = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(student.shape[2:]):
            weight /= 2
            pooled = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
            loss = loss + weight * F.mse_loss(*pooled)
            total += weight
    return loss / total


def _as_map(features: Tensor) -> Tensor:
    return features[..., None, None] if features.dim() == 2 else features
