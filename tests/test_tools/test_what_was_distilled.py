"""The comparison of finished runs: which files it takes, and what it writes."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny import build, classifier, tool

PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)

pytestmark = pytest.mark.filterwarnings('ignore:UniCAM. .* images are few')

compare = tool('analysis_tools/what_was_distilled')


def checkpoint(path: Path, model: torch.nn.Module | None = None, when: int = 0) -> Path:
    """A file as mmengine writes it, ``when`` seconds after the epoch."""
    state = {} if model is None else model.state_dict()
    torch.save(dict(state_dict=state, optimizer={}, meta={}), path)
    os.utime(path, (when, when))
    return path


def run_of(folder: Path, **settings) -> Path:
    folder.mkdir()
    Config(dict(default_scope='mmkdx', **settings)).dump(folder / 'config.py')
    return folder


# Which files


def test_the_best_checkpoint_comes_before_the_last(tmp_path):
    folder = run_of(tmp_path / 'run')
    checkpoint(folder / 'epoch_1.pth', when=1)
    last = checkpoint(folder / 'epoch_2.pth', when=9)
    assert compare.find_run(str(folder)) == (str(folder / 'config.py'), str(last.resolve()))
    checkpoint(folder / 'best_accuracy_top1_epoch_1.pth', when=2)
    best = checkpoint(folder / 'best_accuracy_top1_epoch_2.pth', when=3)
    assert compare.find_run(str(folder)) == (str(folder / 'config.py'), str(best))


def test_a_folder_that_is_no_run(tmp_path):
    folder = tmp_path / 'run'
    for config in ('', 'a.py', 'b.py'):
        folder.mkdir(exist_ok=True)
        if config:
            (folder / config).touch()
        if config == 'a.py':
            with pytest.raises(FileNotFoundError, match=f'^{folder} has no checkpoint$'):
                compare.find_run(str(folder))
            continue
        message = rf'{folder} is no work directory of a run: it has {2 if config else 0} configs'
        with pytest.raises(FileNotFoundError, match=message):
            compare.find_run(str(folder))
    with pytest.raises(FileNotFoundError, match='nowhere is no work directory .* 0 configs'):
        compare.find_run(str(tmp_path / 'nowhere'))


# A comparison


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """A student that was trained on several machines and resumed, a base model and a teacher."""
    root = tmp_path_factory.mktemp('runs')
    loader = dict(
        batch_size=20,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(type='Digits', split='test', indices=48, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    settings = dict(
        custom_imports=dict(imports=['tiny']),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        work_dir=str(root / 'elsewhere'),
    )
    widths = dict(base=4, teacher=8, student=4)
    for seed, (name, width) in enumerate(widths.items()):
        model = dict(classifier(width, classes=10), data_preprocessor=PREPROCESSOR)
        more = {}
        if name == 'student':
            model = dict(
                type='Distiller',
                student=model,
                input_size=32,
                teacher=dict(
                    model=dict(classifier(6, classes=10), data_preprocessor=PREPROCESSOR),
                    checkpoint=str(root / 'own.pth'),
                ),
                terms=dict(kd=dict(type='KLDivLoss', at='logits')),
            )
            torch.save(build(model['teacher']['model']).state_dict(), root / 'own.pth')
            hooks = [dict(type='ExplainHook', num_samples=7), dict(type='EMAHook')]
            more = dict(custom_hooks=hooks, launcher='pytorch', resume=True)
        folder = run_of(root / name, model=model, **settings, **more)
        torch.manual_seed(seed)
        checkpoint(folder / 'epoch_1.pth', build(model))
    return root


def run_main(monkeypatch, runs: Path, *arguments: str) -> None:
    # As from a terminal: no process of another test has told which rank this is
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    command = ['what_was_distilled.py', *arguments]
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.chdir(runs)
    compare.main()


def loaded(out: Path) -> set[str]:
    """Of which runs, or files beside them, weights were loaded."""
    (log,) = out.glob('*/*.log')
    lines = r'(?:from path:|Load checkpoint from) \S+?/(student|base|teacher|own\.pth)\b'
    paths = re.findall(lines, log.read_text())
    return set(paths)


def test_a_student_a_base_and_a_teacher(runs, monkeypatch, tmp_path):
    out = tmp_path / 'out'
    run_main(
        monkeypatch, runs, 'student', 'base', 'teacher', '--out', str(out), '--num-samples', '30',
        '--context-size', '12', '--show-samples', '2', '--seed', '1', '--unicam', 'max_batch=7',
        '--cfg-options', 'test_dataloader.batch_size=16',
    )  # fmt: skip
    (path,) = out.glob('*/explain/test.json')
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line['target'] == 'label' and line['context_size'] == 12
    assert line['unicam']['max_batch'] == 7
    assert set(line['layers']) == {'student', 'base', 'teacher'}
    names = {'rs_stage1', 'base/part_stage2', 'teacher/fss_stage1', 'base/fss_stage2'}
    assert names < set(line['scores'])
    assert (line['scores']['rs_stage1']['n'], line['scores']['rs_stage1']['batches']) == (24, 2)
    page = path.with_name('report.html').read_text()
    assert 'What was distilled' in page and '24 in 2' in page and '30 of 48 (seed 1)' in page
    assert str(runs / 'student' / 'epoch_1.pth') in page
    assert len(list(out.glob('*/vis_data/vis_image/distilled_test_*.png'))) == 2
    assert loaded(out) == {'student', 'base', 'teacher'}


def test_the_teacher_is_the_students_own_if_none_is_given(runs, monkeypatch, tmp_path):
    run_main(monkeypatch, runs, 'student', 'base', '--num-samples', '0', '--context-size', '20',
             '--show-samples', '0', '--out', str(tmp_path))  # fmt: skip
    (path,) = tmp_path.glob('*/explain/test.json')
    line = json.loads(path.read_text())
    assert 'teacher/fss_stage1' in line['scores']
    assert line['scores']['degenerate']['n'] == 48
    assert loaded(tmp_path) == {'student', 'base', 'own.pth'}


def test_runs_that_are_none(runs, monkeypatch):
    for arguments in (('nowhere', 'base'), ('student', 'nowhere'), ('student', 'base', 'nowhere')):
        with pytest.raises(FileNotFoundError, match='nowhere is no work directory of a run'):
            run_main(monkeypatch, runs, *arguments)
