"""The benchmark of distillation steps times real ones, splits them, and compares with other loops."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tool

from mmkdx.distillation.models import build_part
from mmkdx.functional import ClassMaps

ROOT = Path(__file__).parents[3]

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
train_dataloader = dict(batch_size=6, dataset=dict(type='CIFAR100', pipeline=[
    dict(type='Resize', scale=16), dict(type='PackInputs')]))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
"""

KD = dict(type='KLDivLoss', at='logits', tau=4, weight=0.9)
CAT = dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=15.0)


@pytest.fixture(scope='module')
def benchmark(path_of_a_script):
    return tool('benchmarks/step')


def write(folder: Path, name: str, term: dict) -> Path:
    (folder / 'teacher.py').write_text(TEACHER)
    file = folder / f'{name}.py'
    file.write_text(CONFIG.format(teacher=folder / 'teacher.py', term=term))
    return file


def run(benchmark, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, words), '--device', 'cpu'])
    benchmark.main()


def case(benchmark, monkeypatch, file: Path, *words: str):
    monkeypatch.setattr(sys, 'argv', ['benchmark', str(file), '--device', 'cpu', *words])
    return benchmark.Case(file, benchmark.parse_args())


def test_it_runs(benchmark, monkeypatch, capsys, tmp_path):
    files = [write(tmp_path, 'kd_a_b', KD), write(tmp_path, 'cat_a_b', CAT)]
    out, picture = tmp_path / 'found.json', tmp_path / 'steps.png'
    run(benchmark, monkeypatch, *files, '--seconds', 0, '--json', out, '--plot', picture)
    found, text = json.loads(out.read_text()), capsys.readouterr().out
    assert 'nan' not in text
    assert set(found['framework_overhead']) == set(found['loss_overhead']) == {'kd', 'cat'}
    kd, cat = found['configs']['kd'], found['configs']['cat']
    assert kd['rounds'] == 5 and kd['batch_size'] == 6
    times = kd['seconds']
    assert set(times) - set(benchmark.PEERS) == {*benchmark.FLOOR, 'framework', 'step', 'cached'}
    assert all(value > 0 for value in times.values())
    assert {'minimal loop', 'mdistiller-style loop'} <= set(cat['step_over']) < set(benchmark.PEERS)
    assert found['vs_torchdistill'] == kd['step_over'].get('torchdistill')
    with Image.open(picture) as image:
        assert image.width > 1000


def test_overheads_are_shares_of_the_floor(benchmark, monkeypatch):
    """With known times: 2 + 3 of floor, 0.5 of framework, 1 of loss, and one slow round."""
    known = {'student': 2.0, 'teacher': 3.0, 'framework': 5.5, 'step': 6.5, 'minimal loop': 13.0}

    class Case:
        device, batch_size = 'cpu', 4

        def runs(self):
            return {name: lambda: None for name in known}

    def measure(runs, device, rounds, budget, block):
        assert (list(runs), device, rounds, budget) == (list(known), 'cpu', 5, 7)
        times = {name: [time * slow for slow in (1, 1, 9, 1, 1)] for name, time in known.items()}
        return sys.modules['_timing'].Timings(times, dict.fromkeys(known, 1.0))

    monkeypatch.setattr(benchmark, 'measure', measure)
    found = benchmark.time_case(Case(), 7)
    assert found['floor'] == 5 and found['seconds']['step'] == 6.5 and found['rounds'] == 5
    assert found['framework_overhead'] == pytest.approx(0.1)
    assert found['loss_overhead'] == pytest.approx(0.2)
    assert found['step_over'] == {'minimal loop': pytest.approx(0.5)}
    assert found['cached_overhead'] is None


