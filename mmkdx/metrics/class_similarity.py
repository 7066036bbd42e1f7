"""How similar a model's explanations of its classes are, and whether it confuses similar ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from mmengine.logging import print_log
from scipy import stats
from torch import Tensor, nn

from mmkdx.arguments import flag, one_of
from mmkdx.functional import full_precision
from mmkdx.functional.self_explanation import EXPLAINERS, class_similarity, cosines
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, by_model, drop_hidden
from mmkdx.metrics.scores import Score
from mmkdx.models.intercept import evaluating
from mmkdx.models.taps import TapSet
from mmkdx.registry import METRICS

#: The most bytes of maps of all classes at a time, if there is no closed form.
MAPS_BYTES = 2**28

#: Differences up to this share of the largest value are rounding.
TOLERANCE = 1e-6


@dataclass
class ClassMatrices:
    """One model's values for each pair of classes; rows are labels.

    Args:
        similarity (np.ndarray): Mean cosines between the explanations of the label's class and of every
            class, of shape (K, K), 1 on the diagonal; NaN in rows of classes without images.
        confusion (np.ndarray): The share of a class's images that it predicts as each class, of shape
            (K, K); NaN in such rows.
        n (int): Number of images behind the similarities.
        correlation (float): Spearman's correlation of both, off the diagonal.
    """

    similarity: np.ndarray
    confusion: np.ndarray
    n: int
    correlation: float


@dataclass
class Similarities:
    """What a report shows of a ``ClassSimilarity``.

    Args:
        matrices (dict[str, ClassMatrices]): Those of 'student', 'teacher' and 'base', if given.
        name (str): The metric's name.
    """

    matrices: dict[str, ClassMatrices]
    name: str


@METRICS.register_module()
class ClassSimilarity(ExplanationMetric):
    """How similar a model's explanations of its classes are, and whether it confuses similar ones.

    For each image the explanation of its label is compared with those of all K classes, by cosines s.
    The scores leave out the label itself, whose cosine is 1.

    - ``class_similarity``, [-1, 1]: the mean of s. Centred explanations add up to 0, so it is
      -1 / (K - 1) in any model whose explanations of all classes are equally strong.
    - ``class_similarity_std``: the standard deviation of s over the classes, its mean over images. Near
      0, explanations do not tell classes apart.
    - ``confusion_correlation``, [-1, 1]: of S, for each label and class the mean of s, with the
      confusion matrix, in shares of each label's images. NaN, with a warning, where no image is
      predicted as another class.
    - ``probability_correlation``, [-1, 1]: of S with the mean probabilities instead, which also tell
      which classes are near for a model without mistakes.
    - ``class_similarity_agreement``, [-1, 1], higher is better: of S with the teacher's.

    The correlations are Spearman's, over the K (K - 1) entries off the diagonal without labels that
    have no images. Confusions are not linear in a cosine, and two classes that are often confused would
    dominate a linear correlation. Correlations have no interval. Only the agreement has a direction.

    Where the classifier is global average pooling and one linear layer, explanations have a closed form,
    and one forward is enough. Else the hook's explainer explains each image for all K classes.

    Similarities leave out an image whose explanation of its label is zero or not finite; its prediction
    counts.

    Source: a read-out of introspective learning (see ``mmkdx.functional.self_explanation``), ours.

    Args:
        explainer (str): What explains a GAP + linear classifier: 'cam', 'weight' or 'grad_act', see
            ``mmkdx.functional.self_explanation.EXPLAINERS``. Other models take 'cam' alone, which then
            is the hook's explainer. Defaults to 'cam'.
        center (bool): Whether the mean over the classes is subtracted from explanations, as the softmax
            does with logits. Defaults to True.

    Raises:
        ValueError: If there is no such explainer; from an evaluation, if a sample has no label or
            several, a label is no class of the model, or the explainer is not for the model.
    """

    question, guide = 'agreement', 'metrics_class_similarity'
    meanings = dict(
        class_similarity="Mean cosine of the label's explanation with those of the other classes.",
        class_similarity_std='Spread of these cosines; near 0 explanations do not tell classes apart.',
        confusion_correlation='Rank correlation of similar explanations with confused classes.',
        probability_correlation='Rank correlation of similar explanations with mean probabilities.',
        class_similarity_agreement="Rank correlation of these similarities with the teacher's.",
    )
    better = dict(class_similarity_agreement='higher')
    # This metric makes its own maps; the hook's map of another class does not count
    counts_degenerate = True

    def __init__(self, explainer: str = 'cam', center: bool = True) -> None:
        super().__init__()
        self.explainer = one_of('ClassSimilarity.explainer', explainer, EXPLAINERS)
        self.center = flag('ClassSimilarity.center', center)
        #: After ``evaluate`` on the main rank: for 'student', 'teacher' and 'base' the matrices.
        self.matrices: dict[str, ClassMatrices] = {}
        self._taps: WeakKeyDictionary[nn.Module, TapSet | None] = WeakKeyDictionary()

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor | list]:
        """Each image's cosines, their mean and spread, and the prediction."""
        classes = model.logits.shape[1]
        labels = torch.tensor(batch.labels('ClassSimilarity'), device=batch.inputs.device)
        for index, label in zip(batch.index, labels.tolist()):
            if label >= classes:
                raise ValueError(
                    f'ClassSimilarity: sample {int(index)} has the label {label}, which is no class of '
                    f'a model of {classes}'
                )
        similarity = self._similarity(batch, model, labels)
        own = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, labels[:, None], True)
        others = similarity[~own].view(len(labels), classes - 1)
        # Then the explanation of the label is zero; if it is not finite, it is NaN already
        zero = (others == 0).all(1, keepdim=True)
        others = others.masked_fill(zero, torch.nan)
        return dict(
            class_similarity=others.mean(1),
            class_similarity_std=others.std(1, correction=0),
            _similarity=list(similarity.masked_fill(zero, torch.nan).cpu().numpy()),
            _probability=list(model.probabilities(model.logits).cpu().numpy()),
            _label=labels,
        )

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The means, and the correlations of matrices; rows lose their cosines."""
        models: dict[str, ClassMatrices] = {}
        correlations: dict[str, Score] = {}
        for prefix, values in by_model(rows).items():
            similarity, probability, labels = (
                np.stack(values[key]) for key in ('_similarity', '_probability', '_label')
            )
            counted = np.isfinite(similarity).all(1)
            taken = np.eye(similarity.shape[1], dtype=bool)[probability.argmax(1)]
            matrix = _class_means(similarity[counted], labels[counted])
            confusion = _class_means(taken, labels)
            value = _correlation(matrix, confusion)
            found = models[prefix] = ClassMatrices(matrix, confusion, int(counted.sum()), value)
            if np.isnan(value):
                _warn(prefix.rstrip('/') or 'student', found)
            likely = _correlation(matrix, _class_means(probability, labels))
            correlations[f'{prefix}confusion_correlation'] = Score(value, n=found.n)
            correlations[f'{prefix}probability_correlation'] = Score(likely, n=found.n)
        teacher = models.get('teacher/')
        for prefix, found in models.items():
            if teacher is not None and found is not teacher:
                value = _correlation(found.similarity, teacher.similarity)
                correlations[f'{prefix}class_similarity_agreement'] = Score(
                    value, n=min(found.n, teacher.n), better='higher'
                )
        self.matrices = {prefix.rstrip('/') or 'student': each for prefix, each in models.items()}
        drop_hidden(rows)
        return {**super().summarize(rows), **correlations}

    def report_sections(self) -> list[Similarities]:
        """The matrices of each model, as a picture."""
        return [Similarities(self.matrices, self.name)] if self.matrices else []

    def _similarity(self, batch: ExplainedBatch, model: Explained, labels: Tensor) -> Tensor:
        """The cosines, of shape (N, K)."""
        taps = self._closed_form(batch, model)
        if taps is not None:
            with taps.record(model.model) as values:
                model.predict(batch.inputs)
            maps = values['cam']
            with torch.no_grad():
                return class_similarity(
                    maps.features, maps.weight, labels, self.explainer, self.center
                )
        if self.explainer != 'cam':
            name = next(name for name, each in batch.models.items() if each is model)
            raise ValueError(
                f'ClassSimilarity.explainer is {self.explainer!r}, which needs global average pooling '
                f'and one linear layer, and the {name} ({type(model.model).__name__}) has another '
                "head; use 'cam' for any classifier"
            )
        classes = model.logits.shape[1]
        size = max(1, MAPS_BYTES // (4 * classes * model.maps[0].numel()))
        parts = zip(batch.inputs.split(size), labels.split(size))
        return torch.cat(
            [_explained_similarity(model, *part, classes, self.center) for part in parts]
        )

    def _closed_form(self, batch: ExplainedBatch, model: Explained) -> TapSet | None:
        """Where to read the features of a GAP + linear classifier, searched for once a model."""
        if model.model is None:
            return None
        if model.model not in self._taps:
            taps = TapSet({'cam': 'ClassSimilarity.explainer'}, 'model')
            image = batch.inputs[:1].to(next(model.model.parameters(), batch.inputs)).clone()
            try:
                with evaluating(model.model), torch.no_grad():
                    taps.resolve(model.model, image)
            except ValueError:
                pass  # it has no class maps at all
            self._taps[model.model] = taps if taps.weights else None
        return self._taps[model.model]


def _warn(name: str, matrices: ClassMatrices) -> None:
    """Says why there is no correlation with confusions."""
    right = np.diag(matrices.confusion)
    if not matrices.n:
        reason = 'has no explanation of a label that is finite and not zero'
    elif (right[~np.isnan(right)] == 1).all():
        reason = 'takes no image of the sample for another class'
    else:
        reason = 'has explanations, or confusions, that are the same for all pairs of classes'
    print_log(
        f'ClassSimilarity: the {name} {reason}, so its confusion_correlation is NaN',
        'current',
        logging.WARNING,
    )


def _explained_similarity(
    model: Explained, inputs: Tensor, labels: Tensor, classes: int, center: bool
) -> Tensor:
    """The cosines (N, K) of maps that are made for one class after another."""
    maps = torch.stack(
        [
            full_precision(model.explain(inputs, torch.full_like(labels, k))).flatten(1)
            for k in range(classes)
        ],
        1,
    )
    # Squares of small gradients would be 0 in fp32
    scale = torch.linalg.vector_norm(maps, torch.inf, (1, 2), keepdim=True)
    maps /= scale.where(scale > 0, 1)
    if center:
        maps -= maps.mean(1, keepdim=True)
    own = maps.gather(1, labels[:, None, None].expand(-1, 1, maps.shape[2]))
    squares = torch.linalg.vector_norm(maps, dim=2).square()
    # If maps are the same for all classes, only rounding errors remain without their mean
    squares = squares.where(~(squares <= TOLERANCE**2 * maps.shape[2]), 0)
    found = cosines((maps @ own.mT)[..., 0], squares, labels)
    return found.where(scale[:, 0].isfinite(), torch.nan)


def _class_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The means of values (N, K) for each label, of shape (K, K); NaN where there are none."""
    sums = torch.zeros(values.shape[1], values.shape[1], dtype=torch.double)
    sums.index_add_(0, torch.from_numpy(labels), torch.from_numpy(values).double())
    counts = np.bincount(labels, minlength=len(sums))[:, None]
    return np.where(counts > 0, sums.numpy() / np.maximum(counts, 1), np.nan)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation off the diagonal; NaN where one is the same all over."""
    known = ~np.eye(len(first), dtype=bool) & np.isfinite(first) & np.isfinite(second)
    pair = first[known], second[known]
    if any(not len(x) or np.ptp(x) <= TOLERANCE * np.abs(x).max() for x in pair):
        return float('nan')
    return float(stats.spearmanr(*pair).statistic)
