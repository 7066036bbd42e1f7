"""How a prototype network is trained: in stages, with its prototypes projected onto real patches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader

from mmkdx.distillation import Distiller
from mmkdx.functional import resize_maps
from mmkdx.functional.activation_boxes import high_activation_boxes
from mmkdx.models.classifier import prototype_head
from mmkdx.models.heads import ProtoPNetHead, PrototypeHead
from mmkdx.models.heads.nearest_patches import NearestPatches, find_nearest_patches
from mmkdx.models.receptive_field import cell_box, receptive_field
from mmkdx.models.taps import evaluating
from mmkdx.registry import HOOKS

#: The parts of a prototype network that a stage can train.
GROUPS = ('backbone', 'add_on', 'prototypes', 'last_layer')
#: Transforms whose names hold one of these draw random numbers.
_RANDOM = ('random', 'augment', 'jitter', 'erasing', 'mixup', 'cutmix')


@HOOKS.register_module()
class PrototypeStageHook(Hook):
    """Trains the parts of a prototype network in stages.

    A part that a stage does not train stays exactly as it is: it has no gradients, and its batch norms
    normalise by their running statistics and keep them. The optimizer forgets its moments at the start
    of a stage, as each stage of the public code has an optimizer of its own. Rates and weight decays
    are the optimizer's: give them by ``optim_wrapper.paramwise_cfg.custom_keys`` for 'backbone',
    'add_on', 'prototype_layer' and 'last_layer', and their schedule by ``param_scheduler``.

    In distributed training set ``find_unused_parameters = True`` in the config.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, and Keswani et al., "Proto2Proto", CVPR
    2022, from their public code, where batch norm statistics move in all stages (``norm_eval=False``).

    Args:
        stages (Sequence[dict]): The stages in order, each with ``train``, the parts (of 'backbone',
            'add_on', 'prototypes', 'last_layer'), ``epochs``, its length (the last takes the rest of
            the training), and optionally ``student_weight``, which takes the place of the
            distiller's during the stage.
        norm_eval (bool): Whether the batch norms of parts that are not trained are in eval mode.
            Defaults to True.
        copy_last_layer (bool): Whether the student begins with the last layer of its teacher. Defaults
            to False.

    Raises:
        ValueError: If a stage is not as above; before training, if the model, its teacher or the config
            do not allow it.
    """

    def __init__(
        self, stages: Sequence[dict], norm_eval: bool = True, copy_last_layer: bool = False
    ) -> None:
        for i, stage in enumerate(stages):
            key = f'PrototypeStageHook.stages[{i}]'
            if unknown := set(stage) - {'epochs', 'train', 'student_weight'}:
                raise ValueError(
                    f'{key} has the unknown key {sorted(unknown)[0]!r}; a stage has train, epochs and '
                    'student_weight'
                )
            wrong = set(stage.get('train', ())) - set(GROUPS)
            if wrong or not stage.get('train'):
                raise ValueError(
                    f'{key}.train is {stage.get("train")!r}; it must list some of {", ".join(GROUPS)}'
                )
            if i < len(stages) - 1 and not stage.get('epochs', 0) > 0:
                raise ValueError(f'{key}.epochs is missing; only the last stage may be open-ended')
        if not stages:
            raise ValueError('PrototypeStageHook.stages is empty')
        self.stages = stages
        self.norm_eval = norm_eval
        self.copy_last_layer = copy_last_layer
        self._student_weight: float | None = None

    def stage_at(self, epoch: int) -> tuple[int, bool]:
        """Which stage an epoch, counted from 0, belongs to, and whether it is the stage's first."""
        begin = 0
        for i, stage in enumerate(self.stages[:-1]):
            if epoch < begin + stage['epochs']:
                return i, epoch == begin
            begin += stage['epochs']
        return len(self.stages) - 1, epoch == begin

    def before_train(self, runner: Runner) -> None:
        """Checks that the stages can be trained, and copies the teacher's last layer."""
        model, student = _models(runner)
        head = prototype_head(student, 'PrototypeStageHook')
        if is_model_wrapper(runner.model) and not runner.cfg.get('find_unused_parameters'):
            raise ValueError(
                'PrototypeStageHook trains some parts only, for which distributed training needs '
                'find_unused_parameters = True in the config'
            )
        if isinstance(model, Distiller):
            self._student_weight = model.student_weight
        elif any('student_weight' in stage for stage in self.stages):
            raise ValueError(
                'PrototypeStageHook.stages: student_weight is of a Distiller, and the model is a '
                f'{type(model).__name__}'
            )
        for name in {name for stage in self.stages for name in stage['train']}:
            if not _group(student, name):
                raise ValueError(
                    f'PrototypeStageHook.stages: {type(head).__name__} has no {name} to train'
                )
        if self.copy_last_layer:
            self._copy_last_layer(runner, model, head)

    def before_train_epoch(self, runner: Runner) -> None:
        """Begins a stage, where one begins, and sets what is trained."""
        number, first = self.stage_at(runner.epoch)
        stage = self.stages[number]
        model, student = _models(runner)
        if first:
            runner.optim_wrapper.optimizer.state.clear()
            runner.logger.info(f'Stage {number}: trains {", ".join(stage["train"])}')
        for name in GROUPS:
            for module in _group(student, name):
                module.requires_grad_(name in stage['train'])
                if name not in stage['train']:
                    module.zero_grad(set_to_none=True)
        if self._student_weight is not None:
            model.student_weight = stage.get('student_weight', self._student_weight)
        if hasattr(student.head, 'begin_epoch'):
            student.head.begin_epoch(len(runner.train_dataloader))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Puts the batch norms of what is not trained into eval mode, after the loop's ``train()``."""
        if batch_idx or not self.norm_eval:
            return
        stage = self.stages[self.stage_at(runner.epoch)[0]]
        student = _models(runner)[1]
        for name in set(GROUPS) - set(stage['train']):
            for part in _group(student, name):
                for module in part.modules():
                    if isinstance(module, _NormBase):
                        module.eval()

    def _copy_last_layer(self, runner: Runner, model: nn.Module, head: PrototypeHead) -> None:
        key = 'PrototypeStageHook.copy_last_layer'
        teachers = getattr(model, 'teachers', ())
        theirs = getattr(getattr(teachers[0], 'model', None), 'head', None) if teachers else None
        if not (isinstance(theirs, ProtoPNetHead) and isinstance(head, ProtoPNetHead)):
            raise ValueError(f'{key}: student and teacher must both have a ProtoPNetHead')
        if not torch.equal(theirs.class_identity.cpu(), head.class_identity.cpu()):
            raise ValueError(
                f'{key}: the prototypes of the student belong to other classes than those of the '
                'teacher; set student.head.num_classes and prototypes_per_class to those of the teacher'
            )
        names = (getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        known = getattr(teachers[0], 'classes', None)
        if names and known and list(names) != list(known):
            i = next(
                (i for i, pair in enumerate(zip(names, known)) if pair[0] != pair[1]),
                min(len(names), len(known)),
            )
            raise ValueError(
                f'{key}: the classes of the training data and those that the teacher was trained on '
                f'have another order or other names, first at class {i}'
            )
        if runner.iter == 0:  # not after a resume
            with torch.no_grad():
                head.last_layer.weight.copy_(theirs.last_layer.weight)


@HOOKS.register_module()
class PrototypePushHook(Hook):
    """Projects every prototype onto the nearest patch of a training image, and tunes the last layer.

    A push follows the epochs ``start``, ``start + interval``, ..., and the last one, so that what a
    training yields are prototypes that are real patches. For each prototype the nearest patch of all
    images that it may come from (of its class, in ``ProtoPNetHead``) takes its place, over all ranks;
    of equally near ones that which comes first in the data set. Each prototype then knows its source
    (see ``PrototypeHead``). Where there is a validation, its scores are logged for the network before
    the push, pushed, and tuned, as ``prototypes/<pre_push | pushed | tuned>/<score>``.

    After it the last layer alone is trained with Adam by the student's own losses, for some passes
    over the training data. With ``prune`` the last push drops prototypes: of a ``ProtoPNetHead`` those
    whose k nearest training images hold fewer than ``min_same_class`` of the prototype's class, after
    which the last layer is tuned for ``tune_epochs`` more; of a ``ProtoTreeHead``, before the push, the
    subtrees without a leaf whose largest probability is above ``threshold``.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, section 2.2, and Nauta et al., "Neural
    Prototype Trees", CVPR 2021, from their public code, where the statistics of batch norm move while
    the last layer is tuned (``norm_eval=False``).

    Args:
        start (int): The first epoch, counted from 1, that a push follows.
        interval (int): A push follows every so many epochs from there on. Defaults to 10.
        dataloader (dict, optional): The images to project onto, without augmentation. Defaults to None:
            ``push_dataloader`` of the config if there is one, else the training data set with the
            pipeline of the validation.
        tune_epochs (int): How many passes train the last layer after a push. Defaults to 20.
        tune_lr (float): Their learning rate. Defaults to 1e-4.
        norm_eval (bool): Whether the network is in eval mode in these passes. Defaults to True.
        prune (dict, optional): 'k' (6), 'min_same_class' (3) and 'tune_epochs' (100) for a
            ``ProtoPNetHead``, or 'threshold' (0.01) for a ``ProtoTreeHead``. Defaults to None.

    Raises:
        ValueError: If an argument is out of range; before training, if the images are augmented, or a
            class has none.
    """

    def __init__(
        self,
        start: int,
        interval: int = 10,
        dataloader: dict | None = None,
        tune_epochs: int = 20,
        tune_lr: float = 1e-4,
        norm_eval: bool = True,
        prune: dict | None = None,
    ) -> None:
        for name, value in (('start', start), ('interval', interval)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f'PrototypePushHook.{name} is {value!r}; it must be a whole number above 0'
                )
        self.start = start
        self.interval = interval
        self.dataloader: dict | DataLoader | None = dataloader
        self.tune_epochs = tune_epochs
        self.tune_lr = tune_lr
        self.norm_eval = norm_eval
        self.prune = prune

    def pushes_after(self, epoch: int, max_epochs: int) -> bool:
        """Whether a push follows an epoch, counted from 1."""
        regular = epoch >= self.start and (epoch - self.start) % self.interval == 0
        return regular or epoch == max_epochs

    def before_train(self, runner: Runner) -> None:
        """Builds the push data and checks them."""
        head = prototype_head(_models(runner)[1], 'PrototypePushHook')
        tree = not isinstance(head, ProtoPNetHead)
        known = ('threshold',) if tree else ('k', 'min_same_class', 'tune_epochs')
        if unknown := set(self.prune or ()) - set(known):
            raise ValueError(
                f'PrototypePushHook.prune has the unknown key {sorted(unknown)[0]!r}; for '
                f'{type(head).__name__} there are {", ".join(known)}'
            )
        if tree and self.tune_epochs:
            raise ValueError(
                f'PrototypePushHook.tune_epochs is {self.tune_epochs} and {type(head).__name__} has no '
                'last layer; set it to 0'
            )
        if not isinstance(self.dataloader, DataLoader):
            self.dataloader = Runner.build_dataloader(
                push_dataloader(runner.cfg, self.dataloader), seed=runner.seed
            )
        check_push_set(self.dataloader, head)

    def after_train_epoch(self, runner: Runner) -> None:
        """Pushes, and tunes the last layer, where it is time."""
        epoch = runner.epoch + 1
        if not self.pushes_after(epoch, runner.max_epochs):
            return
        student = _models(runner)[1]
        head: PrototypeHead = student.head
        prune = self.prune if epoch == runner.max_epochs else None
        scores = dict(pre_push=self._evaluate(runner))
        if prune is not None and not isinstance(head, ProtoPNetHead):
            try:
                runner.logger.info(f'Pruned {head.prune(**prune)} prototypes')
            except ValueError as error:  # a long training should not end here
                runner.logger.warning(f'PrototypePushHook.prune: nothing is pruned: {error}')
        before = head.prototypes.detach().clone()
        push(student, self.dataloader)
        moved = (head.prototypes - before).norm(dim=1).mean()
        scores['pushed'] = self._evaluate(runner)
        self._tune(runner, student, self.tune_epochs)
        if prune is not None and isinstance(head, ProtoPNetHead):
            nearest = find_nearest_patches(student, self.dataloader, prune.get('k', 6))
            count = head.prune(nearest.labels, prune.get('min_same_class', 3))
            runner.logger.info(f'Pruned {count} prototypes')
            self._tune(runner, student, prune.get('tune_epochs', 100))
        if self.tune_epochs or prune is not None:
            scores['tuned'] = self._evaluate(runner)
        lines = [
            f'{state} ' + ', '.join(f'{name} {value:.4f}' for name, value in each.items())
            for state, each in scores.items()
        ]
        runner.logger.info(
            f'Push after epoch {epoch}: prototypes moved by {moved:.4f}; ' + '; '.join(lines)
        )
        logged = {
            f'prototypes/{state}/{name}': value
            for state, each in scores.items()
            for name, value in each.items()
        }
        for name, value in logged.items():
            runner.message_hub.update_scalar(f'val/{name}', value)
        if logged:
            runner.visualizer.add_scalars(logged, step=epoch)

    @torch.no_grad()
    def _evaluate(self, runner: Runner) -> dict[str, float]:
        """The scores of the validation, without its hooks."""
        loop = runner.val_loop
        if loop is None:
            return {}
        with evaluating(runner.model):
            for batch in loop.dataloader:
                loop.evaluator.process(data_samples=runner.model.val_step(batch), data_batch=batch)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))

    def _tune(self, runner: Runner, student: nn.Module, epochs: int) -> None:
        """Trains the last layer alone."""
        if not epochs:
            return
        weight = student.head.last_layer.weight
        optimizer = torch.optim.Adam([weight], lr=self.tune_lr)
        modes = [(module, module.training) for module in student.modules()]
        with _only(student, weight):
            student.train(not self.norm_eval)
            for epoch in range(epochs):
                runner.train_dataloader.sampler.set_epoch(runner.epoch + epoch)
                for batch in runner.train_dataloader:
                    data = student.data_preprocessor(batch, True)
                    loss, _ = student.parse_losses(student(**data, mode='loss'))
                    optimizer.zero_grad()
                    loss.backward()
                    all_reduce(weight.grad, op='mean')
                    optimizer.step()
        for module, training in modes:
            module.training = training
        weight.grad = None


