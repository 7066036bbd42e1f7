"""Comparing explainers: the numbers are those of evaluations of each, and the files say so."""

import csv
import json
import math

import pytest
import torch
from measuring import Images, collate, convolution
from tiny import build, classifier, distiller
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmkdx.evaluation import ExplanationEvaluator
from mmkdx.evaluation.comparison import compare_explainers
from mmkdx.evaluation.comparison_report import (
    comparison_notes,
    comparison_table,
    write_comparison,
)

METRICS = ['SingleDeletion', dict(type='Infidelity', subsets=8), 'MapSegmentation']
EXPLAINERS = ['GradCAM', 'EigenCAM', 'InputGradient']


def loader(dataset=None, **options):
    return DataLoader(
        dataset or Images(), **dict(dict(batch_size=5, collate_fn=collate), **options)
    )


def compare(model, explainers=EXPLAINERS, metrics=METRICS, data=None, **options):
    options.setdefault('num_samples', 10)
    return compare_explainers(model, data or loader(), explainers, metrics, **options)


@pytest.fixture(scope='module')
def model() -> nn.Module:
    return convolution()


@pytest.fixture(scope='module')
def found(model):
    return compare(model, show_samples=2)


def test_scores_and_floors_are_those_of_an_evaluation_of_each(found, model):
    entrants = {each.name: each for each in found.entrants}
    assert set(entrants) == set(EXPLAINERS)
    for name, each in entrants.items():
        data = loader()
        evaluator = ExplanationEvaluator(name, METRICS, num_samples=10)
        evaluator.begin(model, data)
        for batch in data:
            evaluator.process(batch)
        alone = evaluator.finish()
        for score, value in each.scores.items():
            assert value == pytest.approx(alone.scores[score], nan_ok=True, abs=1e-6), score
        assert set(each.floors) == set(alone.floors) == {*found.better, *each.floors}
        for score, value in each.floors.items():
            assert value == pytest.approx(alone.floors[score], nan_ok=True, abs=1e-6), score
        assert set(each.rows) == set(alone.rows) and len(each.rows) == 10
    sizes = {each.name: each.size for each in found.noise}
    assert sizes == {'RandomMap 4x4': (4, 4), 'RandomMap 16x16': (16, 16)}


def test_ranks_are_those_of_the_means(found):
    pooled = {'pixel_accuracy', 'mean_iou', 'mean_ap'}  # no means over images, which rank nothing
    ranked = {'single_deletion', 'single_deletion_top', 'infidelity'}
    assert set(found.better) == pooled | ranked
    for score in ranked:
        better = found.better[score]
        ordered = sorted(found.entrants, key=lambda each: each.scores[score].value)
        ordered = ordered if better == 'lower' else ordered[::-1]
        assert [each.ranks[score].value for each in ordered] == [1, 2, 3]
        assert not pooled & set(ordered[0].ranks)
    means = [each.mean_rank.value for each in found.entrants]
    assert means == sorted(means) and sum(means) == pytest.approx(6)
    for each in found.entrants:
        assert 1 <= each.mean_rank.low <= each.mean_rank.high <= 3
    assert len(found.agreement.taus) == len(found.image_taus) == 3
    assert 0 <= found.agreement.w <= 1


def test_the_explained_class_is_one_for_all(model):
    logits = model(Images().images)
    found = compare(model, ['GradCAM', 'RandomMap'], ['Infidelity'], show_samples=10)
    labelled = compare(model, ['GradCAM'], ['Infidelity'], show_samples=10, target='label')
    assert len(found.pictures) == len(labelled.pictures) == 10
    for number, picture, maps, label in found.pictures:
        assert label == logits[number].argmax() and picture.shape == (16, 16, 3)
        assert {name: tuple(each.shape) for name, each in maps.items()} == dict.fromkeys(
            ('GradCAM', 'RandomMap'), (4, 4)
        )
    assert [each[3] for each in labelled.pictures] == [n % 3 for n, *_ in labelled.pictures]


def test_noise_is_no_better_than_noise(model):
    """Of the same size and seed it is the floor itself."""
    found = compare(model, ['RandomMap', 'GradCAM'])
    (noise,) = (each for each in found.entrants if each.name == 'RandomMap')
    assert all(floor[1:4] == (0, 0, 0) for floor in noise.floors.values())
    row = next(row for row in comparison_table(found) if row[0] == 'RandomMap')
    assert row[3] == '0 of 6'


