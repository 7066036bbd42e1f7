"""Properties of maps alone: how simple they are, and how stable."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.arguments import integer, positive
from mmkdx.functional import full_precision
from mmkdx.functional.perturbation import sample_generators
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric
from mmkdx.registry import METRICS


@METRICS.register_module()
class MapComplexity(ExplanationMetric):
    """How few positions hold most of a map's evidence.

    Both scores use the magnitudes ``|φ|``: evidence against a class counts like evidence for it. They
    do not change if a map is scaled. They are taken at the map's own resolution (n positions), so
    compare only models whose maps have one size.

    - ``gini``: the Gini index in [0, 1 - 1/n], higher is simpler: 0 for equal magnitudes, 1 - 1/n for
      one position. Source: Chalasani et al., "Concise Explanations of Neural Networks using
      Adversarial Training", ICML 2020.
    - ``entropy``: the entropy of ``|φ| / Σ|φ|`` in nats, in [0, ln n], lower is simpler. Source: Bhatt
      et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020.
    """

    question, guide = 'complexity', 'metrics_localisation'
    meanings = dict(
        gini='Gini index of the map: 0 if all positions are equal, near 1 if one holds all evidence.',
        entropy='Entropy of the map in nats: 0 if one position holds all evidence.',
    )
    has_floor = True
    better = dict(gini='higher', entropy='lower')

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """Both scores of each map; see the base class."""
        size = full_precision(model.maps).abs().flatten(1).sort(1).values
        share = size / size.sum(1, keepdim=True)
        n = share.shape[1]
        weight = torch.arange(1 - n, n, 2, device=share.device) / n
        return dict(gini=(share * weight).sum(1), entropy=torch.special.entr(share).sum(1))


@METRICS.register_module()
class MaxSensitivity(ExplanationMetric):
    """The largest relative change of a map under small random changes of its image.

    ``max_sensitivity`` is max over r of ‖φ(x + d_r) - φ(x)‖ / ‖φ(x)‖ with d_r uniform in
    [-radius, radius], ``avg_sensitivity`` the mean over r. Both are at least 0, and lower is better; the
    class that is explained stays the same. Maps are raw and of their own resolution.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, with the
    maximum over random samples. The defaults are those of captum's ``sensitivity_max``; the authors'
    public configuration is for MNIST in [0, 1], a radius of 0.2 and 50 samples.

    Args:
        radius (float): The largest change of a value of the normalised image. Defaults to 0.02.
        samples (int): Number of random changes. Defaults to 10.
        seed (int): Seed of the changes, which are the same for all models and in every evaluation.
            Defaults to 0.

    Raises:
        ValueError: If ``radius`` is not positive or ``samples`` is less than 1.
    """

    question, guide = 'complexity', 'metrics_faithfulness'
    meanings = dict(
        max_sensitivity='Largest relative change of the map under small noise in the image.',
        avg_sensitivity='Mean relative change of the map under small noise in the image.',
    )
    has_floor = True
    better = dict(max_sensitivity='lower', avg_sensitivity='lower')

    def __init__(self, radius: float = 0.02, samples: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.radius = positive('MaxSensitivity.radius', radius)
        self.samples = integer('MaxSensitivity.samples', samples, 1)
        self.seed = integer('MaxSensitivity.seed', seed, 0)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The sensitivities of one model's maps."""
        images = batch.inputs
        maps = full_precision(model.maps).flatten(1)
        generators = sample_generators(batch.index, self.seed, images.device)
        changes = []
        for _ in range(self.samples):
            noise = [torch.rand(images.shape[1:], generator=g, device=g.device) for g in generators]
            noisy = images + self.radius * (2 * torch.stack(noise) - 1).to(images)
            explained = model.explain(noisy, model.targets).flatten(1)
            changes.append((explained - maps).norm(dim=1))
        norm = maps.norm(dim=1)
        # As in captum: there is no relative change of a zero map
        changes = torch.stack(changes) / torch.where(norm == 0, 1.0, norm)
        return dict(max_sensitivity=changes.amax(0), avg_sensitivity=changes.mean(0))
