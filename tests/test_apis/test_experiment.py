"""Several methods, with one seed or several, on one page."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny import build, classifier, tool

from mmkdx.apis import experiment
from mmkdx.apis.experiment import compare_methods, group_runs
from mmkdx.apis.experiment_page import write_experiment
from mmkdx.evaluation.methods import LIMITS

COUNT = 27
PREPROCESSOR = dict(num_classes=9, mean=[105.0] * 3, std=[41.0] * 3, to_rgb=True)


def write_run(folder: Path, seed: int, width: int = 4, classes: int = 9, names=None, teacher=None):
    """What a training leaves: config, log and checkpoint."""
    log = folder / '20260101_000000'
    (log / 'vis_data').mkdir(parents=True)
    model = classifier(width, classes)
    if teacher is not None:
        loss = dict(kd=dict(type='KLDivLoss', at='logits'))
        model = dict(type='Distiller', student=model, teacher=teacher, terms=loss)
    images = dict(type='Parts', split='test', num_samples=COUNT, image_size=32)
    cfg = Config(
        dict(
            default_scope='mmkdx',
            model=model,
            data_preprocessor=dict(PREPROCESSOR, num_classes=classes),
            test_dataloader=dict(
                batch_size=10,
                num_workers=0,
                dataset=dict(pipeline=[dict(type='PackInputs')], **images),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
        )
    )
    for path in (folder / 'config.py', log / 'vis_data/config.py'):
        cfg.dump(path)
    scores = f'{{"accuracy/top1": 50.0, "explain/deletion": 0.{seed}, "step": 1}}'
    (log / 'vis_data/scalars.json').write_text(
        f'{{"loss": 1.0, "epoch": 1, "iter": 1, "step": 1}}\n{scores}\n'
    )
    (log / 'run.log').write_text(
        f'2026/01/01 00:00:00 - mmengine - a\n2026/01/01 00:00:{seed:02} - mmengine - b\n'
    )
    torch.manual_seed(seed)
    meta = dict(dataset_meta=dict(classes=names)) if names else {}
    state = build(classifier(width, classes)).state_dict()
    torch.save(dict(state_dict=state, optimizer={}, meta=meta), folder / 'epoch_1.pth')
    return str(folder)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A teacher, a method with three seeds, and a run by itself."""
    folder = tmp_path_factory.mktemp('runs')
    write_run(folder / 'big', 9, 8)
    teacher = dict(
        model=dict(classifier(8, 9), data_preprocessor=PREPROCESSOR),
        checkpoint=str(folder / 'big/epoch_1.pth'),
    )
    for seed in (1, 2, 3):
        write_run(folder / f'kd/seed_{seed}', seed, teacher=teacher)
    write_run(folder / 'alone', 4)
    return folder


@pytest.fixture(scope='module')
def groups(root):
    return group_runs([*(root / f'kd/seed_{i}' for i in (1, 2, 3)), root / 'alone'])


@pytest.fixture(scope='module')
def found(groups):
    return compare_methods(groups, num_samples=9, show_samples=2, base=groups['alone'][0])


# Which runs are one method


def test_seeds_in_one_folder_are_a_method(groups, root):
    assert groups == {
        'kd': [str(root / f'kd/seed_{i}') for i in (1, 2, 3)],
        'alone': [str(root / 'alone')],
    }


def test_other_folders_are_methods_by_themselves():
    assert group_runs(['a/seed_x', 'a/seed_1b', 'a/seed_0']) == {
        'seed_x': ['a/seed_x'],
        'seed_1b': ['a/seed_1b'],
        'a': ['a/seed_0'],
    }


def test_equal_names_of_different_folders_get_the_parts_that_differ():
    runs = ['x/kd/seed_0', 'y/kd/seed_0', 'x/kd/seed_1', 'z']
    assert list(group_runs(runs)) == ['x/kd', 'y/kd', 'z']
    assert group_runs(runs)['x/kd'] == ['x/kd/seed_0', 'x/kd/seed_1']


def test_equal_given_names_join_runs():
    assert group_runs(['a', 'b/seed_0', 'c'], ['KD', 'CAT', 'KD']) == {
        'KD': ['a', 'c'],
        'CAT': ['b/seed_0'],
    }


@pytest.mark.parametrize(
    'runs, names, message',
    [
        (['a', 'b'], ['x'], '--names has 1 names for 2 folders'),
        (['a/b', 'a/c/../b'], None, 'the run .*/a/b is given twice, and would count as two seeds'),
        (
            ['a', 'b'],
            ['KD', 'teacher'],
            "a method is called 'teacher', which is reserved for another m",
        ),
        (
            ['x/base'],
            None,
            "a method is called 'base', which is reserved for another model on the page",
        ),
    ],
)
def test_runs_and_names_that_do_not_fit(runs, names, message):
    with pytest.raises(ValueError, match=message):
        group_runs(runs, names)


# What is measured


