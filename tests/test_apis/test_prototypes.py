"""The analysis of prototypes: that its numbers are the network's, and its tool."""

import copy
import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from mmengine.runner import Runner
from tiny import build, tool

from mmkdx.apis import PrototypeAnalysis
from mmkdx.apis.prototypes import _loader
from mmkdx.datasets.push_set import push_dataloader
from mmkdx.files import WriteError
from mmkdx.models.heads.push import push
from mmkdx.visualization.panel import as_rgb
from mmkdx.visualization.prototypes import Patch, draw_patch

CLASSES, PER_CLASS = 9, 2
COUNT = CLASSES * PER_CLASS
PREPROCESSOR = dict(num_classes=CLASSES, mean=[105.0] * 3, std=[41.0] * 3, to_rgb=True)


def named(analysis, label):
    return f'{analysis.classes[int(label)]} ({int(label)})'


def loader(split, count):
    return dict(
        batch_size=10,
        num_workers=0,
        dataset=dict(
            type='Parts', split=split, num_samples=count, pipeline=[dict(type='PackInputs')]
        ),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def config() -> Config:
    model = dict(
        type='ImageClassifier',
        data_preprocessor=PREPROCESSOR,
        backbone=dict(
            type='ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4, strides=(2, 2, 2, 1)
        ),
        head=dict(
            type='ProtoPNetHead',
            num_classes=CLASSES,
            in_channels=32,
            prototypes_per_class=PER_CLASS,
            prototype_channels=8,
        ),
    )
    return Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['mmkdx', 'tiny']),
            model=model,
            train_dataloader=loader('train', 36),
            val_dataloader=loader('val', 9),
            test_dataloader=loader('test', 12),
            test_cfg=dict(),
            test_evaluator=dict(type='Accuracy', topk=(1,)),
            custom_hooks=[dict(type='PrototypePushHook', start=1)],
        )
    )


def save(model, path):
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> Path:
    """A config, and checkpoints: pushed, not pushed, and pushed with its prototypes in another order."""
    home = tmp_path_factory.mktemp('home')
    cfg = config()
    cfg.dump(home / 'protopnet.py')
    torch.manual_seed(0)
    model = build(cfg.model.to_dict()).eval()
    save(model, home / 'raw.pth')
    push(model, _loader(push_dataloader(cfg)))
    head = model.head
    with torch.no_grad():
        head.last_layer.weight.normal_()
    head.alive[3] = False
    save(model, home / 'pushed.pth')
    head.alive[3] = True
    order = torch.randperm(COUNT)
    with torch.no_grad():
        head.prototypes.copy_(head.prototypes[order])
        head.last_layer.weight.copy_(head.last_layer.weight[:, order])
    for name in ('source_image', 'source_label', 'source_cell', 'source_box', 'alive'):
        getattr(head, name).copy_(getattr(head, name)[order])
    save(model, home / 'shuffled.pth')
    torch.save(order, home / 'order.pt')
    return home


@pytest.fixture(scope='module')
def analysis(home) -> PrototypeAnalysis:
    return PrototypeAnalysis(home / 'protopnet.py', home / 'pushed.pth')


@torch.no_grad()
def by_hand(analysis, dataset):
    """Similarity maps (N, P, 8, 8) of a data set, and logits, through the model's own forward."""
    model = analysis.model
    images = torch.stack([dataset[i]['inputs'] for i in range(len(dataset))]).float().flip(1)
    inputs = (images - 105) / 41
    feature = model.head.add_on(model.backbone(inputs)[-1])
    gaps = (feature[:, None] - model.head.prototypes[:, :, None, None]).square().sum(2)
    return ((gaps + 1) / (gaps + 1e-4)).log(), model(inputs, mode='tensor')


def box_by_hand(similarity):
    """Round what is at least the 95th percentile of a map, enlarged to 64 x 64 pixels."""
    values = torch.nn.functional.interpolate(similarity[None, None], (64, 64), mode='bilinear')
    y, x = np.nonzero(values[0, 0].numpy() >= np.percentile(values, 95))
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


