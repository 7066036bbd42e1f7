"""Birds made of parts, drawn by mmkdx, with ground truth on the parts that decide the class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import integer, number, one_of
from mmkdx.datasets import bird_drawing as birds
from mmkdx.registry import DATASETS

SPLITS = ('train', 'val', 'test')
MARKS = ('none', 'class', 'random')
#: The choices for each part: its variants, or for the mark the class that it belongs to.
CHOICES = {**{part: tuple(each) for part, each in birds.VARIANTS.items()}, 'mark': birds.CLASSES}


@DATASETS.register_module()
class Parts(BaseDataset):
    """Birds made of parts on distracting backgrounds; two parts decide the class.

    A bird has a body, a head, and five parts of three variants each: tail, wing, beak, crest and
    legs. The crest tells which other part counts (spiked: the tail; bobbled: the wing; plumed: the
    beak). The variant of that part decides the class, so there are nine classes. All the rest
    (variants of the other parts, colours, proportions, pose, light, background) is random and
    independent of the class.

    A sample depends on ``seed``, ``split`` and its index alone. (Other versions of NumPy or OpenCV may
    draw other pixels.) The label is the index modulo 9. All images are drawn at the beginning and kept
    in memory, 16 KiB each at the default size.

    A mark can be added to the background: a small white plate with a symbol of a class. It never
    touches the bird. Apart from it, images are the same with every choice of ``mark``.

    A sample has

    - ``img``: uint8 of shape (image_size, image_size, 3), in OpenCV's order BGR;
    - ``gt_label``: int;
    - ``gt_seg_map``: uint8 of shape (image_size, image_size), ids of ``metainfo['regions']``: 0 is the
      background, 8 the mark. A pixel belongs to the last painted region that covers a part of it;
    - ``object_labels``, ``deciding_labels``, ``mark_labels``: lists of these ids for the whole
      bird, for the two parts that decide its class, and for the mark (empty without one);
    - ``variants``: dict, the variant of each part, None if it is missing;
    - ``mark_label``: the class whose mark is shown, None without a mark;
    - ``drawing``: the number of the drawing, which is the image's index in the whole data set;
    - ``group``, if there is a mark: int, 1 for the mark of the image's class, else 0.

    It needs no loading transform. ``metainfo['deciding_parts']`` has the deciding parts of each
    class.

    ``intervene`` draws the same image again without a part, with another variant of it, or with another
    mark. ``PartIntervention`` uses this to measure the true effect of a part on a model.

    Args:
        split (str): 'train', 'val' or 'test', which share no image. Defaults to 'train'.
        num_samples (int): The number of images. Defaults to 3600.
        image_size (int): Height and width, at least 32. Defaults to 64.
        mark (str): 'none', 'class' for the mark of the image's class, or 'random' for the mark of a
            class that is drawn uniformly. Defaults to 'none'.
        bias (float): With ``mark='class'``, the share of images with the mark of their class, exact
            within each class (rounded). The others have the mark of another class. Defaults to 1.0.
        missing (float): Probability that an image lacks 1, 2 or 3 of the parts that do not decide its
            class (the number is uniform). A model trained on such images already knows birds with
            missing parts. Defaults to 0.0.
        seed (int): Another seed makes other images of the same classes. Defaults to 0.
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
        missing: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.split = one_of('Parts.split', split, SPLITS)
        self.num_samples = integer('Parts.num_samples', num_samples, 1, 10**7)
        self.image_size = integer('Parts.image_size', image_size, 32)
        self.mark = one_of('Parts.mark', mark, MARKS)
        self.bias = number('Parts.bias', bias, 0, 1)
        self.missing = number('Parts.missing', missing, 0, 1)
        self.seed = integer('Parts.seed', seed, 0)
        if bias != 1 and mark != 'class':
            raise ValueError(f"Parts.bias is {bias}, which is used only with mark='class'")
        kwargs.setdefault('test_mode', split != 'train')
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Draws the images."""
        return [self._draw(index) for index in range(self.num_samples)]

    def interventions(self, index: int, kind: str) -> dict[str, list[str | None]]:
        """The interventions that an image allows: values of ``variant`` for each part.

        Args:
            index (int): The index of the image.
            kind (str): 'remove', or 'swap' for other variants and for the marks of all other
                classes. Variants that do not fit into the image are left out.

        Raises:
            ValueError: If the kind is neither.
        """
        one_of('Parts.interventions: kind', kind, ('remove', 'swap'))
        info = self.get_data_info(index)
        present = {part: has for part, has in self._present(info).items() if has}
        if kind == 'remove':
            return {part: [None] for part in present}
        bird, variants = self._scene(info['drawing'])[3], info['variants']
        return {
            part: [
                each
                for each in CHOICES[part]
                if each != has
                and (part == 'mark' or bird.fits({**variants, part: each}))
                # A bird without the part that its crest points to has no class
                and (part != 'crest' or variants[birds.POINTS_TO[each]])
            ]
            for part, has in present.items()
        }

    def intervene(self, index: int, part: str | None = None, variant: str | None = None) -> dict:
        """Draws an image again with one change; all else stays the same.

        Args:
            index (int): The index of the image.
            part (str, optional): 'tail', 'wing', 'beak', 'crest', 'legs' or 'mark'. Defaults to None:
                no change.
            variant (str, optional): Another variant of the part. For the mark it is the name of the
                class that the new mark belongs to. Defaults to None: the part is removed.

        Returns:
            dict: A sample like that of ``get_data_info``. With another crest, or another variant of
            the part that the crest points to, ``gt_label`` is the class of the new bird. A removal
            does not change it.

        Raises:
            ValueError: If there is no such part or variant, the image lacks the part, or the variant
                is the present one.
        """
        info = self.get_data_info(index)
        owner = 'Parts.intervene'
        if part is None and variant is None:
            changes = {}
        else:
            one_of(f'{owner}: part', part, CHOICES)
            present = self._present(info)[part]
            if present is None:
                raise ValueError(f'{owner}: image {index} has no {part}')
            if variant is not None:
                one_of(f'{owner}: variant', variant, CHOICES[part])
            if variant == present:
                raise ValueError(f'{owner}: the {part} of image {index} is {variant!r} already')
            if part == 'crest' and variant and info['variants'][birds.POINTS_TO[variant]] is None:
                raise ValueError(
                    f'{owner}: image {index} lacks the {birds.POINTS_TO[variant]}, which a {variant} '
                    'crest points to'
                )
            is_mark = part == 'mark' and variant is not None
            changes = {part: birds.CLASSES.index(variant) if is_mark else variant}
        return dict(self._draw(info['drawing'], changes), sample_idx=info['sample_idx'])

    def _present(self, info: dict) -> dict[str, str | None]:
        """The variant of each part of a sample, and the class of its mark; None for what it lacks."""
        mark = info['mark_label']
        return dict(info['variants'], mark=None if mark is None else birds.CLASSES[mark])

    def _scene(self, drawing: int) -> tuple[np.random.Generator, list, list, birds.Bird]:
        """The generator of light and noise, and the random content of an image without the mark."""
        rng = self._generator(drawing, 0)
        return rng, *birds.scene(rng, drawing % len(birds.CLASSES))

    def _generator(self, drawing: int, purpose: int) -> np.random.Generator:
        key = self.seed, SPLITS.index(self.split), drawing, purpose
        return np.random.default_rng(key)

    def _draw(self, drawing: int, changes: Mapping[str, Any] = MappingProxyType({})) -> dict:
        """Draws a sample with the fields that the class describes, after changes of its parts."""
        rng, layers, things, bird = self._scene(drawing)
        rank, label = divmod(drawing, len(birds.CLASSES))
        mark_label, mark_rng = None, None
        if self.mark != 'none':
            # A generator of its own, so that the mark changes nothing else
            mark_rng = self._generator(drawing, 1)
            mark_label = self._mark_label(mark_rng, rank, label)
        variants = {**bird.variants, **self._missing_parts(drawing, label), **changes}
        mark_label = variants.pop('mark', mark_label)
        canvas = birds.paint(layers, things + bird.shapes(variants), self.image_size)
        if mark_label is not None:
            whole = canvas
            if variants != bird.variants:
                # The mark is beside the whole bird, whatever is missing
                shapes = things + bird.shapes(bird.variants)
                whole = birds.paint(layers, shapes, self.image_size)
            birds.paint_mark(canvas, mark_label, birds.mark_place(whole, mark_rng))
        image, regions = birds.develop(canvas, rng)
        if None not in changes.values():
            label = birds.class_of(variants)
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
            drawing=drawing,
        )

    def _missing_parts(self, drawing: int, label: int) -> dict[str, None]:
        """The parts that an image lacks with the option ``missing``."""
        rng = self._generator(drawing, 2)
        if rng.random() >= self.missing:
            return {}
        others = [part for part in birds.VARIANTS if part not in birds.DECIDING[label]]
        count = int(rng.integers(1, len(others) + 1))
        return dict.fromkeys(rng.permutation(others)[:count].tolist())

    def _mark_label(self, rng: np.random.Generator, rank: int, label: int) -> int:
        """The class whose mark the image number ``rank`` of class ``label`` shows."""
        if self.mark == 'random':
            return int(rng.integers(len(birds.CLASSES)))
        # Among the first n of a class, n * bias (rounded) images have its mark
        before, after = (math.floor(n * self.bias + 0.5) for n in (rank, rank + 1))
        if after > before:
            return label
        return int(label + rng.integers(1, len(birds.CLASSES))) % len(birds.CLASSES)
