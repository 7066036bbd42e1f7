"""Compares the runs of several methods on the same test images."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.apis.audit import Named, find_model, load_student, load_test_images, teacher_spec
from mmkdx.apis.evaluate import evaluate_explanations
from mmkdx.apis.runs import metric_values, seconds, training_parts
from mmkdx.datasets.wrappers import class_names, images
from mmkdx.evaluation import Evaluation
from mmkdx.evaluation.audit_records import Records
from mmkdx.evaluation.images import read_batch
from mmkdx.evaluation.methods import Method, conclusions
from mmkdx.evaluation.verdict_parts import Sentence
from mmkdx.explain.base import undisturbed
from mmkdx.models.families import describe
from mmkdx.models.libraries import names_network

#: The names of the models to which the methods are compared.
MARKS = ('teacher', 'base')
#: Scores of ``ExplainHook`` that the table shows if all runs of a method have them.
LOGGED = ('deletion', 'insertion')


@dataclass
class Picture:
    """An image with the maps and predictions of all models.

    Args:
        image (np.ndarray): RGB, uint8 of shape (H, W, 3).
        maps (dict[str, Tensor]): The raw map (h, w) of each model.
        label (int): The label.
        predictions (dict[str, int]): What each model predicts.
        agreement (dict[str, float]): For each method the Pearson correlation of its map with the
            teacher's map.
    """

    image: np.ndarray
    label: int
    maps: dict[str, Tensor] = field(default_factory=dict)
    predictions: dict[str, int] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)


@dataclass
class Experiment:
    """The results of several methods on the same test images.

    Args:
        groups (dict[str, list[str]]): The work directories of each method's runs.
        methods (dict[str, Method]): The runs' values.
        marks (dict[str, Method]): The values of 'teacher' and, if there is one, 'base'.
        parameters (dict[str, int]): The number of parameters of each model.
        logged (dict[str, dict[str, float]]): For each method the mean training time in seconds, and
            the mean of each score in ``LOGGED`` that all its runs have.
        facts (dict[str, str]): The setup, such as the teacher and the explainer.
        images (int): Number of test images.
        mapped (int): Number of images whose maps were compared.
        classes (Sequence[str], optional): The names of the classes.
        pictures (dict[int, Picture]): The images to show, by their numbers.
    """

    groups: dict[str, list[str]]
    methods: dict[str, Method] = field(default_factory=dict)
    marks: dict[str, Method] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    logged: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    images: int = 0
    mapped: int = 0
    classes: Sequence[str] | None = None
    pictures: dict[int, Picture] = field(default_factory=dict)

    @property
    def answer(self) -> list[Sentence]:
        """The first paragraph of the page."""
        return [each for each in self._sentences if not each.rule.endswith('differences')]

    @property
    def details(self) -> list[Sentence]:
        """The sentences below the first paragraph."""
        return [each for each in self._sentences if each.rule.endswith('differences')]

    @cached_property
    def _sentences(self) -> list[Sentence]:
        return conclusions(self.methods, self.images, self.mapped)


def group_runs(
    work_dirs: Sequence[str | Path], names: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """Groups runs by method.

    Args:
        work_dirs (Sequence[str | Path]): The runs' work directories.
        names (Sequence[str], optional): The method of each run; runs with the same name are one
            method. Defaults to None: the folders ``seed_<k>`` in one folder (see ``run_seeds``) are
            one method with that folder's name. Any other run is a method of its own.

    Raises:
        ValueError: If a run is given twice, or names are missing or reserved.
    """
    places = [Path(each).resolve() for each in work_dirs]
    if twice := [str(path) for path, count in Counter(places).items() if count > 1]:
        raise ValueError(f'the run {twice[0]} is given twice, and would count as two seeds')
    if names is None:
        owners = [
            path.parent if path.name.startswith('seed_') and path.name[5:].isdecimal() else path
            for path in places
        ]
        names = _short_names(owners)
    elif len(names) != len(places):
        raise ValueError(f'--names has {len(names)} names for {len(places)} folders')
    groups: dict[str, list[str]] = {}
    for name, path in zip(names, work_dirs):
        groups.setdefault(name, []).append(str(path))
    if reserved := [name for name in groups if name in MARKS]:
        raise ValueError(
            f'a method is called {reserved[0]!r}, which is reserved for another model on the page; '
            'leave the run out, or choose another name by --names'
        )
    return groups


def compare_methods(
    groups: Mapping[str, Sequence[str]],
    teacher: str | None = None,
    base: str | None = None,
    data: str | None = None,
    explainer: dict | str | None = 'GradCAM',
    num_samples: int | None = 100,
    show_samples: int = 4,
    device: str = 'cpu',
) -> Experiment:
    """Runs all models over the same test images.

    Args:
        groups (Mapping[str, Sequence[str]]): The work directories of each method's runs, see
            ``group_runs``.
        teacher (str, optional): See ``find_model``. Defaults to None: the teacher that all
            distillations among the runs share.
        base (str, optional): The student trained alone, see ``find_model``. Defaults to None.
        data (str, optional): The work directory or config that gives the test images. Defaults to
            None: the first run.
        explainer (dict | str, optional): See ``ExplanationEvaluator``. Defaults to 'GradCAM'. None: the
            models only predict.
        num_samples (int, optional): Number of images whose maps are compared, drawn at random with
            seed 0. Defaults to 100. None: all.
        show_samples (int): Number of these images that the page shows. Defaults to 4.
        device (str): The device. Defaults to 'cpu'.

    Raises:
        ValueError: If models and data do not fit together, or no teacher is known.
        FileNotFoundError: If a file or a run is missing.
    """
    named = {(name, run): find_model(run, 'RUN') for name, runs in groups.items() for run in runs}
    if base is not None:
        named['base', base] = find_model(base, '--base')
    source = data or next(iter(named.values())).data
    loader = load_test_images(source)
    names = class_names(loader.dataset)
    spec = _find_teacher(named, teacher, names)
    logged = {name: _logged(runs) for name, runs in groups.items()}
    found = Experiment(dict(groups), logged=logged, classes=names)
    _check_classes(named, loader)  # before the long computation
    values: dict[str, list[dict[str, np.ndarray]]] = {}
    guide: np.ndarray | None = None
    for (name, _), each in named.items():
        student = load_student(each, names).to(device)
        # Random maps of a fixed size need no forward pass, and no one sees them
        plain = _evaluate(
            student, loader, None if guide is not None else spec, dict(type='RandomMap', size=2)
        )
        records = Records.from_evaluation(plain)
        if records.label is None:
            raise ValueError(f'the test images of {source} do not have one label each')
        own = records.models['student'].prediction
        if guide is None:
            guide = records.models['teacher'].prediction
            hits = (guide == records.label).astype(float)
            found.marks['teacher'] = Method([dict(accuracy=hits, predictions=np.ones(len(hits)))])
            found.images = len(hits)
            found.facts['teacher'] = f'{teacher or _teacher_text(spec)}: {plain.models["teacher"]}'
        row = dict(
            accuracy=(own == records.label).astype(float), predictions=(own == guide).astype(float)
        )
        first = name not in values
        if explainer is not None:
            shown = show_samples if first else 0
            mapped = _evaluate(
                student, loader, spec, explainer, ['MapAgreement'], num_samples, shown
            )
            row['maps'] = Records.from_evaluation(mapped).models['student'].agreement
            found.mapped = mapped.count
            found.facts.setdefault('maps of', f'{mapped.sample}, for what the teacher predicts')
            _keep_pictures(found.pictures, name, mapped)
        values.setdefault(name, []).append(row)
        found.parameters[name] = sum(each.numel() for each in student.parameters())
    methods = {name: Method(rows) for name, rows in values.items()}
    if base is not None:
        found.marks['base'] = methods.pop('base')
    found.methods = methods
    found.facts.update(
        {
            'test images': source,
            'base': base or '',
            'explainer': '' if explainer is None else str(explainer),
        }
    )
    return found


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Shortens each path to the fewest last parts that tell different paths apart."""

    def tail(path: Path) -> str:
        for count in range(1, len(path.parts)):
            name = '/'.join(path.parts[-count:])
            if not any(o != path and o.parts[-count:] == path.parts[-count:] for o in paths):
                return name
        return str(path)

    return [tail(path) for path in paths]


