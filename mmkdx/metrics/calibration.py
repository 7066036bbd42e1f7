"""Whether a classifier is as often right as it is confident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from mmkdx.arguments import integer
from mmkdx.metrics.base import labels_of
from mmkdx.registry import METRICS


@METRICS.register_module()
class CalibrationError(BaseMetric):
    """Expected calibration error and negative log-likelihood of predicted probabilities.

    - ``calibration/ece``, in percent, lower is better: images are put into bins of equal width by the
      probability of the predicted class; of each bin counts how far its accuracy is from its mean
      probability, by its share of the images. Bins are closed above. Source: Guo et al., "On Calibration
      of Modern Neural Networks", ICML 2017, Eq. 3.
    - ``calibration/nll``, in nats, lower is better: the mean of -ln p(label). Other than the calibration
      error it is not small for a model that always predicts how frequent the classes are.

    A network with one logit has the probabilities p of class 0, by the sigmoid, and 1 - p of the
    opposite; an image is of class 0 if that is among its labels.

    It stands in ``val_evaluator`` beside mmpretrain's ``Accuracy``.

    Args:
        bins (int): How many. Defaults to 15, as in the paper.
        collect_device (str): Where ranks exchange results, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): What stands in front of the results' names. Defaults to None
            ('calibration').

    Raises:
        ValueError: If there is no bin; from an evaluation, if predictions are no probabilities of all
            classes, or an image has not one label.
    """

    default_prefix = 'calibration'

    def __init__(
        self, bins: int = 15, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device, prefix)
        self.bins = integer('CalibrationError.bins', bins, 1)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps of each sample the highest probability, whether it is the label's, and the label's.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): mmpretrain's predictions, as dicts.
        """
        if any('pred_score' not in sample for sample in data_samples):
            raise ValueError(
                "CalibrationError needs probabilities, and the model's predictions have none "
                "('pred_score')"
            )
        scores = torch.stack([sample['pred_score'] for sample in data_samples]).float()
        labels = [labels_of(sample) for sample in data_samples]
        if scores.shape[1] == 1 and all('gt_label' in sample for sample in data_samples):
            # The one logit stands for class 0, which an image has or has not
            scores = torch.cat([scores, 1 - scores], 1)
            labels = [[0] if 0 in found else [1] for found in labels]
        if any(len(found) != 1 for found in labels):
            raise ValueError(
                "CalibrationError needs one label for each image ('gt_label'), and a sample has none, "
                'or several'
            )
        if (scores.sum(1) - 1).abs().amax() > 1e-2 or scores.amin() < 0:
            raise ValueError(
                "CalibrationError needs probabilities that add up to 1, and 'pred_score' has others, "
                'as those of a multi-label head'
            )
        confidence, prediction = scores.max(1)
        target = torch.tensor(labels, device=scores.device)
        likelihood = scores.gather(1, target)[:, 0]
        hits = prediction == target[:, 0]
        self.results.extend(zip(confidence.tolist(), hits.tolist(), likelihood.tolist()))

    def compute_metrics(self, results: list[tuple[float, bool, float]]) -> dict[str, float]:
        """Turns the results of all ranks into scores.

        Args:
            results (list[tuple]): Highest probability, hit, and probability of the label.

        Returns:
            dict[str, float]: 'ece' in percent and 'nll' in nats.
        """
        confidence, hits, likelihood = (torch.tensor(column).float() for column in zip(*results))
        # A probability that is 0 in fp32 is not 0, and its logarithm is finite
        nll = -likelihood.clamp_min(torch.finfo().tiny).log().mean()
        edges = torch.linspace(0, 1, self.bins + 1)[1:-1]
        gaps = torch.zeros(self.bins, dtype=torch.double)
        gaps.index_add_(0, torch.bucketize(confidence, edges), (hits - confidence).double())
        return dict(ece=100 * float(gaps.abs().sum()) / len(results), nll=float(nll))