# Push data


def test_push_data_are_the_training_images_as_they_are():
    cfg = config()
    cfg.train_dataloader.update(drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True))
    cfg.train_dataloader.dataset.pipeline = [dict(type='RandomFlip', prob=0.5)]
    before = copy.deepcopy(cfg.train_dataloader)
    found = push_dataloader(cfg)
    assert found == loader('train', 36)
    assert cfg.train_dataloader == before
    given = dict(dataset=dict(type='x'))
    assert push_dataloader(cfg, given) == given and push_dataloader(cfg, given) is not given


# Local


@pytest.mark.parametrize('rows', [COUNT, 4])
def test_contributions_add_up_to_the_models_logits(analysis, rows):
    # Near 0 the similarity is steep, so that the rounding of distances shows
    similarity, logits = by_hand(analysis, analysis.test_data.dataset)
    for (pictures, facts), i in zip(analysis.images([0, 7], rows=rows), (0, 7)):
        order = logits[i].argsort(descending=True)
        assert facts['prediction'] == named(analysis, order[0]) and len(pictures) == 2
        assert facts['label'] == named(analysis, i) and facts['image'] == f'test image {i}'
        for c, each in zip(order, facts['classes']):
            rest = {}
            assert each['class'] == named(analysis, c)
            assert each['logit'] == pytest.approx(logits[i, c].item(), abs=0.01)
            shown = each['prototypes']
            total = sum(row['similarity'] * row['weight'] for row in shown)
            assert total + each['others'] == pytest.approx(each['logit'], abs=1e-4)
            # One of them is pruned
            assert len(shown) == min(rows, COUNT - 1) and all(r['prototype'] != 3 for r in shown)
            terms = analysis.model.head.class_weights()[c] * similarity[i].amax((1, 2))
            for row in shown:
                j = row['prototype']
                assert row['contribution'] == pytest.approx(terms[j].item(), abs=0.02)
                assert row['cell'] == list(divmod(int(similarity[i, j].argmax()), 8))
                rest[j] = row['contribution']
            assert list(rest.values()) == sorted(rest.values(), reverse=True)
            hidden = [terms[j].abs().item() for j in range(COUNT) if j not in rest]
            assert max(hidden) <= min(map(abs, rest.values())) + 0.02
            if rows == COUNT:
                assert each['others'] == pytest.approx(0, abs=1e-4)


def test_boxes_hold_what_is_highest(analysis):
    model = analysis.model
    inputs = (analysis.test_data.dataset[5]['inputs'].float().flip(0)[None] - 105) / 41
    # The network's own rounding: the threshold lies between pixels that may be equal but for that
    with torch.no_grad():
        similarity = model.head.similarity(model.head.distances(model.backbone(inputs)))
    ((_, facts),) = analysis.images([5], rows=3)
    for row in facts['classes'][0]['prototypes']:
        assert row['box'] == box_by_hand(similarity[0, row['prototype']])


def test_an_image_file_is_explained_like_the_test_image(analysis, tmp_path):
    image = analysis.test_data.dataset[4]['inputs'].permute(1, 2, 0).numpy()
    cv2.imwrite(str(tmp_path / 'bird.png'), image)
    (_, file), (_, test) = analysis.images([tmp_path / 'bird.png', 4])
    assert file['classes'] == test['classes']
    assert file['image'] == 'bird.png' and file['path'] == str(tmp_path / 'bird.png')
    assert file['label'] is None


def test_default_images_are_spread_over_the_test_data(analysis):
    assert [facts['image'] for _, facts in analysis.images(num=3, rows=1)] == [
        'test image 0',
        'test image 6',
        'test image 11',
    ]


# Global


