"""Batches of a student, a base model and a teacher: how they are drawn and what they yield."""

from collections import Counter

import pytest
import torch
from tiny import build, classifier
from torch import nn

from mmkdx.evaluation.pairs import PairAnalysis, context_batches
from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import GradCAM, UniCAM
from mmkdx.functional.distance_correlation import pairwise_distances
from mmkdx.metrics import ExplainedBatch

pytestmark = pytest.mark.filterwarnings('ignore:UniCAM. .* images are few')

# Batches with equal shares of the classes


def labels_of(counts, seed=0):
    """Labels in some order, so many of each class."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [labels[i] for i in order]


@pytest.mark.parametrize(
    'counts, size, batches',
    [
        ((20, 20), 8, 5),
        ((10,) * 4, 8, 5),
        ((7,) * 10, 20, 3),  # of seven images of a class one has no partner
        ((9, 9, 9), 10, 2),
        ((5,) * 12, 8, 6),  # of more classes than fit into a batch
        ((2,) * 8, 6, 2),
    ],
)
def test_each_batch_has_equal_shares_of_the_classes(counts, size, batches):
    labels = labels_of(counts)
    drawn = context_batches(labels, size)
    assert [len(batch) for batch in drawn] == [size] * batches
    assert len({i for batch in drawn for i in batch}) == batches * size
    for batch in drawn:
        shares = Counter(labels[i] for i in batch)
        assert len(shares) > 1 and all(share % 2 == 0 for share in shares.values())
        if size % (2 * len(counts)) == 0:
            assert set(shares.values()) == {size // len(counts)}
        missing = [0] * (len(counts) - len(shares))
        assert max(shares.values()) - min([*shares.values(), *missing]) <= 4


def test_classes_of_unequal_size_end_with_the_second_largest():
    labels = labels_of((40, 10, 6))
    drawn = context_batches(labels, 6)
    shares = Counter(labels[i] for batch in drawn for i in batch)
    # As many of the largest class as of the next, and what fills no batch is left out
    assert sum(shares.values()) == 24 and shares[0] <= 10
    assert all(len({labels[i] for i in batch}) > 1 for batch in drawn)


def test_fewer_images_than_asked_for_are_one_batch():
    labels = labels_of((9, 5, 2))
    (only,) = context_batches(labels, 64)
    assert Counter(labels[i] for i in only) == {0: 4, 1: 4, 2: 2}
    assert len(set(only)) == 10


@pytest.mark.parametrize(
    'counts',
    [(), (30,), (3, 3), (40, 2), (1,) * 30, (40, 1, 1)],
    ids=str,
)
def test_too_few_of_a_second_class(counts):
    assert context_batches(labels_of(counts), 6) == []


@pytest.mark.parametrize('counts', [(4, 4), (2, 2, 2)], ids=str)
def test_the_fewest_images(counts):
    assert len(context_batches(labels_of(counts), 6)) == 1


def test_batches_are_drawn_by_the_seed():
    labels = labels_of((12,) * 5)
    state = torch.get_rng_state()
    first = context_batches(labels, 10, seed=3)
    assert context_batches(labels, 10, seed=3) == first
    other = context_batches(labels, 10, seed=4)
    # Not in the order of batches and classes alone, but in who stands beside whom
    pairs = [
        {frozenset(batch[i : i + 2]) for batch in drawn for i in range(0, 10, 2)}
        for drawn in (first, other)
    ]
    assert len(pairs[0] & pairs[1]) < 15
    assert torch.equal(torch.get_rng_state(), state)


# What a batch yields

LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def images(n=8, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def subject(width, seed, **options):
    torch.manual_seed(seed)
    model = build(classifier(width, **options)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return Subject(model, GradCAM())


def subjects(**others):
    return dict(student=subject(4, 1), base=subject(4, 2), **others)


def analysis(models, **unicam):
    return PairAnalysis(models, UniCAM(**unicam), images(1))


def batch_of(models, n=8, **unicam):
    batch = ExplainedBatch(images(n), range(10, 10 + n), {})
    return analysis(models, **unicam).batch(5, batch, LABELS[:n])


STAGES = {'stage1': 'backbone.stem', 'stage2': 'backbone.body'}


@pytest.mark.parametrize('max_batch', [64, 3])
def test_maps_are_those_of_the_explainer_at_each_layer(max_batch):
    models = subjects(teacher=subject(6, 3))
    batch = batch_of(models, max_batch=max_batch)
    assert list(batch.models) == ['student', 'base', 'teacher']
    for name, each in batch.models.items():
        maps = each.maps('GradCAM')
        assert list(maps) == list(STAGES)
        for stage, path in STAGES.items():
            expected = GradCAM(path)(models[name].model, images(), LABELS)
            torch.testing.assert_close(maps[stage], expected, rtol=1e-5, atol=1e-7)


def test_explainers_have_options_of_their_own():
    models = subjects()
    batch = batch_of(models)
    plain, other = (batch.models['student'].maps(spec) for spec in ('GradCAM', 'GradCAMPlusPlus'))
    assert not torch.allclose(plain['stage1'], other['stage1'])
    spec = dict(type='GradCAM', layer='never.asked.for')
    assert torch.equal(batch.models['student'].maps(spec)['stage2'], plain['stage2'])


@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('max_batch', [64, 3])
def test_distances_are_those_of_the_activations(max_batch, normalize):
    models = subjects(teacher=subject(6, 3))
    batch = batch_of(models, max_batch=max_batch)
    others = images(seed=7)
    for name, each in batch.models.items():
        found = each.distances(others, ['stage2', 'stage1'], normalize)
        assert list(found) == ['stage2', 'stage1']
        with torch.no_grad():
            first = models[name].model.backbone.stem(others)
            values = dict(stage1=first.flatten(1), stage2=models[name].model.backbone.body(first))
        for stage, value in values.items():
            value = value.flatten(1)
            value = value / value.norm(dim=1, keepdim=True) if normalize else value
            torch.testing.assert_close(
                found[stage], torch.cdist(value.double(), value.double()).to(found[stage]),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
            assert torch.equal(found[stage], pairwise_distances(value))


def test_a_batch_of_parts_is_a_whole():
    """Features of all images are compared, however many pass a model at once."""
    whole, parts = batch_of(subjects()), batch_of(subjects(), max_batch=3)
    for stage in STAGES:
        for side in ('distilled', 'residual'):
            pair = (getattr(each.unique[stage], side) for each in (whole, parts))
            torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-7)


def test_what_only_one_model_has_is_unicams():
    models = subjects()
    batch = batch_of(models)
    expected = UniCAM()(models['student'].model, models['base'].model, images(), LABELS)
    assert list(batch.unique) == list(expected) == list(STAGES)
    for stage, each in expected.items():
        assert torch.equal(batch.unique[stage].distilled, each.distilled)
        assert torch.equal(batch.unique[stage].residual, each.residual)
        assert batch.unique[stage].scores == each.scores
        assert each.distilled.any()


def test_a_batch_knows_what_it_is_of():
    settings = analysis(subjects())
    units = dict(mean=torch.tensor([1.0, 2.0, 3.0]), std=torch.tensor([2.0, 2.0, 2.0]))
    loaded = ExplainedBatch(images(), [4, 9, 1, 0, 7, 2, 3, 8], {}, **units)
    batch = settings.batch(3, loaded, LABELS)
    assert batch.number == 3 and list(batch.index) == [4, 9, 1, 0, 7, 2, 3, 8]
    assert torch.equal(batch.targets, LABELS) and torch.equal(batch.inputs, images())
    assert torch.equal(batch.label_features.argmax(1), LABELS)
    assert batch.black().flatten().tolist() == [-0.5, -1.0, -1.5]


def test_a_teacher_without_these_stages_is_left_out():
    small = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    batch = batch_of(subjects(teacher=Subject(small.eval(), GradCAM())))
    assert list(batch.models) == ['student', 'base']
    given = {'last': ('backbone.body', 'backbone.body')}
    batch = batch_of(subjects(teacher=subject(6, 3)), layers=given)
    assert list(batch.models) == ['student', 'base'] and list(batch.unique) == ['last']
    given = {'last': ('backbone.body', 'backbone.stem', '0')}
    batch = batch_of(subjects(teacher=Subject(small, GradCAM())), layers=given)
    shapes = {
        name: tuple(each.maps('GradCAM')['last'].shape) for name, each in batch.models.items()
    }
    assert shapes == dict(student=(8, 4, 4), base=(8, 8, 8), teacher=(8, 2, 2))


def test_a_base_of_another_normalisation_sees_its_own():
    """The base model takes images in halves of the student's units, shifted by one."""
    models = subjects(teacher=subject(6, 3))
    for name in ('base', 'teacher'):
        models[name].convert = lambda inputs: inputs / 2 + 1
    batch = batch_of(models)
    converted = images() / 2 + 1
    base = models['base'].model
    maps = batch.models['base'].maps('GradCAM')['stage2']
    expected = GradCAM('backbone.body')(base, converted, LABELS)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-7)
    distances = batch.models['base'].distances(images(), ['stage2'], False)['stage2']
    with torch.no_grad():
        features = base.backbone(converted)[0].flatten(1)
    assert torch.equal(distances, pairwise_distances(features))
    unicam = UniCAM()(models['student'].model, base, images(), LABELS, converted)
    for stage, each in unicam.items():
        assert torch.equal(batch.unique[stage].residual, each.residual)
        assert batch.unique[stage].scores == each.scores