def push_dataloader(cfg: Config, dataloader: dict | None = None) -> dict:
    """The config of the images that prototypes are projected onto.

    Args:
        cfg (Config): The config of a run.
        dataloader (dict, optional): ``PrototypePushHook.dataloader``. Defaults to None: what the
            config has under ``push_dataloader``, else the training data with the pipeline of the
            validation.

    Returns:
        dict: The config of a data loader, a copy.

    Raises:
        ValueError: If it cannot be made of the training data.
    """
    dataloader = cfg.get('push_dataloader') if dataloader is None else dataloader
    if dataloader is not None:
        return copy.deepcopy(dataloader)
    try:
        config = copy.deepcopy(cfg.train_dataloader)
        config.dataset.pipeline = copy.deepcopy(cfg.val_dataloader.dataset.pipeline)
    except AttributeError:
        raise ValueError(
            'PrototypePushHook.dataloader is missing, and it cannot be made of train_dataloader and '
            "val_dataloader, whose data sets have no 'pipeline'"
        ) from None
    for key in ('batch_sampler', 'drop_last'):
        config.pop(key, None)
    config.sampler = dict(type='DefaultSampler', shuffle=False)
    return config


@torch.no_grad()
def push(model: nn.Module, dataloader: DataLoader) -> NearestPatches:
    """Projects the prototypes of a model onto the nearest patches of a data set.

    A prototype without an image to come from stays as it is.

    Args:
        model (nn.Module): A classifier of mmpretrain with a prototype head.
        dataloader (DataLoader): The images, without augmentation.

    Returns:
        NearestPatches: What was found.
    """
    head: PrototypeHead = model.head
    nearest = find_nearest_patches(model, dataloader, classes=head.push_classes())
    found = nearest.distances[:, 0].isfinite() & head.alive
    if not found.any():  # a tree can be pruned to a leaf
        return nearest
    similarity = head.similarity(nearest.maps[found, 0])
    head.prototypes[found] = nearest.embedding[found, 0].to(head.prototypes)
    head.source_image[found] = nearest.images[found, 0]
    head.source_label[found] = nearest.labels[found, 0]
    head.source_cell[found] = nearest.cells[found, 0]
    # In parts, as there may be thousands of maps
    boxes = [
        high_activation_boxes(resize_maps(part, nearest.size)) for part in similarity.split(256)
    ]
    head.source_box[found] = torch.cat(boxes)
    height, width = nearest.size
    try:
        field = receptive_field(model.backbone, height) if height == width else None
    except ValueError:  # of a transformer, or a backbone with branches
        field = None
    if field is None:
        return nearest
    cells = [row * field.n + column for row, column in nearest.cells[found, 0].tolist()]
    fields = [cell_box(field, cell, height) for cell in cells]
    head.source_field[found] = nearest.cells.new_tensor(
        [(x0, y0, x1, y1) for y0, y1, x0, x1 in fields]
    )
    return nearest


