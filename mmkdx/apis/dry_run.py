"""Finds out what a config will do, without data and without training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmkdx.datasets.wrappers import compose, file_pipeline, leaf_configs, type_name
from mmkdx.distillation import Distiller
from mmkdx.distillation.places import Value, names_of
from mmkdx.models.families import forward_tensor
from mmkdx.models.intercept import fake_forward
from mmkdx.registry import HOOKS, MODELS, PARAM_SCHEDULERS


def build_from_config(cfg: Config) -> nn.Module:
    """Builds a config's model as mmengine's Runner does, without a teacher's weights."""
    model = cfg.model.to_dict()
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmkdx')):
        return MODELS.build(model)


def build_rest(cfg: Config, model: nn.Module) -> None:
    """Builds the optimizer, schedulers, evaluators and custom hooks of a run.

    Raises:
        ValueError: If one cannot be built; the message names its key in the config.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmkdx')):
        if cfg.get('optim_wrapper'):
            with naming('optim_wrapper'):
                optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
            schedulers = cfg.get('param_scheduler') or []
            schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
            for i, config in enumerate(schedulers):
                with naming(f'param_scheduler[{i}]'):
                    given = dict(optimizer=optimizer, epoch_length=1)
                    PARAM_SCHEDULERS.build(config, default_args=given)
        for key in ('val_evaluator', 'test_evaluator'):
            if cfg.get(key):
                with naming(key):
                    Evaluator(cfg[key])
        for i, config in enumerate(cfg.get('custom_hooks') or ()):
            with naming(f'custom_hooks[{i}]'):
                HOOKS.build(config)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Turns an error in a block into a one-line ``ValueError`` that begins with a config key."""
    try:
        yield
    except Exception as error:
        text = str(error if isinstance(error, OSError) or not error.args else error.args[0]).strip()
        raise ValueError(f'{key}: {text.partition(chr(10))[0] or type(error).__name__}') from error


def first_dataloader(cfg: Config) -> dict:
    """The config of the training data loader, else of the validation or test data loader.

    Raises:
        ValueError: If there is none.
    """
    keys = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    loader = next((cfg[key] for key in keys if cfg.get(key)), None)
    if loader is None:
        raise ValueError(
            f'the config has none of {", ".join(keys)}; one of them must give the transforms'
        )
    return loader


def synthetic_batch(cfg: Config, num_images: int = 2, seed: int = 0) -> dict:
    """A batch of random images, made by the pipeline of the config's first data loader.

    Args:
        cfg (Config): A config with a data loader.
        num_images (int): The number of images. Defaults to 2.
        seed (int): The random seed of the images. Defaults to 0.

    Returns:
        dict: What a data loader yields: ``inputs`` and ``data_samples``.

    Raises:
        ValueError: If the config has no data loader.
    """
    loader = first_dataloader(cfg)
    # PairSampler puts the two images of a pair in a row
    in_a_row = 2 if type_name(loader.get('sampler') or {}) == 'PairSampler' else 1
    # The parts of a ConcatDataset may have different transforms
    steps = [file_pipeline(leaf, loaded=True) for leaf in leaf_configs(loader.dataset)]
    pipelines = [
        # Random images have no channel order
        compose(
            step
            for step in each
            if not type_name(step).startswith('Load') and step.get('order') != 'rgb'
        )
        for each in steps
    ]
    labelled = all(
        each.get('with_label', type_name(each) != 'UnlabelledImages')
        for each in leaf_configs(loader.dataset)
    )
    num_classes = (cfg.get('data_preprocessor') or {}).get('num_classes') or 2
    random = np.random.default_rng(seed)
    images = []
    for i in range(num_images):
        image = dict(
            img=random.integers(0, 256, (256, 256, 3), dtype=np.uint8),
            **(dict(gt_label=i // in_a_row % num_classes) if labelled else {}),
            gt_bboxes=np.array([[0, 0, 256, 256]]),
            sample_idx=i // in_a_row,
        )
        images.append(pipelines[i % len(pipelines)](image))
    return default_collate(images)


def multiply_adds(model: nn.Module, size: Sequence[int], channels: int = 3) -> int:
    """Multiply-adds of a forward pass with one image, which mmpretrain's model zoo lists as FLOPs.

    Only convolutions and matrix products count. ``size`` is height and width of the image.
    """
    with fake_forward(model), FlopCounterMode(display=False) as counter:
        forward_tensor(model, torch.empty(1, channels, *size))
    return counter.get_total_flops() // 2


def floor_factor(student: int, teachers: Sequence[int]) -> float:
    """The least cost of a distillation step, in steps of the student alone.

    A training step costs about three forward passes, and a teacher adds one:
    ``1 + sum(F_t) / (3 F_s)``. F_s and F_t are the multiply-adds of the student and of each teacher
    that runs in a step.
    """
    return 1 + sum(teachers) / (3 * student)


def one_step(model: nn.Module, batch: dict) -> tuple[dict[str, float], list[str]]:
    """Runs one training step of an mmengine model on a batch, without an optimizer.

    Returns:
        tuple[dict[str, float], list[str]]: The logged values, and the names of the parameters that
        get no gradient.
    """
    model.train()
    data = model.data_preprocessor(batch, True)
    loss, logged = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    unused = [name for name, parameter in trained if parameter.grad is None]
    return {name: value.item() for name, value in logged.items()}, unused


def term_rows(distiller: Distiller, size: Sequence[int]) -> list[list[str]]:
    """Makes a table row for each term: what the distiller compares, for images of a given size.

    Returns:
        list[list[str]]: Name, loss, the student's tap and shape, the teacher's tap and shape, the
        term's own parameters, weight and schedule.
    """
    rows = []
    for name, (student, teacher) in distiller.probe(size).items():
        term = distiller.terms[name]
        own = sum(p.numel() for p in term.parameters())
        at = ', '.join(names_of(term.teacher_tap)) or '-'
        rows.append(
            [
                name,
                term.loss_name,
                ', '.join(names_of(term.student_tap)),
                shape(student),
                f'{at} of teacher {term.teacher}' if term.teacher else at,
                shape(teacher) if term.taught else '-',
                f'{own:,}' if own else '-',
                str(term.weight),
                str(term.weight.schedule or 'constant'),
            ]
        )
    return rows


def shape(value: Value) -> str:
    """The shape of a tensor or of class maps, without the batch: ``64 x 8 x 8``."""
    if isinstance(value, list):
        return ', '.join(map(shape, value))
    return ' x '.join(map(str, value.shape[1:]))
