"""Do maps predict the effects of changed parts, and do two models need the same parts?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkdx.arguments import one_of
from mmkdx.functional import degenerate_maps, full_precision, resize_maps
from mmkdx.functional.similarity import pearson_correlation, spearman_correlation
from mmkdx.metrics.about import About
from mmkdx.metrics.base import Explained, ExplainedBatch, labels_of
from mmkdx.metrics.changed_images import ChangedImages, Redrawing, inpainted
from mmkdx.metrics.faithfulness import MaskingMetric
from mmkdx.metrics.localisation import label_maps
from mmkdx.metrics.scores import Score, gain_score
from mmkdx.registry import METRICS

KINDS = ('remove', 'swap', 'inpaint')
SCORES = ('logit', 'centred', 'log_odds')
CAVEAT = (
    "PartIntervention(kind='inpaint'): a filled region is no natural image, so an effect mixes the loss "
    'of the part with what the model makes of the filling; compare models, and take no effect for the '
    'truth'
)
NAN = math.nan


@METRICS.register_module()
class PartIntervention(MaskingMetric):
    """Changes one part of an image at a time, and compares the effects with maps and between models.

    The effect e of a part is how far the score of the explained class falls: above 0 the part speaks for
    the class. The relevance m of a part is the sum of the signed map, resized to the image, over the
    part's pixels in 'gt_seg_map'. Parts with fewer than 4 pixels have no effect measured. Spurious
    marks count as parts ('mark_labels').

    Of a model's effects, without a map:

    - ``decisive_share``, [0, 1]: Σ|e| over the parts that decide the class ('deciding_labels') / Σ|e|.
    - ``mark_effect``: the effect of the mark, in units of the score.
    - ``mark_flips``, [0, 1]: share of the changes of the mark after which the prediction is another.
    - ``counterfactual_accuracy``, [0, 1]: share of the swaps that change the class after which the model
      predicts the new class. For images that the model has right, with ``kind='swap'``.
    - ``invariance``, [0, 1]: share of the swaps of other parts (not the mark) after which the prediction
      stays. For the same images.
    - ``mean_effect``: the mean of e over the parts, in units of the score.
    - ``changes``: the number of changes of the image. A swap that would leave the image is not made.

    Of a model's map:

    - ``part_correlation``, [-1, 1]: Spearman's correlation of m and e over the parts.
    - ``top_part``: 1 where the part of the highest m has the highest e, else 0.
    - ``deciding_found``, [0, 1]: share of the deciding parts among as many parts of the highest m.
    - ``background_mass``: sum of the map over the background / sum of its magnitudes.

    Of a student and its teacher, for one class, with e in log odds:

    - ``causal_agreement`` and ``causal_spearman``, [-1, 1]: Pearson's and Spearman's correlation of
      their effects over the parts.
    - ``causal_sign``, [0, 1]: share of the parts whose effects have the same sign.

    With a base model, ``causal_…_gain`` is the mean of student minus base.

    Correlations and ``top_part`` need three parts that are not all alike. An image where no change moves
    the score is not counted. ``decisive_share`` and ``deciding_found`` count images whose explained
    class is the label. The data samples need 'gt_seg_map', and 'deciding_labels' and 'mark_labels' for
    what depends on them, packed by ``PackInputs``.

    Source: Hesse et al., "FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of
    Explainable AI Methods", ICCV 2023. Their ``SD`` is (1 + ``part_correlation``) / 2. Agreement of
    models and swaps are not in the paper. Its thresholds, which are tuned on the test set, are not here.

    Args:
        kind (str): 'remove' lets the data set draw the image without the part, and 'swap' with each
            other variant of it, whose scores are averaged. Both need a data set that draws its images,
            such as ``Parts``. 'inpaint' takes any images with label maps, and fills the part's pixels
            from around them (``linear_imputation``). Then an effect also holds what the model makes of
            the filling. Defaults to 'remove'.
        score (str): The score z of class k: 'logit', 'centred' (the logit minus the mean of all logits)
            or 'log_odds' (the logit minus logsumexp of the others). A network of one logit has its
            logit. Use 'log_odds' to compare ``mark_effect`` or ``mean_effect`` of two models. Defaults
            to 'logit'.
        max_batch (int): The most images predicted at once. Defaults to 64.

    Raises:
        ValueError: If an argument is not as above; from an evaluation, if there is no label map, the
            data set cannot draw its images again, an image that is drawn again differs from the one in
            the batch, or student and teacher are explained for different classes.
    """

    question, guide = 'causes', 'metrics_part_intervention'
    meanings = dict(
        decisive_share='Share of the effects that comes from the parts that decide the class.',
        mark_effect='How far the score falls without the mark.',
        mark_flips='Share of changes of the mark after which another class is predicted.',
        counterfactual_accuracy='Share of swaps after which the model predicts the new class.',
        invariance='Share of swaps of other parts after which the prediction stays.',
        mean_effect='Mean fall of the score without a part.',
        changes='Number of changes of an image.',
        part_correlation="Rank correlation of the map's mass on the parts with their effects.",
        top_part='Share of images in which the part of the highest mass has the highest effect.',
        deciding_found='Share of the deciding parts among the parts of the highest mass.',
        background_mass='Share of the map that lies on the background.',
        causal_agreement="Correlation of the parts' effects in student and teacher.",
        causal_spearman="Rank correlation of the parts' effects in student and teacher.",
        causal_sign='Share of parts whose effects have the same sign in student and teacher.',
    )
    no_floor = ('decisive_share', 'mark_flips', 'counterfactual_accuracy', 'invariance')
    better = dict.fromkeys(
        (
            *('decisive_share', 'counterfactual_accuracy', 'invariance', 'part_correlation'),
            *('top_part', 'deciding_found', 'causal_agreement', 'causal_spearman', 'causal_sign'),
        ),
        'higher',
    ) | dict(mark_flips='lower')
    # Effects need no map; scores of degenerate maps become NaN here
    counts_degenerate = True

    def __init__(self, kind: str = 'remove', score: str = 'logit', max_batch: int = 64) -> None:
        super().__init__(max_batch)
        self.kind = one_of('PartIntervention.kind', kind, KINDS)
        self.score = one_of('PartIntervention.score', score, SCORES)
        self._draw = Redrawing(kind, 'PartIntervention')
        # The logits of fixed models on the changed images of an image
        self._known: dict[tuple[str, int], Tensor] = {}

    def about(self, name: str) -> About:
        """See the base class."""
        known = super().about(name)
        if self.kind != 'inpaint' or not known.sentence:
            return known
        return known._replace(sentence=f'{known.sentence} The parts were filled in: see the guide.')

    def forget(self) -> None:
        """Drops what is kept of images and fixed models, for another data set."""
        super().forget()
        self._draw.forget()
        self._known.clear()

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The effects of one model, and its map beside them."""
        labels, changed, logits = self._predicted(batch)
        after, samples = logits[model.predict], batch.data_samples
        effects = part_effects(model, changed, after, self.score)
        masses, background = part_masses(model.maps, labels, changed.parts)
        values = dict(
            mean_effect=effects.nanmean(1),
            changes=changed.image.bincount(minlength=len(samples)),
            part_correlation=row_correlation(masses, effects, spearman_correlation),
            top_part=_top_part(masses, effects),
            background_mass=background,
        )
        if all(sample.get('deciding_labels') is not None for sample in samples):
            decides = _members(samples, 'deciding_labels', changed.parts)
            # Another class has other deciding parts
            label = [labels_of(sample) == [k] for sample, k in zip(samples, model.targets.tolist())]
            listed = torch.tensor([len(sample.get('deciding_labels')) for sample in samples])
            fair = torch.tensor(label) & ((decides & ~effects.isnan()).sum(1) == listed)
            share = (effects.abs() * decides).nansum(1) / effects.abs().nansum(1)
            values['decisive_share'] = torch.where(fair, share, NAN)
            values['deciding_found'] = torch.where(fair, _found(masses, effects, decides), NAN)
        marks = _members(samples, 'mark_labels', changed.parts)
        clean = model.logits.cpu()
        flips = _predictions(after) != _predictions(clean)[changed.image]
        of_mark = marks[changed.image, changed.column]
        if marks.any():
            values['mark_effect'] = torch.where(marks, effects, NAN).nanmean(1)
            values['mark_flips'] = _share(flips, of_mark, changed, len(samples))
        if self.kind == 'swap':
            if clean.shape[1] == 1:
                raise ValueError(
                    "PartIntervention.kind is 'swap', which counts which class is predicted, and the "
                    "model has one logit; use kind='remove'"
                )
            label = torch.tensor(batch.labels('PartIntervention'))
            right = (_predictions(clean) == label)[changed.image]
            moves = changed.label != label[changed.image]
            hits = _predictions(after) == changed.label
            values['counterfactual_accuracy'] = _share(hits, right & moves, changed, len(samples))
            others = right & ~moves & ~of_mark
            values['invariance'] = _share(~flips, others, changed, len(samples))
        return values

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor]:
        """The effects on a student, or base model, beside those on its teacher."""
        if not torch.equal(student.targets, teacher.targets):
            raise ValueError(
                'PartIntervention compares the effects on one class, and student and teacher are '
                "explained for different ones; set target to 'teacher', 'student' or 'label'"
            )
        _, changed, logits = self._predicted(batch)
        pair = [
            part_effects(model, changed, logits[model.predict], 'log_odds')
            for model in (student, teacher)
        ]
        both = ~(pair[0] + pair[1]).isnan()
        moved = [((effects != 0) & both).any(1) for effects in pair]
        same = (pair[0].sign() == pair[1].sign()) & both
        return dict(
            causal_agreement=row_correlation(*pair, pearson_correlation),
            causal_spearman=row_correlation(*pair, spearman_correlation),
            causal_sign=torch.where(moved[0] & moved[1], same.double().sum(1) / both.sum(1), NAN),
        )

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The means of all values, and what a student has gained over the base model."""
        if self.kind == 'inpaint':
            print_log(CAVEAT, 'current')
        scores = super().summarize(rows)
        for name in list(scores):
            if name.startswith('causal_') and f'base/{name}' in scores:
                scores[f'{name}_gain'] = gain_score(rows, name, 'higher')
        return scores

    def _predicted(
        self, batch: ExplainedBatch
    ) -> tuple[Tensor, ChangedImages, dict[Callable, Tensor]]:
        """The label maps, the changed images, and the logits on them by ``Explained.predict``.

        What only changes a model's map, like the floor, has the same ``predict``.
        """
        key = type(self), self.kind
        if key not in batch.shared:
            labels = label_maps(batch, 'PartIntervention')
            changed = (inpainted if self.kind == 'inpaint' else self._draw)(batch, labels)
            batch.shared[key] = labels, changed, self._answers(batch, changed)
        return batch.shared[key]

    def _answers(self, batch: ExplainedBatch, changed: ChangedImages) -> dict[Callable, Tensor]:
        """The logits (M, K) of all models on M changed images, those of fixed models once in a run."""
        numbers = [int(number) for number in batch.index]
        answers: dict[Callable, Tensor] = {}
        asked = []
        for name, model in batch.models.items():
            kept = [self._known.get((name, number)) for number in numbers]
            if model.fixed and all(each is not None for each in kept):
                answers[model.predict] = torch.cat(kept)
            else:
                answers[model.predict] = (
                    model.logits.new_empty(0, model.logits.shape[1]).double().cpu()
                )
                asked.append((name, model))
        count = len(changed.image)
        for start in range(0, count, self.max_batch) if asked else ():
            images = changed.make(torch.arange(start, min(start + self.max_batch, count)))
            for predict in {model.predict for _, model in asked}:
                logits = predict(images).double().cpu()
                answers[predict] = torch.cat([answers[predict], logits])
        for name, model in asked:
            if model.fixed:
                for i, number in enumerate(numbers):
                    self._known[name, number] = answers[model.predict][changed.image == i]
        return answers


def _predictions(logits: Tensor) -> Tensor:
    """The predicted classes (M, ) of logits (M, K); for one logit whether it is above 0."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)


