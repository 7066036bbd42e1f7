"""Metrics of predictions for ``val_evaluator``, beside mmpretrain's ``Accuracy``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from mmkdx.arguments import integer, integers, options
from mmkdx.functional.audit import calibration_error, calibration_gaps
from mmkdx.metrics.base import check_common, labels_of
from mmkdx.registry import METRICS


@METRICS.register_module()
class CalibrationError(BaseMetric):
    """Expected calibration error and negative log-likelihood of predicted probabilities.

    - ``calibration/ece``, in percent, lower is better: the mean over bins of the gap between accuracy
      and mean probability, weighted by the bins' images. Bins of the predicted class's probability
      have equal widths and are closed above. Source: Guo et al., "On Calibration of Modern Neural
      Networks", ICML 2017, Eq. 3.
    - ``calibration/nll``, in nats, lower is better: the mean of -ln p(label). A model that always
      predicts the class frequencies has a low ``ece`` but no low ``nll``.

    A network with one logit has the probabilities p of class 0, by the sigmoid, and 1 - p of the
    opposite; an image is of class 0 if that is among its labels.

    Args:
        bins (int): Number of bins. Defaults to 15, as in the paper.
        collect_device (str): Where ranks exchange results, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): The front of the results' names. Defaults to None ('calibration').

    Raises:
        ValueError: If there is no bin; from an evaluation, if predictions are no probabilities of all
            classes, or an image has not one label.
    """

    default_prefix = 'calibration'

    def __init__(
        self, bins: int = 15, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device, prefix)
        check_common(self, prefix)
        self.bins = integer('CalibrationError.bins', bins, 1)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps each sample's highest probability, whether it is the label's, and the label's."""
        if any('pred_score' not in sample for sample in data_samples):
            raise ValueError(
                "CalibrationError needs probabilities, and the model's predictions have none "
                "('pred_score')"
            )
        scores = torch.stack([sample['pred_score'] for sample in data_samples]).float()
        labels = [labels_of(sample) for sample in data_samples]
        if scores.shape[1] == 1 and all('gt_label' in sample for sample in data_samples):
            # The one logit is for class 0: an image has this class or not
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
                'as with a multi-label head'
            )
        confidence, prediction = scores.max(1)
        target = torch.tensor(labels, device=scores.device)
        likelihood = scores.gather(1, target)[:, 0]
        hits = prediction == target[:, 0]
        self.results.extend(zip(confidence.tolist(), hits.tolist(), likelihood.tolist()))

    def compute_metrics(self, results: list[tuple[float, bool, float]]) -> dict[str, float]:
        """'ece' in percent and 'nll' in nats, from what ``process`` keeps."""
        confidence, hits, likelihood = zip(*results)
        likelihood = torch.tensor(likelihood).float()
        # A probability of 0 in fp32 is above 0, so its logarithm is finite
        nll = -likelihood.clamp_min(torch.finfo().tiny).log().mean()
        gaps = calibration_gaps(np.array(confidence), np.array(hits), self.bins)
        ece = calibration_error(gaps.sum(0), len(results))
        return dict(ece=float(ece), nll=float(nll))


@METRICS.register_module()
class GroupAccuracy(BaseMetric):
    """Top-1 accuracy in each group of samples and in the worst one, in percent.

    The worst group is that of Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts",
    ICLR 2020. Results are ``group_accuracy/<group>``, ``group_accuracy/worst`` and one for each
    of ``unions``. Groups and unions without a sample are left out.

    Each data sample has its ``group``, a number; name it in the ``meta_keys`` of ``PackInputs``.

    Args:
        unions (dict[str, Sequence[int]], optional): Groups that are counted together, by the result's
            name, like ``dict(id=(0, 3), ood=(1, 2))`` of Waterbirds. Defaults to None.
        collect_device (str): Where ranks exchange results, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): The front of the results' names. Defaults to None ('group_accuracy').

    Raises:
        ValueError: If a group of ``unions`` is no integer; from an evaluation, if data samples have no
            group.
    """

    default_prefix = 'group_accuracy'

    def __init__(
        self,
        unions: Mapping[str, Sequence[int]] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        check_common(self, prefix)
        self.unions = {} if unions is None else options('GroupAccuracy.unions', unions)
        for name, groups in self.unions.items():
            integers(f'GroupAccuracy.unions.{name}', groups)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the group of each sample and whether its class was found."""
        for sample in data_samples:
            if 'group' not in sample:
                raise ValueError(
                    "GroupAccuracy: the data samples have no 'group'; let a data set that has it, like "
                    "Waterbirds, keep it with meta_keys=(…, 'group') of PackInputs"
                )
            hit = sample['pred_label'].item() == sample['gt_label'].item()
            self.results.append((sample['group'], hit))

    def compute_metrics(self, results: list[tuple[int, bool]]) -> dict[str, float]:
        """The accuracies in percent, from groups and hits."""
        groups, hits = (np.array(column) for column in zip(*results))
        single = {
            str(group): 100 * float(hits[groups == group].mean()) for group in np.unique(groups)
        }
        inside = {name: np.isin(groups, list(union)) for name, union in self.unions.items()}
        return {
            **single,
            'worst': min(single.values()),
            **{name: 100 * float(hits[each].mean()) for name, each in inside.items() if each.any()},
        }
