"""Audits finished models, given as runs, checkpoints, names or CSV files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.datasets.transforms import PackInputs
from torch import nn
from torch.utils.data import DataLoader

from mmkdx.apis.evaluate import evaluate_explanations
from mmkdx.apis.runs import find_run, read_run_test_data
from mmkdx.arguments import integer
from mmkdx.datasets.wrappers import class_names, config_pipeline, type_name, with_pipeline
from mmkdx.distillation.class_order import classes_in
from mmkdx.distillation.models import build_student, load_weights, read_config, zoo_entry
from mmkdx.evaluation import Evaluation
from mmkdx.evaluation.audit_findings import plain
from mmkdx.evaluation.audit_records import Records
from mmkdx.evaluation.audit_table import class_rows, flipped_images
from mmkdx.evaluation.verdict import Findings, paragraph, study
from mmkdx.evaluation.writer import write_page
from mmkdx.files import append_text, write_file, written_together
from mmkdx.models.libraries import names_network
from mmkdx.version import __version__
from mmkdx.visualization.records import append_values

#: The suffixes of files with weights.
WEIGHTS = ('.pth', '.pt', '.bin')
CONFIGS = ('.py', '.yml', '.yaml', '.json')


@dataclass
class Named:
    """A model that a user names.

    Args:
        model (dict | str): The model, in a form of ``Distiller.student``.
        checkpoint (str, optional): A file with its weights. Defaults to None: it has its own.
        data (str, optional): The work directory or config that has test images. Defaults to None.
    """

    model: dict | str
    checkpoint: str | None = None
    data: str | None = None


def find_model(name: str, key: str) -> Named:
    """Finds a model by its run's work directory, by CONFIG:CHECKPOINT or by its name.

    Args:
        name (str): One of these: a finished run's work directory; ``CONFIG:CHECKPOINT``; a network
            with its own weights (``timm::resnet18``, a model of mmpretrain's zoo,
            ``module:callable``); or ``NETWORK:CHECKPOINT``, with the name of a library's network.
        key (str): The option, for messages.

    Raises:
        ValueError: If the name is none of these.
        FileNotFoundError: If a folder holds no run.
    """
    if Path(name).is_dir():
        return Named(*find_run(name), data=name)
    head, _, tail = name.rpartition(':')
    if head and Path(tail).suffix in WEIGHTS:
        return Named(head, tail, head if Path(head).suffix in CONFIGS else None)
    if names_network(name):
        return Named(dict(type=name, pretrained=True) if '::' in name else name)
    if Path(name).suffix in CONFIGS:
        raise ValueError(f'{key}: {name} is a config without weights; write {name}:CHECKPOINT')
    if not (entry := zoo_entry(name, f'{key}: neither a run nor a network')).weights:
        raise ValueError(f'{key}: the zoo has no weights of {name}')
    return Named(name, entry.weights)


def load_test_images(
    source: str, groups: bool = False, changes: Mapping[str, Any] | None = None
) -> DataLoader:
    """Builds a data loader of the test images of a run or config.

    Args:
        source (str): A config, or a work directory. The config in a work directory is not executed.
        groups (bool): Whether the data samples keep the images' 'group'. Defaults to False.
        changes (Mapping[str, Any], optional): Changes to the config by key, such as
            ``{'test_dataloader.dataset.mark': 'random'}``. Defaults to None.

    Raises:
        ValueError: If there are no test images.
    """
    if Path(source).is_dir():
        loader, scope = read_run_test_data(source)
    else:
        found = read_config(source, 'data')
        loader, scope = found.get('test_dataloader'), found.get('default_scope') or 'mmkdx'
    if not loader:
        raise ValueError(f'{source} has no test_dataloader, so there are no test images')
    cfg = Config(dict(test_dataloader=loader))
    cfg.merge_from_dict(dict(changes or {}))
    loader = cfg.test_dataloader.to_dict()
    if groups:
        steps = config_pipeline(loader['dataset'])
        for step in steps:
            if type_name(step) == 'PackInputs':
                step['meta_keys'] = (*step.get('meta_keys', PackInputs.DEFAULT_META_KEYS), 'group')
        loader['dataset'] = with_pipeline(loader['dataset'], steps)
    loader.update(sampler=dict(type='DefaultSampler', shuffle=False), drop_last=False)
    loader.pop('batch_sampler', None)
    with DefaultScope.overwrite_default_scope(scope):
        return Runner.build_dataloader(loader, seed=0)


def evaluate_models(
    student: str,
    teacher: str | None = None,
    base: str | None = None,
    data: str | None = None,
    explainer: dict | str | None = 'GradCAM',
    num_samples: int | None = None,
    show_samples: int = 30,
    groups: bool = False,
    device: str = 'cpu',
    changes: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Runs models over the same test images.

    Args:
        student (str): See ``find_model``.
        teacher (str, optional): See ``find_model``. Defaults to None.
        base (str, optional): The student trained alone. Defaults to None.
        data (str, optional): The work directory or config that gives the test images. Defaults to
            None: the first model that has test images gives them.
        explainer (dict | str, optional): See ``ExplanationEvaluator``. Defaults to 'GradCAM'. None: the
            models only predict.
        num_samples (int, optional): Number of images. Defaults to None (all).
        show_samples (int): Number of random images that a report shows, after the images that
            ``telling_images`` chooses. Defaults to 30.
        groups (bool): Whether to keep the images' groups. Defaults to False.
        device (str): The device. Defaults to 'cpu'.
        changes (Mapping[str, Any], optional): See ``load_test_images``. Defaults to None.

    Raises:
        ValueError: If models and data do not fit together, or ``groups`` is set and images have no
            group.
        FileNotFoundError: If a file or a run is missing.
    """
    given = dict(student=student, teacher=teacher, base=base)
    named = {key: find_model(name, key.upper()) for key, name in given.items() if name is not None}
    source = data or next((each.data for each in named.values() if each.data), None)
    if source is None:
        raise ValueError('none of the models has test images; name a run or config by --data')
    loader = load_test_images(source, groups, changes)
    names = class_names(loader.dataset)
    # Random maps of a fixed size need no forward pass, and no one sees them
    silent = dict(explainer=dict(type='RandomMap', size=2), metrics=())
    shown = dict(explainer=explainer, metrics=['MapAgreement'])
    evaluate = partial(
        evaluate_explanations,
        load_student(named['student'], names).to(device),
        **{key: teacher_spec(each, names) for key, each in named.items() if key != 'student'},
        **(silent if explainer is None else shown),
        unicam=False,
    )
    show = 0 if explainer is None else integer('show_samples', show_samples, 0)
    found = evaluate(loader, num_samples=num_samples, show_samples=show)
    if explainer is None:
        found.facts['explainers'] = {}
    if groups and not all('group' in row for row in found.rows.values()):
        raise ValueError(
            f"--groups: test images of {source} have no 'group'; Waterbirds has groups, and so has "
            'Parts with a mark'
        )
    return found


