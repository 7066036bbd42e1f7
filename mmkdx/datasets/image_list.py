"""Images of lists as tools/dataset_converters/image_list.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import flag, text
from mmkdx.datasets.listing import check_images, existing
from mmkdx.registry import DATASETS


@DATASETS.register_module()
class ImageList(BaseDataset):
    """The images that a list names, with their classes.

    A line of the list is a path below ``data_root`` and a label, as in mmpretrain's ``CustomDataset``.
    'classes.txt' beside the list has the names of the labels, one in each line. Missing images are
    an error at the start.

    Args:
        ann_file (str): The list, below ``data_root``.
        source (str, optional): Where the images come from, for the error if they are missing.
            Defaults to None: the user's own images, which tools/new_config.py has listed.
        data_root (str): The folder. Defaults to ''.
        allow_outside (bool): Whether paths may leave the folder. A converter writes such paths if
            images are not below its lists. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If the list, the names or images are missing.
        ValueError: If a line is not a path and one of the labels, or the path leaves the folder.
    """

    def __init__(
        self,
        ann_file: str,
        source: str | None = None,
        data_root: str = '',
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        text('ImageList.ann_file', ann_file, 'the path of a file')
        text('ImageList.data_root', data_root, 'the path of a folder')
        self.source = source if source is None else text('ImageList.source', source)
        self.allow_outside = flag('ImageList.allow_outside', allow_outside)
        super().__init__(ann_file=ann_file, data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads the list."""
        root = Path(self.data_root)
        own = 'list your images again by tools/new_config.py'
        unpack = f'unpack {self.source}'
        advice = f'{unpack} and run tools/dataset_converters/image_list.py' if self.source else own
        table = existing(self.ann_file, 'ann_file of ImageList', advice)
        names = existing(table.with_name('classes.txt'), 'ann_file of ImageList', advice)
        classes = tuple(names.read_text(encoding='utf-8').splitlines())
        self._metainfo.setdefault('classes', classes)
        # File names may hold bytes that are no text
        text = table.read_text(encoding='utf-8', errors='surrogateescape')
        samples = []
        for number, line in enumerate(text.splitlines(), 1):
            name, _, label = line.rpartition(' ')
            if not name or label not in map(str, range(len(classes))):
                raise ValueError(
                    f'{table}, line {number}: {line!r} is not a path and a label from 0 to '
                    f'{len(classes) - 1}'
                )
            samples.append((name, int(label)))
        names, again = [name for name, _ in samples], f'{unpack} again' if self.source else own
        check_images(root, names, table.name, again, self.allow_outside)
        return [dict(img_path=str(root / name), gt_label=label) for name, label in samples]

    def _copy_without_annotation(self, memo: dict | None = None) -> ImageList:
        # mmengine's default is one dict for all calls, by the address of objects. A new object, such
        # as a transform, may have the address of a deleted data set and would be taken for it.
        return super()._copy_without_annotation({} if memo is None else memo)