def _find_teacher(
    named: Mapping[tuple[str, str], Named], teacher: str | None, names: Sequence[str] | None
) -> dict[str, Any]:
    """The given teacher, or the one of all distillations, in a form of ``Distiller.teacher``."""
    if teacher is not None:
        return teacher_spec(find_model(teacher, '--teacher'), names)
    known: list[Any] = []
    for each in named.values():
        spec = each.model.get('teacher') if isinstance(each.model, dict) else None
        while isinstance(spec, dict) and 'teacher' in spec:  # cached outputs of a teacher
            spec = spec['teacher']
        if spec is not None and spec not in known:
            known.append(spec)
    if len(known) > 1:
        names = ', '.join(_teacher_text(spec) for spec in known)
        raise ValueError(f'the runs have different teachers ({names}); choose one by --teacher')
    if not known:
        raise ValueError('none of the runs is a distillation with a teacher; set --teacher')
    spec = dict(model=known[0]) if isinstance(known[0], str) else known[0]
    if not isinstance(spec, dict) or not ('model' in spec or names_network(spec.get('type'))):
        raise ValueError("the runs' teacher is not one trained model; set --teacher")
    return spec


def _teacher_text(spec: Any) -> str:
    """The name of a teacher on a page: its checkpoint, or else its model."""
    if isinstance(spec, dict):
        return str(spec.get('checkpoint') or spec.get('model') or spec.get('type'))
    return str(spec)


