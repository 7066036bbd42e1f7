"""A map of noise: every explainer has to beat this floor."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.arguments import size as height_and_width
from mmkdx.explain.base import Explainer
from mmkdx.explain.gradient import GradCAM
from mmkdx.explain.targets import Scores, Targets
from mmkdx.functional import full_precision
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class RandomMap(Explainer):
    """Standard normal noise: an explainer that scores no better explains nothing.

    The noise depends on the image's values in fp32, on the class and on ``seed``. It does not depend on
    the model's weights, the batch, the order of the images, the device or the number of calls. An image
    that changes a little has other noise. So has an image that a model in half precision rounds. For a
    function as target the noise depends on the image and the seed alone.

    Args:
        size (int | Sequence[int], optional): The height and width of the map, or one side of a square.
            Noise of few positions is smooth once it is enlarged, and noise of many is not. So a floor
            needs the size of the maps beside it. Defaults to None: the size of the layer that
            ``layer='auto'`` finds (see ``mmkdx.explain.layers.find_layers``).
        seed (int): The seed. Defaults to 0.

    Raises:
        ValueError: If an argument is out of its range; from a call, if ``size`` is None and the model
            has no such layer.
    """

    def __init__(self, size: int | Sequence[int] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.size = None if size is None else height_and_width('RandomMap.size', size)
        self.seed = integer('RandomMap.seed', seed, 0)
        self._layers = GradCAM().layers

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        images = [crc32(image.numpy().tobytes()) for image in inputs.detach().float().cpu()]

        def make(weights: Tensor) -> list[Tensor]:
            size = self.size or self._layers(model, inputs, targets)[0].layout.size
            weights = full_precision(weights).cpu()
            maps = [self._noise(image, row, size) for image, row in zip(images, weights)]
            return [torch.stack(maps).to(inputs.device)]

        known = isinstance(targets, Tensor) and targets.dtype == torch.long
        if self.size and known and targets.shape == inputs.shape[:1] and targets.min() >= 0:
            return make(F.one_hot(targets).float())[0]  # without a forward pass
        with torch.no_grad():
            logits = Scores(model, targets)(inputs)
        return self.for_targets(make, targets, logits)[0]

    def _noise(self, image: int, weights: Tensor, size: tuple[int, int]) -> Tensor:
        """Makes the noise of an image from its checksum, for class weights (K, )."""
        # A class has the same noise in models with more classes
        classes = weights.nonzero()
        target = crc32(classes.numpy().tobytes() + weights[classes].float().numpy().tobytes())
        generator = np.random.default_rng([self.seed, image, target])
        return torch.from_numpy(generator.standard_normal(size, dtype=np.float32))
