"""The component experiment: a teacher's statistics, what is run, the read-outs, and a small real run."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from scipy.special import softmax
from tiny import build, classifier, tool

from mmkdx.apis import runs
from mmkdx.apis.dry_run import build_from_config, one_step, synthetic_batch
from mmkdx.functional.class_cka import class_cka
from mmkdx.functional.teacher_target import KINDS, NEEDS
from mmkdx.losses import WKDLogitLoss
from mmkdx.losses.wasserstein import transport_cost

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs/components').glob('components_*.py'))
DIGITS = ROOT / 'configs/components/components_resnet18-tiny_resnet18-tiny_digits100.py'
PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)


@pytest.fixture
def experiment():
    return tool('analysis_tools/component_experiment')


# What the teacher says on average


def kd(folder, images=60, **changes):
    """A config of a small distillation on digits, with a teacher's weights; returns both."""
    model = dict(
        type='Distiller',
        student=classifier(4, classes=10),
        teacher=dict(model=classifier(6, classes=10), checkpoint=str(folder / 'teacher.pth')),
        input_size=32,
        terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, teacher_target=dict(kind='full'))),
    )
    config = Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['mmkdx', 'tiny']),
            model={**model, **changes},
            data_preprocessor=PREPROCESSOR,
            train_dataloader=dict(
                batch_size=20,
                num_workers=0,
                drop_last=True,
                # two passes over the same images
                dataset=dict(
                    type='RepeatDataset',
                    times=2,
                    dataset=dict(type='Digits', indices=images, pipeline=[dict(type='PackInputs')]),
                ),
                sampler=dict(type='DefaultSampler', shuffle=True),
            ),
        )
    )
    torch.manual_seed(0)
    teacher = build(dict(model['teacher']['model'], data_preprocessor=PREPROCESSOR)).eval()
    with torch.no_grad():
        teacher.head.fc.weight.normal_()  # so that the teacher says something
    torch.save(teacher.state_dict(), folder / 'teacher.pth')
    config.dump(folder / 'kd.py')
    return teacher


def collect(folder, monkeypatch, *options):
    arguments = [folder / 'kd.py', '--out', folder / 'new/statistics.pth']
    options = ['--cfg-options', *options] if options else []
    monkeypatch.setattr(sys, 'argv', ['teacher_statistics.py', *map(str, arguments), *options])
    tool('analysis_tools/teacher_statistics').main()
    return torch.load(folder / 'new/statistics.pth', weights_only=True)


@pytest.mark.parametrize('tau', [4, 2])
def test_statistics_of_digits(tmp_path, monkeypatch, capsys, tau):
    from mmkdx.datasets import Digits

    teacher = kd(tmp_path, images=55)
    found = collect(tmp_path, monkeypatch, *([] if tau == 4 else [f'model.terms.kd.tau={tau}']))
    data = Digits(indices=55)
    images = torch.stack(
        [torch.from_numpy(data[i]['img']).permute(2, 0, 1).float() for i in range(55)]
    )
    labels = np.array([data[i]['gt_label'] for i in range(55)])
    with torch.no_grad():
        logits = teacher((images - 78) / 84).double().numpy()
    t = softmax(logits / tau, axis=1)
    means = np.stack([t[labels == k].mean(0) for k in range(10)])
    assert np.ptp(means, 0).max() > 1e-3  # classes differ
    np.testing.assert_allclose(found['class_mean'].numpy(), means, atol=1e-6)
    mass = t[np.arange(55), labels].mean()
    assert found['mass'].item() == pytest.approx(mass, abs=1e-6)
    weight = teacher.head.fc.weight.detach().double().numpy()
    weight = weight - weight.mean(0)
    norms = np.linalg.norm(weight, axis=1)
    cosines = weight @ weight.T / norms / norms[:, None]
    np.testing.assert_allclose(found['weight_similarity'].numpy(), cosines, atol=1e-6)
    assert (found['tau'], found['classes'], found['images']) == (tau, 10, 110)
    file = tmp_path / 'new/statistics.pth'
    before = file.read_bytes()
    module = tool('analysis_tools/teacher_statistics')
    module.save_checkpoint_file = full_disk(1500)(module.save_checkpoint_file)
    with pytest.raises(SystemExit, match=f'^cannot write {file}: File too large$'):
        module.main()
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1
    output = capsys.readouterr().out
    assert (
        f'10 classes, 110 images, mean probability of the label {mass:.3f} at tau {tau}' in output
    )


