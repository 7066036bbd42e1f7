"""How similar a student's maps are to its teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkdx.functional import degenerate_maps, full_precision, normalize_maps, resize_maps
from mmkdx.functional.similarity import (
    cosine_similarity,
    jensen_shannon_divergence,
    pearson_correlation,
    spearman_correlation,
    structural_similarity,
    top_iou,
)
from mmkdx.metrics.about import About
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, labels_of
from mmkdx.metrics.scores import Score, gain_score
from mmkdx.registry import METRICS

#: The subsets of images with their own scores, by the suffix of the score's name.
SUBSETS = {
    'same_prediction': 'where both predict the same class',
    'teacher_wrong': 'where the teacher is wrong',
}


@METRICS.register_module()
class MapAgreement(ExplanationMetric):
    """How similar a student's maps are to its teacher's.

    Both maps are resized to the input's size (see ``resize_map``), so that maps of any sizes compare.

    - ``cosine``, [0, 1]: of the maps after ReLU, then resized; 1 minus it is the explanation loss of
      e²KD. Source: Parchami-Araghi et al., "Good Teachers Explain", ECCV 2024.
    - ``pearson`` and ``spearman``, [-1, 1]: correlations of the signed maps.
    - ``ssim``, [-1, 1]: structural similarity of the signed maps, each scaled to [0, 1].
    - ``js_divergence``, [0, ln 2] nats, lower is better: of the maps after ReLU, then resized, as
      distributions over pixels.
    - ``topk_iou``, [0, 1]: intersection over union of the highest 10 % of the pixels.
    - ``prediction_agreement``: the share of samples that both predict alike.

    The scores of maps come for all samples, as ``<name>_same_prediction`` where both models predict
    alike, and as ``<name>_teacher_wrong`` where the teacher misses the label, if there are labels. With
    a base model (a student trained alone), ``<name>_gain`` is the mean of student minus base, or of
    base minus student for ``js_divergence``: above 0 is always better.

    A pair with a degenerate map has no scores of maps. ``cosine`` and ``js_divergence`` leave out maps
    that are 0 everywhere after ReLU.
    """

    question, guide = 'agreement', 'metrics_localisation'
    meanings = dict(
        cosine='Cosine similarity of the positive parts of the two maps; 1 if they are proportional.',
        pearson='Linear correlation of the two maps over the pixels; 1 if they have the same shape.',
        spearman='Rank correlation of the two maps over the pixels.',
        ssim='Structural similarity of the two maps, each scaled to [0, 1].',
        js_divergence='Jensen-Shannon divergence of the two maps as distributions; 0 if they are equal.',
        topk_iou='Overlap of the highest 10 % of the pixels of both maps; 0.05 by chance.',
        prediction_agreement='Share of images for which both models predict the same class.',
    )

    has_floor = True
    no_floor = ('prediction_agreement',)
    better = dict.fromkeys(meanings, 'higher') | dict(js_divergence='lower')
    # Predictions count whatever the maps; scores of degenerate maps become NaN here
    counts_degenerate = True

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor]:
        """All scores of each pair; see the base class."""
        pair = [full_precision(model.maps) for model in (student, teacher)]
        bad = degenerate_maps(pair[0]) | degenerate_maps(pair[1])
        size = batch.inputs.shape[-2:]
        signed = [resize_maps(maps, size) for maps in pair]
        positive = [resize_maps(maps.relu(), size) for maps in pair]
        scores = dict(
            cosine=cosine_similarity(*positive),
            pearson=pearson_correlation(*signed),
            spearman=spearman_correlation(*signed),
            ssim=structural_similarity(*(normalize_maps(maps) for maps in signed)),
            js_divergence=jensen_shannon_divergence(*positive),
            topk_iou=top_iou(*signed),
        )
        scores = {name: score.masked_fill(bad, torch.nan) for name, score in scores.items()}
        predictions = [model.logits.argmax(1) for model in (student, teacher)]
        same = predictions[0] == predictions[1]
        values = dict(scores, prediction_agreement=same.float())
        for subset, members in zip(SUBSETS, (same, _misses(batch, predictions[1]))):
            if members is not None:
                for name, score in scores.items():
                    values[f'{name}_{subset}'] = score.masked_fill(~members, torch.nan)
        return values

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The means of all values, and the gains over the base model."""
        scores = super().summarize(rows)
        for name in list(scores):
            if f'base/{name}' in scores and not name.endswith(tuple(SUBSETS)):
                scores[f'{name}_gain'] = gain_score(rows, name, self.direction(name))
        return scores

    def about(self, name: str) -> About:
        """See the base class."""
        ends = dict(SUBSETS, gain='gain over the base model')
        variant = next((words for end, words in ends.items() if name.endswith(f'_{end}')), '')
        return super().about(name)._replace(variant=variant)

    def direction(self, name: str) -> str:
        """Only a lower ``js_divergence`` is better."""
        return 'lower' if 'js_divergence' in name else 'higher'


def _misses(batch: ExplainedBatch, predictions: Tensor) -> Tensor | None:
    """Which predictions miss the label, of shape (N, ); None where no sample of the batch has one."""
    labels = [labels_of(sample) for sample in batch.data_samples]
    if not any(labels):
        return None
    # A sample without a label belongs to no class that could be missed
    missed = [bool(known) and p not in known for p, known in zip(predictions.tolist(), labels)]
    return torch.tensor(missed, device=predictions.device)
