"""Do prototypes find the same patches as the teacher's, and parts of the object?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkdx.arguments import errors_named, integers, number, positive
from mmkdx.functional.perturbation import sample_generators
from mmkdx.functional.prototype_parts import (
    consistency,
    covered_parts_from_label_map,
    covered_parts_from_points,
    purity,
    region_boxes,
    stability,
)
from mmkdx.functional.prototype_transfer import (
    active_patches,
    patch_similarity,
    prototype_matching_score,
)
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, by_model, drop_hidden
from mmkdx.metrics.scores import Score, mean_score
from mmkdx.models.heads.prototype_head import find_prototypes
from mmkdx.models.intercept import Tap, intercept
from mmkdx.registry import METRICS


@METRICS.register_module()
class PrototypeTransfer(ExplanationMetric):
    """The three scores of Proto2Proto, for students that learn a teacher's prototypes.

    A prototype's patch in an image is the position nearest to it; it is active where its squared
    distance is at most tau.

    - ``aap@<tau>``, in [0, H·W]: average number of active patches of an image, for each model. A
      student's should be near its teacher's, so neither direction is better.
    - ``ajs@<tau>``, [0, 1], higher is better: the mean Jaccard index of the active patches of student
      and teacher. An image without any counts as 0. With a large tau nearly all positions are active and
      any two models agree, so look at small ones.
    - ``pms``, [0, 1], higher is better: the prototype matching score, of all patches. Unrelated models
      with the same layout of images reach 0.2 and more.

    A base model (a student trained alone) gets the same scores. With ``num_samples=None``, all images,
    they are the paper's; compare runs by the same images.

    Source: Keswani et al., "Proto2Proto", CVPR 2022; a reading of its public code and reproductions.

    Args:
        taus (Sequence[float | None]): Bounds of squared distances; None for no bound. Defaults to
            (0.1, 0.45, 1, 5, None), those of the paper.

    Raises:
        ValueError: If a bound is not above 0; from an evaluation, if a model has no prototypes, or
            student and teacher differ in their number or their grids.
    """

    question, guide = 'prototypes', 'prototypes'
    meanings = dict(
        aap='Average number of active patches of an image, within the given distance.',
        ajs='Jaccard index of the active patches of student and teacher, within the given distance.',
        pms='Prototype matching score: how alike student and teacher match patches with prototypes.',
    )

    counts_degenerate = True

    def __init__(self, taus: Sequence[float | None] = (0.1, 0.45, 1, 5, None)) -> None:
        super().__init__()
        if not isinstance(taus, Sequence) or isinstance(taus, str):
            raise ValueError(f'PrototypeTransfer.taus is {taus!r}; it must be a list of bounds')
        for tau in taus:
            if tau is not None:
                positive('PrototypeTransfer.taus', tau)
        self.taus = taus

    def direction(self, name: str) -> str | None:
        """AAP has none."""
        return None if 'aap' in name else 'higher'

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Any]:
        """Each image's smallest distances and their positions."""
        maps = _own_distances(batch, model, self)
        distances, cells = _nearest(maps)
        # Half as many bytes to keep and to exchange, where 16 bits suffice
        cells = cells.short() if maps[0, 0].numel() <= np.iinfo(np.int16).max else cells.int()
        return dict(
            _distances=list(distances.cpu().numpy()),
            _cells=list(cells.cpu().numpy()),
            _grid=[tuple(maps.shape[2:])] * len(maps),
        )

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The scores; rows keep each image's, and no distances."""
        models = {
            prefix: (values['_grid'][0], _stacked(values['_distances']), _stacked(values['_cells']))
            for prefix, values in by_model(rows).items()
        }
        drop_hidden(rows)
        scores: dict[str, Score] = {}
        teacher = models.get('teacher/')
        for prefix, (grid, distances, cells) in models.items():
            student = teacher is not None and prefix != 'teacher/'
            if student:
                for what, theirs, ours in (
                    ('a grid of', teacher[0], grid),
                    ('prototypes:', teacher[1].shape[1], distances.shape[1]),
                ):
                    if theirs != ours:
                        name = prefix.rstrip('/') or 'student'
                        raise ValueError(
                            f'PrototypeTransfer: the {name} has {what} {ours} and the teacher {theirs}; '
                            'positions and prototypes are paired, so both must agree'
                        )
            for tau in self.taus:
                bound = 'inf' if tau is None else f'{tau:g}'
                values = {f'{prefix}aap@{bound}': active_patches(distances, cells, tau)}
                if student:
                    values[f'{prefix}ajs@{bound}'] = patch_similarity(
                        *teacher[1:], distances, cells, tau
                    )
                for name, each in values.items():
                    scores[name] = mean_score(each.tolist(), self.direction(name))
                    for row, value in zip(rows, each.tolist()):
                        row[name] = value
            if student:
                value = prototype_matching_score(teacher[2], cells)
                scores[f'{prefix}pms'] = Score(value, n=len(rows), better='higher')
        return scores