def test_explainers_that_do_not_fit_are_left_out_with_a_reason(model):
    found = compare(model, None, ['SingleDeletion'], num_samples=2)
    names = {each.name for each in found.entrants}
    assert {'CAM', 'GradCAM', 'ScoreCAM', 'FullGrad'} < names and 'RandomMap' not in names
    assert set(found.left_out) == {'AttentionRollout', 'GradientRollout', 'LeGrad', 'PrototypeMap'}
    notes = comparison_notes(found)
    assert any(note.startswith('LeGrad was left out: LeGrad needs a trans') for note in notes)
    assert not any('\n' in note for note in notes)


def test_default_metrics_fit_the_images(model):
    class Unmasked(Images):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            del item['data_samples'].gt_seg_map
            return item

    masked, plain = (
        compare(model, ['GradCAM'], None, loader(data), num_samples=2)
        for data in (Images(), Unmasked())
    )
    assert set(masked.better) - set(plain.better) == {'pointing_game', 'energy', 'rank_accuracy'}
    assert {'single_deletion', 'deletion', 'infidelity'} < set(plain.better)
    assert 'deleted_accuracy' not in plain.better


def test_two_explainers_of_one_type(model):
    layers = [dict(type='GradCAM', layer='0', name='first'), dict(type='GradCAM', layer='1')]
    found = compare(model, layers, ['SingleDeletion'])
    assert {each.name for each in found.entrants} == {'first', 'GradCAM'}
    assert found.agreement is None and found.image_taus == {}
    assert comparison_notes(found)[0].startswith('With fewer than three explainers there is no agr')


def test_constant_maps_do_not_count(model):
    images = Images()
    images.images[:5] = 0
    found = compare(model, data=loader(images), num_samples=12)
    (cam,) = (each for each in found.entrants if each.name == 'GradCAM')
    assert cam.empty == 5 and cam.scores['infidelity'].n == 7
    assert any('GradCAM 5' in note for note in comparison_notes(found))


def test_a_teacher_is_compared_in_its_own_normalisation():
    torch.manual_seed(0)
    processor, other = (
        dict(num_classes=4, mean=[mean] * 3, std=[50.0] * 3) for mean in (100.0, 30.0)
    )
    teacher = build(dict(classifier(8), data_preprocessor=other)).eval()
    student = dict(classifier(4), data_preprocessor=processor)
    model = distiller(student=student, teacher=dict(model=teacher))
    pixels = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(pixels.byte(), torch.arange(6) % 4), 4)
    options = dict(explainers=['GradCAM'], metrics=['SingleDeletion'], num_samples=6)
    taught = compare_explainers(model, data, which='teacher', **options)
    alone = compare_explainers(teacher, data, **options)
    for (*_, maps, label), (*_, expected, other) in zip(taught.pictures, alone.pictures):
        torch.testing.assert_close(maps['GradCAM'], expected['GradCAM'], rtol=1e-4, atol=1e-5)
        assert label == other
    student = compare_explainers(model, data, **options)
    assert student.entrants[0].rows != taught.entrants[0].rows


def test_models_come_out_as_they_were_and_seeds_repeat(model):
    model.train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    one, other = (compare(model, show_samples=0) for _ in 'ab')
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert comparison_table(one) == comparison_table(other)
    assert one.sample == '10 of 12 (seed 0)' and compare(model, seed=1).sample.endswith('seed 1)')
    model.eval()


def test_images_without_a_cell_are_predicted_once_for_all():
    seen = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = convolution()

        def forward(self, images):
            seen.append(len(images))
            return self.net(images)

    counts = []
    for names in (['GradCAM'], ['GradCAM', 'HiResCAM', 'LayerCAM']):
        seen.clear()
        compare(Counting(), names, ['SingleDeletion'], num_samples=5)
        counts.append(sum(seen))
    # Beside the 16 for each image a map takes few forwards
    assert 16 * 5 < counts[0] and counts[1] - counts[0] < 16 * 5