def test_nearest_patches_are_the_most_similar_without_the_source(analysis):
    sets = dict(training=analysis.push_data.dataset, test=analysis.test_data.dataset)
    similarity = {name: by_hand(analysis, dataset)[0] for name, dataset in sets.items()}
    for (picture, facts), j in zip(analysis.prototypes([0, 17], k=3), (0, 17)):
        assert facts['prototype'] == j and picture.dtype == np.uint8
        assert facts['source_label'] == j // PER_CLASS == facts['source_image'] % CLASSES
        row, column = facts['source_cell']
        source = similarity['training'][facts['source_image'], j]
        for key in ('source_image', 'source_label', 'source_cell', 'source_box'):
            assert facts[key] == getattr(analysis.model.head, key)[j].tolist()
        assert source[row, column] == source.max() == pytest.approx(9.21034, abs=0.02)
        for name in sets:
            best = similarity[name][:, j].amax((1, 2))
            if name == 'training':
                best[facts['source_image']] = -1
            values, order = best.topk(3)
            assert [each['image'] for each in facts[name]] == order.tolist()
            np.testing.assert_allclose([e['similarity'] for e in facts[name]], values, atol=0.02)
            for each in facts[name]:
                assert each['class'] == named(analysis, each['image'] % CLASSES)
                flat = similarity[name][each['image'], j].argmax()
                assert each['cell'] == list(divmod(int(flat), 8))
        weights = analysis.model.head.last_layer.weight[:, j]
        assert facts['weight_class'] == named(analysis, weights.argmax())


def test_default_prototypes_are_spread_over_those_alive(analysis):
    shown = [facts['prototype'] for _, facts in analysis.prototypes(num=COUNT, k=1)]
    assert shown == [j for j in range(COUNT) if j != 3]
    assert [f['prototype'] for _, f in analysis.prototypes(num=2, k=1)] == [0, 17]


def test_fewer_images_than_neighbours(home):
    cfg = config()
    cfg.test_dataloader.dataset.num_samples = 2
    ((_, facts),) = PrototypeAnalysis(cfg, home / 'pushed.pth').prototypes([1], k=4)
    assert len(facts['test']) == 2 and len(facts['training']) == 4


# Transfer


@pytest.mark.parametrize('given', ['argument', 'distillation', 'several', 'model dict'])
def test_a_teacher_in_another_order_is_matched(home, given):
    order = torch.load(home / 'order.pt').tolist()
    cfg, teacher = (
        config(),
        dict(model=str(home / 'protopnet.py'), checkpoint=str(home / 'shuffled.pth')),
    )
    if given == 'model dict':
        teacher['model'] = cfg.model.to_dict()
    if given in ('distillation', 'several'):
        teacher = teacher if given == 'distillation' else [teacher, dict(model='no.py')]
        cfg.model = dict(type='Distiller', student=cfg.model, teacher=teacher)
        teacher = None
    found = PrototypeAnalysis(cfg, home / 'pushed.pth', teacher)
    picture, facts = found.transfer([5, 0])
    assert facts['matches'] == order and facts['images'] == 12
    assert [each['same_patch'] for each in facts['prototypes']] == [12, 12]
    for each, j in zip(facts['prototypes'], (5, 0)):
        assert each['teacher']['prototype'] == j and each['student']['prototype'] == order[j]
        for key in ('source_image', 'source_box', 'source_cell'):
            assert each['teacher'][key] == each['student'][key]
    # The same patch on both sides, in tiles of 128 pixels
    tiles = [picture[60:180, 12 + 140 * n : 140 + 140 * n] for n in range(4)]
    np.testing.assert_array_equal(tiles[0], tiles[2])
    np.testing.assert_array_equal(tiles[1], tiles[3])


