"""Makes the pictures of a prototype network from the network and its images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from torch import Tensor

from mmkdx.datasets.wrappers import class_text, images, labels
from mmkdx.functional import resize_maps
from mmkdx.functional.activation_boxes import high_activation_boxes
from mmkdx.models.heads import ProtoPNetHead
from mmkdx.models.heads.prototype_head import prototype_head
from mmkdx.models.heads.push import NearestPatches
from mmkdx.models.intercept import evaluating
from mmkdx.visualization.panel import as_rgb
from mmkdx.visualization.prototypes import Patch, global_sheet, local_sheet
from mmkdx.visualization.sections import PictureSection

#: The explanation of the pictures of ``PrototypeSheets.explain_image``.
LOCAL_NOTE = (
    'What speaks for the predicted class of an image, and for the next one: this patch looks like that '
    'prototype. The contributions of all prototypes, similarity times weight, add up to the logit.'
)


class PrototypeSheets:
    """Draws the prototypes of a classifier, and the prototypes that decide.

    Args:
        model (BaseModel): A classifier of mmpretrain with a prototype head, after a push.
        dataset (Any): The images that the prototypes were projected onto.
        classes (Sequence[str], optional): The names of the classes. Defaults to None: their indices.
        cmap (str): See ``heat_map``. Defaults to 'viridis'.
        owner (str): How error messages call the model. Defaults to 'the checkpoint'.

    Raises:
        ValueError: If the model has no prototypes, they have not been projected, or not onto these
            images.
    """

    def __init__(
        self,
        model: BaseModel,
        dataset: Any,
        classes: Sequence[str] | None = None,
        cmap: str = 'viridis',
        owner: str = 'the checkpoint',
    ) -> None:
        head = prototype_head(model, f'the analysis of {owner}')
        pushed = head.source_image >= 0
        if missing := int((~pushed & head.alive).sum()):
            raise ValueError(
                f'{owner} has {missing} of {len(pushed)} prototypes that have not been projected onto '
                'training images; use a checkpoint that was saved after a push of PrototypePushHook'
            )
        self.model = model
        self.head = head
        self.dataset = dataset
        self.classes = classes
        self.cmap = cmap
        #: For each image number, an index of the data set that shows the image.
        self.shown = images(dataset)
        label_of = labels(dataset)
        for j in pushed.nonzero()[:, 0].tolist():
            image, label = int(head.source_image[j]), int(head.source_label[j])
            if image not in self.shown or label != label_of[self.shown[image]]:
                raise ValueError(
                    f'{owner} has prototype {j} from image {image} of class {label}, which is not in '
                    "the data of PrototypePushHook; use the data of the prototypes' training"
                )

    def word(self, label: int) -> str:
        """Returns the name and index of a class."""
        words = class_text(label, self.classes)
        return f'class {words}' if words == f'{label}' else words

    def prepare(self, item: dict) -> tuple[np.ndarray, Tensor, Any]:
        """Returns a pipeline's output as a picture and as input (1, 3, H, W), and its data sample."""
        preprocessor = self.model.data_preprocessor
        inputs = preprocessor(pseudo_collate([item]), False)['inputs']
        image = as_rgb(item['inputs'], getattr(preprocessor, 'to_rgb', False))
        return image, inputs, item['data_samples']

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Returns the rows and columns of the source cells of all prototypes."""
        return tuple(self.distances(self.prepare(self.dataset[0])[1]).shape[2:])

    @torch.no_grad()
    def distances(self, inputs: Tensor) -> Tensor:
        """Returns the squared distances (N, P, h, w) of positions and prototypes, in eval mode."""
        with evaluating(self.model):
            return self.head.distances(self.model.extract_feat(inputs))

    def chosen(self, prototypes: Sequence[int] | None, num: int) -> list[int]:
        """Returns the requested prototypes, which must exist, or a spread over all unpruned ones."""
        if prototypes is None:
            return spread(self.head.alive.nonzero()[:, 0].cpu().numpy(), num)
        count = len(self.head.alive)
        for j in prototypes:
            if not 0 <= j < count:
                raise ValueError(
                    f'prototypes: there is no prototype {j}; there are 0 to {count - 1}'
                )
            if self.head.source_image[j] < 0:
                raise ValueError(f'prototypes: prototype {j} was pruned before it was projected')
        return list(prototypes)

    def source(self, j: int) -> tuple[Patch, dict[str, Any]]:
        """Returns the patch of a prototype, and its source."""
        head = self.head
        index, label = int(head.source_image[j]), int(head.source_label[j])
        image, _, sample = self.prepare(self.dataset[self.shown[index]])
        facts = dict(
            prototype=j,
            source_image=index,
            source_path=sample.get('img_path'),
            source_label=label,
            source_class=self.word(label),
            source_cell=head.source_cell[j].tolist(),
            source_box=head.source_box[j].tolist(),
            alive=bool(head.alive[j]),
        )
        return Patch(image, facts['source_box'], None, facts['source_cell'], self.grid), facts

    @torch.no_grad()
    def explain_prototype(
        self, j: int, neighbours: dict[str, tuple[Any, NearestPatches]], k: int = 5
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Makes the picture and numbers of a prototype: its source and the nearest patches.

        The source itself is not among them.

        Args:
            j (int): The prototype.
            neighbours (dict[str, tuple]): Data sets and their nearest patches, by their names.
            k (int): Number of patches of each. Defaults to 5.
        """
        source, facts = self.source(j)
        inputs = self.prepare(self.dataset[self.shown[facts['source_image']]])[1]
        source.similarity = self.head.similarity(self.distances(inputs)[0, j])
        (row, column), (x0, y0, x1, y1) = facts['source_cell'], facts['source_box']
        source.lines = [
            f'Taken from training image {facts["source_image"]}',
            *([facts['source_path']] if facts['source_path'] else []),
            facts['source_class'],
            f'cell: row {row}, column {column}',
            f'box: x {x0} to {x1}, y {y0} to {y1}',
        ]
        if isinstance(self.head, ProtoPNetHead):
            weight, label = self.head.class_weights()[:, j].max(0)
            facts.update(weight=float(weight), weight_class=self.word(int(label)))
            source.lines.append(
                f'speaks most for: {facts["weight_class"]} (weight {facts["weight"]:.3f})'
            )
        shown = {}
        for name, (dataset, nearest) in neighbours.items():
            own = facts['source_image'] if dataset is self.dataset else -1
            shown_by, near = images(dataset), []
            for i, index in enumerate(nearest.images[j].tolist()):
                if nearest.distances[j, i].isfinite() and index != own and len(near) < k:
                    near.append(self._neighbour(dataset[shown_by[index]], nearest, j, i))
            shown[f'Nearest {name} images'] = [patch for patch, _ in near]
            facts[name] = [each for _, each in near]
        title = f'Prototype {j}: {facts["source_class"]}{"" if facts["alive"] else " (pruned)"}'
        return global_sheet([title], source, shown, self.cmap), facts

    def _neighbour(
        self, item: dict, nearest: NearestPatches, j: int, i: int
    ) -> tuple[Patch, dict[str, Any]]:
        """Returns the patch of an image that is the i-th nearest to a prototype, and its numbers."""
        image, inputs, sample = self.prepare(item)
        similarity = self.head.similarity(nearest.maps[j, i])
        facts = {
            'image': int(nearest.images[j, i]),
            'path': sample.get('img_path'),
            'class': self.word(int(nearest.labels[j, i])),
            'similarity': float(self.head.similarity(nearest.distances[j, i])),
            'cell': nearest.cells[j, i].tolist(),
            'box': _box(similarity, inputs),
        }
        lines = [
            f'similarity {facts["similarity"]:.3f}',
            facts['class'],
            f'image {facts["image"]}',
        ]
        patch = Patch(image, facts['box'], similarity, facts['cell'], similarity.shape, lines)
        return patch, facts

    @torch.no_grad()
    def explain_image(
        self, item: dict, name: str, rows: int = 10
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Makes pictures and numbers of an image: evidence for the two classes with the largest logits.

        The prototypes with the largest contributions (similarity times weight) in magnitude are shown.
        The contributions of the others are added up.

        Args:
            item (dict): What the data set's pipeline yields.
            name (str): How the image is called.
            rows (int): Number of prototypes of each class. Defaults to 10.

        Raises:
            ValueError: If logits are no sum over prototypes.
        """
        if not isinstance(self.head, ProtoPNetHead):
            raise ValueError(
                f'the local analysis takes a ProtoPNetHead, whose logits are sums over prototypes; the '
                f'model has {type(self.head).__name__}'
            )
        image, inputs, sample = self.prepare(item)
        distances = self.distances(inputs)[0]
        best, cells = distances.flatten(1).min(1)
        similarity = self.head.similarity(best)
        weights = self.head.class_weights()  # (K, P)
        terms = weights * similarity
        logits = terms.sum(1)
        order = logits.argsort(descending=True, stable=True)[:2].tolist()
        alive = int(self.head.alive.sum())
        label = sample.get('gt_label')
        facts: dict[str, Any] = {
            'image': name,
            'path': sample.get('img_path'),
            'label': self.word(int(label)) if label is not None and label.numel() == 1 else None,
            'prediction': self.word(order[0]),
            'classes': [],
        }
        pictures = []
        for c, what in zip(order, ('prediction', 'number 2 of the classes')):
            shown = terms[c].abs().argsort(descending=True, stable=True)[: min(rows, alive)]
            shown = shown[terms[c, shown].argsort(descending=True, stable=True)]
            logit, others = float(logits[c]), float(logits[c] - terms[c, shown].sum())
            drawn, numbers = [], []
            for j in shown.tolist():
                source, origin = self.source(j)
                similarities = self.head.similarity(distances[j])
                each = dict(
                    similarity=float(similarity[j]),
                    weight=float(weights[c, j]),
                    contribution=float(terms[c, j]),
                    cell=list(divmod(int(cells[j]), distances.shape[2])),
                    box=_box(similarities, inputs),
                    **origin,
                )
                numbers.append(each)
                lines = [
                    f'prototype {j}',
                    f'of {each["source_class"]}',
                    f'similarity {each["similarity"]:.3f}',
                    f'× weight {each["weight"]:.3f}',
                    f'= {each["contribution"]:+.3f}',
                ]
                here = Patch(image, each['box'], similarities, each['cell'], similarities.shape)
                drawn.append((here, source, lines))
            facts['classes'].append(
                {'class': self.word(c), 'logit': logit, 'others': others, 'prototypes': numbers}
            )
            known = '' if facts['label'] is None else f'; label: {facts["label"]}'
            title = [
                f'{name}: what speaks for {self.word(c)}',
                f'{what}, logit {logit:.3f}{known}',
            ]
            summary = (
                f'Logit {logit:.3f} = {logit - others:.3f} (these {len(shown)} prototypes) '
                f'{"+" if others >= 0 else "-"} {abs(others):.3f} (the other {alive - len(shown)})'
            )
            pictures.append(local_sheet(title, drawn, [summary], self.cmap))
        return pictures, facts

    def decisions(self, shown: Sequence[tuple[str, dict]]) -> PictureSection:
        """Makes the report section with the local analysis of images, each a name and a sample."""
        pictures = []
        for name, item in shown:
            drawn, facts = self.explain_image(item, name)
            words = [f'{name}: {each["class"]}' for each in facts['classes']]
            pictures += zip(words, drawn)
        return PictureSection('Prototypes', LOCAL_NOTE, pictures)


def spread(values: np.ndarray, num: int) -> list[int]:
    """Returns at most ``num`` values, spread evenly over all."""
    places = np.linspace(0, len(values) - 1, min(num, len(values)))
    return values[places.round().astype(int)].tolist()


def _box(similarity: Tensor, inputs: Tensor) -> list[int]:
    """Returns the box of high activation of a similarity map (h, w), in pixels of the input."""
    return high_activation_boxes(resize_maps(similarity[None], inputs.shape[2:]))[0].tolist()
