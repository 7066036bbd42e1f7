"""What is to be known of each explained image beside its scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmkdx.functional import degenerate_maps
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, labels_of
from mmkdx.metrics.scores import Score

#: Values of an image that are no scores.
FACTS = ('target', 'prediction', 'confidence', 'degenerate', 'label')


class Facts(ExplanationMetric):
    """The classes of each image, the model's confidence, and whether its map says nothing.

    The prediction of a network with one logit is class 0, with the sigmoid as its confidence.
    """

    better = {'degenerate': 'lower'}
    counts_degenerate = True

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor | list]:
        """See the base class."""
        facts = dict(
            target=model.targets,
            prediction=model.logits.argmax(1),
            confidence=model.probabilities(model.logits).amax(1),
            degenerate=degenerate_maps(model.maps).long(),
        )
        labels = [labels_of(sample) for sample in batch.data_samples]
        if labels and all(len(each) == 1 for each in labels):
            facts['label'] = [label for (label,) in labels]
        return facts

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The number of maps that say nothing."""
        names = dict.fromkeys(name for row in rows for name in row if 'degenerate' in name)
        return {
            name: Score(float(sum(row[name] for row in rows)), n=len(rows), better='lower')
            for name in names
        }