def _check_classes(named: Mapping[tuple[str, str], Named], loader: DataLoader) -> None:
    """Checks, with one image, that each run has the classes of the test images."""
    names = class_names(loader.dataset)
    wanted, whose = (0, '') if names is None else (len(names), 'the test images')
    first = loader.collate_fn([loader.dataset[min(images(loader.dataset).values())]])
    for (_, run), each in named.items():
        student = load_student(each, names)
        facts, inputs = describe(student), read_batch(first, student, run, [0]).inputs
        with undisturbed(student, inputs), torch.no_grad():
            count = facts.logits(inputs).shape[1]
        wanted, whose = wanted or count, whose or run
        if count != wanted:
            raise ValueError(
                f'{run} has {count} classes and {whose} {wanted}; all runs need the same classes'
            )
        if None not in (names, facts.classes) and list(facts.classes) != list(names):
            raise ValueError(
                f'{run} has classes of other names, or in another order, than the test images'
            )


def _evaluate(
    student: nn.Module,
    loader: DataLoader,
    teacher: dict[str, Any] | None,
    explainer: Any,
    metrics: Sequence[str] = (),
    num_samples: int | None = None,
    show_samples: int = 0,
) -> Evaluation:
    return evaluate_explanations(
        student,
        loader,
        teacher=teacher,
        explainer=explainer,
        metrics=metrics,
        num_samples=num_samples,
        show_samples=show_samples,
        telling=False,
        floor=False,
        unicam=False,
    )


def _keep_pictures(pictures: dict[int, Picture], name: str, found: Evaluation) -> None:
    """Adds a method's maps to the pictures; the first method also adds the teacher's maps."""
    for index, (image, maps) in found.maps.items():
        row = found.rows[index]
        picture = pictures.setdefault(index, Picture(image, int(row['label'])))
        picture.maps.setdefault('teacher', maps['teacher'])
        picture.predictions.setdefault('teacher', int(row['teacher/prediction']))
        picture.maps[name] = maps['student']
        picture.predictions[name] = int(row['prediction'])
        picture.agreement[name] = float(row['pearson'])


def _logged(runs: Sequence[str]) -> dict[str, float]:
    """Means over runs of the training seconds and of the logged scores that all runs have."""
    found: dict[str, list[float]] = {}
    for run in runs:
        parts = training_parts(Path(run))
        found.setdefault('seconds', []).append(seconds(parts))
        for key in LOGGED:
            try:
                value = metric_values(parts, f'explain/{key}')[-1]
            except ValueError:
                continue
            found.setdefault(key, []).append(value)
    return {key: statistics.mean(each) for key, each in found.items() if len(each) == len(runs)}