def test_files(found, tmp_path):
    path = write_comparison(tmp_path / 'new', found)
    with (tmp_path / 'new' / 'explainers.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 6
    first, best = rows[0], found.entrants[0]
    score = first['score']
    assert first['explainer'] == best.name
    assert float(first['value']) == best.scores[score].value
    assert float(first['above_floor_low']) == best.floors[score].low
    assert float(first['rank_high']) == best.ranks[score].high
    assert rows[-1]['explainer'].startswith('RandomMap') and rows[-1]['rank'] == ''
    saved = json.loads((tmp_path / 'new' / 'explainers.json').read_text())
    assert saved['w'] == found.agreement.w and len(saved['agreement']) == 3
    assert saved['mean_ranks'][best.name] == list(best.mean_rank)
    page = path.read_text()
    assert 'Side by side' in page and page.count('data:image/webp') == 2
    assert f'<th scope="col">{score}</th>' in page and 'RandomMap 4x4</th>' in page
    assert f'scores {best.name} has the best mean rank, {best.mean_rank.value:.1f} of 3 (' in page
    table = comparison_table(found)
    assert [row[0] for row in table[1:4]] == [each.name for each in found.entrants]
    assert len({len(row) for row in table}) == 1 and table[-1][2] == '-'


def test_files_without_pictures_agreement_or_values(model, tmp_path):
    images = Images()
    images.images[:] = 0
    found = compare(model, ['GradCAM'], ['SingleDeletion'], loader(images), show_samples=0)
    assert found.entrants[0].empty == 10 and math.isnan(found.entrants[0].mean_rank.value)
    page = write_comparison(tmp_path, found).read_text()
    assert 'Side by side' not in page and '>GradCAM</th>' in page and 'best mean rank, ' not in page
    saved = json.loads((tmp_path / 'explainers.json').read_text())
    assert saved['mean_ranks'] == dict(GradCAM=[None] * 3) and saved['w'] is None
    assert comparison_table(found)[1][2:] == ['-', '0 of 2', '-', '-']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_samples=0), 'compare_explainers.num_samples is 0; it must be an integer of at'),
        (dict(show_samples=-1), 'compare_explainers.show_samples is -1; it must be'),
        (dict(seed=-1), 'compare_explainers.seed is -1; it must be'),
        (
            dict(target='teacher'),
            "compare_explainers.target is 'teacher'; it must be one of predic",
        ),
        (dict(which='base'), "compare_explainers.which is 'base'; it must be one of student, teac"),
        (
            dict(which='teacher'),
            "compare_explainers.which is 'teacher', and the model has none; us",
        ),
        (dict(explainers=[]), r'compare_explainers.explainers is \[\]; it must be a list of expl'),
        (dict(explainers='CAM'), "compare_explainers.explainers is 'CAM'; it must be a list of ex"),
        (dict(explainers=['Cam']), "compare_explainers.explainers: there is no explainer 'Cam'"),
        (
            dict(explainers=['CAM', 'CAM']),
            "compare_explainers.explainers has CAM twice; give one of them a key 'name'",
        ),
        (
            dict(explainers=['LeGrad']),
            r'compare_explainers: no explainer fits the model \(LeGrad: LeGrad needs a transfo',
        ),
        (dict(metrics=[]), r'compare_explainers.metrics is \[\]; it must be a list of metrics'),
        (
            dict(metrics='ROAD'),
            "compare_explainers.metrics is 'ROAD'; it must be a list of metrics",
        ),
        (dict(metrics=[3]), 'compare_explainers.metrics has 3; a metric is a dict with a type'),
        (
            dict(metrics=['MapAgreement']),
            'compare_explainers.metrics: MapAgreement compares models',
        ),
        (
            dict(metrics=['RelevanceScore']),
            'compare_explainers.metrics: RelevanceScore compares mo',
        ),
        (
            dict(metrics=['ROAD', 'ROAD']),
            "compare_explainers.metrics: two metrics yield the score 'road'; give one a key 'name'",
        ),
    ],
)
def test_what_cannot_be_compared(model, arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        compare(model, **arguments)


def test_several_layers_are_left_out(model):
    spec = [dict(type='GradCAM', layer=['0', '1']), 'EigenCAM']
    found = compare(model, spec, ['SingleDeletion'], num_samples=1)
    assert found.left_out == {'GradCAM': 'it explains several layers; name one'}