def test_cka_of_classes(tmp_path, monkeypatch):
    """For the cost of classes of WKDLogitLoss, which reads the file."""
    kd(tmp_path)
    plain = collect(tmp_path, monkeypatch)
    module = tool('analysis_tools/teacher_statistics')
    arguments = [tmp_path / 'kd.py', '--cka', '--out', tmp_path / 'cka.pth']
    monkeypatch.setattr(sys, 'argv', ['teacher_statistics.py', *map(str, arguments)])
    module.main()
    found = torch.load(tmp_path / 'cka.pth', weights_only=True)
    similarity = found.pop('class_cka')
    assert similarity.shape == (10, 10) and 0 < similarity.min() < similarity.max() == 1
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value)
    loss = WKDLogitLoss(similarity='cka', statistics=str(tmp_path / 'cka.pth'))
    torch.testing.assert_close(loss.cost, transport_cost(similarity, 1))
    logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2])
    one = module.cka_similarity([(logits, labels)])
    two = module.cka_similarity([(logits[:4], labels[:4]), (logits[4:], labels[4:])])
    torch.testing.assert_close(one, two)
    expected = class_cka(logits[torch.tensor([[0, 5, 6], [1, 4, 7], [2, 3, 8]])])
    torch.testing.assert_close(one, expected)


def test_the_temperature_of_the_target_comes_first(tmp_path, monkeypatch):
    kd(tmp_path)
    changes = ['teacher_target.tau=3', 'teacher_target.kind=classmean']  # without its file
    found = collect(tmp_path, monkeypatch, *(f'model.terms.kd.{each}' for each in changes))
    assert found['tau'] == 3


def test_images_are_those_of_training(tmp_path, monkeypatch):
    """With the training's augmentation, the same each time."""
    kd(tmp_path)
    plain = collect(tmp_path, monkeypatch)
    cfg = Config.fromfile(tmp_path / 'kd.py')
    crop = dict(type='RandomCrop', crop_size=32, padding=8)
    cfg.train_dataloader.dataset.dataset.pipeline.insert(0, crop)
    cfg.dump(tmp_path / 'kd.py')
    first, second = (collect(tmp_path, monkeypatch) for _ in range(2))
    assert torch.equal(first['class_mean'], second['class_mean'])
    assert not torch.equal(first['class_mean'], plain['class_mean'])


def test_an_ensemble_has_no_classifier(tmp_path, monkeypatch):
    member = dict(model=classifier(6, classes=10), checkpoint=str(tmp_path / 'teacher.pth'))
    kd(tmp_path)
    alone = collect(tmp_path, monkeypatch)
    kd(tmp_path, teacher=dict(type='TeacherEnsemble', teachers=[member, member]))
    found = collect(tmp_path, monkeypatch)
    assert found['weight_similarity'] is None
    torch.testing.assert_close(found['class_mean'], alone['class_mean'])


def test_models_without_a_linear_classifier():
    similarity = tool('analysis_tools/teacher_statistics').weight_similarity

    def network(*head):
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), *head, torch.nn.Flatten()).eval()

    flat, linear = torch.nn.Flatten(), torch.nn.Linear
    assert similarity(network(torch.nn.Conv2d(3, 4, 1)), 4) is None
    assert similarity(network(flat, linear(3, 5)), 4) is None  # not that of the classes
    assert similarity(None, 4) is None
    assert similarity(network(flat, linear(3, 4)), 4).shape == (4, 4)


