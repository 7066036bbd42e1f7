"""PrototypeTransfer: T10, T11 and T14 of Proto2Proto's tests through the metric's interface."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from prototype_layouts import write_cub
from tiny import build
from torch import nn, tensor

from mmkdx.functional.prototype_transfer import prototype_matching_score
from mmkdx.metrics import Explained, ExplainedBatch, PrototypeParts, PrototypeTransfer
from mmkdx.models.heads import PrototypeLayer
from mmkdx.registry import METRICS

ROOT = Path(__file__).parents[2]
CELLS = dict(
    teacher=[[0, 1, 1, 3], [2, 2, 0, 1], [3, 3, 3, 3]],
    student=[[0, 1, 2, 3], [2, 0, 0, 1], [3, 0, 3, 3]],
)
DISTANCES = dict(
    teacher=[[0.05, 0.30, 0.10, 2], [0.02, 0.40, 0.60, 0.09], [0.5, 0.7, 0.9, 1.1]],
    student=[[0.08, 0.20, 0.10, 0.4], [0.30, 0.05, 0.50, 0.20], [0.6, 0.7, 0.9, 1.5]],
)


class Given(PrototypeLayer):
    """Yields the distances of images that are their own index."""

    def __init__(self, maps):
        super().__init__(maps.shape[1], 1)
        self.maps = maps

    def forward(self, images):
        return self.maps[images[:, 0, 0, 0].long()]


def model_of(distances, cells, side=2, **kwargs):
    distances, cells = torch.as_tensor(distances), torch.as_tensor(cells)
    maps = torch.full((*distances.shape, side * side), 50.0)
    maps = maps.scatter(2, cells.long()[:, :, None], distances.float()[:, :, None])
    model = nn.Sequential(Given(maps.unflatten(2, (side, side))))
    n = len(distances)
    logits = torch.zeros(n, 2)
    return Explained(
        torch.zeros(n, 2, 2), logits.argmax(1), logits, model, None, model=model, **kwargs
    )


def batches(models, n, size=2):
    for begin in range(0, n, size):
        index = list(range(begin, min(begin + size, n)))
        images = tensor(index).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        yield ExplainedBatch(images, index, models)


def evaluate(models, n, metric=None, **kwargs):
    metric = metric or METRICS.build(dict(type='PrototypeTransfer', **kwargs))
    for batch in batches(models, n):
        metric.process(batch)
    return metric.evaluate(), metric


def given(name):
    return model_of(DISTANCES[name], CELLS[name])


TAUS = (0.01, 0.1, 0.45, 1.0, None)


def test_hand_computed_scores():
    models = dict(student=given('student'), teacher=given('teacher'), base=given('teacher'))
    scores, metric = evaluate(models, 3, taus=TAUS)
    names = ('0.01', '0.1', '0.45', '1', 'inf')
    expected = {
        'teacher/aap': (0, 4 / 3, 4 / 3, 2, 7 / 3),
        'aap': (0, 1, 7 / 3, 3, 3),
        'ajs': (0, 1 / 9, 7 / 18, 2 / 3, 0.75),
        'base/ajs': (0, 2 / 3, 2 / 3, 1, 1),
    }
    for key, values in expected.items():
        for tau, value in zip(names, values):
            assert scores[f'{key}@{tau}'].value == pytest.approx(value, abs=1e-6), (key, tau)
    assert scores['ajs@0.1'].better == scores['pms'].better == 'higher'
    assert scores['aap@0.1'].better is None
    assert [metric.rows[i]['ajs@0.45'] for i in range(3)] == pytest.approx([1 / 2, 2 / 3, 0])
    assert not any('_' in name for row in metric.rows.values() for name in row)


def test_matching_score():
    teacher = [[0, 1]] * 5 + [[2, 3]] * 5
    student = [[0, 0], [0, 1], [1, 0], [1, 0], [1, 1], [3, 2], [3, 3], [3, 3], [2, 2], [0, 0]]
    models = dict(
        student=model_of(torch.zeros(10, 2), student),
        teacher=model_of(torch.zeros(10, 2), teacher, fixed=True),
    )
    scores, metric = evaluate(models, 10)
    assert scores['pms'].value == pytest.approx(0.855099, abs=1e-6)
    assert math.isnan(scores['pms'].low) and scores['pms'].n == 10
    # the teacher's distances are kept from the first evaluation
    models['teacher'].model = models['teacher'].predict = None
    again, _ = evaluate(models, 10, metric)
    assert again['pms'] == scores['pms']


def test_a_permuted_copy_matches():
    cells = torch.randint(0, 49, (40, 12), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    distances = torch.rand(40, 12, generator=torch.Generator().manual_seed(2))
    models = dict(
        student=model_of(distances[:, order], cells[:, order], 7),
        teacher=model_of(distances, cells, 7),
    )
    scores, _ = evaluate(models, 40)
    assert scores['pms'].value == 1 == scores['ajs@inf'].value
    assert scores['aap@0.45'].value == scores['teacher/aap@0.45'].value
    assert prototype_matching_score(cells, cells[:, order]) == 1


def test_one_model_alone():
    scores, _ = evaluate(dict(student=given('student')), 3, taus=[0.45])
    assert list(scores) == ['aap@0.45']


def test_the_first_of_equally_near_positions():
    maps = torch.full((1, 1, 3, 3), 2.0)
    maps[0, 0, 1, 1] = maps[0, 0, 2, 0] = 0.5
    model = nn.Sequential(Given(maps))
    explained = Explained(torch.zeros(1, 2, 2), None, None, model, None, model=model)
    batch = next(batches({}, 1))
    values = PrototypeTransfer().measure(batch, explained)
    assert values['_cells'][0].tolist() == [4] and values['_distances'][0].tolist() == [0.5]


def test_bad_bound():
    with pytest.raises(
        ValueError, match='PrototypeTransfer.taus is 0; it must be a finite number above 0'
    ):
        PrototypeTransfer(taus=(1, 0))


def test_other_grids_and_counts():
    teacher = model_of(torch.zeros(2, 3), torch.zeros(2, 3), 3)
    for student, sentence in (
        (
            model_of(torch.zeros(2, 3), torch.zeros(2, 3), 2),
            r'a grid of \(2, 2\) and the teacher \(3',
        ),
        (model_of(torch.zeros(2, 4), torch.zeros(2, 4), 3), 'prototypes: 4 and the teacher 3'),
    ):
        with pytest.raises(ValueError, match='PrototypeTransfer: the student has ' + sentence):
            evaluate(dict(student=student, teacher=teacher), 2)


def test_a_model_without_prototypes():
    model = nn.Linear(2, 2)
    explained = Explained(torch.zeros(1, 2, 2), None, None, model, None, model=model)
    with pytest.raises(
        ValueError, match='PrototypeTransfer: a Linear has no prototypes; use a proto'
    ):
        PrototypeTransfer().measure(next(batches({}, 1)), explained)


# Parts


class Noisy(Given):
    """Noise moves the second prototype to the other side of the third image."""

    def forward(self, images):
        index = images.mean((1, 2, 3)).round()
        maps = super().forward(index.view(-1, 1, 1, 1)).clone()
        moved = (images.flatten(1).std(1) > 0.01) & (index == 2)
        maps[moved, 1] = maps[moved, 1].flip(-1)
        return maps


class PartsNetwork(nn.Module):
    """Two prototypes, of one class each, on a grid of 4 x 4 positions in images of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        cells = tensor([[0, 15], [0, 12], [5, 15]])
        maps = torch.full((3, 2, 16), 9.0).scatter(2, cells[:, :, None], 0.1)
        self.layer = Noisy(maps.view(3, 2, 4, 4))
        self.head = nn.Module()
        self.head.alive = tensor([True, True])
        self.head.push_classes = lambda: tensor([[1, 0], [0, 1]]).bool()

    def forward(self, images):
        return self.layer(images)


