"""The images of an evaluation: batches of them, facts about each, and pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.datasets.wrappers import class_text
from mmkdx.functional import degenerate_maps, full_precision
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, labels_of
from mmkdx.metrics.scores import Score
from mmkdx.models.families import describe, unwrap
from mmkdx.visualization.panel import as_rgb, explanation_panel
from mmkdx.visualization.records import by_model
from mmkdx.visualization.rendering import label_text
from mmkdx.visualization.report import GalleryItem

#: Values of an image that are no scores.
FACTS = ('target', 'prediction', 'confidence', 'degenerate', 'label')


@dataclass
class ImageBatch(ExplainedBatch):
    """A batch of images, prepared for the student.

    Args:
        loaded (Sequence, optional): The images before the preprocessor. Defaults to None: there is none.
        bgr (bool): Whether these have OpenCV's order of channels. Defaults to False.
    """

    loaded: Sequence | None = None
    bgr: bool = False

    def picture(self, i: int) -> np.ndarray:
        """An image as an RGB picture, uint8 of shape (H, W, 3)."""
        if self.loaded is not None:
            return as_rgb(self.loaded[i], self.bgr)
        image = self.inputs[i].float().cpu()
        if self.inputs.is_floating_point() and self.mean and self.std:
            mean, std = torch.tensor([self.mean, self.std])[..., None, None]
            image = (image * std + mean).clamp(0, 255).byte()
        return as_rgb(image)


def read_batch(
    data: Any,
    model: nn.Module,
    owner: str,
    index: Sequence[int] | None = None,
    chosen: Collection[int] | None = None,
) -> ImageBatch | None:
    """Prepares what a data loader yields; with test-time augmentation the first view of an image.

    Args:
        data (Any): A dict with 'inputs' and 'data_samples', as mmpretrain's data loaders yield it, or
            (images, labels).
        model (nn.Module): The model whose ``data_preprocessor``, if it has one, prepares the images.
        owner (str): The reader's name in messages.
        index (Sequence[int], optional): The number of each image. Defaults to None: 'sample_idx' of the
            data samples.
        chosen (Collection[int], optional): The images to keep, if any. Defaults to None (all).

    Raises:
        ValueError: If the batch has another form, the images have no numbers, or they are normalised
            already and the model would do so again.
    """
    model = unwrap(model)
    if isinstance(data, Mapping):
        images, samples = data['inputs'], data['data_samples']
        if len(samples) and isinstance(samples[0], (list, tuple)):
            images, samples = images[0], samples[0]
    elif isinstance(data, (tuple, list)) and len(data) > 1 and isinstance(data[0], Tensor):
        images = data[0]
        samples = [dict(gt_label=torch.as_tensor(label)) for label in data[1]]
    else:
        raise ValueError(
            f'{owner}: the data loader yields a {type(data).__name__}; it must yield (images, labels), '
            "or a dict with 'inputs' and 'data_samples'"
        )
    if index is None:
        if any('sample_idx' not in sample for sample in samples):
            raise ValueError(
                f"{owner}: the data samples have no 'sample_idx'; let the dataset's PackInputs keep it "
                '(meta_keys)'
            )
        index = [sample.get('sample_idx') for sample in samples]
    here = [i for i, each in enumerate(index) if chosen is None or each in chosen]
    if not here:
        return None
    samples, index = [samples[i] for i in here], [int(index[i]) for i in here]
    images = images[here] if isinstance(images, Tensor) else [images[i] for i in here]
    expected = describe(model).images
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        inputs, raw = images.to(next(model.parameters(), images).device), {}
    else:
        if getattr(preprocessor, 'mean', None) is not None and min(map(torch.amin, images)) < 0:
            raise ValueError(
                f"{owner}: the images have values below 0, and the model's data_preprocessor normalises "
                'images itself; let the data loader yield images that are not normalised'
            )
        inputs = preprocessor(dict(inputs=images, data_samples=samples), False)['inputs']
        raw = dict(loaded=images, bgr=getattr(preprocessor, 'to_rgb', False))
    return ImageBatch(inputs, index, {}, samples, expected.mean, expected.std, **raw)


class Facts(ExplanationMetric):
    """The classes of each image, the model's confidence, and whether its map is degenerate.

    The prediction of a network with one logit is class 0, with the sigmoid as its confidence. An audit
    reads ``label_probability``, ``kl`` (of the teacher's and the model's probabilities, in nats) and
    ``group``. The first two are there for models whose probabilities add up to 1, and the last where
    the data samples have it.
    """

    question, guide = 'complexity', 'explain'
    meanings = {'degenerate': 'Number of maps that are constant or not finite.'}
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
        if all('group' in sample for sample in batch.data_samples or [{}]):
            facts['group'] = [int(sample.get('group')) for sample in batch.data_samples]
        if not (labels := one_label_each(batch.data_samples)):
            return facts
        if _is_distribution(model) and max(labels) < model.logits.shape[1]:
            label = torch.tensor(labels, device=model.logits.device)
            facts['label_probability'] = model.confidence(model.logits, label)
        return dict(facts, label=labels)

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor | list]:
        """See the base class."""
        if not (_is_distribution(student) and _is_distribution(teacher)):
            return {}
        own, other = (full_precision(each.logits).log_softmax(1) for each in (student, teacher))
        return dict(kl=F.kl_div(own, other, reduction='none', log_target=True).sum(1))

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The number of degenerate maps."""
        names = dict.fromkeys(name for row in rows for name in row if 'degenerate' in name)
        return {
            name: Score(float(sum(row[name] for row in rows)), n=len(rows), better='lower')
            for name in names
        }