@pytest.mark.parametrize('term', [KD, CAT], ids=['kd', 'cat'])
def test_all_loops_have_one_loss(benchmark, monkeypatch, tmp_path, term):
    """The losses that other loops train with are that of mmkdx on the same models and images."""
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', term))
    runs = each.runs()
    seen = []
    backward = torch.Tensor.backward

    def watch(loss, *args, **kwargs):
        seen.append(loss.item())
        return backward(loss, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, 'backward', watch)
    names = ['step', *(name for name in runs if name in benchmark.PEERS)]
    for name in names:
        runs[name]()
    assert len(seen) == len(names) >= 3
    assert seen == pytest.approx(seen[:1] * len(names), rel=1e-5)


def test_steps_without_terms_cost_no_loss(benchmark, monkeypatch, tmp_path):
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', KD))
    logged = each.runs()['framework']()
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
    each.runs()['step']()
    assert torch.equal(student.head.fc.weight, weight)
    assert not torch.equal(student.backbone.bn1.running_mean, mean)  # but one was made


def test_quick_is_kd_and_cat_kd_in_short(benchmark, monkeypatch):
    seen, found = [], {}

    def time_case(case, budget):
        seen.append((Path(case.config.filename).name, case.batch_size, budget))
        monkeypatch.setattr(case, '_step', lambda model: None)
        found.update(case.runs())
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, 'time_case', time_case)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, monkeypatch, '--quick')
    name = 'kd_resnet32x4_resnet8x4_cifar100.py'
    assert seen == [(name, benchmark.QUICK_BATCH, benchmark.QUICK_SECONDS)]
    found.pop('torchdistill', None)
    assert list(found) == ['student', 'teacher', 'framework', 'step', 'mdistiller-style loop']


def test_heads_have_a_hidden_layer_and_class_maps_by_derivatives(benchmark, monkeypatch):
    seen = {}

    def time_case(case, budget):
        monkeypatch.setattr(case, '_step', lambda model: model)
        monkeypatch.setattr(case, '_cached', dict)
        runs = case.runs()
        assert list(runs) == ['student', 'teacher', 'framework', 'step']
        model = runs['step']
        widths = [model.student.head, model.teachers[0].model.head]
        assert [[each.fc.out_features for each in head.layers] for head in widths] == [
            [512, 100]
        ] * 2
        assert set(model._taps.heads) == set(model.teachers[0].taps.heads) == {'cam'}
        assert case.labels.max() < 100 and len(case.labels) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, 'time_case', time_case)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, monkeypatch, '--heads', '--batch-size', 2)
    monkeypatch.setattr(benchmark, 'Case', lambda file, args, changes: changes)

    def noted(changes, budget):
        head, terms = changes['model.student']['head'], changes['model.terms']
        seen[terms['maps']['type'], head['num_classes']] = terms['maps']
        return dict(framework_overhead=0, loss_overhead=0, step_over={})

    monkeypatch.setattr(benchmark, 'time_case', noted)
    monkeypatch.setattr(benchmark, 'table', str)
    run(benchmark, monkeypatch, '--heads')
    assert seen['ExpKDLoss', 1000]['topk'] == seen['CATLoss', 1000]['num_classes_selected'] == 10
    assert {('CATLoss', 100), ('ExpKDLoss', 100)} < set(seen)


def test_losses_stand_beside_kd_on_one_pair(benchmark, monkeypatch):
    seen = {}

    def time_case(changes, budget):
        term = changes['model.terms']['term']
        seen[build_part({k: v for k, v in term.items() if k != 'at'}).__class__.__name__] = term
        return dict(framework_overhead=0, loss_overhead=0, step_over={})

    monkeypatch.setattr(benchmark, 'Case', lambda file, args, changes: changes)
    monkeypatch.setattr(benchmark, 'time_case', time_case)
    monkeypatch.setattr(benchmark, 'table', str)
    run(benchmark, monkeypatch, '--losses')
    assert len(seen) == 10 and set(seen) > {'KLDivLoss', 'WKDLogitLoss', 'VkDLoss', 'CellGramLoss'}