def predictions(checkpoint, width):
    """By a loop of its own."""
    from mmengine.registry import DefaultScope

    from mmkdx.registry import DATASETS

    model = build(dict(classifier(width, 9), data_preprocessor=PREPROCESSOR)).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    with DefaultScope.overwrite_default_scope('mmkdx'):
        images = DATASETS.build(
            dict(
                type='Parts',
                split='test',
                num_samples=COUNT,
                image_size=32,
                pipeline=[dict(type='PackInputs')],
            )
        )
    scores, labels = [], []
    for item in images:
        batch = dict(inputs=item['inputs'][None], data_samples=[item['data_samples']])
        with torch.no_grad():
            scores.append(model(model.data_preprocessor(batch)['inputs']).argmax().item())
        labels.append(item['data_samples'].gt_label.item())
    return np.array(scores), np.array(labels)


def test_each_run_is_measured_on_all_test_images(found, groups, root):
    teacher, labels = predictions(root / 'big/epoch_1.pth', 8)
    assert (found.images, found.mapped) == (COUNT, 9)
    for name, runs in groups.items():
        assert found.methods[name].seeds == len(runs)
        for run, values in zip(runs, found.methods[name].runs):
            own, _ = predictions(Path(run) / 'epoch_1.pth', 4)
            assert values['accuracy'].tolist() == (own == labels).tolist()
            assert values['predictions'].tolist() == (own == teacher).tolist()
            assert len(values['maps']) == 9
    hits = found.marks['teacher'].runs[0]['accuracy']
    assert hits.tolist() == (teacher == labels).tolist()
    for key in ('accuracy', 'maps'):
        alone, base = (each.runs[0][key] for each in (found.methods['alone'], found.marks['base']))
        np.testing.assert_array_equal(alone, base)
    assert found.logged['kd'] == pytest.approx(dict(seconds=2, deletion=0.2))
    assert found.facts['teacher'].startswith(f'{root / "big/epoch_1.pth"}: TinyBackbone')


def test_pictures_have_the_maps_of_each_methods_first_run(found):
    assert len(found.pictures) == 2
    for picture in found.pictures.values():
        assert list(picture.maps) == ['teacher', 'kd', 'alone', 'base']
        assert torch.equal(picture.maps['base'], picture.maps['alone'])
        assert not torch.equal(picture.maps['kd'], picture.maps['alone'])
        assert picture.image.shape == (32, 32, 3)


def cells(page):
    body = re.search('<table class="sortable">.*?</table>', page, re.DOTALL)[0]
    return [
        [unescape(re.sub('<.*?>', '', each)) for each in re.findall('<t[hd].*?</t[hd]>', row)]
        for row in re.findall('<tr>(.*?)</tr>', body)
    ]


def test_the_page_shows_what_was_measured(found, tmp_path):
    page = write_experiment(tmp_path / 'page.html', found).read_text('utf-8')
    assert ' '.join(map(str, found.answer)) in unescape(page)
    assert all(str(each) in unescape(page) for each in (*found.details, *LIMITS))
    assert 'There is one run of alone, from which nothing follows' in page
    head, kd, alone, teacher, base = cells(page)
    assert head == [
        *('method', 'seeds', 'parameters', 'accuracy, %', 'same as teacher, %', 'maps, Pearson'),
        *('deletion', 'seconds'),
    ]
    rate = found.methods['kd'].score('accuracy')
    count = sum(each.numel() for each in build(classifier(4, 9)).parameters())
    assert kd[:3] == ['kd', '3', str(count)]
    assert kd[3] == f'{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})'
    assert kd[6:] == ['0.200', '2'] and alone[6:] == ['0.400', '4']
    assert teacher[:3] == ['teacher', '–', '–'] and teacher[4:] == ['–'] * 4
    assert base[1:6] == ['–', *alone[2:6]]
    labels = [unescape(each) for each in re.findall('role="img" aria-label="(.*?)"', page)][:2]
    assert labels[0].startswith(
        f'Agreement of maps with the teacher, Pearson against Accuracy, %; kd: accuracy, % {kd[3]}, '
        f'maps, Pearson {kd[5]}, 3 seeds; alone: accuracy, % {alone[3]}, maps, Pearson {alone[5]}, 1 run'
    )
    assert f'same as teacher, % {kd[4]}' in labels[1]
    assert page.count('<article') == 2
    assert 'with the explanations of teacher, base, kd, alone' in page


def test_without_an_explainer_there_are_predictions_alone(groups, tmp_path):
    found = compare_methods({'a': groups['alone']}, groups['kd'][0], explainer=None)
    assert found.mapped == 0 and not found.pictures and set(found.methods) == {'a'}
    page = write_experiment(tmp_path / 'page.html', found).read_text('utf-8')
    assert page.count('<svg class="chart"') == 1 and 'Pearson' not in cells(page)[0]
    assert 'id="gallery"' not in page


# What is refused


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr('sys.argv', ['compare_runs.py', *map(str, words)])
    with pytest.raises(SystemExit) as error:
        tool('analysis_tools/compare_runs').main()
    return str(error.value)


