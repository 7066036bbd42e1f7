"""Birds made of parts, drawn by the project itself, with the truth about what decides the class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import integer, number, one_of
from mmkdx.datasets import bird_drawing as birds
from mmkdx.registry import DATASETS

SPLITS = ('train', 'val', 'test')
MARKS = ('none', 'class', 'random')


@DATASETS.register_module()
class Parts(BaseDataset):
    """Birds made of parts on distracting backgrounds; the class is decided by parts.

    A bird has a body, a head, and five parts of three variants each: tail, wing, beak, crest and legs.
    The crest says which other part counts (spiked: the tail; bobbled: the wing; plumed: the beak), and
    the variant of that part makes the class, so there are nine classes. All the rest (variants of the
    other parts, colours, proportions, pose, light, background) is random and independent of the class.

    A sample depends on ``seed``, ``split`` and its index alone. (Other versions of NumPy or OpenCV may
    draw other pixels.) The label is the index modulo 9. All images are drawn at the beginning and kept
    in memory, 16 KiB each at the default size.

    A mark can be planted in the background: a small white plate with a symbol of a class, that never
    touches the bird. Apart from it images are the same with every choice of ``mark``.

    A sample has

    - ``img``: uint8 of shape (image_size, image_size, 3), in OpenCV's order BGR;
    - ``gt_label``: int;
    - ``gt_seg_map``: uint8 of shape (image_size, image_size), ids of ``metainfo['regions']``: 0 is the
      background, 8 the mark. A pixel belongs to the last painted region that covers a part of it;
    - ``object_labels``, ``deciding_labels``, ``mark_labels``: lists of such ids: the whole bird, the
      two parts that decide its class, and the mark (empty without one);
    - ``variants``: dict, the variant of each part;
    - ``mark_label``: the class whose mark is shown, None without a mark;
    - ``group``, with a mark: int, 1 where it is that of the image's class, else 0.

    It needs no loading transform. ``metainfo['deciding_parts']`` has for each class the deciding parts.

    Args:
        split (str): 'train', 'val' or 'test', which share no image. Defaults to 'train'.
        num_samples (int): How many images. Defaults to 3600.
        image_size (int): Height and width, from 32 on. Defaults to 64.
        mark (str): 'none'; 'class': the mark is that of the class; or 'random': that of a class drawn
            uniformly. Defaults to 'none'.
        bias (float): With ``mark='class'``, the share of images with the mark of their class, exact
            within each class (rounded); the others have that of another class. Defaults to 1.0.
        seed (int): Another seed makes another world of images, of the same classes. Defaults to 0.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: If an argument is out of range.
    """

    METAINFO = {
        'classes': birds.CLASSES,
        'regions': birds.REGIONS,
        'deciding_parts': birds.DECIDING,
    }

    def __init__(
        self,
        split: str = 'train',
        num_samples: int = 3600,
        image_size: int = 64,
        mark: str = 'none',
        bias: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.split = one_of('Parts.split', split, SPLITS)
        self.num_samples = integer('Parts.num_samples', num_samples, 1, 10**7)
        self.image_size = integer('Parts.image_size', image_size, 32)
        self.mark = one_of('Parts.mark', mark, MARKS)
        self.bias = number('Parts.bias', bias, 0, 1)
        self.seed = integer('Parts.seed', seed, 0)
        if bias != 1 and mark != 'class':
            raise ValueError(f"Parts.bias is {bias}, which has a meaning with mark='class' alone")
        kwargs.setdefault('test_mode', split != 'train')
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Draws the images."""
        return [self._draw(index) for index in range(self.num_samples)]

    def _draw(self, index: int) -> dict:
        """Draws the sample of an index, with the fields that the class describes."""
        rank, label = divmod(index, len(birds.CLASSES))
        key = (self.seed, SPLITS.index(self.split), index)
        rng = np.random.default_rng((*key, 0))
        variants, layers, shapes = birds.scene(rng, label)
        canvas = birds.paint(layers, shapes, self.image_size)
        mark_label = None
        if self.mark != 'none':
            # Of its own, so that the mark changes nothing else
            mark_rng = np.random.default_rng((*key, 1))
            mark_label = self._mark_label(mark_rng, rank, label)
            birds.paint_mark(canvas, mark_label, mark_rng)
        image, regions = birds.develop(canvas, rng)
        return dict(
            img=image,
            gt_label=label,
            gt_seg_map=regions,
            object_labels=list(range(1, birds.MARK)),
            deciding_labels=[birds.REGIONS.index(part) for part in birds.DECIDING[label]],
            mark_labels=[] if mark_label is None else [birds.MARK],
            variants=variants,
            mark_label=mark_label,
            **({} if mark_label is None else dict(group=int(mark_label == label))),
        )

    def _mark_label(self, rng: np.random.Generator, rank: int, label: int) -> int:
        """The class whose mark the image number ``rank`` of class ``label`` shows."""
        if self.mark == 'random':
            return int(rng.integers(len(birds.CLASSES)))
        # Among the first n of a class, n * bias (rounded) images have its mark
        before, after = (math.floor(n * self.bias + 0.5) for n in (rank, rank + 1))
        if after > before:
            return label
        return int(label + rng.integers(1, len(birds.CLASSES))) % len(birds.CLASSES)