def class_scores(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """The scores (M, ) of classes (M, ) in logits (M, K); ``kind`` is one of ``SCORES``."""
    own = logits.gather(1, targets[:, None])[:, 0]
    if kind == 'logit' or logits.shape[1] == 1:
        return own
    if kind == 'centred':
        return own - logits.mean(1)
    return own - logits.scatter(1, targets[:, None], -math.inf).logsumexp(1)


def part_effects(model: Explained, changed: ChangedImages, after: Tensor, score: str) -> Tensor:
    """How far the score of the explained class falls by the changes of each part.

    Args:
        model (Explained): The model, with its N targets and logits.
        changed (ChangedImages): M changed images of R parts.
        after (Tensor): The logits (M, K) on them.
        score (str): One of ``SCORES``.

    Returns:
        Tensor: Means over the changes of a part, float64 of shape (N, R) on the CPU; NaN where there is
        none, and all 0 where no change moves the score.
    """
    targets, logits = model.targets.cpu(), model.logits.double().cpu()
    before = class_scores(logits, targets, score)
    falls = before[changed.image] - class_scores(after, targets[changed.image], score)
    shape = len(targets), len(changed.parts)
    place = changed.image, changed.column
    total = falls.new_zeros(shape).index_put(place, falls, accumulate=True)
    count = falls.new_zeros(shape).index_put(place, torch.ones_like(falls), accumulate=True)
    effects = total / count
    # Such small effects are rounding errors
    least = 1e-6 * logits.abs().amax(1, keepdim=True)
    still = (effects.abs().nan_to_num() <= least).all(1, keepdim=True)
    return torch.where(still & (count > 0), 0.0, effects)


def part_masses(maps: Tensor, labels: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of maps (N, h, w), resized, over parts (R, ) of label maps (N, H, W).

    Returns:
        tuple: Sums (N, R), and over the background the sum / the sum of the map's magnitudes (N, ), both
        float64 on the CPU; NaN for degenerate maps.
    """
    bad = degenerate_maps(maps).cpu()
    maps = resize_maps(full_precision(maps), labels.shape[1:]).cpu().double()
    labels = labels.cpu()
    masses = torch.stack([(maps * (labels == part)).sum((1, 2)) for part in (0, *parts)], 1)
    background = masses[:, 0] / maps.abs().sum((1, 2))
    return masses[:, 1:].masked_fill(bad[:, None], NAN), background.masked_fill(bad, NAN)


def row_correlation(first: Tensor, second: Tensor, correlate: Callable) -> Tensor:
    """A correlation (N, ) of rows (N, R) over the columns where neither is NaN.

    It is NaN for fewer than three columns, and where a row is constant.
    """
    return _by_row(first, second, lambda pair: correlate(*pair[:, None]))


def _top_part(masses: Tensor, effects: Tensor) -> Tensor:
    """Whether the highest of rows (N, R) are at one place, the first of equal values."""
    return _by_row(masses, effects, lambda pair: pair[0].argmax() == pair[1].argmax())


def _by_row(first: Tensor, second: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A value (N, ) of each two rows (N, R), by the columns where neither is NaN."""
    values = []
    for rows in torch.stack([first, second], 1):
        pair = rows[:, ~rows.isnan().any(0)]
        bad = pair.shape[1] < 3 or degenerate_maps(pair[:, None]).any()
        values.append(NAN if bad else float(function(pair)))
    return torch.tensor(values, dtype=torch.float64)


def _found(masses: Tensor, effects: Tensor, decides: Tensor) -> Tensor:
    """The share (N, ) of the deciding parts among as many of the highest masses, all (N, R)."""
    ranked = masses.masked_fill(effects.isnan(), -math.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    count = decides.sum(1)
    found = (decides & (order.argsort(1) < count[:, None])).sum(1)
    return (found / count).masked_fill(masses.isnan().any(1), NAN)


def _members(samples: Sequence[Any], name: str, parts: Tensor) -> Tensor:
    """Which parts (R, ) each sample lists in a field, booleans (N, R)."""
    lists = [torch.tensor(list(sample.get(name) or ()), dtype=torch.long) for sample in samples]
    return torch.stack([torch.isin(parts, each) for each in lists])


def _share(hits: Tensor, counted: Tensor, changed: ChangedImages, count: int) -> Tensor:
    """The share of hits among the changed images that are counted, for each of the originals."""
    image = changed.image[counted]
    hit = torch.bincount(image, hits[counted].double(), count)
    return hit / torch.bincount(image, minlength=count)