@pytest.mark.parametrize(
    'mask, sentence',
    [
        ('GradCam', "^mask: there is no explainer 'GradCam'; there are .*GradCAM"),
        (dict(type='UniCAM'), '^mask: UniCAM explains a pair of models'),
        ('CAM', "^mask: CAM does not explain any layer; use one like GradCAM, 'UniCAM' for what"),
        ('IntegratedGradients', '^mask: IntegratedGradients does not explain any layer'),
        (dict(type='GradCAM', lay=1), '^mask: .*lay'),
    ],
)
def test_a_mask_that_is_no_explainer(mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        batch_of(subjects()).models['student'].maps(mask)


def test_models_without_a_layer_in_common():
    with pytest.raises(ValueError, match='UniCAM.layers: base: .*backbone.bodi'):
        analysis(subjects(), layers=[('backbone.body', 'backbone.bodi')])


def test_models_stay_in_their_modes_and_have_no_gradients():
    models = subjects()
    models['student'].model.train()
    state = {name: value.clone() for name, value in models['student'].model.state_dict().items()}
    batch = batch_of(models)
    batch.models['student'].maps('GradCAM')
    batch.models['student'].distances(images(), ['stage1'], False)
    assert all(module.training for module in models['student'].model.modules())
    for name, value in models['student'].model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(each.grad is None for each in models['student'].model.parameters())
