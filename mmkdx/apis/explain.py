"""Explaining images, with a model by name, config or object."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.image import imread
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.utils import track_iter_progress
from mmpretrain.apis import ImageClassificationInferencer
from torch import Tensor, nn

from mmkdx.distillation.models import read_config
from mmkdx.evaluation.subjects import build_explainers, choose_targets, find_subjects
from mmkdx.explain import Explainer
from mmkdx.functional import degenerate_maps
from mmkdx.registry import DATASETS, MODELS
from mmkdx.visualization.panel import as_rgb, explanation_panel

#: What in a folder is taken for an image.
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


class ExplainInferencer(ImageClassificationInferencer):
    """Explains images: where a student and its teacher look.

    Args:
        model (str | Config | BaseModel): A model name of mmpretrain's zoo, a config (of a distillation
            or of a plain classifier) or its path, or a model object of mmpretrain or mmkdx.
        pretrained (bool | str): A checkpoint, or, for a model name, whether to take the zoo's. Defaults
            to True.
        device (str | torch.device, optional): The device. Defaults to None (the CPU).
        explainer (dict | str | Explainer): See ``ExplainHook``. Defaults to 'GradCAM'.
        teacher (int | dict | str | None): See ``ExplainHook``. Defaults to 0.
        base (dict | str, optional): See ``ExplainHook``. Defaults to None.
        classes (Sequence[str], optional): The names of the classes. Defaults to None: those of the
            checkpoint or of the data set.
        **kwargs: Changes of the model's config, for a model name.

    Example:
        >>> inferencer = ExplainInferencer('resnet18_8xb32_in1k', explainer='LayerCAM')
        >>> result = inferencer('cat.jpg', show_dir='maps')[0]
        >>> result['pred_class'], result['maps']['student'].shape

    Raises:
        ValueError: If the explainer, the teacher or the model is not to be had.
    """

    def __init__(
        self,
        model: str | Path | Config | BaseModel,
        pretrained: bool | str = True,
        device: str | torch.device | None = None,
        explainer: dict | str | Explainer = 'GradCAM',
        teacher: int | dict | str | None = 0,
        base: dict | str | None = None,
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        explainers = build_explainers(explainer, 'ExplainInferencer')
        if isinstance(model, Config) or Path(str(model)).suffix == '.py':
            model, pretrained = _build(model, pretrained), False
        elif isinstance(model, nn.Module) and not hasattr(model, '_config'):
            raise ValueError(
                'model has no config, which says how images are prepared; take it from '
                "mmpretrain's get_model, or give a config or a model name"
            )
        super().__init__(model, pretrained, device, classes=classes, **kwargs)
        self.subjects = find_subjects(self.model, explainers, 'ExplainInferencer', teacher, base)

    def __call__(
        self,
        inputs: str | np.ndarray | Sequence,
        target: int | str | None = None,
        batch_size: int = 8,
        show_dir: str | None = None,
    ) -> list[dict[str, Any]]:
        """Explains images.

        Args:
            inputs (str | np.ndarray | Sequence): An image, its path or URL, a folder, or several of
                these. Arrays are of shape (H, W, 3) in BGR, as OpenCV reads them.
            target (int | str, optional): The class to explain: its index, or 'teacher', 'student' or
                'own' for that which is predicted. Defaults to None: the teacher's prediction, without
                a teacher the model's own.
            batch_size (int): How many images are explained at once. Defaults to 8.
            show_dir (str, optional): Where a picture is written for each image. Defaults to None.

        Returns:
            list[dict]: For each image 'input'; the student's 'pred_label', 'pred_score' and, where
            class names are known, 'pred_class'; for each model under 'predictions' the class and its
            score, under 'targets' the explained class, under 'maps' the raw map of shape (h, w), under
            'degenerate' whether it says nothing; and 'picture', the path, with ``show_dir``. An image
            that cannot be read has 'input' and 'error' alone, and the rest goes on.

        Raises:
            ValueError: If the target is no class of the model.
        """
        images = [each for given in self._as_list(inputs) for each in self._inputs_to_list(given)]
        results: list[dict[str, Any]] = [{'input': image} for image in images]
        batches = [results[i : i + batch_size] for i in range(0, len(results), batch_size)]
        for batch in track_iter_progress(batches):
            loaded = []
            for result in batch:
                try:
                    loaded.append((result, self._load(result['input'])))
                except (OSError, ValueError, cv2.error) as error:
                    result['error'] = f'{error}'
                    print_log(f'Left out: {error}', logger='current')
            # Images of different sizes, where the pipeline leaves them so, are explained one by one.
            sizes = {data['inputs'].shape for _, data in loaded}
            for group in [loaded] if len(sizes) == 1 else [[each] for each in loaded]:
                self._explain(group, target)
        if show_dir is not None:
            self._draw(results, Path(show_dir))
        for result in results:
            result.pop('image', None)
        return results

    def _as_list(self, inputs: Any) -> list:
        inputs = [inputs] if isinstance(inputs, (str, Path, np.ndarray)) else list(inputs)
        return [str(each) if isinstance(each, Path) else each for each in inputs]

    def _inputs_to_list(self, inputs: str | np.ndarray) -> list:
        """Takes the images of a folder, in order."""
        folder = isinstance(inputs, str) and Path(inputs).is_dir()
        if not folder:
            return [inputs]
        paths = sorted(p for p in Path(inputs).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise ValueError(f'there is no image in the folder {inputs}')
        return [str(path) for path in paths]

    def _init_pipeline(self, cfg: Config) -> Any:
        # Transforms of mmkdx, too
        with DefaultScope.overwrite_default_scope('mmkdx'):
            return super()._init_pipeline(cfg)

    def _load(self, image: str | np.ndarray) -> dict:
        """An image through the test pipeline."""
        name = image if isinstance(image, str) else 'array'
        if isinstance(image, str):
            try:
                image = imread(image)
            except Exception as error:  # each backend raises its own
                reason = 'there is no such file' if not Path(name).exists() else f'{error}'
                raise ValueError(f'cannot read image {name}: {reason}') from error
        if image is None or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'cannot read image {name}: it holds no image with three channels')
        size = image.shape[:2]
        return self.pipeline(dict(img=image, img_shape=size, ori_shape=size))

    def _explain(self, loaded: list[tuple[dict, dict]], target: int | str | None) -> None:
        if not loaded:
            return
        data = pseudo_collate([each for _, each in loaded])
        with torch.no_grad():
            inputs = self.model.data_preprocessor(data, False)['inputs']
        logits = {name: subject.predict(inputs) for name, subject in self.subjects.items()}
        policy = target if target is not None else 'teacher' if 'teacher' in logits else 'student'
        if isinstance(policy, str) and policy != 'own' and policy not in logits:
            raise ValueError(
                f'target is {policy!r}; it must be a class index, '
                f"{', '.join(map(repr, logits))} or 'own'"
            )
        if isinstance(policy, str):
            targets = choose_targets(policy, logits, None)
        else:
            targets = dict.fromkeys(logits, inputs.new_full((len(inputs),), policy).long())
        maps = {
            name: subject.explain(inputs, targets[name]).cpu()
            for name, subject in self.subjects.items()
        }
        for i, (result, item) in enumerate(loaded):
            result['image'] = item['inputs']
            result['predictions'] = {
                name: self._prediction(values[i].softmax(0)) for name, values in logits.items()
            }
            result.update(
                {f'pred_{key}': value for key, value in result['predictions']['student'].items()}
            )
            result['targets'] = {name: int(values[i]) for name, values in targets.items()}
            result['maps'] = {name: values[i].numpy() for name, values in maps.items()}
            result['degenerate'] = {
                name: bool(degenerate_maps(values[i : i + 1])) for name, values in maps.items()
            }

    def _draw(self, results: list[dict[str, Any]], folder: Path) -> None:
        """Writes a picture for each image that could be read."""
        folder.mkdir(parents=True, exist_ok=True)
        bgr = getattr(self.model.data_preprocessor, 'to_rgb', False)
        taken: set[str] = set()
        for i, result in enumerate(results):
            if 'error' in result:
                continue
            captions = {
                name: [f'{each.get("class", each["label"])} {each["score"]:.3f}']
                for name, each in result['predictions'].items()
            }
            explained = {self._word(label) for label in result['targets'].values()}
            captions['input'] = [f'explained: {", ".join(sorted(explained))}']
            maps = {name: torch.from_numpy(each) for name, each in result['maps'].items()}
            picture = explanation_panel(as_rgb(result['image'], bgr), maps, captions)
            name = Path(result['input']).stem if isinstance(result['input'], str) else f'{i}'
            # Folders may hold files of one name.
            name = name if name not in taken else f'{name}_{i}'
            taken.add(name)
            path = folder / f'{name}.png'
            if not cv2.imwrite(str(path), picture[..., ::-1]):
                raise OSError(f'cannot write the picture {path}')
            result['picture'] = str(path)

    def _word(self, label: int) -> str:
        return str(label) if self.classes is None else str(self.classes[label])

    def _prediction(self, probabilities: Tensor) -> dict[str, Any]:
        score, label = probabilities.max(0)
        prediction = dict(label=int(label), score=float(score))
        if self.classes is not None:
            prediction['class'] = self.classes[int(label)]
        return prediction


def _build(config: str | Path | Config, checkpoint: bool | str) -> BaseModel:
    """A model from its config, as mmpretrain's ``get_model`` leaves it, in mmkdx's scope."""
    if not isinstance(config, Config):
        config = read_config(str(config), 'model')
    model = copy.deepcopy(config.model)
    model.setdefault('data_preprocessor', config.get('data_preprocessor'))
    with DefaultScope.overwrite_default_scope('mmkdx'):
        model = MODELS.build(model)
        dataset = DATASETS.get(config.test_dataloader.dataset.type)
    model._config = config
    model._dataset_meta = getattr(dataset, 'METAINFO', {})
    if isinstance(checkpoint, str):
        meta = load_checkpoint(model, checkpoint, map_location='cpu').get('meta', {})
        model._dataset_meta = meta.get('dataset_meta') or model._dataset_meta
    return model
