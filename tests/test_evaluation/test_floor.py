"""The floor: what noise gets in place of the student's maps, and how far the maps are above it."""

import json
import math

import numpy as np
import pytest
import torch
from measuring import Images, collate, convolution
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

from mmkdx.evaluation import ExplanationEvaluator
from mmkdx.evaluation.floor import (
    agreement_sentence,
    as_json,
    image_agreement,
)
from mmkdx.evaluation.writer import write_files
from mmkdx.explain import RandomMap
from mmkdx.metrics import ExplanationMetric
from mmkdx.metrics.rank_agreement import DISAGREEMENT, Tau
from mmkdx.metrics.scores import Floor, Score
from mmkdx.registry import METRICS
from mmkdx.visualization.records import floor_cells, with_floors

COUNT = 12


@METRICS.register_module()
class Corner(ExplanationMetric):
    """The map's first value by both signs, the image's mean, and a value without a direction."""

    has_floor = True
    better = dict(high='higher', low='lower', image='higher')
    no_floor = ('image',)

    def measure(self, batch, model):
        first = model.maps[:, 0, 0]
        return dict(high=first, low=-first, image=batch.inputs.mean((1, 2, 3)), free=first)


@METRICS.register_module()
class Unfloored(ExplanationMetric):
    better = dict(mean='higher')

    def measure(self, batch, model):
        return dict(mean=model.maps.mean((1, 2)))


@pytest.fixture(scope='module')
def model() -> nn.Module:
    return convolution()


def evaluate(model, metrics=('Corner',), images=None, begin=True, **options):
    data = DataLoader(images or Images(), 5, collate_fn=collate)
    evaluator = ExplanationEvaluator(metrics=metrics, **options)
    evaluator.begin(model, data, floor=begin)
    for batch in data:
        evaluator.process(batch)
    return evaluator.finish()


def test_the_floor_is_what_noise_of_the_maps_size_gets(model):
    found, images = evaluate(model), Images().images
    targets = torch.tensor([found.rows[i]['target'] for i in range(COUNT)])
    noise = RandomMap(size=4)(model, images, targets)[:, 0, 0].numpy()
    own = np.array([found.rows[i]['high'] for i in range(COUNT)])
    assert [found.rows[i]['floor_high'] for i in range(COUNT)] == pytest.approx(noise, abs=1e-6)
    interval = stats.ttest_rel(own, noise).confidence_interval(0.95)
    expected = (own - noise).mean(), interval.low, interval.high
    for name, sign in (('high', 1), ('low', -1)):
        floor = found.floors[name]
        assert floor.value == pytest.approx(sign * noise.mean(), abs=1e-6) and floor.n == COUNT
        assert floor[1:4] == pytest.approx(expected, abs=1e-6)
    assert set(found.floors) == {'high', 'low'}
    assert not {'floor_image', 'floor_free', 'floor_degenerate'} & set(found.rows[0])


def test_agreement_with_a_teacher_stands_beside_that_of_noise(model):
    teacher = convolution(1)
    options = dict(teacher=teacher, metrics=['MapAgreement', 'Corner'], target='label')
    found = evaluate(model, **options)
    spec = dict(student=dict(type='RandomMap', size=4), teacher='GradCAM')
    noise = evaluate(model, explainer=spec, **options)
    names = {'cosine', 'pearson', 'spearman', 'ssim', 'js_divergence', 'topk_iou'}
    assert set(found.floors) == names | {'high', 'low'}
    for name in names:
        floor, sign = found.floors[name], -1 if name == 'js_divergence' else 1
        assert floor.value == pytest.approx(noise.scores[name].value, abs=1e-6)
        gap = found.scores[name].value - noise.scores[name].value
        assert floor.difference == pytest.approx(sign * gap, abs=1e-6)
        assert floor.n == found.scores[name].n == noise.scores[name].n
        assert floor.low < floor.difference < floor.high
    # The agreement of scores is of those that judge a map by itself
    assert set(found.metric_agreement) == {('high', 'low')}


