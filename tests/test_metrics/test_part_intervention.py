"""PartIntervention: exact models, pages' numbers, redrawn birds, in-painting, and what is refused."""

import math

import numpy as np
import pytest
import torch
from measuring import batch_of, explained, network, rand, scores, values
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from prototype_layouts import write_cub
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from mmkdx.apis import evaluate_explanations
from mmkdx.datasets import Parts
from mmkdx.metrics import ExplainedBatch, PartIntervention, part_intervention
from mmkdx.metrics.changed_images import ChangedImages
from mmkdx.metrics.part_intervention import class_scores, part_effects, part_masses
from mmkdx.registry import DATASETS, METRICS

#: Twelve, twelve, twelve, eight and four pixels.
LABELS = np.kron([[1, 1, 0, 2], [1, 0, 0, 2], [0, 3, 3, 2], [4, 4, 3, 5]], np.ones((2, 2), int))
AREAS = [12, 12, 12, 8, 4]
WEIGHTS = (2, -1, 0.5, 0, 3)


class Drawn:
    """A data set of some images (C, H, W), with other images for each part; it has no pipeline."""

    def __init__(self, images, others, names='abcde'):
        self.images, self.others = images, others
        self.metainfo = dict(regions=('background', *names))

    def __len__(self):
        return len(self.images)

    def interventions(self, index, kind):
        return {part: list(each) for part, each in self.others[index].items()}

    def intervene(self, index, part=None, variant=None):
        image = self.images[index] if part is None else self.others[index][part][variant]
        return dict(img=image, gt_label=0)


class Additive(nn.Module):
    """Class 0 has the sum of the weights of the parts that are in a label map; class 1 has 0."""

    def __init__(self, weights=WEIGHTS):
        super().__init__()
        self.weights = weights

    def forward(self, images):
        present = [(images == n + 1).flatten(1).any(1) for n in range(len(self.weights))]
        score = torch.stack(present, 1).double() @ torch.tensor(self.weights).double()
        return torch.stack([score, 0 * score], 1)


def drawn_batch(data, labels, models, maps=None, **fields):
    """A batch of all images of a data set, of class 0, with a map for each model."""
    images = torch.stack([each.float() for each in data.images])
    maps = rand(len(images), *images.shape[2:]) if maps is None else maps
    models = {
        name: explained(model, images, maps, [0] * len(images)) for name, model in models.items()
    }
    batch = batch_of(images, **models)
    batch.data_samples = [
        dict(gt_seg_map=each, gt_label=torch.tensor([0]), **fields) for each in labels
    ]
    batch.dataset = data
    batch.prepare = lambda items: torch.stack([item['img'].float() for item in items])
    return batch


def additive_batch(maps=None, deciding=(1, 5), **models):
    """The label map itself is the image; without a part its pixels are background."""
    labels = torch.from_numpy(LABELS)
    others = {
        n: {None: torch.where(labels == i, 0, labels)[None]} for i, n in enumerate('abcde', 1)
    }
    data = Drawn([labels[None]], [others])
    models = models or dict(student=Additive())
    maps = None if maps is None else torch.as_tensor(maps)[None]
    return drawn_batch(data, [LABELS], models, maps, deciding_labels=list(deciding))


def painted(masses, background=0.25):
    """A map with these sums over the parts."""
    density = [background, *(mass / area for mass, area in zip(masses, AREAS))]
    return torch.tensor(density, dtype=torch.float64)[LABELS]


# Exact models (T1 to T3)


@pytest.mark.parametrize(
    'masses, rho, top',
    [
        (WEIGHTS, 1, 1),
        (np.exp(WEIGHTS), 1, 1),
        (np.multiply(WEIGHTS, -1), -1, 0),
        (np.abs(WEIGHTS), 0.7, 1),
        (np.maximum(WEIGHTS, 0), 0.9746794345, 1),
        (AREAS, -0.4472135955, 0),
    ],
)
def test_maps_of_an_exact_model(masses, rho, top):
    row = values(PartIntervention(), additive_batch(painted(masses)))[0]
    assert row['part_correlation'] == pytest.approx(rho, abs=1e-9) and row['top_part'] == top