def test_a_teachers_patches_are_of_its_own_images(home, tmp_path):
    cfg = config()
    cfg.train_dataloader.dataset.seed = 1
    cfg.dump(tmp_path / 'teacher.py')
    model = build(cfg.model.to_dict()).eval()
    model.load_state_dict(torch.load(home / 'pushed.pth')['state_dict'])
    data = _loader(push_dataloader(cfg))
    push(model, data)
    save(model, tmp_path / 'teacher.pth')
    teacher = dict(model=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))
    found = PrototypeAnalysis(config(), home / 'pushed.pth', teacher)
    picture, _ = found.transfer([7])
    head = model.head
    image = as_rgb(data.dataset[int(head.source_image[7])]['inputs'], True)
    patch = Patch(image, head.source_box[7], None, head.source_cell[7].tolist(), (8, 8))
    np.testing.assert_array_equal(picture[-134:-6, 152:280], draw_patch(patch, 128))


# Errors


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda a: a.prototypes([18]), 'prototypes: there is no prototype 18; there are 0 to 17'),
        (lambda a: a.prototypes([-1]), 'prototypes: there is no prototype -1'),
        (lambda a: a.images([12]), 'images: there is no test image 12 of 12'),
        (lambda a: a.images(['no.png']), 'images: there is no file no.png'),
        (lambda a: a.images([__file__]), f'images: cannot read {__file__}'),
        (lambda a: a.transfer(), 'there is no teacher to compare with; give one'),
    ],
)
def test_what_there_is_not(analysis, call, message):
    with pytest.raises(ValueError, match=message):
        call(analysis)


def test_prototypes_that_were_not_pushed(home):
    with pytest.raises(ValueError, match='raw.pth has 18 of 18 prototypes that have not been proj'):
        PrototypeAnalysis(config(), home / 'raw.pth')


def test_a_pruned_prototype_without_a_source(home, tmp_path):
    state = torch.load(home / 'pushed.pth')
    state['state_dict']['head.source_image'][3] = -1
    torch.save(state, tmp_path / 'pruned.pth')
    found = PrototypeAnalysis(config(), tmp_path / 'pruned.pth')
    with pytest.raises(ValueError, match='prototype 3 was pruned before it was projected'):
        found.prototypes([3])


def test_other_push_data(home):
    for changes in (dict(num_samples=9), dict(indices=list(range(1, 36)) + [0])):
        cfg = config()
        cfg.train_dataloader.dataset.update(changes)
        with pytest.raises(ValueError, match='which is not in the data of PrototypePushHook'):
            PrototypeAnalysis(cfg, home / 'pushed.pth')


def test_a_config_without_the_hook(home):
    cfg = config()
    cfg.custom_hooks = []
    with pytest.raises(ValueError, match='the config has no PrototypePushHook'):
        PrototypeAnalysis(cfg, home / 'pushed.pth')


def test_a_head_without_prototypes(tmp_path):
    cfg = config()
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=32)
    save(build(cfg.model.to_dict()), tmp_path / 'linear.pth')
    sentence = (
        'the analysis of checkpoint .*linear.pth needs a prototype head, .* has LinearClsHead'
    )
    with pytest.raises(ValueError, match=sentence):
        PrototypeAnalysis(cfg, tmp_path / 'linear.pth')


def test_a_teacher_with_another_grid(home):
    cfg = config()
    model = cfg.model.to_dict()
    model['backbone']['strides'] = (2, 2, 2, 2)
    teacher = dict(model=model, checkpoint=str(home / 'shuffled.pth'))
    with pytest.raises(
        ValueError, match='grid of 4 x 4 and the student 18 .* a grid of 8 x 8; both must be equal'
    ):
        PrototypeAnalysis(cfg, home / 'pushed.pth', teacher).transfer()


def test_a_teacher_of_several(home):
    member = dict(model=config().model.to_dict(), checkpoint=str(home / 'shuffled.pth'))
    teacher = dict(type='TeacherEnsemble', teachers=[member, member])
    with pytest.raises(ValueError, match='teacher is a TeacherEnsemble; it must be a Teacher'):
        PrototypeAnalysis(config(), home / 'pushed.pth', teacher).transfer()


# Files


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['prototypes.py', *map(str, arguments)])
    tool('analysis_tools/prototypes').main()