def test_a_map_of_noise_is_on_the_floor(model):
    found = evaluate(model, explainer='RandomMap')
    for floor in found.floors.values():
        assert floor[1:4] == (0, 0, 0)


def test_named_metrics_have_named_floors(model):
    metrics = [dict(type='Corner', name='a'), dict(type='Corner', name='b'), 'Unfloored']
    found = evaluate(model, metrics)
    assert set(found.floors) == {'a_high', 'a_low', 'b_high', 'b_low'}
    assert 'floor_a_high' in found.rows[0] and found.floors['a_low'] == found.floors['b_low']


@pytest.mark.filterwarnings('ignore:the mean and std')
def test_images_without_a_map_do_not_count(model):
    images = Images()
    images.images[3] = images.images[7] = 0  # all positions are alike
    metrics = ['Corner', 'PerturbationAUC', 'PointingGame', 'MapSegmentation']
    found = evaluate(model, metrics, images=images)
    for name, floor in found.floors.items():
        assert floor.n == (12 if name in ('pixel_accuracy', 'mean_iou', 'mean_ap') else 10), name
        sign = 1 if found.scores[name].better == 'higher' else -1
        score = floor.value + sign * floor.difference
        assert score == pytest.approx(found.scores[name].value, abs=1e-6), name
    floor, rows = found.floors['high'], found.rows
    kept = [i for i in range(COUNT) if i not in (3, 7)]
    assert math.isnan(rows[3]['high']) and math.isfinite(rows[3]['floor_high'])
    assert floor.n == found.scores['high'].n == 10
    assert floor.value == pytest.approx(np.mean([rows[i]['floor_high'] for i in kept]))
    assert floor.difference == pytest.approx(found.scores['high'].value - floor.value)


ALL = [
    dict(type='DeletionInsertion', steps=4),
    dict(type='PerturbationAUC'),
    dict(type='AverageDrop'),
    dict(type='ROAD', fractions=[0.5]),
    dict(type='SingleDeletion', grid=2),
    dict(type='Infidelity', subsets=8),
    dict(type='FFidelity', draws=1, fractions=[0.5]),
    dict(type='PointingGame'),
    dict(type='PointingGame', average='sample', name='sample'),
    dict(type='MapSegmentation'),
    dict(type='MapComplexity'),
    dict(type='MaxSensitivity', samples=1),
]


@pytest.mark.filterwarnings('ignore:the mean and std')
def test_scores_of_all_metrics_are_the_floor_and_the_difference(model):
    found = evaluate(model, ALL)
    judging = {
        name
        for name, score in found.scores.items()
        if score.better and name not in ('degenerate', 'clean_accuracy')
    } - {'deleted_accuracy', 'accuracy_drop'}
    assert set(found.floors) == judging and len(judging) > 25
    for name, floor in found.floors.items():
        score = found.scores[name]
        sign = 1 if score.better == 'higher' else -1
        assert floor.n == score.n, name
        assert floor.value + sign * floor.difference == pytest.approx(score.value, abs=1e-5), name
        assert floor.low <= floor.difference <= floor.high, name


def test_bootstrap_of_pooled_scores_is_paired(model):
    """Where noise has the map's counts, the difference is 0 in each sample of images."""
    found = evaluate(model, ['MapSegmentation'], explainer=dict(type='RandomMap', size=4))
    assert found.scores['mean_iou'].low < found.scores['mean_iou'].high
    for floor in found.floors.values():
        assert floor[1:4] == (0, 0, 0)


@pytest.mark.parametrize('arguments', [dict(floor=False), dict(begin=False)])
def test_without_a_floor(model, arguments):
    found = evaluate(model, **arguments)
    assert found.floors == {} and 'floor_high' not in found.rows[0]
    assert 'floor' not in str(found) and ('high', 'low') in found.metric_agreement


