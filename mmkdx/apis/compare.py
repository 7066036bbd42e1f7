"""Compares explainers on a model that is given by config or name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader, Dataset

from mmkdx.apis.explain import ExplainInferencer
from mmkdx.evaluation.comparison import Comparison, compare_explainers
from mmkdx.explain import explainer_names
from mmkdx.registry import DATASETS


class ImageFiles(Dataset):
    """Unlabelled image files, prepared by the pipeline of an inferencer."""

    def __init__(self, inferencer: ExplainInferencer, files: Sequence[str]) -> None:
        given = (inferencer._inputs_to_list(each) for each in files)
        self.files = [file for each in given for file in each]
        self._load = inferencer._load

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        return self._load(self.files[index])


def compare_explainers_of(
    model: str | Config,
    checkpoint: str | bool = True,
    images: Sequence[str] = (),
    device: str = 'cpu',
    which: str = 'student',
    batch_size: int = 16,
    **options: Any,
) -> Comparison:
    """Compares explainers on a model, given in a form that ``ExplainInferencer`` takes.

    Args:
        model (str | Config): A config of a distillation or of a classifier, a name of mmpretrain's zoo,
            or the name of a network of another library (``timm::resnet18``).
        checkpoint (str | bool): A checkpoint; or, for a model's name, whether to load the weights
            of its zoo or library. Defaults to True.
        images (Sequence[str]): Images, or folders of images. Defaults to (): the test data of the
            config, with their labels and masks.
        device (str): The device. Defaults to 'cpu'.
        which (str): See ``mmkdx.evaluation.compare_explainers``. Defaults to 'student'.
        batch_size (int): Number of images explained at once. Defaults to 16.
        **options: ``explainers``, ``metrics``, ``num_samples``, ``show_samples``, ``target`` and
            ``seed`` of ``mmkdx.evaluation.compare_explainers``.

    Raises:
        ValueError: If model, images, explainers and metrics do not fit together.
    """
    teacher = 0 if which == 'teacher' else None
    inferencer = ExplainInferencer(model, checkpoint, device, teacher=teacher)
    if images:
        dataset: Any = ImageFiles(inferencer, images)
    else:
        config = inferencer.config.test_dataloader.dataset
        if config['type'] == 'CustomDataset' and not config.get('data_root'):
            name = model.filename if isinstance(model, Config) else model
            raise ValueError(f'{name} names no images; give some by --images FILE_OR_FOLDER')
        with DefaultScope.overwrite_default_scope('mmkdx'):
            dataset = DATASETS.build(config)
    loader = DataLoader(dataset, batch_size, collate_fn=pseudo_collate)
    found = compare_explainers(inferencer.model, loader, which=which, **options)
    found.model = Path(inferencer.config.filename or found.model).stem
    found.classes = found.classes or inferencer.classes
    return found


def with_options(
    explainers: Sequence[str] | None, metrics: Sequence[str] | None, options: dict[str, Any]
) -> tuple[list[dict] | None, list[dict] | None]:
    """Builds configs of explainers and metrics from types and from options like 'GradCAM.layer'.

    Raises:
        ValueError: If an option belongs to none of them.
    """
    if explainers is None and options:
        explainers = [name for name in explainer_names() if name != 'RandomMap']
    chosen = [
        None if names is None else [dict(type=n) for n in names] for names in (explainers, metrics)
    ]
    configs = [config for part in chosen for config in part or ()]
    for key, value in options.items():
        kind, dot, option = key.partition('.')
        fits = [config for config in configs if config['type'] == kind]
        if not dot or not fits:
            raise ValueError(
                f'--options {key}: write EXPLAINER.OPTION or METRIC.OPTION, with a name that '
                '--explainers or --metrics lists'
            )
        for config in fits:
            config[option] = value
    return chosen[0], chosen[1]
