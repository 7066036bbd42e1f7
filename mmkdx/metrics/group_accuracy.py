"""Accuracy in the groups of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmkdx.arguments import integer
from mmkdx.registry import METRICS


@METRICS.register_module()
class GroupAccuracy(BaseMetric):
    """Top-1 accuracy in each group of samples and in the worst one, in percent.

    The worst group is that of Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts",
    ICLR 2020. Results are ``group_accuracy/<group>``, ``group_accuracy/worst`` and one for each
    of ``unions``. Groups and unions without a sample are left out.

    Each data sample has its ``group``, a number, which ``PackInputs`` packs if its ``meta_keys`` name
    it.

    Args:
        unions (dict[str, Sequence[int]], optional): Groups that are counted together, by the result's
            name, like ``dict(id=(0, 3), ood=(1, 2))`` of Waterbirds. Defaults to None.
        collect_device (str): Where ranks exchange results, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): What stands in front of the results' names. Defaults to None
            ('group_accuracy').

    Raises:
        ValueError: If data samples have no group.
    """

    default_prefix = 'group_accuracy'

    def __init__(
        self,
        unions: Mapping[str, Sequence[int]] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.unions = dict(unions or {})
        for name, groups in self.unions.items():
            for group in groups:
                integer(f'GroupAccuracy.unions.{name}', group)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the group of each sample and whether its class was found.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): mmpretrain's predictions, as dicts.
        """
        for sample in data_samples:
            if 'group' not in sample:
                raise ValueError(
                    "GroupAccuracy: the data samples have no 'group'; let a data set that has it, like "
                    "Waterbirds, keep it with meta_keys=(…, 'group') of PackInputs"
                )
            hit = sample['pred_label'].item() == sample['gt_label'].item()
            self.results.append((sample['group'], hit))

    def compute_metrics(self, results: list[tuple[int, bool]]) -> dict[str, float]:
        """Turns the results of all ranks into accuracies.

        Args:
            results (list[tuple[int, bool]]): Groups and hits.

        Returns:
            dict[str, float]: The accuracies in percent.
        """
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