def parts_scores(samples, labels=(0, 0, 1), alive=(True, True), **kwargs):
    network = PartsNetwork()
    network.head.alive = tensor(alive)
    model = Explained(torch.zeros(3, 2, 2), None, None, network, None, model=network)
    samples = [dict(sample, gt_label=label) for sample, label in zip(samples, labels)]
    # a square of two pixels is the cell itself
    metric = METRICS.build(dict(type='PrototypeParts', side=0.25, purity_side=0.25, **kwargs))
    for i in range(3):
        images = torch.full((1, 3, 8, 8), float(i))
        metric.process(ExplainedBatch(images, [i], dict(student=model), samples[i : i + 1]))
    scores = metric.evaluate()
    assert not any('_' in name for row in metric.rows.values() for name in row)
    return {name: score.value for name, score in scores.items()}, scores


def key_points():
    """In all images a part at the top left and one at the bottom right, in one a third."""
    points = [[[1.0, 1.0], [7.0, 7.0], [1.0, 7.0]]]
    return [dict(gt_keypoints=points, gt_keypoints_visible=[[1, 1, int(i == 1)]]) for i in range(3)]


def test_parts_as_key_points():
    values, scores = parts_scores(key_points())
    assert values == pytest.approx(dict(purity=(2 / 3 + 1) / 2, consistency=1, stability=0.5))
    assert all(score.better == 'higher' and score.n == 2 for score in scores.values())