def check_push_set(dataloader: DataLoader, head: PrototypeHead) -> None:
    """Refuses images to project onto that are augmented, or that miss a class.

    Raises:
        ValueError: If so.
    """
    dataset = dataloader.dataset
    pipeline = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    named = [
        type(each).__name__
        for each in pipeline
        if any(word in type(each).__name__.lower() for word in _RANDOM)
    ]
    if named or _differs(dataset):
        what = f'is augmented by {named[0]}' if named else 'yields another image at each reading'
        raise ValueError(
            f'PrototypePushHook.dataloader {what}; prototypes are projected onto images as they are, '
            'so leave random transforms out of its pipeline'
        )
    classes = [label for i in range(len(dataset)) for label in dataset.get_cat_ids(i)]
    present = set(classes)
    if missing := [label for label in range(head.num_classes) if label not in present]:
        names = ', '.join(map(str, missing[:5])) + (', ...' if len(missing) > 5 else '')
        raise ValueError(
            f'PrototypePushHook.dataloader has no image of {len(missing)} of the {head.num_classes} '
            f'classes ({names}), so their prototypes could not be projected'
        )


def _differs(dataset: Any) -> bool:
    """Whether one of the first images differs when it is read again."""
    return any(
        not torch.equal(
            torch.as_tensor(dataset[i]['inputs']), torch.as_tensor(dataset[i]['inputs'])
        )
        for i in range(min(8, len(dataset)))
    )


def _models(runner: Runner) -> tuple[nn.Module, nn.Module]:
    """The model without its wrapper, and the student in it."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model, model.student if isinstance(model, Distiller) else model


def _group(student: nn.Module, name: str) -> list[nn.Module]:
    """The modules of a part."""
    if name == 'backbone':
        return [part for part in (student.backbone, getattr(student, 'neck', None)) if part]
    path = 'prototype_layer' if name == 'prototypes' else name
    part = getattr(student.head, path, None)
    return [] if part is None else [part]


@contextmanager
def _only(model: nn.Module, parameter: Tensor) -> Iterator[None]:
    """A context in which one parameter alone is trained."""
    flags = [(each, each.requires_grad) for each in model.parameters()]
    for each, _ in flags:
        each.requires_grad_(each is parameter)
    try:
        yield
    finally:
        for each, flag in flags:
            each.requires_grad_(flag)