def test_weights_are_timed_while_they_are_measured_and_afterwards(benchmark, monkeypatch, tmp_path):
    weights, rows = {}, []
    (tmp_path / 'configs').mkdir()
    write(tmp_path / 'configs', f'x_{benchmark.PAIR}', KD)

    def measure(runs, device, rounds, budget, block):
        for each in runs.values():
            for _ in range(2):
                each()
        times = dict(constant=2.0, before=2.1, after=2.0)
        assert list(runs) == list(times)
        return sys.modules['_timing'].Timings({k: [v] * 5 for k, v in times.items()}, {})

    step = benchmark.Case._step

    def noted(case, model):
        weights[len(weights)] = model.terms.term.weight
        return step(case, model)

    monkeypatch.setattr(benchmark, 'measure', measure)
    monkeypatch.setattr(benchmark.Case, '_step', noted)
    monkeypatch.setattr(benchmark, 'ROOT', tmp_path)
    monkeypatch.setattr(benchmark, 'WEIGHTS', {'KD': ('x', 'features')})
    row = benchmark.time_weights
    monkeypatch.setattr(
        benchmark, 'time_weights', lambda *args: rows.append(row(*args)) or rows[-1]
    )
    run(benchmark, monkeypatch, '--weights', '--seconds', 0)
    assert rows == [['400.0', '+5.00 ± 0.00 %', '+0.00 ± 0.00 %']]
    constant, before, after = weights.values()
    assert constant.number == 0.9 and after.frozen and not before.frozen
    assert before.ratios.isfinite().sum() == 1 and before.at == after.at == 'features'


def test_two_checkouts_take_turns(benchmark, monkeypatch, capsys, tmp_path):
    """Each by its own script: today's, or the one of a checkout from before it was moved."""
    old = tmp_path / 'tools/analysis_tools/benchmark_step.py'
    old.parent.mkdir(parents=True)
    old.touch()
    calls = []

    def subprocess_run(command, cwd, env, **kwargs):
        calls.append((command[1], cwd, env['PYTHONPATH'], command[2:7:2]))
        values = dict(framework_overhead=0.01 * len(calls), loss_overhead=0.5)
        Path(command[-1]).write_text(json.dumps(dict(configs=dict(kd=values))))

    monkeypatch.setattr(benchmark.subprocess, 'run', subprocess_run)
    run(benchmark, monkeypatch, '--against', tmp_path, '--turns', 2, '--seconds', 3)
    here = ('tools/benchmarks/step.py', ROOT, str(ROOT), ['--quick', '3.0', 'cpu'])
    there = ('tools/analysis_tools/benchmark_step.py', tmp_path, str(tmp_path), here[-1])
    assert calls == [here, there, there, here]
    rows = [line for line in capsys.readouterr().out.splitlines() if '| kd' in line]
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert cells == [
        # Of 1 and 4 % here and of 2 and 3 % there
        [
            'kd, framework',
            '+2.50 (+1.00 to +4.00)',
            '+2.50 (+2.00 to +3.00)',
            '+0.00 (-1.00 to +1.00)',
        ],
        ['kd, loss', *['+50.00 (+50.00 to +50.00)'] * 2, '+0.00 (+0.00 to +0.00)'],
    ]


@pytest.mark.parametrize(
    'words, sentence',
    [
        (('--quick', 'config.py'), '--quick has configs of its own'),
        (('--heads', 'config.py'), '--heads has configs of its own'),
        (('--losses', 'config.py'), '--losses has configs of its own'),
        (('--weights', '--losses'), '--losses has configs of its own'),
        (('--quick', '--heads'), '--quick has configs of its own'),
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


def test_what_is_compared_is_compiled_alike(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
    each = case(benchmark, monkeypatch, write(tmp_path, 'x_a_b', KD), '--compile')
    models = []
    monkeypatch.setattr(each, '_step', lambda model, data=None: models.append(model))
    each.runs()
    plain, empty, whole, cached = models
    for model in (plain, empty.student, whole.student, cached.student):
        assert model.backbone._compiled_call_impl is not None
    assert each.distiller.teachers[0].model.backbone._compiled_call_impl is not None
