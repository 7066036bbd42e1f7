"""Explains images with a model that is given by name, config or object."""

from __future__ import annotations

import copy
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.runner import load_checkpoint
from mmengine.utils import track_iter_progress
from mmpretrain.apis import ImageClassificationInferencer
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from mmkdx.arguments import integer
from mmkdx.datasets.wrappers import compose, config_class_names, file_pipeline
from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.models import build_model, build_part, read_config
from mmkdx.evaluation.subjects import build_explainers, choose_targets, find_subjects
from mmkdx.explain import Explainer
from mmkdx.explain.targets import target_name
from mmkdx.files import WriteError, printable
from mmkdx.functional import degenerate_maps
from mmkdx.models.families import describe, unwrap
from mmkdx.models.libraries import names_network
from mmkdx.visualization.panel import as_rgb, explanation_panel
from mmkdx.visualization.rendering import label_text, write_picture


class ExplainInferencer(ImageClassificationInferencer):
    """Explains images: where a student and its teacher look.

    Image files go through the test pipeline of the config.

    Args:
        model (str | Config | BaseModel): A model name of mmpretrain's zoo, the name of another
            library's network (``timm::resnet18``), a config or its path, or a model object of
            mmpretrain or mmkdx. A config is of a distillation or of a plain classifier. Another
            library's network gets the centre crop of an image: 87.5 % of its shorter side.
        pretrained (bool | str): A checkpoint; or, for a model's name, whether to load the weights
            of its zoo or library. Defaults to True.
        device (str | torch.device, optional): The device. Defaults to None (the CPU).
        explainer (dict | str | Explainer): See ``ExplainHook``. Defaults to 'GradCAM'.
        teacher (int | dict | str | None): See ``ExplainHook``. Defaults to 0.
        base (dict | str, optional): See ``ExplainHook``. Defaults to None.
        classes (Sequence[str], optional): The names of the classes. Defaults to None: the names in
            the checkpoint, the test data set or the model.
        **kwargs: For a name of the zoo, changes to the model's config. For a network of another
            library, its arguments.

    Example:
        >>> inferencer = ExplainInferencer('resnet18_8xb32_in1k', explainer='LayerCAM')
        >>> result = inferencer('cat.jpg', show_dir='maps')[0]
        >>> result['pred_class'], result['maps']['student'].shape

    Raises:
        ValueError: If the explainer, the teacher or the model cannot be found or built.
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
        if names_network(model):
            model, pretrained, kwargs = _named(model, pretrained, kwargs), False, {}
        elif isinstance(model, Config) or Path(str(model)).suffix == '.py':
            model, pretrained = _build(model, pretrained), False
        elif isinstance(model, nn.Module):
            model = unwrap(model)
            if not hasattr(model, '_config'):
                raise ValueError(
                    'model has no config, which says how images are prepared; take it from '
                    "mmpretrain's get_model, or give a config or a model name"
                )
        super().__init__(model, pretrained, device, classes=classes, **kwargs)
        self.subjects = find_subjects(self.model, explainers, 'ExplainInferencer', teacher, base)
        if self.classes is None:
            dataset = self.config.test_dataloader.dataset
            self.classes = config_class_names(dataset) or describe(self.model).classes
        #: The model's name in pictures and tables; a plain classifier has its own name.
        self.student = 'student'
        if not isinstance(self.model, Distiller) and len(self.subjects) == 1:
            self.student = Path(self.config.filename or describe(self.model).name).stem

    def __call__(
        self,
        inputs: str | np.ndarray | Sequence,
        target: int | str | Callable | None = None,
        batch_size: int = 8,
        show_dir: str | None = None,
    ) -> list[dict[str, Any]]:
        """Explains images.

        Args:
            inputs (str | np.ndarray | Sequence): An image, its path or URL, a folder, or several of
                these. Arrays are of shape (H, W, 3) in BGR, as OpenCV reads them.
            target (int | str | Callable, optional): The class to explain: its index, or 'teacher',
                'student' or 'own' for a predicted class. It may also be a function from a batch's
                logits to scores (N, ), see ``Explainer``. Defaults to None: the teacher's
                prediction, or the model's own if there is no teacher.
            batch_size (int): Number of images explained at once. Defaults to 8.
            show_dir (str, optional): The folder for a picture of each image, named after the image.
                Files of an earlier call are replaced, but never an explained image. Defaults to
                None.

        Returns:
            list[dict]: One dict for each image. 'input' is the image. 'pred_label', 'pred_class'
            (if class names are known) and 'pred_score' are the student's class and its probability:
            a sigmoid for a network with one logit or several labels. Four entries are dicts by
            model. 'predictions' has the class and its score, 'targets' the explained class or the
            function's name, 'maps' the raw map (h, w), and 'degenerate' whether the map is constant
            or not finite. 'picture' is the path, with ``show_dir``. An image that cannot be read
            has only 'input' and 'error'.

        Raises:
            ValueError: If the target is not a class of the model, or a folder has no image.
            WriteError: If a picture cannot be written.
        """
        return list(self.stream(inputs, target, batch_size, show_dir))

    def stream(
        self,
        inputs: str | np.ndarray | Sequence,
        target: int | str | Callable | None = None,
        batch_size: int = 8,
        show_dir: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the results of ``__call__`` one by one; memory does not grow with their number.

        A batch's pictures are written before its results are yielded.
        """
        size = integer('batch_size', batch_size, 1)
        given = [inputs] if isinstance(inputs, (str, Path, np.ndarray)) else inputs
        images = [image for each in given for image in self._inputs_to_list(each)]
        names = list(_names(images, show_dir))
        if show_dir is not None:
            try:
                Path(show_dir).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror
                raise WriteError(f'cannot make the folder {show_dir}: {reason}') from error
        for start in track_iter_progress(range(0, len(images), size)):
            batch = [dict(input=image) for image in images[start : start + size]]
            loaded = []
            for result, name in zip(batch, names[start:]):
                try:
                    loaded.append((result, self._load(result['input']), name))
                except (OSError, ValueError, cv2.error) as error:
                    result['error'] = f'{error}'
                    print_log(f'Left out: {error}', logger='current')
            # If the pipeline yields images of different sizes, they are explained one by one.
            sizes = {data['inputs'].shape for _, data, _ in loaded}
            for group in [loaded] if len(sizes) == 1 else [[each] for each in loaded]:
                self._explain(group, target)
            if show_dir is not None:
                for result, data, name in loaded:
                    self._draw(result, data['inputs'], Path(show_dir) / f'{name}.png')
            yield from batch

    def _inputs_to_list(self, inputs: str | Path | np.ndarray) -> list[str | np.ndarray]:
        """An image, or the images of a folder in sorted order."""
        if isinstance(inputs, np.ndarray):
            return [inputs]
        if not os.path.isdir(inputs):  # pathlib raises if a name is too long
            return [str(inputs)]
        paths = sorted(p for p in Path(inputs).iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
        if not paths:
            raise ValueError(f'there is no image in the folder {inputs}')
        return [str(path) for path in paths]

    def _init_pipeline(self, cfg: Config) -> Compose:
        dataset = cfg.test_dataloader.dataset
        steps = file_pipeline(dataset)
        # Pictures show the pipeline's output
        self._bgr = not any(
            step['type'] == 'ChannelOrder'
            or (step['type'] == 'Normalize' and step.get('to_rgb', True))
            for step in steps
        )
        self._array_pipeline = compose(file_pipeline(dataset, loaded=True))
        return compose(steps)

    def _load(self, image: str | np.ndarray) -> dict:
        """An image through the test pipeline."""
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f'cannot take an array of shape {image.shape}; it must be (H, W, 3)'
                )
            size = image.shape[:2]
            return self._array_pipeline(dict(img=image, img_shape=size, ori_shape=size))
        loader, *steps = self.pipeline.transforms
        try:
            data = loader(dict(img_path=image))
        except Exception as error:  # each backend raises its own type
            known = '://' in image or os.path.exists(image)
            reason = f'{error}' if known else 'there is no such file'
            raise ValueError(f'cannot read image {printable(image)}: {reason}') from error
        if data is None:
            raise ValueError(f'cannot read image {printable(image)}: it holds no image')
        return Compose(steps)(data)

    def _explain(
        self, loaded: list[tuple[dict, dict, str]], target: int | str | Callable | None
    ) -> None:
        if not loaded:
            return
        data = pseudo_collate([each for _, each, _ in loaded])
        with torch.no_grad():
            inputs = self.model.data_preprocessor(data, False)['inputs']
        logits = {name: subject.predict(inputs) for name, subject in self.subjects.items()}
        policy = target if target is not None else 'teacher' if 'teacher' in logits else 'student'
        if callable(policy):
            targets = dict.fromkeys(logits, policy)
        elif not isinstance(policy, str):
            targets = dict.fromkeys(logits, inputs.new_full((len(inputs),), policy).long())
        elif policy in (*logits, 'own'):
            targets = choose_targets(policy, logits, None)
        else:
            raise ValueError(
                f'target is {policy!r}; it must be a class index, '
                f"{', '.join(map(repr, logits))}, 'own' or a function"
            )
        maps, scores = {}, {}
        for name, subject in self.subjects.items():
            maps[name] = subject.explain(inputs, targets[name]).cpu()
            scores[name] = subject.facts.probabilities(logits[name])
        for i, (result, *_) in enumerate(loaded):
            predictions = {name: self._prediction(values[i]) for name, values in scores.items()}
            result.update(
                predictions=predictions,
                **{f'pred_{key}': value for key, value in predictions['student'].items()},
                targets={
                    name: target_name(each) if callable(each) else int(each[i])
                    for name, each in targets.items()
                },
                # A copy, since a view would keep the maps of the whole batch
                maps={name: values[i].numpy().copy() for name, values in maps.items()},
                degenerate={
                    name: bool(degenerate_maps(values[i : i + 1])) for name, values in maps.items()
                },
            )

    def _draw(self, result: dict[str, Any], image: Tensor, path: Path) -> None:
        captions = {
            name: [f'{label_text(each["label"], self.classes)} {each["score"]:.3f}']
            for name, each in result['predictions'].items()
        }
        explained = {
            each if isinstance(each, str) else label_text(each, self.classes)
            for each in result['targets'].values()
        }
        captions['input'] = [f'explained: {", ".join(sorted(explained))}']
        maps = {name: torch.from_numpy(each) for name, each in result['maps'].items()}
        rgb = as_rgb(image, self._bgr)
        picture = explanation_panel(rgb, maps, captions, student=self.student)
        write_picture(path, picture)
        result['picture'] = str(path)

    def _prediction(self, probabilities: Tensor) -> dict[str, Any]:
        score, label = probabilities.max(0)
        prediction = dict(label=int(label), score=float(score))
        if self.classes is not None and int(label) < len(self.classes):
            prediction['class'] = self.classes[int(label)]
        return prediction


