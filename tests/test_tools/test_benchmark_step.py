"""The benchmark of distillation steps times real ones, splits them, and compares with other loops."""

import json
import sys
from pathlib import Path

import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmpretrain.datasets import PackInputs
from PIL import Image
from tiny import tool

from mmkdx.functional import ClassMaps

ROOT = Path(__file__).parents[2]

TEACHER = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
)
data_preprocessor = dict(num_classes=5, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=False)
"""

CONFIG = """
_base_ = ['teacher.py']
model = dict(
    _delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=16,
    student_weight=0.1, teacher=dict(model=r'{teacher}', checkpoint='nowhere.pth'),
    terms=dict(term={term}),
)
train_dataloader = dict(batch_size=6, dataset=dict(pipeline={pipeline}))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
"""

KD = dict(type='KLDivLoss', at='logits', tau=4, weight=0.9)
CAT = dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=15.0)


@pytest.fixture(scope='module')
def benchmark():
    folder = str(ROOT / 'tools' / 'analysis_tools')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield tool('analysis_tools/benchmark_step')


def write(folder: Path, name: str, term: dict, load: bool = False) -> Path:
    (folder / 'teacher.py').write_text(TEACHER)
    pipeline = [dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
    if load:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=16), *pipeline]
    file = folder / f'{name}.py'
    file.write_text(CONFIG.format(teacher=folder / 'teacher.py', term=term, pipeline=pipeline))
    return file


def run(benchmark, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, words), '--device', 'cpu'])
    benchmark.main()


def case(benchmark, monkeypatch, file: Path):
    monkeypatch.setattr(sys, 'argv', ['benchmark', str(file), '--device', 'cpu'])
    return benchmark.Case(file, benchmark.parse_args())


def test_it_runs(benchmark, monkeypatch, capsys, tmp_path):
    files = [write(tmp_path, 'kd_a_b', KD), write(tmp_path, 'cat_a_b', CAT, load=True)]
    out, picture = tmp_path / 'found.json', tmp_path / 'steps.png'
    run(benchmark, monkeypatch, *files, '--seconds', 0, '--json', out, '--plot', picture)
    found, text = json.loads(out.read_text()), capsys.readouterr().out
    assert 'nan' not in text
    assert set(found['framework_overhead']) == set(found['loss_overhead']) == {'kd', 'cat'}
    kd, cat = found['configs']['kd'], found['configs']['cat']
    assert kd['rounds'] == 5 and kd['batch_size'] == 6
    times = kd['seconds']
    assert set(times) - set(benchmark.PEERS) == {*benchmark.FLOOR, 'framework', 'step', 'cached'}
    assert all(value > 0 for value in [*times.values(), kd['data'], cat['data']])
    assert {'minimal loop', 'mdistiller-style loop'} <= set(cat['step_over']) < set(benchmark.PEERS)
    assert found['vs_torchdistill'] == kd['step_over'].get('torchdistill')
    with Image.open(picture) as image:
        assert image.width > 1000


def test_overheads_are_shares_of_the_floor(benchmark, monkeypatch):
    """With known times: 2 + 3 of floor, 0.5 of framework, 1 of loss, and one slow round."""
    known = {'student': 2.0, 'teacher': 3.0, 'framework': 5.5, 'step': 6.5, 'minimal loop': 13.0}
    rounds = iter([1, 1, 1, 9, 1])
    slow = {}

    def seconds(way, device, block):
        if way() == 'student' or not slow:
            slow['now'] = next(rounds) if way() == 'student' else 1
        return known[way()] * slow['now']

    class Case:
        device, batch_size = 'cpu', 4

        def ways(self):
            return {name: lambda name=name: name for name in known}

        def data_seconds(self):
            return 0.1

    monkeypatch.setattr(benchmark, 'seconds', seconds)
    monkeypatch.setattr(benchmark, 'peak_memory', lambda way, device: 1.0)
    found = benchmark.measure(Case(), 0)
    assert found['floor'] == 5 and found['seconds']['step'] == 6.5
    assert found['framework_overhead'] == pytest.approx(0.1)
    assert found['loss_overhead'] == pytest.approx(0.2)
    assert found['step_over'] == {'minimal loop': pytest.approx(0.5)}


@pytest.mark.parametrize('term', [KD, CAT], ids=['kd', 'cat'])
def test_all_loops_have_one_loss(benchmark, monkeypatch, tmp_path, term):
    """The losses that other loops train with are that of mmkdx on the same models and images."""
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', term))
    ways = each.ways()
    seen = []
    backward = torch.Tensor.backward

    def watch(loss, *args, **kwargs):
        seen.append(loss.item())
        return backward(loss, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, 'backward', watch)
    names = ['step', *(name for name in ways if name in benchmark.PEERS)]
    for name in names:
        ways[name]()
    assert len(seen) == len(names) >= 3
    assert seen == pytest.approx(seen[:1] * len(names), rel=1e-5)


def test_steps_without_terms_cost_no_loss(benchmark, monkeypatch, tmp_path):
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', KD))
    logged = each.ways()['framework']()
    assert logged['loss_term'] == 0
    assert logged['loss'] == logged['student.loss'] > 0


def test_nothing_has_a_gradient_for_each_tap(benchmark):
    value = torch.ones(2, requires_grad=True)
    maps = torch.ones(2, 3, 4, 4, requires_grad=True)
    loss = benchmark.nothing([value, ClassMaps(maps)], None)
    loss.backward()
    assert loss == 0 and torch.equal(value.grad, torch.zeros(2)) and maps.grad is not None


def test_steps_change_no_weight(benchmark, monkeypatch, tmp_path):
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', CAT))
    student = each.distiller.student
    weight, mean = student.head.fc.weight.clone(), student.backbone.bn1.running_mean.clone()
    each.ways()['step']()
    assert torch.equal(student.head.fc.weight, weight)
    assert not torch.equal(student.backbone.bn1.running_mean, mean)  # but one was made


def test_quick_is_kd_and_cat_kd_in_short(benchmark, monkeypatch):
    seen, ways = [], {}

    def measure(case, budget):
        seen.append((case.config.filename, case.batch_size, budget))
        monkeypatch.setattr(case, '_step', lambda model: None)
        ways.update(case.ways())
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, 'measure', measure)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, monkeypatch, '--quick')
    ((file, batch, budget),) = seen
    assert Path(file).name == 'kd_resnet32x4_resnet8x4_cifar100.py'
    assert (batch, budget) == (benchmark.QUICK_BATCH, benchmark.QUICK_SECONDS)
    ways.pop('torchdistill', None)
    assert list(ways) == ['student', 'teacher', 'framework', 'step', 'mdistiller-style loop']


@pytest.mark.parametrize(
    'words, sentence',
    [
        (('--quick', 'config.py'), '--quick has configs of its own'),
        (('--dtype', 'bfloat16'), '--dtype bfloat16 is for a GPU'),
    ],
)
def test_bad_command_lines(benchmark, monkeypatch, capsys, words, sentence):
    with pytest.raises(SystemExit):
        run(benchmark, monkeypatch, *words)
    assert sentence in capsys.readouterr().err


def test_configs_that_distil_nothing_are_refused(benchmark, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = 'configs/cifar/resnet8x4_cifar100.py'
    with pytest.raises(ValueError, match=f'{file} is not the config of a Distiller'):
        run(benchmark, monkeypatch, file)


@pytest.mark.parametrize('load', [False, True])
def test_a_batch_of_data_is_made(benchmark, monkeypatch, tmp_path, load):
    """Each image passes the whole pipeline, and is read from a file where that loads one."""
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', KD, load=load))
    made, read = [], []
    pack, imread = PackInputs.transform, LoadImageFromFile.transform
    monkeypatch.setattr(PackInputs, 'transform', lambda *a: made.append(pack(*a)) or made[-1])
    monkeypatch.setattr(LoadImageFromFile, 'transform', lambda *a: read.append(1) or imread(*a))
    each.data_seconds()
    assert len(made) == 1 + each.batch_size and len(read) == load * len(made)
    assert {tuple(data['inputs'].shape) for data in made} == {(3, 16, 16)}


def test_what_is_compared_is_compiled_alike(benchmark, monkeypatch, tmp_path):
    file = write(tmp_path, 'x_a_b', KD)
    monkeypatch.setattr(sys, 'argv', ['benchmark', str(file), '--device', 'cpu', '--compile'])
    each = benchmark.Case(file, benchmark.parse_args())
    models = []
    monkeypatch.setattr(each, '_step', lambda model, data=None: models.append(model))
    each.ways()
    plain, empty, whole, cached = models
    for model in (plain, empty.student, whole.student, cached.student):
        assert model.backbone._compiled_call_impl is not None
    assert each.distiller.teachers[0].model.backbone._compiled_call_impl is not None