KL = dict(type='KLDivLoss', at='logits')


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(teacher=dict(type='EMATeacher')), 'the teacher is trained along'),
        (dict(teacher=dict(model=classifier(6, classes=10))), 'the teacher has no weights'),
        (dict(terms=dict(a=KL, b=KL)), 'kd.py: model.terms must have one term .* there are 2'),
        (dict(terms=dict(a=dict(type='DKDLoss', at='logits'))), 'there are 0'),
        (dict(terms=None), 'there are 0'),
        (dict(images=7), r'the training data have no image of the classes \[7, 8, 9\]'),
    ],
    ids=['trained along', 'weights', 'two', 'another loss', 'none', 'images'],
)
def test_teachers_without_statistics(tmp_path, monkeypatch, changes, message):
    kd(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        collect(tmp_path, monkeypatch)


def test_the_term_with_a_target_is_the_one(tmp_path, monkeypatch):
    target = dict(type='DKDLoss', at='logits', tau=2, teacher_target=dict(kind='full'))
    kd(tmp_path, terms=dict(other=dict(KL), dkd=target))
    assert collect(tmp_path, monkeypatch)['tau'] == 2


def test_images_without_a_class(tmp_path, monkeypatch):
    from mmkdx.datasets import Digits

    kd(tmp_path)
    load = Digits.load_data_list
    monkeypatch.setattr(
        Digits, 'load_data_list', lambda self: [dict(img=d['img']) for d in load(self)]
    )
    with pytest.raises(ValueError, match=r'kd.py: the training images have no class \(gt_label\)'):
        collect(tmp_path, monkeypatch)


# What is run


@pytest.fixture
def start(experiment, tmp_path, monkeypatch, capsys):
    """A function that runs the experiment with tools that only write, and what these got."""
    calls = []
    kd(tmp_path)
    scores = dict(ce=50, onehot=51, meanmass=52, uniform=54, permute=57, classmean=61, full=70)

    def call(name, config, *arguments, log):
        arguments = list(map(str, arguments))
        calls.append((name, log.parent, arguments))
        if name == 'train.py':
            (log.parent / 'last_checkpoint').write_text('last.pth')
        elif name == 'test.py':
            kind, seed = log.parent.parent.name, int(log.parent.name.removeprefix('seed_'))
            # Seeds differ by 10, which paired differences do not see, and `full` by 1 more
            value = scores.get(kind, 60) + 10.0 * seed + (kind == 'full') * seed
            score = {'accuracy/top1': value, 'ece': 0.1 * value}
            (log.parent / 'test.part.json').write_text(json.dumps(score))
        else:
            similarity = start.similarity
            torch.save(dict(weight_similarity=similarity), arguments[arguments.index('--out') + 1])

    monkeypatch.setattr(runs, 'call_tool', call)

    def start(*arguments):
        argv = ['component_experiment.py', str(tmp_path / 'kd.py'), '--work-dir', str(start.folder)]
        monkeypatch.setattr('sys.argv', [*argv, *map(str, arguments)])
        experiment.main()
        return capsys.readouterr().out.splitlines()

    start.calls, start.folder, start.similarity = calls, tmp_path / 'out', torch.eye(3)
    return start


def test_a_collapsed_seed_leaves_the_summary_whole():
    seeds = [dict(pearson=each) for each in (0.5, float('nan'), 0.7)]
    summaries = tool('analysis_tools/component_experiment').summaries
    found = summaries({'response': seeds}, ['pearson', 'other'])['response']['metrics']
    assert list(found) == ['pearson'] and found['pearson']['each'] == [0.5, 0.7]
    assert found['pearson']['mean'] == pytest.approx(0.6)
    assert found['pearson']['sd'] == pytest.approx(0.1 * 2**0.5)


def test_table_and_read_outs(start, tmp_path):
    out = tmp_path / 'new/all.json'
    kinds = ['onehot', 'meanmass', 'uniform', 'permute', 'full']
    metrics = ['--metrics', 'accuracy/top1', 'ece', 'other']
    lines = start('--kinds', *kinds, '--seeds', 0, 2, *metrics, '--json', out)
    assert lines == [
        '| variant | accuracy/top1 | ece | other |',
        '| --- | --- | --- | --- |',
        '| onehot | 61.00 ± 14.14 | 6.100 ± 1.414 |  |',
        '| meanmass | 62.00 ± 14.14 | 6.200 ± 1.414 |  |',
        '| uniform | 64.00 ± 14.14 | 6.400 ± 1.414 |  |',
        '| permute | 67.00 ± 14.14 | 6.700 ± 1.414 |  |',
        '| full | 81.00 ± 15.56 | 8.100 ± 1.556 |  |',
        '',
        '| read-out | difference | accuracy/top1 | ece | other |',
        '| --- | --- | --- | --- | --- |',
        '| response | uniform - onehot | 3.00 ± 0.00 | 0.300 ± 0.000 |  |',
        '| adaptive mass | uniform - meanmass | 2.00 ± 0.00 | 0.200 ± 0.000 |  |',
        '| class similarity | full - permute | 14.00 ± 1.41 | 1.400 ± 0.141 |  |',
    ]
    found = json.loads(out.read_text())
    assert found['seeds'] == [0, 2] and list(found['variants']) == kinds
    assert [each['accuracy/top1'] for each in found['variants']['full']] == [70, 92]
    readout = found['readouts']['class similarity']
    assert readout['variants'] == ['full', 'permute']
    assert readout['metrics']['accuracy/top1']['each'] == [13, 15]
    assert readout['metrics']['accuracy/top1']['sd'] == pytest.approx(2**0.5)
    assert set(readout['metrics']) == {'accuracy/top1', 'ece'} and len(found['readouts']) == 3


def test_one_seed_and_one_variant(start):
    lines = start('--kinds', 'full', '--seeds', 1)
    assert lines == ['| variant | accuracy/top1 |', '| --- | --- |', '| full | 81.00 |']


def test_all_read_outs(start, experiment):
    lines = start('--seeds', 0)
    readouts = [line.split('|')[1:3] for line in lines[lines.index('') + 3 :]]
    assert [[cell.strip() for cell in row] for row in readouts] == [
        ['response', 'uniform - onehot'],
        ['response, to labels alone', 'uniform - ce'],
        ['adaptive mass', 'uniform - meanmass'],
        ['class similarity', 'full - permute'],
        ['class similarity, of class means', 'classmean - meanmass'],
        ['instance', 'full - classmean_instmass'],
    ]
    kinds = {'ce', *KINDS, 'cwtm', 'tckd', 'nckd'}
    assert {line.split('|')[1].strip() for line in lines[2 : lines.index('')]} == kinds


def test_each_variant_changes_the_term_alone(start, experiment):
    start('--seeds', 3, '--cfg-options', 'train_cfg.max_epochs=1')
    file = start.folder / 'kd/teacher_statistics.pth'
    tool_name, folder, arguments = start.calls[0]
    assert (tool_name, folder) == ('analysis_tools/teacher_statistics.py', file.parent)
    assert arguments[-2:] == ['--cfg-options', 'train_cfg.max_epochs=1']
    runs = {folder: arguments for name, folder, arguments in start.calls if name == 'train.py'}
    assert len(runs) == len(experiment.CHANGES)
    for kind in experiment.CHANGES:
        arguments = runs[start.folder / 'kd' / kind / 'seed_3']
        options = arguments[arguments.index('--cfg-options') + 1 :]
        assert options[:2] == ['randomness.seed=3', 'train_cfg.max_epochs=1']
        expected = dict(
            ce=['weight=0', 'model.student_weight=1'],
            cwtm=['type=CWTMLoss', 'teacher_target.kind=full'],
            tckd=['type=DKDLoss', 'alpha=1', 'beta=0', 'teacher_target.kind=full'],
            nckd=['type=DKDLoss', 'alpha=0', 'beta=1', 'teacher_target.kind=full'],
        ).get(kind, [f'teacher_target.kind={kind}'])
        if kind in NEEDS:
            expected = [*expected, f'teacher_target.statistics={file}']
        assert [each.removeprefix('model.terms.kd.') for each in options[2:]] == expected


def test_finished_runs_are_not_run_again(start):
    arguments = ['--kinds', 'classmean', 'full', '--seeds', 0, 1]
    first = start(*arguments)
    count = len(start.calls)
    assert count == 1 + 2 * 4
    (start.folder / 'kd/full/seed_1/test.json').unlink()
    assert start(*arguments) == first
    again = [(name, folder.parent.name, folder.name) for name, folder, _ in start.calls[count:]]
    assert again == [('train.py', 'full', 'seed_1'), ('test.py', 'full', 'seed_1')]


def test_statistics_are_made_only_where_they_are_read(start):
    start('--kinds', 'full', 'permute', 'onehot', 'uniform', 'cwtm', '--seeds', 0)
    assert all(name != 'analysis_tools/teacher_statistics.py' for name, *_ in start.calls)
    assert not list(start.folder.rglob('*.pth'))


def test_a_teacher_without_a_linear_classifier(start):
    start.similarity = None
    with pytest.raises(SystemExit, match=r'no linear classifier; leave weightsim out \(--kinds\)'):
        start('--seeds', 0)
    assert [name for name, *_ in start.calls] == ['analysis_tools/teacher_statistics.py']
    start('--kinds', 'classmean', '--seeds', 0)


def test_mistakes(start, tmp_path, capsys):
    with pytest.raises(SystemExit):
        start('--kinds', 'shuffle')
    assert "invalid choice: 'shuffle'" in capsys.readouterr().err
    start.folder = tmp_path / 'my runs'
    with pytest.raises(SystemExit):
        start()
    assert 'must not contain spaces, commas or brackets' in capsys.readouterr().err
    start.folder = tmp_path / 'out'
    dkd = dict(type='DKDLoss', at='logits', teacher_target=dict(kind='full'))
    kd(tmp_path, terms=dict(dkd=dkd))
    with pytest.raises(ValueError, match='model.terms.dkd.type is DKDLoss; it must be KLDivLoss'):
        start()
    (tmp_path / 'kd.py').unlink()
    with pytest.raises(SystemExit):
        start()
    assert 'there is no config' in capsys.readouterr().err
    assert not start.calls


# For real


@pytest.mark.slow
def test_two_variants_for_real(experiment, tmp_path, monkeypatch, capsys):
    """With the tools in this process: to start five would take longer than what they do."""
    cfg = Config.fromfile(ROOT / 'configs/components/teacher_resnet18-tiny_digits.py')
    torch.manual_seed(0)
    torch.save(build(cfg.model.to_dict()).state_dict(), tmp_path / 'teacher.pth')
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('LOCAL_RANK', '0')  # which mmpretrain's tools set

    def call(name, *arguments, log):
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [name, *map(str, arguments)])
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')

    monkeypatch.setattr(runs, 'call_tool', call)
    arguments = [
        *(DIGITS, '--kinds', 'meanmass', 'classmean', '--seeds', 5),
        *('--work-dir', tmp_path / 'out', '--json', tmp_path / 'all.json'),
        *('--cfg-options', f'model.teacher.checkpoint={tmp_path / "teacher.pth"}'),
        *('train_cfg.max_epochs=1', 'train_dataloader.dataset.times=1'),
        *(f'{part}_dataloader.dataset.indices=50' for part in ('val', 'test')),
    ]
    monkeypatch.setattr(sys, 'argv', ['component_experiment.py', *map(str, arguments)])
    experiment.main()
    output = capsys.readouterr()
    assert 'meanmass, seed 5: done' in output.err and 'classmean, seed 5: done' in output.err
    found = json.loads((tmp_path / 'all.json').read_text())
    values = [found['variants'][kind][0]['accuracy/top1'] for kind in ('classmean', 'meanmass')]
    (name,) = found['readouts']
    assert name == 'class similarity, of class means'
    assert found['readouts'][name]['metrics']['accuracy/top1']['each'] == [values[0] - values[1]]
    assert f'| {name} | classmean - meanmass | {values[0] - values[1]:.2f} |' in output.out
    # What was run is what its name says
    folder = tmp_path / 'out' / DIGITS.stem
    for kind in ('meanmass', 'classmean'):
        (config,) = (folder / kind / 'seed_5').glob('components_*.py')
        term = Config.fromfile(config).model.terms.kd
        assert (term.type, term.teacher_target.kind) == ('KLDivLoss', kind)
        assert term.teacher_target.statistics == str(folder / 'teacher_statistics.pth')
    losses = [
        json.loads(path.read_text().splitlines()[0])['loss_kd']
        for kind in ('meanmass', 'classmean')
        for path in (folder / kind).glob('seed_5/*/vis_data/scalars.json')
    ]
    assert len(set(losses)) == 2


# Configs


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(path)
    term = cfg.model.terms.kd
    assert (term.type, term.tau, term.weight) == ('KLDivLoss', 4, 0.9)
    assert term.teacher_target == dict(kind='full') and cfg.model.student_weight == 0.1
    assert all(hook.type != 'ExplainHook' for hook in cfg.custom_hooks)
    cfg.model.terms.kd.teacher_target.kind = 'permute'
    model = build_from_config(cfg)
    tool('misc/check_config').settle_weights(model.teachers[0], None)
    logged, unused = one_step(model, synthetic_batch(cfg))
    assert not unused and logged['loss_kd'] > 0


def test_every_config_is_in_the_readme():
    assert len(CONFIGS) >= 3
    readme = (CONFIGS[0].parent / 'README.md').read_text()
    assert all(path.name in readme for path in CONFIGS[0].parent.glob('*.py'))
