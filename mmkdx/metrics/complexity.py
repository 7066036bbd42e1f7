"""How simple maps are."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.functional import full_precision
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric
from mmkdx.registry import METRICS


@METRICS.register_module()
class MapComplexity(ExplanationMetric):
    """How much of a map's evidence lies in how few positions.

    Both scores are of the magnitudes ``|φ|``, so that evidence against a class counts like evidence for
    it, and both are the same for any multiple of a map. They are taken at the map's own resolution
    (n positions): enlarging it would change both without adding anything. Compare only models whose
    maps have one size.

    - ``gini``: the Gini index in [0, 1 - 1/n], higher is simpler: 0 for equal magnitudes, 1 - 1/n for
      one position. Source: Chalasani et al., "Concise Explanations of Neural Networks using
      Adversarial Training", ICML 2020.
    - ``entropy``: the entropy of ``|φ| / Σ|φ|`` in nats, in [0, ln n], lower is simpler. Source: Bhatt
      et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020.
    """

    better = dict(gini='higher', entropy='lower')

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """Both scores of each map; see the base class."""
        size = full_precision(model.maps).abs().flatten(1).sort(1).values
        share = size / size.sum(1, keepdim=True)
        n = share.shape[1]
        weight = torch.arange(1 - n, n, 2, device=share.device) / n
        return dict(gini=(share * weight).sum(1), entropy=torch.special.entr(share).sum(1))
