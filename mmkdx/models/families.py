"""What a model is: how logits come out of it, what they mean, and what it expects of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageFormat:
    """What a model expects of its input images. None is unknown, which is not the same as none.

    Args:
        mean (tuple[float, ...], optional): What is subtracted from each channel, in units of 0..255.
        std (tuple[float, ...], optional): What each channel is divided by, in units of 0..255.
        order (str, optional): 'rgb' or 'bgr'.
        size (tuple[int, int], optional): Height and width.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    order: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What there is to know about a classifier.

    Args:
        family (str): 'mmpretrain', 'timm', 'huggingface', 'torchvision', 'torch' or a plugin's.
        model (nn.Module): The model without wrappers.
        logits_path (str): The path of the module whose output holds the logits; '' is the model.
        activation (str): What turns logits into probabilities, 'softmax' or 'sigmoid'.
        images (ImageFormat): What it expects of images.
        classes (tuple[str, ...], optional): The names of its classes. Defaults to None (unknown).
    """

    family: str
    model: nn.Module
    logits_path: str = ''
    activation: str = 'softmax'
    images: ImageFormat = field(default_factory=ImageFormat)
    classes: tuple[str, ...] | None = None

    def logits(self, inputs: Tensor) -> Tensor:
        """The logits (N, K) of preprocessed images (N, C, H, W), in the model's present mode."""
        raise NotImplementedError

    def logits_in(self, output: Any) -> Tensor:
        """The logits (N, K) in what the module at ``logits_path`` returned."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities (N, K) of logits (N, K), in fp32; a network with one logit has sigmoid."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return logits.sigmoid() if self.activation == 'sigmoid' else logits.softmax(1)


def describe(model: nn.Module) -> ModelFacts:
    """Finds out what a model is; wrappers (DDP, EMA, TTA, ``torch.compile``) come off.

    Raises:
        ValueError: If nothing can be known of such a model (a ScriptModule).
    """
    raise NotImplementedError
