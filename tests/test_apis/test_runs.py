"""Running with several seeds, and what is read of finished runs."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny import build, classifier

from mmkdx import data_configs
from mmkdx.apis import run_tool, runs
from mmkdx.apis.runs import run_seeds
from mmkdx.distillation import models
from mmkdx.distillation.models import build_part, model_config

ROOT = Path(__file__).parents[2]
PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)

pytestmark = pytest.mark.filterwarnings('ignore:UniCAM. .* images are few')


def test_a_tool_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, 'shipped_folder', lambda name: tmp_path / name)
    (tmp_path / 'tools').mkdir()
    script, log = tmp_path / 'tools/tool.py', tmp_path / 'log.txt'
    script.write_text('import sys; print(sys.argv[1:])')
    runs.call_tool('tool.py', 'a.py', '--work-dir', tmp_path, log=log)
    assert log.read_text() == f"['a.py', '--work-dir', '{tmp_path}']\n"
    script.write_text('raise SystemExit("no such config")')
    with pytest.raises(RuntimeError, match=f'tool.py none.py failed; see {log}'):
        runs.call_tool('tool.py', 'none.py', log=log)
    assert log.read_text() == 'no such config\n'


def test_tools_and_configs_are_the_packages_own(tmp_path, monkeypatch):
    """Those of a checkout, or of an installed package, which has them in its folder .mim."""
    monkeypatch.setattr(models, '__file__', str(tmp_path / 'mmkdx/distillation/models.py'))
    assert models.shipped_folder('tools') == tmp_path / 'tools'
    folder = tmp_path / 'mmkdx/.mim/configs/cifar'
    folder.mkdir(parents=True)
    (folder / 'net.py').write_text("model = dict(type='Net')")
    assert models.read_config('mmkdx::cifar/net.py', 'teacher').model == dict(type='Net')


def test_parts_of_a_resumed_run_are_joined(tmp_path):
    parts = {'20260101_000000': [1, 9.0], '20260102_000000': [1, 1.0], '20260103_000000': [3, 2.0]}
    for name, (epoch, value) in parts.items():
        folder = tmp_path / name / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(
            f'{{"loss": 1.0, "epoch": {epoch}, "iter": 1, "step": 1}}\n'
            f'{{"accuracy/top1": {value}, "step": {epoch}}}\n'
        )
    found = runs.training_parts(tmp_path)
    # The first of the three was replaced
    assert [folder.name for folder, _ in found] == list(parts)[1:]
    assert runs.metric_values(found, 'accuracy/top1') == [1.0, 2.0]
    with pytest.raises(ValueError, match="20260103_000000 has no metric 'accuracy/top9'"):
        runs.metric_values(found, 'accuracy/top9')
    with pytest.raises(FileNotFoundError, match='holds no run'):
        runs.training_parts(tmp_path / 'nowhere')


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


MODEL = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='ResNet', out_indices=(3,), lr=-1.5e-3, names={'a b': [True, None]}),
)


def test_a_runs_model_is_read_as_data(tmp_path):
    folder = run_of(tmp_path / 'run', model=MODEL, data_preprocessor=PREPROCESSOR)
    assert runs.read_run_model(folder / 'config.py') == dict(MODEL, data_preprocessor=PREPROCESSOR)
    own = dict(MODEL, data_preprocessor=dict(num_classes=4))
    run_of(tmp_path / 'own', model=own, data_preprocessor=PREPROCESSOR)
    assert runs.read_run_model(tmp_path / 'own/config.py') == own


def test_a_runs_test_data_are_read_as_data(tmp_path):
    loader = dict(batch_size=2, dataset=dict(type='Parts', split='test'))
    folder = run_of(tmp_path / 'run', test_dataloader=loader)
    assert runs.read_run_test_data(str(folder)) == (loader, 'mmkdx')
    (folder / 'config.py').write_text(f'test_dataloader = {loader!r}')
    assert runs.read_run_test_data(str(folder)) == (loader, 'mmkdx')
    for text in ('x = 1', 'test_dataloader = dict(type=open("evil", "w").name)'):
        (folder / 'config.py').write_text(text)
        message = 'config.py is not executed, .* must be plain data with a test_dataloader: '
        with pytest.raises(ValueError, match=message):
            runs.read_run_test_data(str(folder))


@pytest.mark.parametrize(
    'model',
    [
        dict(type='os:system', command='touch evil'),
        dict(type='Distiller', student=dict(type='os:system', command='touch evil'), terms={}),
        dict(type='PlainClassifier', network='os:system', command='touch evil'),
    ],
)
def test_a_callable_of_a_foreign_run_is_not_called(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_configs, '_texts', set())
    (tmp_path / 'config.py').write_text(f'model = {model!r}')
    found = runs.read_run_model(tmp_path / 'config.py')
    with pytest.raises(data_configs.DataConfigError, match=".* is 'os:system', a program; "):
        build_part(model_config(found, 'model'))
    assert not (tmp_path / 'evil').exists()


@pytest.mark.parametrize(
    'text',
    [
        'import os\nmodel = dict(type="A")',
        'model = dict(type=open("evil", "w").name)',
        'model = dict(type="A", x=[c for c in ()])',
        'model = dict(type="A", x=f"{1}")',
        'model = {**dict(type="A")}',
        'model = dict(**{"type": "A"})',
        'model = dict([("type", "A")])',
        'model = dict(type="A", backbone={"type": "os.system", "command": "touch evil"})',
        'model = dict(type="A", neck=[dict(type="evil.Net")])',
        'model = dict(type="Distiller", student="evil.py")',
        'model = "evil.py"',
        'model = dict(',
        'model = ' + '(' * 10_000,
        'x, model = 1, dict(type="A")',
        'x = 1',
        'model = __import__("os").system("touch evil")',
    ],
)
def test_a_runs_config_that_is_a_program_is_not_executed(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    folder = run_of(tmp_path / 'run')
    (folder / 'config.py').write_text(text)
    checkpoint(folder / 'epoch_1.pth')
    (tmp_path / 'evil.py').write_text('open("evil", "w")\nmodel = dict(type="A")')
    with pytest.raises(
        ValueError, match=f'^{folder}/config.py is not executed, since the run may come'
    ):
        runs.find_run(str(folder))
    assert not (tmp_path / 'evil').exists()


def test_the_best_checkpoint_comes_before_the_last(tmp_path):
    folder = run_of(tmp_path / 'run', model=MODEL)
    checkpoint(folder / 'epoch_1.pth', when=1)
    last = checkpoint(folder / 'epoch_2.pth', when=9)
    assert runs.find_run(str(folder)) == (MODEL, str(last.resolve()))
    checkpoint(folder / 'best_accuracy_top1_epoch_1.pth', when=2)
    best = checkpoint(folder / 'best_accuracy_top1_epoch_2.pth', when=3)
    assert runs.find_run(str(folder)) == (MODEL, str(best))


def test_a_folder_that_is_no_run(tmp_path):
    folder = tmp_path / 'run'
    for config in ('', 'a.py', 'b.py'):
        folder.mkdir(exist_ok=True)
        if config:
            (folder / config).touch()
        if config == 'a.py':
            with pytest.raises(FileNotFoundError, match=f'^{folder} has no checkpoint$'):
                runs.find_run(str(folder))
            continue
        message = rf'{folder} is no work directory of a run: it has {2 if config else 0} configs'
        with pytest.raises(FileNotFoundError, match=message):
            runs.find_run(str(folder))
    with pytest.raises(FileNotFoundError, match='nowhere is no work directory .* 0 configs'):
        runs.find_run(str(tmp_path / 'nowhere'))


# What was distilled


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
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
        path = run_of(root / name, model=model, **settings, **more)
        torch.manual_seed(seed)
        checkpoint(path / 'epoch_1.pth', build(model))
    return root


def test_a_base_by_its_work_directory(folder, monkeypatch, tmp_path):
    # As from a terminal: no process of another test has told which rank this is
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LOCAL_RANK', '0')  # which mmpretrain's tool sets
    out = tmp_path / 'out'
    student = folder / 'student'
    words = [f'{student}/config.py', f'{student}/epoch_1.pth', '--report']
    words += ['--base', str(folder / 'base')]
    hook = 'custom_hooks.0'
    options = [f'{hook}.context_size=12', f'{hook}.show_samples=2', f'{hook}.target=label']
    options += [f'{hook}.num_samples=30', f'{hook}.seed=1', f'{hook}.unicam.max_batch=7']
    monkeypatch.setattr(
        sys, 'argv', ['test.py', *words, '--work-dir', str(out), '--cfg-options', *options]
    )
    run_tool('test')
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
    assert len(list(out.glob('*/vis_data/vis_image/distilled_test_*.png'))) == 2
    # Of which runs, or files beside them, weights were loaded
    (log,) = out.glob('*/*.log')
    lines = r'(?:from path:|Load checkpoint from) \S+?/(student|base|teacher|own\.pth)\b'
    assert set(re.findall(lines, log.read_text())) == {'student', 'base', 'own.pth'}


@pytest.mark.parametrize('jobs', [0, True, float('nan')])
def test_no_runs_at_a_time(tmp_path, jobs):
    with pytest.raises(ValueError, match=f'^jobs is {jobs}; it must be an integer of at least 1'):
        run_seeds({}, [0], tmp_path, jobs)