def test_the_tool_writes_pictures_numbers_and_a_page(monkeypatch, capsys, home, tmp_path):
    run_tool(
        monkeypatch,
        *(home / 'protopnet.py', home / 'pushed.pth', '--out', tmp_path / 'out'),
        *('--images', 0, 3, '--prototypes', 5, '--cmap', 'jet'),
        *('--teacher-config', home / 'protopnet.py', '--teacher-checkpoint', home / 'shuffled.pth'),
    )
    out = tmp_path / 'out'
    assert f'The page is {out / "prototypes.html"}' in capsys.readouterr().out
    names = {path.name for path in out.glob('*.png')}
    assert names == {
        'global_0005.png',
        *(f'local_00{i}_{rank}.png' for i in range(2) for rank in range(2)),
        'transfer.png',
    }
    assert all(cv2.imread(str(out / name)) is not None for name in names)
    page = (out / 'prototypes.html').read_text('utf-8')
    assert page.count('<img ') == len(names)
    for heading in ('Prototypes', 'Decisions', 'Transfer'):
        assert f'>{heading}</h2>' in page
    numbers = json.loads((out / 'prototypes.json').read_text())
    assert [each['prototype'] for each in numbers['global']] == [5]
    assert [each['image'] for each in numbers['local']] == ['test image 0', 'test image 3']
    assert len(numbers['transfer']['matches']) == COUNT


def test_the_tool_writes_one_part(monkeypatch, home, tmp_path):
    arguments = [home / 'protopnet.py', home / 'pushed.pth', '--out', tmp_path, '--num', 2]
    run_tool(
        monkeypatch, *arguments, '--parts', 'local', '--cfg-options', 'test_dataloader.batch_size=3'
    )
    assert set(json.loads((tmp_path / 'prototypes.json').read_text())) == {'local'}
    assert len(list(tmp_path.glob('*.png'))) == 4


def test_a_full_disk_leaves_an_earlier_analysis(analysis, tmp_path):
    def content():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    analysis.write(tmp_path, ['local'], [0])
    before = content()
    assert set(before) >= {'local_000_0.png', 'prototypes.json', 'prototypes.html'}
    # Room for pictures and numbers, but not for the page
    for size in (100, len(before['prototypes.html']) - 1):
        with pytest.raises(WriteError, match='cannot write .*: File too large'), full_disk(size):
            analysis.write(tmp_path, ['local'], [1])
        assert content() == before


def test_half_a_teacher(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, 'a.py', 'b.pth', '--teacher-config', 'c.py')
    assert '--teacher-config and --teacher-checkpoint belong together' in capsys.readouterr().err


# The hook's report


@pytest.mark.parametrize(
    'checkpoint, push_hook', [('pushed', True), ('raw', True), ('pushed', False)]
)
def test_the_report_of_a_test_shows_decisions(home, tmp_path, checkpoint, push_hook):
    cfg = config()
    cfg.custom_hooks = [
        *(cfg.custom_hooks if push_hook else []),
        dict(type='ExplainHook', explainer='EigenCAM', num_samples=2, show_samples=2, report=True),
    ]
    cfg.merge_from_dict(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=1),
            val_cfg=dict(),
            val_evaluator=cfg.test_evaluator,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        )
    )
    cfg.load_from, cfg.work_dir = str(home / f'{checkpoint}.pth'), str(tmp_path)
    cfg.experiment_name = f'{checkpoint}_{push_hook}_{tmp_path.name}'
    Runner.from_cfg(cfg).test()
    page = next(tmp_path.rglob('report.html')).read_text('utf-8')
    shown = checkpoint == 'pushed' and push_hook
    assert ('>Prototypes</h2>' in page) == shown
    assert page.count('<img ') == 2 + (2 * 2 if shown else 0)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert ('The report has no section of prototypes' in log) == (checkpoint == 'raw')
    with next(tmp_path.rglob('test.csv')).open() as file:
        assert len(list(csv.DictReader(file))) == 2