def test_a_prototype_without_images_of_its_class_does_not_count():
    values, scores = parts_scores(key_points(), labels=(0, 0, 0))
    assert values['consistency'] == 0 and values['stability'] == 1
    assert scores['purity'].n == 2 and scores['consistency'].n == 1


def test_parts_that_count_as_one():
    values, _ = parts_scores(key_points(), parts=[[0, 1]])
    assert values['purity'] == pytest.approx(2 / 3)


def test_pruned_prototypes_do_not_count():
    values, scores = parts_scores(key_points(), alive=(True, False))
    assert values['purity'] == pytest.approx(2 / 3) and scores['purity'].n == 1


def label_maps():
    labels = torch.zeros(8, 8, dtype=torch.uint8)
    labels[:2, :2], labels[6:, 6:], labels[6:, :2] = 1, 2, 3
    return [dict(gt_seg_map=labels)] * 3


def test_parts_as_labels():
    values, _ = parts_scores(label_maps(), parts=[1, 2])
    assert values == pytest.approx(dict(purity=2 / 3, consistency=1, stability=0.5))
    values, _ = parts_scores(label_maps(), parts=[[2, 3]])
    # the second prototype is at one or the other in all images
    assert values['purity'] == pytest.approx(0.5)


def test_two_metrics_share_a_forward():
    calls = []
    model = given('student')
    predict, model.predict = model.predict, lambda images: calls.append(1) or predict(images)
    batch = next(batches(dict(student=model), 3, 3))
    for _ in range(2):
        PrototypeTransfer().process(batch)
    assert len(calls) == 1


@pytest.mark.parametrize('name', ['side', 'purity_side'])
def test_bad_side(name):
    with pytest.raises(
        ValueError,
        match=f'PrototypeParts.{name} is 1.5; it must be a finite number above 0 and of at most 1',
    ):
        PrototypeParts(**{name: 1.5})


def test_label_maps_need_labels():
    with pytest.raises(ValueError, match='PrototypeParts.parts is missing; list the labels'):
        parts_scores(label_maps())


def test_images_without_parts():
    with pytest.raises(ValueError, match="neither 'gt_keypoints' nor 'gt_seg_map'; keep them by"):
        parts_scores([{}] * 3)


def test_parts_of_birds_through_the_config_of_the_public_archive(tmp_path):
    write_cub(tmp_path)
    cfg = Config.fromfile(ROOT / 'configs/proto2proto/parts_protopnet_vgg19_cub.py')
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    cfg.test_dataloader.update(batch_size=3, num_workers=0)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        (data,) = Runner.build_dataloader(cfg.test_dataloader)
    network = build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='TinyBackbone', width=4),
            head=dict(
                type='ProtoPNetHead',
                num_classes=200,
                in_channels=4,
                prototypes_per_class=1,
                prototype_channels=3,
            ),
            data_preprocessor=cfg.data_preprocessor.to_dict(),
        )
    ).eval()
    inputs = network.data_preprocessor(data, False)['inputs']
    assert inputs.shape == (3, 3, 224, 224)
    model = Explained(torch.zeros(3, 2, 2), None, None, network, None, model=network)
    metric = METRICS.build(cfg.custom_hooks[0].metrics[0])
    samples = data['data_samples']
    with torch.no_grad():
        metric.process(ExplainedBatch(inputs, [0, 1, 2], dict(student=model), samples))
    _, row = metric.results[0]
    assert row['_shown'].shape == (12,)  # of 15 parts three are pairs
    visible = np.asarray(samples[0].get('gt_keypoints_visible'))[0].astype(bool)
    points = np.asarray(samples[0].get('gt_keypoints'))[0]
    inside = visible & ((points >= 0) & (points < 224)).all(1)
    expected = [inside[[part] if isinstance(part, int) else part].any() for part in metric.parts]
    assert row['_shown'].tolist() == expected and any(expected)
    scores = metric.evaluate()
    # three test images, one of each of three classes
    assert scores['consistency'].n == 3 and scores['purity'].n == 200
    assert 0 <= scores['purity'].value <= 1