def test_masses_are_sums_over_regions():
    maps = painted(WEIGHTS)[None]
    masses, background = part_masses(maps, torch.from_numpy(LABELS)[None], torch.arange(1, 6))
    assert masses[0].tolist() == pytest.approx(WEIGHTS, abs=1e-6)
    # 16 pixels of background
    assert background.item() == pytest.approx(4 / (4 + 6.5), abs=1e-6)
    assert masses.sum() + 4 == pytest.approx(maps.sum().item(), abs=1e-5)


def test_a_models_own_effects():
    row = values(PartIntervention(), additive_batch())[0]
    assert row['decisive_share'] == pytest.approx(0.7692307692, abs=1e-9)
    assert row['mean_effect'] == pytest.approx(0.9) and row['changes'] == 5
    ignoring = additive_batch(student=Additive((0, 0, 0, 0, 0)))
    row = values(PartIntervention(), ignoring)[0]
    assert math.isnan(row['decisive_share']) and math.isnan(row['part_correlation'])
    assert row['mean_effect'] == 0


def test_two_models():
    student = Additive((1.5, -0.5, 1, 0.25, 2))
    batch = additive_batch(student=student, teacher=Additive())
    row = values(PartIntervention(), batch)[0]
    assert row['causal_agreement'] == pytest.approx(0.9728330764, abs=1e-9)
    assert row['causal_spearman'] == pytest.approx(1) and row['causal_sign'] == 0.8
    assert row['decisive_share'] == pytest.approx(0.6666666667, abs=1e-9)
    assert row['teacher/decisive_share'] == pytest.approx(0.7692307692, abs=1e-9)
    # The other way round
    batch = additive_batch(student=Additive(), teacher=student)
    again = values(PartIntervention(), batch)[0]
    assert again['causal_agreement'] == pytest.approx(row['causal_agreement'], abs=1e-12)


@pytest.mark.parametrize('weights', [WEIGHTS, (5, -1, 2, 1, 7)])
def test_rescaled_effects_agree(weights):
    batch = additive_batch(student=Additive(weights), teacher=Additive())
    row = values(PartIntervention(), batch)[0]
    assert row['causal_agreement'] == pytest.approx(1) == row['causal_spearman']


def test_gain_over_the_base_model():
    student, base = Additive((1.5, -0.5, 1, 0.25, 2)), Additive(np.multiply(WEIGHTS, -1).tolist())
    found = scores(
        PartIntervention(), additive_batch(student=student, teacher=Additive(), base=base)
    )
    assert found['base/causal_agreement'].value == pytest.approx(-1)
    assert found['causal_agreement_gain'].value == pytest.approx(1.9728330764)
    assert found['causal_agreement_gain'].better == 'higher' == found['causal_sign'].better
    assert found['mean_effect'].better is None
    gains = {name for name in found if name.endswith('_gain')}
    assert gains == {'causal_agreement_gain', 'causal_spearman_gain', 'causal_sign_gain'}


def test_deciding_parts_that_the_map_finds():
    masses = (1, 3, 0.5, 0, 2)  # the highest are parts 2 and 5
    for deciding, found in (((2, 5), 1), ((5, 4), 0.5), ((1, 3), 0)):
        row = values(PartIntervention(), additive_batch(painted(masses), deciding))[0]
        assert row['deciding_found'] == found


def test_effects_on_another_class_than_the_label_have_other_deciding_parts():
    batch = additive_batch()
    batch.data_samples[0]['gt_label'] = torch.tensor([1])
    row = values(PartIntervention(), batch)[0]
    assert math.isnan(row['decisive_share']) and math.isnan(row['deciding_found'])
    assert row['mean_effect'] == pytest.approx(0.9)


# Pixels (T4 and T5)


