"""How a model predicts an image that is masked by its own map."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.arguments import flag
from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.functional.similarity import pearson_correlation
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric
from mmkdx.registry import METRICS


@METRICS.register_module()
class AverageDrop(ExplanationMetric):
    """How the prediction changes if the map masks the image: x ⊙ φ.

    φ is the map, scaled to [0, 1] by its minimum and maximum, then resized to the image. It multiplies
    the *normalised* image, as in the public code of ADCC, torchcam and grad-cam, so that the rest turns
    into the mean colour. p is the model's probability of the explained class on the image and p' that on
    x ⊙ φ. All scores are in [0, 1].

    - ``average_drop``: max(0, p - p') / p; lower is better.
    - ``increase_in_confidence``: 1 where p' > p; higher is better.
    - ``average_gain``: max(0, p' - p) / (1 - p); higher is better.
    - ``coherency``: (1 + Pearson's correlation of φ with the φ of x ⊙ φ) / 2; higher is better. It is 0
      where the latter is constant.
    - ``complexity``: the mean of φ; lower is better.
    - ``adcc``: the harmonic mean of coherency, 1 - complexity and 1 - the drop, of each image; higher is
      better. The score is the mean over images, which is at most the harmonic mean of the three means.

    Source: Chattopadhay et al., "Grad-CAM++", WACV 2018 (drop and increase); Zhang et al., "Opti-CAM",
    CVIU 2024 (gain); Poppi et al., "Revisiting The Evaluation of Class Activation Mapping for
    Explainability", CVPRW 2021 (the others).

    Args:
        relu (bool): Whether negative evidence is set to 0 before a map is normalised. Defaults to True.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        average_drop='Share of the probability that is lost if the image is masked by the map.',
        increase_in_confidence='Share of images whose probability rises if they are masked by the map.',
        average_gain='Share of the possible rise in probability if the image is masked by the map.',
        coherency='Correlation of the map with the map of the masked image, scaled to [0, 1].',
        complexity='Mean of the map, scaled to [0, 1].',
        adcc='Harmonic mean of coherency, 1 - complexity and 1 - average drop.',
    )
    has_floor = True
    better = dict(
        average_drop='lower',
        increase_in_confidence='higher',
        average_gain='higher',
        coherency='higher',
        complexity='lower',
        adcc='higher',
    )

    def __init__(self, relu: bool = True) -> None:
        super().__init__()
        self.relu = flag('AverageDrop.relu', relu)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps."""
        size = batch.inputs.shape[2:]
        maps = resize_maps(normalize_maps(model.maps, self.relu), size)
        masked = batch.inputs * maps[:, None].to(batch.inputs)
        before = model.confidence(model.logits)
        after = model.confidence(model.predict(masked))
        # If a divisor is 0, its dividend is 0, too
        tiny = torch.finfo(before.dtype).tiny
        drop = (before - after).relu() / before.clamp(min=tiny)
        gain = (after - before).relu() / (1 - before).clamp(min=tiny)
        again = model.explain(masked, model.targets)
        again = resize_maps(normalize_maps(again, self.relu), size)
        # A constant map has no correlation
        coherency = ((1 + pearson_correlation(maps, again).clamp(-1, 1)) / 2).nan_to_num(0)
        complexity = maps.mean((1, 2))
        adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
        return dict(
            average_drop=drop,
            increase_in_confidence=(after > before).float(),
            average_gain=gain,
            coherency=coherency,
            complexity=complexity,
            adcc=adcc,
        )
