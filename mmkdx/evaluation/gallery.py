"""One explained image as a picture, with what a report tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mmkdx.evaluation.facts import FACTS
from mmkdx.visualization.panel import explanation_panel
from mmkdx.visualization.records import by_model
from mmkdx.visualization.report import GalleryItem
from mmkdx.visualization.sections import class_word


@dataclass
class ShownImage:
    """An image that is drawn.

    Args:
        index (int): Which image of the data set it is.
        image (np.ndarray): The RGB image, uint8 of shape (H, W, 3).
        maps (dict[str, Tensor]): The raw map (h, w) of each model.
    """

    index: int
    image: np.ndarray
    maps: dict[str, Tensor]


def gallery_item(
    shown: ShownImage,
    row: Mapping[str, Any],
    classes: Sequence[str] | None,
    own_targets: bool,
    student: str,
) -> GalleryItem:
    """Draws an image and says what is to be known of it.

    Args:
        shown (ShownImage): The image.
        row (Mapping[str, Any]): Its values, by the names of scores and facts.
        classes (Sequence[str], optional): The names of the classes.
        own_targets (bool): Whether each model is explained for its own prediction.
        student (str): What the student is called.
    """
    captions, predictions = {}, {}
    models = by_model(row)
    # A score of some of the images only, or of chance, has the name of its score in front.
    own = [
        name
        for name in models
        if name not in FACTS and not any(name.startswith(f'{other}_') for other in models)
    ]
    pairs = [name for name in own if 'teacher' in shown.maps and 'teacher' not in models[name]]
    for name in shown.maps:
        prediction = class_word(models['prediction'][name], classes)
        predictions[student if name == 'student' else name] = prediction
        captions[name] = [
            f'{prediction} {models["confidence"][name]:.3f}',
            *(
                _line(each, models[each][name])
                for each in own
                if each not in pairs and name in models[each]
            ),
        ][:3]
    captions['difference'] = [_line(name, row[name]) for name in pairs][:2]
    label = class_word(row['label'], classes) if 'label' in row else None
    explained = (
        'own prediction' if own_targets else class_word(models['target']['student'], classes)
    )
    captions['input'] = [
        *([f'label: {label}'] if label is not None else []),
        f'explained: {explained}',
    ]
    return GalleryItem(
        picture=explanation_panel(shown.image, shown.maps, captions, student=student),
        index=shown.index,
        label=label,
        predictions=predictions,
        scores={name: float(models[name]['student']) for name in own if 'student' in models[name]},
    )


def _line(name: str, value: float) -> str:
    return f'{name.replace("_", " ")} {value:.3f}'