def test_the_command_says_what_is_wrong(root, groups, tmp_path, monkeypatch, capsys):
    page = tmp_path / 'page.html'
    alone, kd = root / 'alone', root / 'kd/seed_1'
    run = Path(write_run(tmp_path / 'no_weights', 0))
    (run / 'epoch_1.pth').unlink()
    text = call(monkeypatch, capsys, run, '--report', page)
    assert text == f'--report: {run} has no checkpoint'
    text = call(monkeypatch, capsys, alone, '--report', page)
    assert text == '--report: none of the runs is a distillation with a teacher; set --teacher'
    empty = tmp_path / 'empty.py'
    empty.write_text("default_scope = 'mmkdx'\n")
    text = call(monkeypatch, capsys, kd, '--report', page, '--data', empty)
    assert text == f'--report: {empty} has no test_dataloader, so there are no test images'
    text = call(monkeypatch, capsys, kd, alone, '--names', 'a', '--report', page)
    assert text == '--names has 1 names for 2 folders'
    text = call(monkeypatch, capsys, kd, kd, '--report', page)
    assert 'is given twice' in text
    text = call(monkeypatch, capsys, kd, '--data', kd)
    assert text == '--data belongs to --report, which is missing'
    text = call(monkeypatch, capsys, kd, '--report', tmp_path)
    assert text == f'--report {tmp_path} is a folder; name a file'
    assert not page.exists()


def test_several_teachers_or_none_that_stays(root, tmp_path):
    other = write_run(tmp_path / 'other', 5, teacher=dict(model='resnet18_8xb32_in1k'))
    kd = str(root / 'kd/seed_1')
    names = f'{root / "big/epoch_1.pth"}, resnet18_8xb32_in1k'
    with pytest.raises(
        ValueError, match=re.escape(f'have different teachers ({names}); choose one')
    ):
        compare_methods(dict(a=[kd], b=[other]))
    ema = write_run(tmp_path / 'ema', 6, teacher=dict(type='EMATeacher'))
    with pytest.raises(
        ValueError, match="the runs' teacher is not one trained model; set --teacher"
    ):
        compare_methods(dict(a=[ema]))


@pytest.mark.parametrize(
    'teacher', [dict(model='{}/evil.py', checkpoint='x.pth'), dict(model='evil:network')]
)
def test_a_foreign_run_names_no_program_as_teacher(tmp_path, monkeypatch, teacher):
    (tmp_path / 'evil.py').write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    teacher = {key: value.format(tmp_path) for key, value in teacher.items()}
    run = write_run(tmp_path / 'run', 5, teacher=teacher)
    with pytest.raises(ValueError, match='evil.*a program; configs in YAML and JSON may name'):
        compare_methods(dict(a=[run]))
    assert not (tmp_path / 'mark').exists()


def test_a_cached_teacher_is_the_teacher_itself(root, tmp_path):
    teacher = Config.fromfile(root / 'kd/seed_1/config.py').model.teacher.to_dict()
    cached = dict(type='CachedTeacher', teacher=teacher, cache='nowhere')
    run = write_run(tmp_path / 'cached', 5, teacher=cached)
    found = compare_methods(dict(a=[str(root / 'kd/seed_1')], b=[run]), explainer=None)
    assert found.facts['teacher'].startswith(str(root / 'big/epoch_1.pth'))


def test_models_with_other_classes(root, tmp_path, monkeypatch):
    kd = str(root / 'kd/seed_1')
    small = write_run(tmp_path / 'small', 0, classes=5)
    message = 'small has 5 classes and the test images 9; all runs need the same classes'
    with pytest.raises(ValueError, match=message):
        compare_methods(dict(a=[kd], b=[small]), explainer=None)
    monkeypatch.setattr(experiment, 'class_names', lambda dataset: None)
    with pytest.raises(ValueError, match='small has 5 classes and .*/kd/seed_1 9; all runs need'):
        compare_methods(dict(a=[kd], b=[small]), explainer=None)
    monkeypatch.undo()
    named = write_run(tmp_path / 'named', 0, names=[f'c{i}' for i in range(9)])
    with pytest.raises(ValueError, match='named has classes of other names, or in another order'):
        compare_methods(dict(a=[kd], b=[named]), explainer=None)


def test_images_without_labels(root, tmp_path):
    kd = str(root / 'kd/seed_1')
    data = tmp_path / 'data.py'
    (tmp_path / 'images').mkdir()
    from PIL import Image

    for i in range(2):
        Image.new('RGB', (32, 32), (60 * i, 9, 9)).save(tmp_path / f'images/{i}.png')
    data.write_text(
        "test_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='CustomDataset', "
        f"data_root={str(tmp_path)!r}, data_prefix='images', with_label=False, "
        "pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))\n"
    )
    message = f'the test images of {data} do not have one label each'
    with pytest.raises(ValueError, match=re.escape(message)):
        compare_methods(dict(a=[kd]), data=str(data), explainer=None)
