"""Shows the prototypes of a trained network and of its teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from torch.utils.data import DataLoader

from mmkdx.datasets.push_set import push_dataloader
from mmkdx.datasets.wrappers import class_names, compose, file_pipeline
from mmkdx.distillation.models import build_model, load_weights, read_config
from mmkdx.distillation.teachers import Teacher, build_teacher
from mmkdx.files import write_file, written_together
from mmkdx.functional.prototype_transfer import cell_agreement, match_prototypes
from mmkdx.models.heads.push import find_nearest_patches
from mmkdx.models.intercept import evaluating
from mmkdx.visualization.prototype_sheets import LOCAL_NOTE, PrototypeSheets, spread
from mmkdx.visualization.prototypes import transfer_sheet
from mmkdx.visualization.rendering import write_picture
from mmkdx.visualization.report import write_report
from mmkdx.visualization.sections import PictureSection

#: What the pictures of the global analysis and of the transfer show.
GLOBAL_NOTE = (
    'Where each prototype comes from, and the patches of other images that are nearest to it. The dot '
    'is the patch, the box the region that is similar. A prototype stands for one thing if its patches '
    'show the same part.'
)
TRANSFER_NOTE = (
    "Each of the teacher's prototypes beside the student's prototype that matches it. The matching "
    'is one to one: over all test images, the nearest patches of matched prototypes are in the '
    'same place as often as possible.'
)


class PrototypeAnalysis:
    """Shows a network's prototypes, how they decide on images, and how they match its teacher's.

    Each part is a method that returns pictures and numbers; ``write`` makes files of them.

    Args:
        config (Config | str | Path): The training config of a network with a prototype head, or of
            its distillation. It must have a ``PrototypePushHook``.
        checkpoint (str | Path): A checkpoint from after a push.
        teacher (dict | str, optional): A teacher in any form that ``Distiller`` takes. Defaults to
            None: the first teacher of the config, if it is a distillation.
        device (str | torch.device): The device. Defaults to 'cpu'.
        cmap (str): See ``heat_map``. Defaults to 'viridis'.

    Example:
        >>> analysis = PrototypeAnalysis('protopnet_resnet18-tiny_parts.py', 'epoch_16.pth')
        >>> picture, numbers = analysis.prototypes([0])[0]
        >>> analysis.write('prototypes', images=['bird.png'])

    Raises:
        ValueError: If the config has no ``PrototypePushHook``, or the checkpoint has prototypes
            that were not projected.
        FileNotFoundError: If the checkpoint does not exist.
    """

    def __init__(
        self,
        config: Config | str | Path,
        checkpoint: str | Path,
        teacher: Any = None,
        device: str | torch.device = 'cpu',
        cmap: str = 'viridis',
    ) -> None:
        if not isinstance(config, Config):
            config = read_config(str(config), 'config')
        self.config, self.checkpoint, self.device, self.cmap = config, checkpoint, device, cmap
        model = build_model(config.model, 'model', config.get('data_preprocessor'))
        state = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
        load_weights(model, state, f'checkpoint {checkpoint}')
        self.model = model.to(device).eval()
        self.push_data, self.test_data = _push_data(config), _loader(config.test_dataloader)
        meta = state.get('meta', {}).get('dataset_meta') or {}
        self.classes = meta.get('classes') or class_names(self.test_data.dataset)
        self.sheets = PrototypeSheets(
            self.model, self.push_data.dataset, self.classes, cmap, f'checkpoint {checkpoint}'
        )
        teacher = config.model.get('teacher') if teacher is None else teacher
        self.teacher = teacher[0] if isinstance(teacher, (list, tuple)) else teacher

    def prototypes(
        self, prototypes: Sequence[int] | None = None, num: int = 10, k: int = 5
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """The global analysis: prototypes with their nearest patches of training and test images.

        Each prototype has a picture and its numbers.

        Args:
            prototypes (Sequence[int], optional): Indices. Defaults to None: some, spread over all.
            num (int): Number of prototypes, if they are not given. Defaults to 10.
            k (int): Number of patches of each prototype. Defaults to 5.

        Raises:
            ValueError: If there is no such prototype.
        """
        chosen = self.sheets.chosen(prototypes, num)
        # One more, since the nearest training image is mostly the prototype's source
        sets = (('training', self.push_data, k + 1), ('test', self.test_data, k))
        neighbours = {
            name: (data.dataset, find_nearest_patches(self.model, data, count))
            for name, data, count in sets
        }
        return [self.sheets.explain_prototype(j, neighbours, k) for j in chosen]

    def images(
        self, images: Sequence[int | str | Path] | None = None, num: int = 10, rows: int = 10
    ) -> list[tuple[list[np.ndarray], dict[str, Any]]]:
        """The local analysis: the prototypes that support the predicted class, and the next class.

        Each image has two pictures and their numbers.

        Args:
            images (Sequence[int | str | Path], optional): Files, and positions in the test data.
                Defaults to None: some of the test data, spread over all.
            num (int): Number of images, if they are not given. Defaults to 10.
            rows (int): Number of prototypes in each picture. Defaults to 10.

        Raises:
            ValueError: If an image cannot be read, or logits are not a sum over prototypes.
        """
        dataset = self.test_data.dataset
        if images is None:
            images = spread(np.arange(len(dataset)), num)
        results = []
        for each in images:
            if isinstance(each, int):
                if not 0 <= each < len(dataset):
                    raise ValueError(f'images: there is no test image {each} of {len(dataset)}')
                item, name = dataset[each], f'test image {each}'
            else:
                item, name = self._load(str(each)), Path(each).name
            results.append(self.sheets.explain_image(item, name, rows))
        return results

    def transfer(
        self, prototypes: Sequence[int] | None = None, num: int = 10
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The teacher's prototypes beside the student's that match them on the test data.

        There is one picture; its numbers hold all matches.

        Args:
            prototypes (Sequence[int], optional): The teacher's prototypes. Defaults to None: some,
                spread over all.
            num (int): Number of prototypes, if they are not given. Defaults to 10.

        Raises:
            ValueError: If there is no teacher, or its prototypes cannot be compared.
        """
        if self.teacher is None:
            raise ValueError(
                'there is no teacher to compare with; give one, or take the config of a '
                'distillation'
            )
        teacher = build_teacher(self.teacher)
        if not isinstance(teacher, Teacher):
            raise ValueError(
                f'teacher is a {type(teacher).__name__}; it must be a Teacher, of one trained network'
            )
        teacher.bind(self.model, {}, 'teacher')
        teacher.load()
        teacher.to(self.device)
        # A teacher that is given by its training config has push images of its own
        model = self.teacher.get('model') if isinstance(self.teacher, dict) else self.teacher
        data = self.push_data
        if isinstance(model, (str, Path)):
            data = _push_data(read_config(str(model), 'teacher.model'))
        theirs = PrototypeSheets(
            teacher.model, data.dataset, self.classes, self.cmap, 'the teacher'
        )
        chosen = theirs.chosen(prototypes, num)
        cells = self._cells(teacher)
        match = match_prototypes(*cells).tolist()
        agreement = cell_agreement(*cells)
        images = len(self.test_data.dataset)
        rows, numbers = [], []
        for j in chosen:
            (patch, teacher_facts), (own, facts) = theirs.source(j), self.sheets.source(match[j])
            same = int(agreement[j, match[j]])
            numbers.append(dict(teacher=teacher_facts, student=facts, same_patch=same))
            lines = [
                f"teacher's prototype {j}",
                f'of {teacher_facts["source_class"]}',
                f"student's prototype {match[j]}",
                f'of {facts["source_class"]}',
                f'same patch in {same} of {images} test images',
            ]
            rows.append((patch, own, lines))
        picture = transfer_sheet(["The teacher's prototypes and the student's"], rows)
        return picture, dict(matches=match, images=images, prototypes=numbers)

    def write(
        self,
        folder: str | Path,
        parts: Sequence[str] | None = None,
        images: Sequence[int | str | Path] | None = None,
        prototypes: Sequence[int] | None = None,
        num: int = 10,
    ) -> Path:
        """Writes pictures, their numbers and a page with all of them, and returns the page's path.

        Args:
            folder (str | Path): The folder; it is made if there is none.
            parts (Sequence[str], optional): Some of 'global', 'local' and 'transfer'. Defaults to
                None: the first two, and the third if there is a teacher.
            images (Sequence, optional): See ``images``. Defaults to None.
            prototypes (Sequence[int], optional): See ``prototypes``. Defaults to None.
            num (int): Number of images and of prototypes, if they are not given. Defaults to 10.

        Raises:
            WriteError: If a file cannot be written; the files of an earlier call stay.
        """
        if parts is None:
            parts = ['global', 'local', *(['transfer'] if self.teacher is not None else [])]
        with written_together(folder) as place:
            return Path(folder, self._write(place, parts, images, prototypes, num).name)

    def _write(
        self,
        folder: Path,
        parts: Sequence[str],
        images: Sequence[int | str | Path] | None,
        prototypes: Sequence[int] | None,
        num: int,
    ) -> Path:
        """Writes the files of ``write`` into a folder, and returns the page's path."""
        sections, numbers = [], {}

        def add(heading: str, note: str, drawn: Sequence[tuple[str, str, np.ndarray]]) -> None:
            for name, _, picture in drawn:
                write_picture(folder / f'{name}.png', picture)
            sections.append(PictureSection(heading, note, [each[1:] for each in drawn]))

        if 'global' in parts:
            drawn, numbers['global'] = [], []
            for picture, facts in self.prototypes(prototypes, num):
                j = facts['prototype']
                drawn.append((f'global_{j:04d}', f'Prototype {j}', picture))
                numbers['global'].append(facts)
            add('Prototypes', GLOBAL_NOTE, drawn)
        if 'local' in parts:
            drawn, numbers['local'] = [], []
            for i, (pictures, facts) in enumerate(self.images(images, num)):
                for rank, (picture, each) in enumerate(zip(pictures, facts['classes'])):
                    words = f'{facts["image"]}: {each["class"]}'
                    drawn.append((f'local_{i:03d}_{rank}', words, picture))
                numbers['local'].append(facts)
            add('Decisions', LOCAL_NOTE, drawn)
        if 'transfer' in parts:
            picture, numbers['transfer'] = self.transfer(prototypes, num)
            words = "The teacher's prototypes and the student's"
            add('Transfer', TRANSFER_NOTE, [('transfer', words, picture)])
        write_file(folder / 'prototypes.json', json.dumps(numbers, indent=1))
        alive = self.sheets.head.alive
        return write_report(
            folder / 'prototypes.html',
            title=f'Prototypes of {Path(self.checkpoint).name}',
            facts={
                'config': self.config.filename or '',
                'checkpoint': str(self.checkpoint),
                'prototypes': f'{int(alive.sum())} of {len(alive)} in use',
            },
            sections=sections,
        )

    def _load(self, name: str) -> dict:
        """An image file through the test pipeline."""
        if not Path(name).is_file():
            raise ValueError(f'images: there is no file {name}')
        try:
            return compose(file_pipeline(self.config.test_dataloader.dataset))(dict(img_path=name))
        except Exception as error:  # each backend raises its own type
            raise ValueError(f'images: cannot read {name}: {error}') from error

    @torch.no_grad()
    def _cells(self, teacher: Teacher) -> list[torch.Tensor]:
        """Flat cells (N, P) of the nearest patches in the test data, for teacher and student."""
        cells = []
        with evaluating(self.model):
            for batch in self.test_data:
                inputs = self.model.data_preprocessor(batch, False)['inputs']
                pairs = ((teacher.model, teacher.convert(inputs)), (self.model, inputs))
                maps = [model.head.distances(model.extract_feat(images)) for model, images in pairs]
                if maps[0].shape[1:] != maps[1].shape[1:]:
                    sizes = [
                        '{} prototypes on a grid of {} x {}'.format(*each.shape[1:])
                        for each in maps
                    ]
                    raise ValueError(
                        f'the teacher has {sizes[0]} and the student {sizes[1]}; both must be '
                        'equal to be matched'
                    )
                cells.append([each.flatten(2).argmin(2) for each in maps])
        return [torch.cat(each) for each in zip(*cells)]


def _loader(config: dict) -> DataLoader:
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return Runner.build_dataloader(config, seed=0)


def _push_data(config: Config) -> DataLoader:
    """The images onto which the prototypes of a training were projected."""
    for hook in config.get('custom_hooks') or ():
        kind = hook.get('type')
        if getattr(kind, '__name__', kind) == 'PrototypePushHook':
            return _loader(push_dataloader(config, hook.get('dataloader')))
    raise ValueError(
        f'custom_hooks of {config.filename or "the config"} has no PrototypePushHook, which says onto '
        'which images prototypes were projected'
    )
