"""Facts about each explained image, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mmkdx.functional import degenerate_maps
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, labels_of
from mmkdx.metrics.scores import Score
from mmkdx.visualization.panel import explanation_panel
from mmkdx.visualization.records import by_model
from mmkdx.visualization.report import GalleryItem
from mmkdx.visualization.sections import class_word

#: Values of an image that are no scores.
FACTS = ('target', 'prediction', 'confidence', 'degenerate', 'label')


class Facts(ExplanationMetric):
    """The classes of each image, the model's confidence, and whether its map is degenerate.

    The prediction of a network with one logit is class 0, with the sigmoid as its confidence.
    """

    better = {'degenerate': 'lower'}
    counts_degenerate = True

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor | list]:
        """See the base class."""
        facts = dict(
            target=model.targets,
            prediction=model.logits.argmax(1),
            confidence=model.probabilities(model.logits).amax(1),
            degenerate=degenerate_maps(model.maps).long(),
        )
        labels = one_label_each(batch.data_samples)
        return dict(facts, label=labels) if labels else facts

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The number of degenerate maps."""
        names = dict.fromkeys(name for row in rows for name in row if 'degenerate' in name)
        return {
            name: Score(float(sum(row[name] for row in rows)), n=len(rows), better='lower')
            for name in names
        }


def one_label_each(samples: Sequence[Any]) -> list[int] | None:
    """The label of each data sample; None where one has no label, or several."""
    labels = [labels_of(sample) for sample in samples]
    return [label for (label,) in labels] if all(len(each) == 1 for each in labels) else None


def gallery_item(
    index: int,
    image: np.ndarray,
    maps: Mapping[str, Tensor],
    row: Mapping[str, Any],
    classes: Sequence[str] | None,
    own_targets: bool,
    student: str,
) -> GalleryItem:
    """Draws an image with its captions.

    Args:
        index (int): The image's number in the data set.
        image (np.ndarray): The RGB image, uint8 of shape (H, W, 3).
        maps (Mapping[str, Tensor]): The raw map (h, w) of each model.
        row (Mapping[str, Any]): The image's values, by the names of scores and facts.
        classes (Sequence[str], optional): The names of the classes.
        own_targets (bool): Whether each model is explained for its own prediction.
        student (str): The student's name.
    """
    captions, predictions = {}, {}
    models = by_model(row)
    # A score of some of the images only, or of chance, has the name of its score in front.
    own = [
        name
        for name in models
        if name not in FACTS and not any(name.startswith(f'{other}_') for other in models)
    ]
    pairs = [name for name in own if 'teacher' in maps and 'teacher' not in models[name]]
    for name in maps:
        prediction = class_word(models['prediction'][name], classes)
        predictions[student if name == 'student' else name] = prediction
        values = [
            _line(score, models[score][name])
            for score in own
            if score not in pairs and name in models[score]
        ]
        captions[name] = [f'{prediction} {models["confidence"][name]:.3f}', *values[:2]]
    captions['difference'] = [_line(name, row[name]) for name in pairs][:2]
    label = class_word(row['label'], classes) if 'label' in row else None
    target = 'own prediction' if own_targets else class_word(models['target']['student'], classes)
    captions['input'] = [f'explained: {target}']
    if label is not None:
        captions['input'].insert(0, f'label: {label}')
    return GalleryItem(
        picture=explanation_panel(image, maps, captions, student=student),
        index=index,
        label=label,
        predictions=predictions,
        scores={name: float(models[name]['student']) for name in own if 'student' in models[name]},
    )


def _line(name: str, value: float) -> str:
    return f'{name.replace("_", " ")} {value:.3f}'
