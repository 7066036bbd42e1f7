"""Measures the explanations of plain PyTorch modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Subset

from mmkdx.arguments import flag
from mmkdx.distillation.models import build_model
from mmkdx.evaluation import Evaluation, ExplanationEvaluator
from mmkdx.evaluation.writer import try_files, write_files, write_page
from mmkdx.explain import Explainer
from mmkdx.files import write_file, written_together
from mmkdx.models.plain_classifier import PlainClassifier


def evaluate_explanations(
    student: nn.Module | dict | str,
    data: DataLoader,
    teacher: nn.Module | dict | str | None = None,
    base: nn.Module | dict | str | None = None,
    explainer: dict | str | Explainer = 'GradCAM',
    metrics: Sequence[dict | str] = ('DeletionInsertion',),
    out_dir: str | Path | None = None,
    telling: bool = True,
    **options: Any,
) -> Evaluation:
    """Explains models on images and measures the explanations, as ``ExplainHook`` does in a run.

    The models do not change, but a teacher and a base model move to the student's device.

    Args:
        student (nn.Module | dict | str): The classifier; any module that ``mmkdx.models.describe``
            knows, or a name in the forms of ``Distiller.student``.
        data (DataLoader): Yields (images, labels), with images that are ready for the student. Its
            data set is read by index, so its sampler does not matter.
        teacher (nn.Module | dict | str, optional): Another classifier of the same classes. Defaults
            to None.
        base (nn.Module | dict | str, optional): The student trained alone. Defaults to None.
        explainer (dict | str | Explainer): See ``ExplanationEvaluator``. Defaults to 'GradCAM'.
        metrics (Sequence[dict | str]): The metrics, each a type or a config. Defaults to
            ('DeletionInsertion', ).
        out_dir (str | Path, optional): The folder for ``test.csv``, ``test.json``, ``test.txt`` and
            ``report.html``. Files of an earlier call are replaced. Defaults to None: no files.
        telling (bool): Whether to also show the images that ``telling_images`` chooses. Defaults to
            True.
        **options: ``num_samples``, ``show_samples``, ``target``, ``unicam``, ``context_size``,
            ``seed`` and ``floor`` of ``ExplanationEvaluator``.

    Returns:
        Evaluation: ``scores`` by name, and each image's values in ``rows``. It prints as a table.

    Raises:
        ValueError: If an argument is out of range, or models, data and metrics do not fit
            together.
        WriteError: If a file cannot be written; the files of an earlier call stay.
    """
    owner = 'evaluate_explanations'
    if not isinstance(data, DataLoader) or not hasattr(data.dataset, '__getitem__'):
        raise ValueError(f'{owner}: data must be a DataLoader whose data set is read by position')
    options.update(teacher=teacher, base=base, owner=owner)
    if not isinstance(student, nn.Module):
        student = build_model(student, 'student')
        if isinstance(student, PlainClassifier):  # its preprocessor would normalise twice
            student = student.model
    evaluator = ExplanationEvaluator(explainer, metrics, **options)
    with _restored(teacher, base):
        trial = evaluator.try_out(student, data)
        if out_dir is not None:
            try_files(Path(out_dir), 'trial', trial, 'out_dir')
        evaluator.begin(student, data)
        place = evaluator.place()
        size = data.batch_size or 1
        loader = DataLoader(
            Subset(data.dataset, list(place.values())),
            size,
            num_workers=data.num_workers,
            collate_fn=data.collate_fn,
            worker_init_fn=data.worker_init_fn,
        )
        numbers = list(place)
        for i, batch in enumerate(loader):
            evaluator.process(batch, numbers[i * size : (i + 1) * size])
        found = evaluator.finish(telling=flag(f'{owner}.telling', telling))
    if out_dir is not None:
        with written_together(out_dir) as folder:
            write_files(folder, 'test', found)
            write_file(folder / 'test.txt', f'{found}\n')
            write_page(folder, found, 'Explanations', {})
    return found


@contextmanager
def _restored(*models: Any) -> Iterator[None]:
    """Restores the modes of modules and their trainable parameters after a block."""
    known = [model for model in models if isinstance(model, nn.Module)]
    before = [(each, 'training', each.training) for model in known for each in model.modules()]
    before += [(p, 'requires_grad', p.requires_grad) for m in known for p in m.parameters()]
    try:
        yield
    finally:
        for each, name, value in before:
            setattr(each, name, value)