def test_the_option_is_checked():
    with pytest.raises(ValueError, match='^ExplanationEvaluator.floor is 3; it must be True or F'):
        ExplanationEvaluator(floor=3)


# Tables and files


def test_the_table_shows_floors(model):
    found = evaluate(model)
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in str(found).splitlines()]
    heads, *rows = (line for line in lines if line)
    assert heads == ['score', 'better', 'Sequential', 'floor (noise)', 'above floor', 'n']
    cells = {row[0]: row for row in rows}
    assert cells['image'][3:5] == ['', ''] and cells['low'][5] == str(COUNT)
    value, gap = floor_cells(found.floors['low'])
    assert cells['low'][3:5] == [value, gap] and gap[0] in '+-' and ' ± ' in gap
    assert str(found).endswith(found.sentence) and DISAGREEMENT in found.sentence


def test_tables_without_floors_stay():
    rows = [['score', 'n'], ['a', '3']]
    assert with_floors(rows, {}) is rows
    nothing = Floor(math.nan, math.nan, math.nan, math.nan, 0)
    assert with_floors(rows, dict(a=nothing))[1] == ['a', '-', '-', '3']
    assert floor_cells(Floor(0.5, -0.25, math.nan, math.nan, 1)) == ('0.5000', '-0.2500')


def test_files_hold_floors_and_agreement(model, tmp_path):
    found = evaluate(model)
    write_files(tmp_path, 'test', found)
    saved = json.loads((tmp_path / 'test.json').read_text())
    assert saved['floors']['low'] == found.floors['low']._asdict()
    (pair,) = saved['agreement']
    assert pair['scores'] == ['high', 'low'] and pair['value'] == pytest.approx(1)
    head = (tmp_path / 'test.csv').read_text().partition('\n')[0].split(',')
    assert {'floor_high', 'floor_low'} < set(head)
    empty = as_json(
        dict(a=Floor(0.5, math.nan, math.nan, math.nan, 1)),
        {('a', 'b'): Tau(math.nan, math.nan, 1)},
    )
    assert empty['floors']['a'] == dict(value=0.5, difference=None, low=None, high=None, n=1)
    assert empty['agreement'] == [dict(scores=['a', 'b'], value=None, p=None, n=1)]


# Agreement over images


def test_agreement_over_images_by_hand():
    class Judge(ExplanationMetric):
        has_floor = True
        better = dict(a='higher', b='lower', c='higher', pooled='higher')

        def measure(self, batch, model):
            return {}

    rows = {
        i: dict(a=a, b=b, c=c, other=1)
        for i, (a, b, c) in enumerate([(1, 9, 2), (2, 7, 1), (3, 5, math.nan), (4, 1, 5)])
    }
    scores = {name: Score(0, better=better) for name, better in Judge.better.items()}
    taus = image_agreement(rows, scores, [Judge(), Unfloored()])
    assert list(taus) == [('a', 'b'), ('a', 'c'), ('b', 'c')]
    # b is turned: images with a high a have a low b
    assert taus['a', 'b'].value == pytest.approx(1) and taus['a', 'b'].n == 4
    assert taus['a', 'c'].value == pytest.approx(1 / 3) and taus['a', 'c'].n == 3
    sentence = agreement_sentence(taus)
    assert sentence.startswith(
        "Kendall's tau of scores over images: 0.56 on average of 3 pairs, and least, 0.33, of a and c. "
    )
    assert agreement_sentence({('a', 'b'): Tau(math.nan, math.nan, 0)}) == ''
    one = {('a', 'b'): Tau(0.254, 0.1, 9), ('a', 'c'): Tau(math.nan, math.nan, 0)}
    assert agreement_sentence(one, 'explainers') == (
        f"Kendall's tau of a and b over explainers: 0.25. {DISAGREEMENT}"
    )
    assert agreement_sentence({}) == ''