def run_accuracies(
    names: Sequence[str], source: str, device: str = 'cpu', changes: Mapping[str, Any] | None = None
) -> list[float]:
    """Accuracies in [0, 1] of several runs of one method on the test images of ``source``."""
    found = []
    for name in names:
        rows = evaluate_models(
            name, data=source, explainer=None, device=device, changes=changes
        ).rows.values()
        found.append(float(np.mean([row['prediction'] == row.get('label') for row in rows])))
    return found


def write_audit(
    folder: str | Path,
    findings: Findings,
    facts: Mapping[str, str],
    evaluation: Evaluation | None = None,
) -> None:
    """Writes the files of an audit.

    These are ``audit.json`` and ``classes.csv``, and with an evaluation ``audit.csv`` and
    ``report.html``.

    Args:
        folder (str | Path): The folder; files of an earlier audit are replaced.
        findings (Findings): What the records say.
        facts (Mapping[str, str]): The name of each compared model.
        evaluation (Evaluation, optional): The evaluated images. Defaults to None.

    Raises:
        WriteError: If a file cannot be written; the files of an earlier audit stay.
    """
    sentences = paragraph(findings)
    content = dict(
        models=facts,
        n=len(findings.records),
        alpha=findings.alpha,
        family_sizes={
            name: dict(
                classes=len(each.classes.changes),
                groups=len(each.groups.changes) if each.groups else 0,
            )
            for name, each in findings.audits.items()
        },
        map_score=findings.records.map_score,
        versions=dict(mmkdx=__version__, numpy=np.__version__, scipy=scipy.__version__),
        verdict=sentences,
        audits=findings.audits,
        gain=findings.gain,
        flipped=flipped_images(findings.records),
    )
    with written_together(folder) as place:
        write_file(place / 'audit.json', json.dumps(plain(content), indent=1) + '\n')
        append_text(place / 'classes.csv', class_rows(findings.audits))
        if evaluation is not None:
            append_values(place / 'audit.csv', evaluation.rows, evaluation.classes)
            write_page(place, evaluation, 'Audit', facts, findings=findings)


def audit_files(
    student: str,
    teacher: str | None = None,
    base: str | None = None,
    groups: bool = False,
    **options: Any,
) -> Findings:
    """Audits the CSV files of evaluations; see ``Records.from_csv`` and ``study``.

    Raises:
        ValueError: If the files do not fit together, a name is not a CSV file, or ``groups`` is set
            and images have no group.
    """
    given = dict(student=student, teacher=teacher, base=base)
    given = {key: name for key, name in given.items() if name is not None}
    if others := [name for name in given.values() if Path(name).suffix != '.csv']:
        raise ValueError(
            f'{others[0]} is not a CSV file; if one model is a CSV file, all must be CSV files'
        )
    records = Records.from_csv(given)
    if groups and records.group is None:
        raise ValueError(f"--groups: the images in {student} have no 'group'")
    return study(records, **options)


def load_student(named: Named, names: Sequence[str] | None) -> nn.Module:
    """The student with its weights and the names of its classes."""
    preprocessor = None if names is None else dict(num_classes=len(names))
    network = isinstance(named.model, str) and names_network(named.model)
    student = build_student(named.model, preprocessor if network else None)
    if named.checkpoint is not None:
        state = CheckpointLoader.load_checkpoint(named.checkpoint, map_location='cpu')
        load_weights(student, state, f'STUDENT {named.checkpoint}')
        if known := classes_in(state):
            student._dataset_meta = dict(classes=known)
    return student


def teacher_spec(named: Named, names: Sequence[str] | None) -> dict[str, Any]:
    """A teacher or base model in a form that ``Distiller.teacher`` takes."""
    model = named.model
    if named.checkpoint is not None and names is not None and isinstance(model, str):
        if '::' in model and names_network(model):
            model = dict(type=model, num_classes=len(names))
    return dict(model=model, checkpoint=named.checkpoint)
