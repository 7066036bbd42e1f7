"""Batches of images as data loaders yield them, prepared to be explained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmkdx.metrics.base import ExplainedBatch
from mmkdx.models.families import describe, unwrap
from mmkdx.visualization.panel import as_rgb


@dataclass
class ImageBatch(ExplainedBatch):
    """A batch of images, prepared for the student.

    Args:
        loaded (Sequence, optional): The images before the student's preprocessor. Defaults to None: it
            has none.
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
        chosen (Collection[int], optional): The images to keep. Defaults to None (all). Without one
            there is no batch.

    Raises:
        ValueError: If the batch has another form, or the images have no numbers.
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
        inputs, loaded = images.to(next(model.parameters(), images).device), None
    else:
        inputs = preprocessor(dict(inputs=images, data_samples=samples), False)['inputs']
        loaded = images
    bgr = getattr(preprocessor, 'to_rgb', False)
    return ImageBatch(
        inputs, index, {}, samples, expected.mean, expected.std, loaded=loaded, bgr=bgr
    )
