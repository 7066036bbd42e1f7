"""Does the score fall without random pixels of the explanation, and stay without others?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmkdx.arguments import integer, number, numbers, one_of
from mmkdx.functional import resize_maps
from mmkdx.functional.perturbation import pixel_ranks, sample_generators
from mmkdx.metrics.base import Explained, ExplainedBatch
from mmkdx.metrics.faithfulness import MaskingMetric
from mmkdx.registry import METRICS


@METRICS.register_module()
class FFidelity(MaskingMetric):
    """How far the score falls without random pixels, inside and outside of the explanation.

    For each fraction s the s · H · W most relevant pixels are the explanation. Each of its pixels is
    removed (set to 0, the mean colour) with probability min(alpha, beta · H · W / size of the
    explanation), so no more than a share ``beta`` of the image is expected to go. ``ffid_plus`` is the
    score of the whole image minus its mean over random draws; higher is better. ``ffid_minus`` is the
    same for all other pixels; lower is better. ``ffid`` is their difference; higher is better. All are
    means over the fractions, in [-1, 1], for ``ffid`` in [-2, 2].

    The draws are the same for all models, explainers and fractions, so differences have little noise.
    Maps are signed and resized to the image; pixels of equal relevance come row by row.

    Source: Zheng et al., "F-Fidelity: A Robust Framework for Faithfulness Evaluation of Explainable AI",
    ICLR 2025. The paper first fine-tunes the model on images without a share ``beta`` of their pixels;
    ``RandomPixelRemoval`` is the transform for that. Without it images are out of domain, and
    ``beta=1`` is the paper's "R-Fidelity". The paper counts hits of the label over fractions of 5, 10,
    ... 100 % with 50 draws.

    Args:
        fractions (Sequence[float]): The shares of pixels that are the explanation, above 0 and up to 1.
            Defaults to (0.1, 0.3, 0.5, 0.7, 0.9).
        alpha (float): The largest probability of removal, above 0 and up to 1. Defaults to 0.5.
        beta (float): The largest expected share of the image that is removed, above 0 and up to 1.
            Defaults to 0.1.
        draws (int): The number of random draws. An image takes 2 · fractions · draws forward passes;
            five draws are enough for a look. Defaults to 20.
        kind (str): The score: 'prob', the probability of the explained class, or 'hit', 1 where the
            label is predicted, which is noisier. Defaults to 'prob'.
        seed (int): Seed of the draws. Defaults to 0.
        max_batch (int): The most images predicted at once. Defaults to 64.

    Raises:
        ValueError: If an argument is out of its range; from an evaluation with ``kind='hit'``, if an
            image has not one label, or the model has one logit.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        ffid='How much more the score falls inside than outside of what the map shows.',
        ffid_plus='Fall of the score when random pixels inside of what the map shows are removed.',
        ffid_minus='Fall of the score when random pixels outside of what the map shows are removed.',
    )
    better = dict(ffid='higher', ffid_plus='higher', ffid_minus='lower')

    def __init__(
        self,
        fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        alpha: float = 0.5,
        beta: float = 0.1,
        draws: int = 20,
        kind: str = 'prob',
        seed: int = 0,
        max_batch: int = 64,
    ) -> None:
        super().__init__(max_batch)
        self.fractions = numbers('FFidelity.fractions', fractions, 0, 1, open_low=True)
        self.alpha = number('FFidelity.alpha', alpha, 0, 1, open_low=True)
        self.beta = number('FFidelity.beta', beta, 0, 1, open_low=True)
        self.draws = integer('FFidelity.draws', draws, 1)
        self.kind = one_of('FFidelity.kind', kind, ('prob', 'hit'))
        self.seed = integer('FFidelity.seed', seed, 0)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps."""
        score = self._score(batch, model)
        ranks = pixel_ranks(resize_maps(model.maps, batch.inputs.shape[2:]))
        pixels = ranks[0].numel()
        sizes = [max(1, round(fraction * pixels)) for fraction in self.fractions]
        # First the explanations, then all that they leave out
        counts = torch.tensor([*sizes, *(pixels - size for size in sizes)], device=ranks.device)
        limits = (self.beta * pixels / counts).clamp(max=self.alpha)
        sizes = torch.tensor(sizes, device=ranks.device)
        generators = sample_generators(batch.index, self.seed, torch.device('cpu'))
        # Image by image, as the draws of a batch take much memory
        logits = [
            self._removed(model, image, rank, sizes, limits, self._fields(generator, rank.shape))
            for image, rank, generator in zip(batch.inputs, ranks, generators)
        ]
        fall = score(model.logits)[:, None] - score(torch.stack(logits)).unflatten(
            1, (len(limits), -1)
        ).mean(2)
        plus, minus = fall.unflatten(1, (2, -1)).mean(2).unbind(1)
        return dict(ffid=plus - minus, ffid_plus=plus, ffid_minus=minus)

    def _fields(self, generator: torch.Generator, size: Sequence[int]) -> Tensor:
        """Uniform numbers (draws, H, W): a pixel is removed where its number is below a limit."""
        return torch.rand(self.draws, *size, generator=generator)

    def _removed(
        self,
        model: Explained,
        image: Tensor,
        ranks: Tensor,
        sizes: Tensor,
        limits: Tensor,
        fields: Tensor,
    ) -> Tensor:
        """The logits (2 · F · draws, K) of an image (C, H, W) without random pixels."""
        fields = fields.to(image.device)

        def make(_: Tensor, copy: Tensor) -> Tensor:
            part, draw = copy // len(fields), copy % len(fields)
            inside = ranks < sizes[part % len(sizes)][:, None, None]
            inside = inside == (part < len(sizes))[:, None, None]
            gone = inside & (fields[draw] < limits[part][:, None, None])
            return torch.where(gone[:, None], 0, image)

        shape = (1, len(limits) * len(fields))
        return self.predict_copies(model, shape, image.device, make)[0]

    def _score(self, batch: ExplainedBatch, model: Explained) -> Callable[[Tensor], Tensor]:
        """What turns logits (N, ..., K) into scores (N, ...)."""
        if self.kind == 'prob':
            return model.confidence
        if model.logits.shape[1] == 1:
            raise ValueError(
                "FFidelity(kind='hit') counts which class is predicted, and the model has one logit; "
                "use kind='prob'"
            )
        labels = torch.tensor(batch.labels("FFidelity(kind='hit')"), device=model.logits.device)

        def hits(logits: Tensor) -> Tensor:
            return (logits.argmax(-1) == labels.view(-1, *[1] * (logits.ndim - 2))).float()

        return hits
