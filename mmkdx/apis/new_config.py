"""Writes configs of a distillation for a folder of images and the names of two networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmkdx.apis.config_parts import MAX_BATCH, Plan, student_text, teacher_text
from mmkdx.apis.methods import methods
from mmkdx.apis.user_networks import USUAL_SIDE, absolute, class_map, common_side, user_network
from mmkdx.apis.user_networks import with_weights as network_with_weights
from mmkdx.arguments import integer, one_of
from mmkdx.datasets.listing import list_text, rejected_text
from mmkdx.datasets.survey import Survey, survey
from mmkdx.distillation.models import build_part, weights_source
from mmkdx.files import write_file
from mmkdx.models.libraries import has_own_weights, names_network

#: The names of the methods.
METHODS = tuple(methods(USUAL_SIDE, MAX_BATCH, 1, 1))


@dataclass(frozen=True)
class NewConfig:
    """What ``new_config`` wrote.

    Args:
        configs (list[Path]): The configs, in the order in which they are trained.
        checkpoints (list[Path]): The checkpoint at the end of each training.
        sentences (list[str]): What the user should know: the data, the choices, open questions.
        export_format (str): The format of ``export_student.py`` for the student.
    """

    configs: list[Path]
    checkpoints: list[Path]
    sentences: list[str]
    export_format: str

    def commands(self) -> list[list[str]]:
        """The commands to train, test and export: a script of ``tools`` with its arguments."""
        student = [str(self.configs[-1]), str(self.checkpoints[-1])]
        export = [
            *student,
            str(self.configs[-1].with_name('export')),
            '--format',
            self.export_format,
        ]
        return [
            *(['train.py', str(config)] for config in self.configs),
            ['test.py', *student, '--report'],
            ['model_converters/export_student.py', *export],
        ]


def new_config(
    data: str | Path,
    teacher: str,
    student: str,
    out: str | Path,
    checkpoint: str | Path | None = None,
    method: str = 'kd',
    epochs: int = 100,
    seed: int = 0,
) -> NewConfig:
    """Writes the config of a distillation, and lists of the images, into a folder.

    The config is ``student.py``. If the teacher's classes differ from the classes of the data,
    ``teacher.py`` trains the teacher on the data first. Images stay where they are.

    Args:
        data (str | Path): A folder or CSV; see ``mmkdx.datasets.survey.survey``.
        teacher (str): The teacher, as for ``mmkdx.apis.user_networks.user_network``.
        student (str): The student, in the same forms. It starts with random weights.
        out (str | Path): The folder for configs, lists and runs.
        checkpoint (str | Path, optional): The file or URL of the teacher's weights. Defaults to None:
            the weights of its library, which are downloaded when the training starts.
        method (str): The method, one of ``METHODS``. Defaults to 'kd'.
        epochs (int): Epochs of the student. Defaults to 100.
        seed (int): The random seed of the split and of the training. Defaults to 0.

    Returns:
        NewConfig: The configs, and what the user should know.

    Raises:
        FileNotFoundError: If there are no images, or no checkpoint.
        ValueError: If an option has an unknown value, the parts do not fit together, or the folder
            has other configs.
        WriteError: If a file cannot be written.
    """
    integer('--epochs', epochs, 1)
    integer('--seed', seed, 0)
    one_of('--method', method, METHODS)
    pupil, master = user_network(student, '--student'), user_network(teacher, '--teacher')
    names = master.facts.classes
    if checkpoint is not None:
        checkpoint = absolute(checkpoint)
        master, names = network_with_weights(master, checkpoint, '--checkpoint')
    elif not has_own_weights(master.spec):
        try:
            weights_source(master.spec, None, True)
        except ValueError:
            raise ValueError(
                f'--teacher {master.spec} comes without weights; pass --checkpoint FILE'
            ) from None
    if Path(absolute(out)).is_relative_to(absolute(data)):
        raise ValueError(f'--out {out} is inside of --data {data}; choose a folder elsewhere')
    found = survey(data, seed)
    side = common_side(found.short_side, pupil, master)
    plan = Plan(found, Path(absolute(out)), side, epochs, seed, found.sentences())
    classes, reason = class_map(found.classes, master, names)
    plan.sentences.append(reason)
    ends = dict(student=plan.out / 'student' / f'epoch_{epochs}.pth')
    texts = {}
    if classes is None:
        network = dict(model=master.with_classes(len(found.classes)))
        plan.sentences.append(
            f'So teacher.py trains the teacher on the data for {plan.teacher_epochs} epochs first.'
        )
        ends = dict(teacher=plan.out / 'teacher' / f'epoch_{plan.teacher_epochs}.pth', **ends)
        texts['teacher'] = teacher_text(plan, master, checkpoint)
        spec = dict(model=str(plan.out / 'teacher.py'), checkpoint=str(ends['teacher']))
    else:
        network = dict(model=master.config, **(dict(classes=classes) if classes else {}))
        weights = dict(checkpoint=checkpoint) if checkpoint else dict(pretrained=True)
        own = checkpoint is None and has_own_weights(master.spec)
        spec = network if own else {**network, **weights}
    taught = methods(side, plan.batch_size, len(found.train), epochs)[method]
    try:
        build_part(
            dict(
                type='Distiller',
                student=pupil.with_classes(len(found.classes)),
                teacher=network,
                terms=taught.terms,
                input_size=side,
            )
        )
    except ValueError as error:
        raise ValueError(f'--method {method}: {error}') from error
    texts['student'] = student_text(plan, taught, pupil, master, spec)
    _write(plan.out, found, texts)
    return NewConfig(
        configs=[plan.out / f'{name}.py' for name in ends],
        checkpoints=list(ends.values()),
        sentences=plan.sentences,
        export_format='library' if names_network(pupil.spec) else 'mmpretrain',
    )


def _write(out: Path, data: Survey, texts: Mapping[str, str]) -> None:
    """Writes configs and lists, but never over other content, which a user may have written."""
    files = {
        'train.txt': list_text(data.train),
        'val.txt': list_text(data.val),
        'classes.txt': ''.join(f'{name}\n' for name in data.classes).encode(),
        'rejected.txt': rejected_text(data.unreadable).encode(),
        **{f'{name}.py': text.encode(errors='surrogateescape') for name, text in texts.items()},
    }
    for name, content in files.items():
        path = out / name
        if path.is_file() and path.read_bytes() != content:
            raise ValueError(
                f'--out: {path} is there with other content; choose another folder, or remove the file'
            )
    for name, content in files.items():
        write_file(out / name, content)