def _is_distribution(model: Explained) -> bool:
    """Whether a model's probabilities of a batch add up to 1, which those of sigmoids do not."""
    sums = model.probabilities(model.logits).sum(1)
    return model.logits.shape[1] > 1 and bool(((sums - 1).abs() < 1e-2).all())


def one_label_each(samples: Sequence[Any]) -> list[int] | None:
    """The label of each data sample; None where one has no label, or several."""
    labels = [labels_of(sample) for sample in samples]
    return [label for (label,) in labels] if all(len(each) == 1 for each in labels) else None


def gallery_item(
    index: int,
    image: np.ndarray,
    maps: Mapping[str, Tensor],
    row: Mapping[str, Any],
    scores: Collection[str],
    classes: Sequence[str] | None,
    own_targets: bool,
    student: str,
) -> GalleryItem:
    """Draws an image with its captions.

    Args:
        index (int): The image's number in the data set.
        image (np.ndarray): The RGB image, uint8 of shape (H, W, 3).
        maps (Mapping[str, Tensor]): The raw map (h, w) of each model.
        row (Mapping[str, Any]): The image's values by name.
        scores (Collection[str]): The names of the values that are scores.
        classes (Sequence[str], optional): The names of the classes.
        own_targets (bool): Whether each model is explained for its own prediction.
        student (str): The student's name.
    """
    captions, predictions = {}, {}
    shown = [name for name in row if name in scores or name.rpartition('/')[2] in FACTS]
    models = by_model({name: row[name] for name in shown})
    # A score of some of the images only, or of chance, has the name of its score in front.
    own = [
        name
        for name in models
        if name not in FACTS and not any(name.startswith(f'{other}_') for other in models)
    ]
    pairs = [name for name in own if 'teacher' in maps and 'teacher' not in models[name]]
    for name in maps:
        prediction = models['prediction'][name]
        predictions[student if name == 'student' else name] = class_text(prediction, classes)
        values = [
            _line(score, models[score][name])
            for score in own
            if score not in pairs and name in models[score]
        ]
        captions[name] = [
            f'{label_text(prediction, classes)} {models["confidence"][name]:.3f}',
            *values[:2],
        ]
    captions['difference'] = [_line(name, row[name]) for name in pairs][:2]
    target = 'own prediction' if own_targets else label_text(models['target']['student'], classes)
    captions['input'] = [f'explained: {target}']
    if 'label' in row:
        captions['input'].insert(0, f'label: {label_text(row["label"], classes)}')
    return GalleryItem(
        picture=explanation_panel(image, maps, captions, side=176, student=student),
        index=index,
        label=class_text(row['label'], classes) if 'label' in row else None,
        predictions=predictions,
        scores={name: float(models[name]['student']) for name in own if 'student' in models[name]},
    )


def _line(name: str, value: float) -> str:
    return f'{name.replace("_", " ")} {value:.3f}'
