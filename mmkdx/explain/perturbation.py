"""Maps with channel weights from the model's outputs when a channel is masked or removed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import integer
from mmkdx.explain.base import Evidence, LayerExplainer
from mmkdx.explain.gradient import weighted_sum
from mmkdx.explain.layers import Layer
from mmkdx.functional import full_precision, normalize_maps, resize_maps
from mmkdx.models.intercept import intercept
from mmkdx.registry import EXPLAINERS


class PerturbationCAM(LayerExplainer):
    """Base of the methods that run the model once more for each channel of the layer.

    Args:
        layer (str | Sequence[str]): See ``LayerExplainer``.
        max_batch (int): The most of these forwards at once. A function as target sees all images of
            the call, with one channel masked or removed in each. Defaults to 32.
    """

    def __init__(self, layer: str | Sequence[str] = 'auto', max_batch: int = 32) -> None:
        super().__init__(layer)
        self.max_batch = integer('max_batch', max_batch, 1)

    @abstractmethod
    def forward_channels(
        self, evidence: Evidence, layer: Layer, samples: Tensor, channels: Tensor
    ) -> Tensor:
        """Returns the logits (M, K) of M samples, each with one channel masked or removed."""

    def channel_logits(self, evidence: Evidence, layer: Layer, channels: Tensor) -> Tensor:
        """Returns the logits (N, n, K) of all samples for channels (N, n), once for all classes."""
        if layer not in evidence.memo:
            count, each = channels.shape
            samples = torch.arange(count, device=channels.device).repeat(each)
            # A function may hold data for each image, so it gets all images in order
            size = count if evidence.scores.function else self.max_batch
            parts = zip(samples.split(size), channels.T.flatten().split(size))
            with torch.no_grad():
                logits = [self.forward_channels(evidence, layer, *part) for part in parts]
            evidence.memo[layer] = torch.cat(logits).unflatten(0, (each, count)).transpose(0, 1)
        return evidence.memo[layer]


@EXPLAINERS.register_module()
class ScoreCAM(PerturbationCAM):
    """``sum_c w_c A_c`` with ``w = softmax_c(score of the image times A_c as a mask)``.

    A mask is the activation resized to the image's size, then scaled to [0, 1].

    Source: Wang et al., "Score-CAM: Score-weighted visual explanations for convolutional neural
    networks", CVPR workshops 2020, Eq. 4 to 8, without the baseline's score, which the softmax cancels.

    Args:
        layer (str | Sequence[str]): See ``LayerExplainer``.
        channels (int, optional): Number of channels used, those with the largest variance over
            positions: faster in proportion, but not the exact map. Defaults to None (all).
        size (int, optional): Height and width to which masked images are reduced: faster with the
            square, but not the exact map. Defaults to None (the images' own).
        max_batch (int): The most masked images at once. Defaults to 32.
    """

    def __init__(
        self,
        layer: str | Sequence[str] = 'auto',
        channels: int | None = None,
        size: int | None = None,
        max_batch: int = 32,
    ) -> None:
        super().__init__(layer, max_batch)
        for key, value in dict(channels=channels, size=size).items():
            if value is not None:
                integer(key, value, 1)
        self.channels = channels
        self.size = size

    def maps(self, evidence: Evidence, weights: Tensor) -> list[Tensor]:
        """See ``LayerExplainer``."""
        maps = []
        for layer, activations in zip(evidence.values, evidence.activations):
            count = min(self.channels or activations.shape[1], activations.shape[1])
            chosen = activations.flatten(2).var(2).topk(count, 1).indices
            logits = self.channel_logits(evidence, layer, chosen)
            scores = torch.einsum('nck,nk->nc', logits, weights)
            used = activations.gather(1, chosen[..., None, None].expand(-1, -1, *layer.layout.size))
            maps.append(weighted_sum(scores.softmax(1), used))
        return maps

    def forward_channels(
        self, evidence: Evidence, layer: Layer, samples: Tensor, channels: Tensor
    ) -> Tensor:
        """See ``PerturbationCAM``."""
        images = evidence.inputs
        if self.size:
            images = F.interpolate(images, (self.size, self.size), mode='bilinear', antialias=True)
        activations = full_precision(layer.layout.to_map(evidence.values[layer]))
        masks = resize_maps(activations[samples, channels], images.shape[2:])
        masks = normalize_maps(masks)[:, None]
        return evidence.scores(images[samples] * masks.to(images))


@EXPLAINERS.register_module()
class AblationCAM(PerturbationCAM):
    """``sum_c w_c A_c`` with ``w_c = (s - s without A_c) / |s|``.

    The paper divides by the score s itself. For a negative logit its map shows the evidence *against*
    the class as positive. The magnitude keeps the sign of the evidence.

    With global average pooling and one linear layer the drop of the score is known
    (``W_c mean(A_c)``), so no further forward pass runs.

    Source: Desai and Ramaswamy, "Ablation-CAM: Visual explanations for deep convolutional network via
    gradient-free localization", WACV 2020, Eq. 3 (``w_c = (s - s without A_c) / s``) and 4.

    All arguments are those of ``PerturbationCAM``.
    """

    def maps(self, evidence: Evidence, weights: Tensor) -> list[Tensor]:
        """See ``LayerExplainer``."""
        score = (evidence.logits * weights).sum(1, keepdim=True)
        scale = torch.where(score == 0, 1, score.abs())
        maps = []
        for i, (layer, activations) in enumerate(zip(evidence.values, evidence.activations)):
            if evidence.heads is not None:
                weight = full_precision(evidence.heads[i].weight)
                drop = (weights @ weight) * activations.mean((2, 3))
            else:
                count, width = activations.shape[:2]
                channels = torch.arange(width, device=activations.device).expand(count, -1)
                logits = self.channel_logits(evidence, layer, channels)
                drop = score - torch.einsum('nck,nk->nc', logits, weights)
            maps.append(weighted_sum(drop / scale, activations))
        return maps

    def forward_channels(
        self, evidence: Evidence, layer: Layer, samples: Tensor, channels: Tensor
    ) -> Tensor:
        """See ``PerturbationCAM``."""

        def ablate(value: Tensor) -> Tensor:
            value = value.clone()
            rows = torch.arange(len(samples), device=samples.device)
            layer.layout.to_map(value)[rows, channels] = 0  # a view
            return value

        with intercept(evidence.scores.model, {layer.tap: ablate}):
            return evidence.scores(evidence.inputs[samples])
