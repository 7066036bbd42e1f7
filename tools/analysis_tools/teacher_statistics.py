#!/usr/bin/env python
"""Writes a teacher's mean output for each class, for the `teacher_target` of a term.

CONFIG is a distillation with one term that has a `teacher_target`, or else one term of `KLDivLoss`.
Its teacher runs once over an epoch of the training images, with the augmentation of the training.
The file holds, at the term's temperature:

- mass: the mean probability of the label
- class_mean (K, K): in row y the mean probabilities of the images of class y
- weight_similarity (K, K): the cosines between the classifier's weights of classes, without the
  mean of all classes (a common part changes no probability); None without a linear classifier
- class_cka (K, K), with --cka: the linear CKA between the logits of two classes, for WKDLogitLoss.
  Each class has as many images, in their order, as the smallest class has.
- tau, classes, images
"""

import argparse
import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from mmkdx.apis.dry_run import build_from_config
from mmkdx.apis.runs import find_term
from mmkdx.checkpoints import save_checkpoint_file
from mmkdx.distillation import Distiller
from mmkdx.files import exit_on_write_error
from mmkdx.functional import full_precision
from mmkdx.functional.class_cka import class_cka
from mmkdx.models.flow import find_flow


def teacher_outputs(
    cfg: Config, distiller: Distiller, name: str
) -> Iterable[tuple[Tensor, Tensor]]:
    """The logits (N, K) of a term's teacher and the labels (N, ) of an epoch of training images.

    Raises:
        ValueError: If images have no class.
    """
    loader = copy.deepcopy(cfg.train_dataloader)
    for key in ('batch_sampler', 'drop_last'):
        loader.pop(key, None)
    loader.setdefault('batch_size', 64)
    loader.sampler = dict(type='DefaultSampler', shuffle=False)
    set_random_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmkdx')):
        loader = Runner.build_dataloader(loader, seed=0)
    term = distiller.terms[name]
    for batch in track_iter_progress((loader, len(loader))):
        data = distiller.data_preprocessor(batch, False)
        if 'gt_label' not in data['data_samples'][0]:
            raise ValueError(f'{cfg.filename}: the training images have no class (gt_label)')
        labels = torch.cat([sample.gt_label for sample in data['data_samples']])
        logits = distiller.teachers[term.teacher](**data)[term.teacher_tap]
        yield full_precision(logits), labels.to(logits.device)


def target_statistics(outputs: Iterable[tuple[Tensor, Tensor]], tau: float) -> dict:
    """Computes the mean probabilities from batches of logits (N, K) and labels (N, ).

    Raises:
        ValueError: If there is a class without an image.
    """
    sums = counts = None
    for logits, labels in outputs:
        if sums is None:
            sums = logits.new_zeros(logits.shape[1], logits.shape[1], dtype=torch.float64)
            counts = sums.new_zeros(len(sums))
        sums.index_add_(0, labels, (logits / tau).softmax(1).double())
        counts += labels.bincount(minlength=len(counts))
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(f'the training data have no image of the classes {missing[:5]}')
    return dict(
        mass=(sums.diagonal().sum() / counts.sum()).float().cpu(),
        class_mean=(sums / counts[:, None]).float().cpu(),
        tau=float(tau),
        classes=len(sums),
        images=int(counts.sum()),
    )


def cka_similarity(outputs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The linear CKA (K, K) between the logits of classes, from batches of logits and labels."""
    logits, labels = (torch.cat(each).cpu() for each in zip(*outputs))
    least = int(labels.bincount(minlength=logits.shape[1]).min())
    groups = [logits[labels == k][:least] for k in range(logits.shape[1])]
    return class_cka(torch.stack(groups))


def weight_similarity(model: nn.Module | None, classes: int) -> Tensor | None:
    """The cosines (K, K) between a linear classifier's weights of classes; None without one."""
    try:
        weight = full_precision(model.get_submodule(find_flow(model).classifier).weight.detach())
    except (AttributeError, ValueError):
        return None
    rows = F.normalize(weight - weight.mean(0))
    return (rows @ rows.T).cpu() if len(weight) == classes else None


@torch.no_grad()
@exit_on_write_error()
def main() -> None:
    """Runs the teacher and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a distillation')
    parser.add_argument('--out', type=Path, required=True, help='the file to write (.pth)')
    parser.add_argument('--cka', action='store_true', help='also write class_cka')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='key=value')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    name = find_term(cfg)
    # Left out here, since it may need the file that this tool writes
    settings = cfg.model.terms[name].pop('teacher_target', None) or {}
    distiller = build_from_config(cfg).to(get_device())
    term = distiller.terms[name]
    teacher = distiller.teachers[term.teacher]
    if teacher.trained_along:
        raise ValueError(f'{args.config}: the teacher is trained along and has no fixed statistics')
    teacher.load()
    tau = settings.get('tau') or getattr(term.loss, 'tau', 1.0)
    outputs = teacher_outputs(cfg, distiller, name)
    if args.cka:  # all logits are in memory for it
        outputs = [(logits.cpu(), labels.cpu()) for logits, labels in outputs]
    found = target_statistics(outputs, tau)
    if args.cka:
        found['class_cka'] = cka_similarity(outputs)
    # An ensemble has no model of its own
    found['weight_similarity'] = weight_similarity(
        getattr(teacher, 'model', None), found['classes']
    )
    save_checkpoint_file(found, args.out)
    size = f'{found["classes"]} classes, {found["images"]} images'
    mass = f'mean probability of the label {found["mass"]:.3f} at tau {tau:g}'
    print(f'\n{args.out}: {size}, {mass}')


if __name__ == '__main__':
    main()
