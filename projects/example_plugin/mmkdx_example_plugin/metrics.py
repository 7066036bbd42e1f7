"""A metric of explanations."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.metrics import Explained, ExplainedBatch, ExplanationMetric
from mmkdx.registry import METRICS


@METRICS.register_module()
class CentreDistance(ExplanationMetric):
    """How far apart the centres of mass of a student's and its teacher's map are.

    The centre is that of the map's positive part. ``centre_distance`` is in image widths and heights,
    from 0 (one place) to sqrt(2) (opposite corners).
    """

    better = {'centre_distance': 'lower'}

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor]:
        """The distance for each image."""
        return {'centre_distance': (centre(student.maps) - centre(teacher.maps)).norm(dim=1)}


def centre(maps: Tensor) -> Tensor:
    """The centres of mass (N, 2) of maps (N, H, W), as (y, x) between 0 and 1."""
    mass = maps.relu()
    mass = mass / mass.sum((1, 2), keepdim=True)
    y, x = (
        (torch.arange(size, device=maps.device, dtype=maps.dtype) + 0.5) / size
        for size in maps.shape[1:]
    )
    return torch.stack([(mass.sum(2) * y).sum(1), (mass.sum(1) * x).sum(1)], 1)