@METRICS.register_module()
class PrototypeParts(ExplanationMetric):
    """Whether prototypes represent annotated parts of the object.

    - ``purity``, [0, 1]: of the 10 images nearest to a prototype, the largest share in which its patch
      covers the same part. Source: Nauta et al., "PIP-Net", CVPR 2023.
    - ``consistency``, [0, 1]: the share of prototypes that cover the same part in at least 80 % of the
      images of their class that show it.
    - ``stability``, [0, 1]: the share of the images of its class in which a prototype covers the same
      parts when noise is added (normal, 0.2, clipped to ±0.25, after normalisation). Source of both:
      Huang et al., ICCV 2023.

    All are means over prototypes without pruned ones; higher is better. A prototype covers a part if at
    least half of the part's points in the image are in a square around the prototype's nearest position
    (see ``mmkdx.functional.prototype_parts``). An image has its parts as key points (``gt_keypoints``,
    as from ``CUB``) or in a label map (``gt_seg_map``, as from ``Parts``).

    Args:
        parts (Sequence[int | Sequence[int]], optional): Each part's label or key point, or several
            that count as one, like left and right. Needed for label maps. Defaults to None: every key
            point.
        side (float): The side of the square for consistency and stability, as a share of the image's.
            Defaults to 72 / 224.
        purity_side (float): The same for purity. Defaults to 32 / 224.

    Raises:
        ValueError: If a side is not in (0, 1]; from an evaluation, if a model has no prototypes, or
            images have no parts.
    """

    question, guide = 'prototypes', 'prototypes'
    meanings = dict(
        purity='Largest share of the nearest images in which a prototype covers the same part.',
        consistency='Share of prototypes that cover the same part in at least 80 % of their images.',
        stability='Share of images in which a prototype covers the same parts after noise is added.',
    )

    counts_degenerate = True
    better = dict(purity='higher', consistency='higher', stability='higher')

    def __init__(
        self,
        parts: Sequence[int | Sequence[int]] | None = None,
        side: float = 72 / 224,
        purity_side: float = 32 / 224,
    ) -> None:
        super().__init__()
        if parts is not None and (not isinstance(parts, Sequence) or isinstance(parts, str)):
            raise ValueError(f'PrototypeParts.parts is {parts!r}; it must be a list of parts')
        for part in parts or ():
            integers('PrototypeParts.parts', _several(part))
        self.parts = parts
        self.side = number('PrototypeParts.side', side, 0, 1, open_low=True)
        self.purity_side = number('PrototypeParts.purity_side', purity_side, 0, 1, open_low=True)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Any]:
        """What each prototype covers in each image."""
        generators = sample_generators(batch.index, 0, torch.device('cpu'))
        noise = torch.stack([torch.randn(batch.inputs.shape[1:], generator=g) for g in generators])
        noisy = batch.inputs + (0.2 * noise.to(batch.inputs)).clamp(-0.25, 0.25)
        maps = _own_distances(batch, model, self)
        noisy_maps = prototype_distances(model, noisy, type(self).__name__)
        head = model.model.head
        size = tuple(batch.inputs.shape[2:])
        values: dict[str, Any] = {}
        for name, each, share in (
            ('_patch', maps, self.purity_side),
            ('_region', maps, self.side),
            ('_noisy', noisy_maps, self.side),
        ):
            distances, cells = _nearest(each[:, head.alive])
            boxes = region_boxes(cells, each.shape[2:], size, max(1, round(share * size[1])))
            covered, shown = self._covered(batch, boxes)
            values[name] = [np.packbits(image) for image in covered.cpu().numpy()]
            values.setdefault('_distances', list(distances.cpu().numpy()))
        values['_shown'] = list(shown.cpu().numpy())
        labels = [int(sample.get('gt_label')) for sample in batch.data_samples]
        values['_own'] = list(head.push_classes()[head.alive][:, labels].T.cpu().numpy())
        return values

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The scores, over prototypes."""
        scores: dict[str, Score] = {}
        for prefix, values in by_model(rows).items():
            distances, shown, own = (
                _stacked(values[key]) for key in ('_distances', '_shown', '_own')
            )
            shape = (distances.shape[1], shown.shape[1])
            patch, region, noisy = (
                _stacked([np.unpackbits(row, count=math.prod(shape)) for row in values[key]])
                .view(-1, *shape)
                .bool()
                for key in ('_patch', '_region', '_noisy')
            )
            found = dict(
                purity=purity(distances, patch, shown),
                consistency=consistency(region, shown, own),
                stability=stability(region, noisy, own),
            )
            for name, each in found.items():
                scores[prefix + name] = mean_score(each.tolist(), 'higher')
        drop_hidden(rows)
        return scores

    def _covered(self, batch: ExplainedBatch, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Which parts prototypes cover (N, P, K), and which are shown (N, K)."""
        size = batch.inputs.shape[2:]
        device = boxes.device
        samples = batch.data_samples
        if all(sample.get('gt_keypoints') is not None for sample in samples):
            points, visible = (
                torch.stack(
                    [torch.as_tensor(np.asarray(sample.get(key))[0]) for sample in samples]
                ).to(device)
                for key in ('gt_keypoints', 'gt_keypoints_visible')
            )
            covered, shown = covered_parts_from_points(points, visible, boxes, size)
            groups = [[i] for i in range(points.shape[1])] if self.parts is None else self.parts
        elif all(sample.get('gt_seg_map') is not None for sample in samples):
            if self.parts is None:
                raise ValueError(
                    'PrototypeParts.parts is missing; list the labels of the parts in the label maps'
                )
            maps = torch.stack([torch.as_tensor(sample.get('gt_seg_map')) for sample in samples])
            maps = maps.squeeze(1) if maps.dim() == 4 else maps
            labels = sorted({label for part in self.parts for label in _several(part)})
            covered, shown = covered_parts_from_label_map(maps.to(device), labels, boxes)
            groups = [[labels.index(label) for label in _several(part)] for part in self.parts]
        else:
            raise ValueError(
                "PrototypeParts: the data samples have neither 'gt_keypoints' nor 'gt_seg_map'; keep "
                "them by algorithm_keys of the dataset's PackInputs"
            )
        groups = [_several(group) for group in groups]
        return (
            torch.stack([covered[:, :, group].any(2) for group in groups], 2),
            torch.stack([shown[:, group].any(1) for group in groups], 1),
        )


def prototype_distances(model: Explained, inputs: Tensor, owner: str) -> Tensor:
    """Squared distances (N, P, H, W) of all positions of images to all prototypes of a model.

    Raises:
        ValueError: If it has no prototypes; the message names the owner.
    """
    with errors_named(f'{owner}: a {type(model.model).__name__} '):
        path = find_prototypes(model.model)
    values: list[Tensor] = []
    with intercept(model.model, {Tap(path): values.append}):
        model.predict(inputs)
    return values[-1]


def _own_distances(batch: ExplainedBatch, model: Explained, metric: ExplanationMetric) -> Tensor:
    """The distances of a batch's images, by one forward for all metrics."""
    key = 'prototype_distances', id(model)
    if key not in batch.shared:
        batch.shared[key] = prototype_distances(model, batch.inputs, type(metric).__name__)
    return batch.shared[key]


def _nearest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest distances (N, P) and their flat positions, the first of equal ones."""
    flat = maps.flatten(2)
    return flat.amin(2), flat.argmin(2)


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _several(part: int | Sequence[int]) -> Sequence[int]:
    return list(part) if isinstance(part, Sequence) else [part]