def _names(images: Sequence[str | np.ndarray], folder: str | None) -> Iterator[str]:
    """Yields the name of each image's picture: its stem, with a number if the stem is taken.

    Images in the folder of the pictures take names, too. Names also differ on file systems that
    ignore case or Unicode's normal form.
    """

    def key(name: str) -> str:
        return unicodedata.normalize('NFC', name).casefold()

    paths = [Path(image) for image in images if isinstance(image, str)]
    inside = {each for each in {path.parent for path in paths} if _same(each, folder)}
    taken = {key(path.stem) for path in paths if path.parent in inside}
    for i, image in enumerate(images):
        stem = Path(image).stem if isinstance(image, str) else f'{i}'
        while len(stem.encode(errors='surrogatepass')) > 200:  # 255 with all that is added
            stem = stem[:-1]
        name = stem
        while key(name) in taken:  # folders may hold files of the same name
            name = f'{stem}_{i}'
            i += 1
        taken.add(key(name))
        yield name


def _same(one: Path, other: str | None) -> bool:
    """Whether both paths are the same folder."""
    return other is not None and os.path.realpath(one) == os.path.realpath(other)


def _named(name: str, pretrained: bool | str, arguments: dict[str, Any]) -> BaseModel:
    """Builds a network of another library in the form of mmpretrain's ``get_model``."""
    if pretrained is True and '::' in name:
        arguments = dict(arguments, pretrained=True)
    model = build_model(dict(type=name, **arguments), 'model')
    height, width = describe(model).images.size or (224, 224)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=round(max(height, width) / 0.875), edge='short'),
        dict(type='CenterCrop', crop_size=(width, height)),
        dict(type='PackInputs'),
    ]
    dataset = dict(type='CustomDataset', pipeline=pipeline)
    return _with_weights(model, Config(dict(test_dataloader=dict(dataset=dataset))), pretrained)


def _build(config: str | Path | Config, checkpoint: bool | str) -> BaseModel:
    """Builds a model from its config, in mmkdx's scope and in the form of ``get_model``."""
    if not isinstance(config, Config):
        config = read_config(str(config), 'model')
    model = copy.deepcopy(config.model)
    model.setdefault('data_preprocessor', config.get('data_preprocessor'))
    return _with_weights(build_part(model), config, checkpoint)


def _with_weights(model: BaseModel, config: Config, checkpoint: bool | str) -> BaseModel:
    model._config = config
    model._dataset_meta = {}
    if isinstance(checkpoint, str):
        meta = load_checkpoint(model, checkpoint, map_location='cpu').get('meta', {})
        model._dataset_meta = meta.get('dataset_meta') or {}
    return model