class Pixels(nn.Module):
    """Class 0 has the weighted sum of the pixels, class 1 has 0."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, images):
        score = (images.double() * self.weights).flatten(1).sum(1)
        return torch.stack([score, 0 * score], 1)


def strip(*numbers):
    """Each number four times, as a square, from left to right."""
    return torch.tensor(numbers, dtype=torch.float64).repeat_interleave(2).expand(2, -1).clone()


def test_effects_count_what_is_behind_a_part():
    """The map of input times gradient need not have the order of the effects."""
    image, weights = strip(3, 1, 4, 2), strip(1, -1, 2, 0.5) / 4
    without = dict(a=strip(5, 1, 4, 2), b=strip(3, 0, 4, 2), c=strip(3, 1, 3, 3))
    others = [{part: {None: each[None]} for part, each in without.items()}]
    data = Drawn([image[None]], others, 'abc')
    labels = strip(1, 2, 3, 3).numpy().astype(int)
    exact = sum(weights * (image - each) for each in without.values())
    for maps, rho in ((weights * image, 0.5), (exact, 1)):
        student = dict(student=Pixels(weights))
        batch = drawn_batch(data, [labels], student, maps[None])
        row = values(PartIntervention(), batch)[0]
        assert row['part_correlation'] == pytest.approx(rho)
        assert row['mean_effect'] == pytest.approx(-0.5)  # of -2, -1 and 1.5


def test_effects_of_parts_that_cover_each_other_do_not_add_up():
    """Labels 0, 1, 2, 2 weigh 1, 2, 3; behind the first 2 there is a 1."""
    images = dict(none=(0, 1, 2, 2), one=(0, 0, 2, 2), two=(0, 1, 1, 0), both=(0, 0, 0, 0))
    score = {name: sum(label + 1 for label in each) for name, each in images.items()}
    model = explained(Pixels(0.25), strip(1, 2, 3, 3)[None, None], None, [0])
    after = torch.tensor([[score['one'], 0], [score['two'], 0]], dtype=torch.float64)
    changed = ChangedImages(torch.zeros(2).long(), torch.tensor([1, 2]), None, None)
    effects = part_effects(model, changed, after, 'logit')
    assert effects.tolist() == [[1, 3]] and score['none'] - score['both'] == 5


def test_scores_of_a_class():
    before, after = torch.tensor([[3.0, 1, 0]]), torch.tensor([[2.0, 1.5, 0]])
    target = torch.tensor([0])

    def effect(kind, shift=0.0):
        return (
            class_scores(before, target, kind) - class_scores(after + shift, target, kind)
        ).item()

    assert effect('logit') == 1 and effect('logit', 10) == -9
    for shift in (0, 10):
        assert effect('centred', shift) == pytest.approx(0.8333333333, abs=2e-6)
        assert effect('log_odds', shift) == pytest.approx(1.3881515905, abs=2e-6)
    one = torch.tensor([[2.0]])
    assert all(class_scores(one, target, kind) == 2 for kind in part_intervention.SCORES)


# Birds


def encode(sample):
    """The image is the label map, and beside it the class of the bird."""
    labels = torch.from_numpy(sample['gt_seg_map'])
    image = torch.stack([labels, torch.full_like(labels, sample['gt_label'])])
    return dict(inputs=image, data_samples=dict(sample, gt_label=[sample['gt_label']]))


def bird_batch(model, count=9, maps=None, **arguments):
    data = Parts(split='val', num_samples=count, pipeline=[encode], **arguments)
    items = [data[i] for i in range(count)]

    def prepare(items):
        return torch.stack([item['inputs'] for item in items]).float()

    images, labels = prepare(items), torch.arange(count) % 9
    maps = rand(count, 8, 8) if maps is None else maps
    batch = batch_of(images, student=explained(model, images, maps, labels))
    batch.data_samples = [item['data_samples'] for item in items]
    batch.dataset, batch.prepare = data, prepare
    return batch


class Sees(nn.Module):
    """Its class is that of the bird if some region is there, else the last one."""

    def __init__(self, region=0):
        super().__init__()
        self.region = region

    def forward(self, images):
        there = (images[:, 0] == self.region).flatten(1).any(1).float()
        classes = nn.functional.one_hot(images[:, 1, 0, 0].long(), 9).float()
        return there[:, None] * classes + 0.5 * torch.eye(9)[8]


def test_a_model_that_sees_one_part():
    # The crest decides every class, the wing those of a bobbled crest, the legs none
    for region, shares in ((4, [1] * 9), (2, [0] * 9), (7, [0] * 3 + [1] * 3 + [0] * 3)):
        rows = values(PartIntervention(), bird_batch(Sees(region)))
        assert [rows[i]['decisive_share'] for i in range(9)] == shares
        assert [rows[i]['mean_effect'] for i in range(9)] == pytest.approx([0.2] * 9)
        assert 'mark_effect' not in rows[0] and 'invariance' not in rows[0]


@pytest.mark.parametrize('weights, low', [((2, 1, 4, 3, 5), None), ((2, -1, 4, -3, 5), 1)])
def test_an_exact_linear_model_on_the_masks_of_birds(weights, low):
    """Score and map are weights of the parts that are there: all correlations are 1."""
    ids = [1, 2, 4, 5, 7]
    weights = torch.tensor(weights).float()

    def linear(images):
        there = torch.stack([(images[:, 0] == n).flatten(1).any(1) for n in ids], 1).float()
        return (there @ weights)[:, None] * torch.eye(9)[images[:, 1, 0, 0].long()]

    labels = bird_batch(linear).inputs[:, 0]
    masks = [labels == n for n in ids]
    maps = sum(w * mask / mask.sum((1, 2), keepdim=True) for w, mask in zip(weights, masks))
    rows = values(PartIntervention(), bird_batch(linear, maps=maps))
    assert all(row['part_correlation'] == pytest.approx(1) for row in rows.values())
    assert all(row['top_part'] == 1 for row in rows.values())
    if low:  # without their signs masses are others
        rows = values(PartIntervention(), bird_batch(linear, maps=maps.abs()))
        assert all(row['part_correlation'] < 0.9 for row in rows.values())


def test_the_perfect_rule_and_a_constant_under_swaps():
    rows = values(PartIntervention('swap'), bird_batch(Sees()))
    for i, row in rows.items():
        assert row['counterfactual_accuracy'] == row['invariance'] == 1
        assert row['changes'] == sum(
            map(len, bird_batch(Sees()).dataset.interventions(i, 'swap').values())
        )

    def constant(images):
        return torch.eye(9)[0].expand(len(images), -1)

    rows = values(PartIntervention('swap'), bird_batch(constant))
    assert rows[0]['counterfactual_accuracy'] == 0 and rows[0]['invariance'] == 1
    for i in range(1, 9):  # it has these images wrong
        assert math.isnan(rows[i]['counterfactual_accuracy']) and math.isnan(rows[i]['invariance'])


def test_a_part_whose_swaps_leave_the_image_has_no_effect():
    batch = bird_batch(Sees(4), count=18)
    lost = {
        i: [part for part, offered in batch.dataset.interventions(i, 'swap').items() if not offered]
        for i in range(18)
    }
    rows = values(PartIntervention('swap'), batch)
    for i, row in rows.items():
        decides = [
            batch.dataset.metainfo['regions'][n] for n in batch.data_samples[i]['deciding_labels']
        ]
        assert math.isnan(row['decisive_share']) >= bool(set(lost[i]) & set(decides))
    assert any(lost.values())


def test_the_mark():
    rows = values(PartIntervention(), bird_batch(Sees(8), mark='class'))
    assert all(rows[i]['mark_effect'] == 1 and rows[i]['decisive_share'] == 0 for i in range(9))
    # Without it the model predicts the last class
    assert [rows[i]['mark_flips'] for i in range(9)] == [1] * 8 + [0]
    rows = values(PartIntervention(), bird_batch(Sees(4), mark='class'))
    assert all(rows[i]['mark_effect'] == rows[i]['mark_flips'] == 0 for i in range(9))
    rows = values(PartIntervention('swap'), bird_batch(Sees(), mark='class'))
    assert all(rows[i]['invariance'] == 1 and rows[i]['changes'] >= 13 for i in range(9))


def test_values_do_not_depend_on_the_batch():
    net = network(9)
    net[0] = nn.Conv2d(2, 6, 3, padding=1, bias=False)
    net[0].weight.data = 0.5 * rand(6, 2, 3, 3, seed=1)
    whole = bird_batch(net, 6)
    rows = values(PartIntervention(max_batch=7), whole)
    metric = PartIntervention()
    for i in (4, 2):
        student = explained(net, whole.inputs[[i]], rand(6, 8, 8)[[i]], [i])
        part = ExplainedBatch(
            whole.inputs[[i]], [i], dict(student=student), [whole.data_samples[i]]
        )
        part.dataset, part.prepare = whole.dataset, whole.prepare
        metric.process(part)
    metric.evaluate(10)
    for i in (2, 4):
        assert metric.rows[i] == pytest.approx(rows[i], rel=1e-4, nan_ok=True)


def test_images_and_fixed_models_are_asked_once(monkeypatch):
    calls = dict(student=0, teacher=0)
    batch = bird_batch(Sees(4))
    targets = batch.models['student'].targets

    def counting(name, fixed):
        def model(images):
            calls[name] += len(images)
            return Sees(4)(images)

        return explained(model, batch.inputs, rand(9, 8, 8), targets, fixed=fixed)

    batch.models = dict(student=counting('student', False), teacher=counting('teacher', True))
    metric = PartIntervention()
    first = values(metric, batch)
    assert calls == dict(student=9 + 45, teacher=9 + 45)
    monkeypatch.setattr(Parts, 'intervene', None)
    batch.shared.clear()
    assert values(metric, batch) == first and calls == dict(student=9 + 90, teacher=9 + 45)
    monkeypatch.undo()
    metric.forget()
    batch.shared.clear()
    assert values(metric, batch) == first and calls == dict(student=9 + 135, teacher=9 + 90)


def test_nothing_is_left_behind():
    batch = bird_batch(Sees(4), 3, mark='class')
    before = batch.inputs.clone(), batch.models['student'].maps.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    for kind in part_intervention.KINDS:
        metric = PartIntervention(kind)
        assert METRICS.get('PartIntervention') is type(metric)
        first = values(metric, batch)
        batch.shared.clear()
        assert str(values(metric, batch)) == str(first)
    assert torch.equal(before[0], batch.inputs)
    assert torch.equal(before[1], batch.models['student'].maps)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


def test_logits_in_half_precision_are_scored_in_full():
    batch = bird_batch(lambda images: Sees(4)(images).half(), 3)
    assert batch.models['student'].logits.dtype == torch.float16
    rows = values(PartIntervention(score='log_odds'), batch)
    expected = values(PartIntervention(score='log_odds'), bird_batch(Sees(4), 3))
    assert rows[1] == pytest.approx(expected[1], abs=1e-6, nan_ok=True)


# A whole evaluation


BIRDS = dict(type='Parts', split='test', num_samples=8)
PACK = dict(
    type='PackInputs',
    algorithm_keys=('gt_seg_map',),
    meta_keys=('sample_idx', 'deciding_labels', 'mark_labels'),
)


def loader(batch_size=4, wrap=lambda data: data, pipeline=(), **arguments):
    config = arguments if 'type' in arguments else dict(BIRDS, **arguments)
    config['pipeline'] = [*pipeline, PACK]
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = wrap(DATASETS.build(config))
    return DataLoader(data, batch_size, collate_fn=pseudo_collate)


def evaluate(data, metrics, seed=0, explainer='InputGradient', **options):
    def prepared(batch, training):
        return dict(inputs=torch.stack(batch['inputs']) / 128 - 1)

    student, teacher = network(9, seed), network(9)
    student.data_preprocessor = prepared
    return evaluate_explanations(
        student, data, teacher, explainer=explainer, metrics=metrics, show_samples=0, **options
    )


def test_a_model_agrees_with_itself_in_a_whole_evaluation():
    kinds = [dict(type='PartIntervention', kind=k, name=k) for k in ('remove', 'swap', 'inpaint')]
    found = evaluate(loader(mark='class'), kinds).scores
    for kind in ('remove', 'swap', 'inpaint'):
        assert found[f'{kind}_causal_agreement'].value == pytest.approx(1)
        assert found[f'{kind}_causal_sign'].value == 1
        assert found[f'{kind}_causal_spearman'].n == 8
        name = f'{kind}_part_correlation'
        assert found[name].value == found[f'teacher/{name}'].value
    # RandomMap and an ensemble of parts of data sets
    wrapped = loader(3, lambda data: Subset(ConcatDataset([data, data]), [9, 1, 3]))
    other = evaluate(wrapped, ['PartIntervention'], seed=1, explainer='RandomMap', target='label')
    assert -1 < other.scores['causal_agreement'].value < 1


def test_the_image_and_its_label_map_are_resized_alike():
    small = loader(pipeline=[dict(type='Resize', scale=20, interpolation='area', backend='cv2')])
    found = evaluate(small, ['PartIntervention']).scores
    assert found['causal_agreement'].value == pytest.approx(1)


# In-painting


def inpaint_batch(labels, image, **fields):
    weights = rand(*image.shape[1:]).double()
    student = explained(Pixels(weights), image, rand(1, 8, 8), [0])
    batch = batch_of(image, student=student)
    batch.data_samples = [dict(gt_seg_map=labels, **fields)]
    return batch, weights


def test_a_region_is_filled_from_around_it():
    labels = np.zeros((8, 8), int)
    for part, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (5, 5)], 1):
        labels[row : row + 2, column : column + 2] = part
    labels[3, 6:] = 255
    # A constant background, so the filling is constant as well
    image = torch.where(torch.from_numpy(labels % 255 > 0), rand(1, 1, 8, 8), 2.0)
    batch, weights = inpaint_batch(
        labels, image, deciding_labels=[1, 4], gt_label=torch.tensor([0])
    )
    lost = weights * (image - 2)
    batch.models['student'].maps = lost[0]
    row = values(PartIntervention('inpaint'), batch)[0]
    assert row['changes'] == 4 and row['mean_effect'] == pytest.approx(
        lost.sum().item() / 4, rel=1e-4
    )
    assert row['part_correlation'] == pytest.approx(1) and row['top_part'] == 1
    each = [
        lost[0, 0][torch.from_numpy(labels == part)].sum().abs().item() for part in (1, 2, 3, 4)
    ]
    assert row['decisive_share'] == pytest.approx((each[0] + each[3]) / sum(each), rel=1e-4)


def test_one_region_has_an_effect_and_no_correlation(monkeypatch):
    said = []
    monkeypatch.setattr(part_intervention, 'print_log', lambda text, logger: said.append(text))
    labels = (LABELS == 3).astype(int)
    batch, _ = inpaint_batch(labels, rand(1, 1, 8, 8))
    found = scores(PartIntervention('inpaint'), batch)
    assert found['mean_effect'].n == 1 and found['part_correlation'].n == found['top_part'].n == 0
    assert said == [part_intervention.CAVEAT] and 'no natural image' in said[0]
    scores(PartIntervention(), additive_batch())
    assert len(said) == 1  # nothing is filled there


def test_an_image_without_regions_is_not_counted():
    for labels in (np.zeros((8, 8), int), np.full((8, 8), 255), np.full((8, 8), 3)):
        batch, _ = inpaint_batch(labels, rand(1, 1, 8, 8), deciding_labels=[1], gt_label=[0])
        row = values(PartIntervention('inpaint'), batch)[0]
        assert row.pop('changes') == 0 and not math.isnan(row.pop('background_mass'))
        assert all(math.isnan(value) for value in row.values())


def test_key_points_of_birds(tmp_path):
    """Discs around the parts that CUB marks are filled."""
    write_cub(tmp_path)
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='CropToBox'),
        dict(type='Resize', scale=(48, 48)),
        dict(type='KeypointRegions', radius=0.12),
    ]
    data = loader(type='CUB', data_root=str(tmp_path), split='test', parts=True, pipeline=steps)
    found = evaluate(data, [dict(type='PartIntervention', kind='inpaint')])
    assert found.scores['causal_agreement'].value == pytest.approx(1)
    assert found.scores['causal_agreement'].n == found.scores['part_correlation'].n == 3
    for row, item in zip(found.rows.values(), data.dataset):
        parts, sizes = np.unique(item['data_samples'].gt_seg_map, return_counts=True)
        assert row['changes'] == (sizes[parts > 0] >= 4).sum() >= 3


def test_maps_that_say_nothing_have_no_scores():
    row = values(PartIntervention(), additive_batch(torch.zeros(8, 8)))[0]
    nan = {name for name, value in row.items() if math.isnan(value)}
    assert nan == {'part_correlation', 'top_part', 'deciding_found', 'background_mass'}


# Errors


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kind='keep'), "kind is 'keep'; it must be one of remove, swap, inpaint"),
        (dict(score='softmax'), "score is 'softmax'; it must be one of logit, centred, log_odds"),
        (dict(max_batch=0), 'max_batch is 0; it must be an integer of at least 1'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f'^PartIntervention.{message}'):
        PartIntervention(**arguments)


@pytest.mark.parametrize(
    'wrong, changes',
    [
        (dict(pipeline=[dict(type='RandomFlip', prob=0.5)]), {}),
        (dict(seed=1), dict(seed=0)),
        (dict(image_size=64), dict(image_size=32)),
    ],
)
def test_an_image_that_is_drawn_again_differs(wrong, changes):
    data = loader(8, **wrong)
    message = r'^PartIntervention: sample \d, drawn again without a change, '
    message += 'has the shape' if 'image_size' in changes else 'differs by up to'
    if not changes:
        with pytest.raises(ValueError, match=f'{message}.* without random transforms'):
            evaluate(data, ['PartIntervention'])
        return
    other = loader(8, **changes).dataset
    batch = bird_batch(Sees(), 8, **wrong)
    batch.dataset = Parts(split='val', num_samples=8, pipeline=[encode], **changes)
    assert other is not batch.dataset
    with pytest.raises(ValueError, match=message):
        values(PartIntervention(), batch)


def test_data_sets_that_do_not_fit():
    batch = additive_batch()
    batch.dataset = [1]
    with pytest.raises(ValueError, match="list has no method 'intervene'; use kind='inpaint'"):
        values(PartIntervention(), batch)
    batch.dataset = Drawn(batch.inputs, [], 'ab')
    with pytest.raises(ValueError, match='Drawn has the regions background, a, b; it needs three'):
        values(PartIntervention(), batch)
    for name in ('dataset', 'prepare'):
        batch = additive_batch()
        setattr(batch, name, None)
        with pytest.raises(ValueError, match='does not name its data set'):
            values(PartIntervention(), batch)
    for kind in ('remove', 'inpaint'):
        batch = additive_batch()
        del batch.data_samples[0]['gt_seg_map']
        with pytest.raises(ValueError, match='^PartIntervention needs masks and sample 0 has none'):
            values(PartIntervention(kind), batch)


def test_models_that_do_not_fit():
    batch = additive_batch(student=Additive(), teacher=Additive())
    batch.models['teacher'].targets = torch.tensor([1])
    with pytest.raises(ValueError, match="for different ones; set target to 'teacher', 'student'"):
        values(PartIntervention(), batch)

    def one_logit(images):
        return Sees(4)(images)[:, :1] - 1.2

    batch = bird_batch(one_logit)
    batch.models['student'].targets = torch.zeros(9).long()
    with pytest.raises(ValueError, match="the model has one logit; use kind='remove'"):
        values(PartIntervention('swap'), batch)
    assert values(PartIntervention(), batch)[0]['mean_effect'] == pytest.approx(0.2)
    batch = bird_batch(Sees())
    batch.data_samples[3]['gt_label'] = []
    with pytest.raises(ValueError, match='needs one label for each image, and sample 3 has 0'):
        values(PartIntervention('swap'), batch)
