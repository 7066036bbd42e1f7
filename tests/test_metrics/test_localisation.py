"""PointingGame and MapSegmentation: values by hand, Quantus and scikit-learn, errors, sanity."""

import math
import time

import numpy as np
import pytest
import torch
from mmpretrain.datasets import PackInputs
from sklearn.metrics import average_precision_score

from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.functional.segmentation import dilate
from mmkdx.metrics.base import Explained, ExplainedBatch
from mmkdx.metrics.localisation import MapSegmentation, PointingGame, ratio_score
from mmkdx.metrics.scores import class_mean_score, pooled_score
from mmkdx.registry import METRICS

POINTING = ['pointing_game', 'energy', 'rank_accuracy']
SEGMENTATION = ['pixel_accuracy', 'mean_iou', 'mean_ap']


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(maps, masks, targets=None, start=0, size=None, fields=None, **models):
    n = len(maps)
    targets = torch.zeros(n).long() if targets is None else torch.tensor(targets)
    model = Explained(maps, targets, torch.zeros(n, 10), None, None)
    samples = [dict(gt_seg_map=mask) for mask in masks]
    for i, sample in enumerate(samples):
        sample.update({key: values[i] for key, values in (fields or {}).items()})
    size = size or tuple(masks[0].shape)
    return ExplainedBatch(
        torch.zeros(n, 3, *size), range(start, start + n), {'student': model, **models}, samples
    )


def measure(metric, maps, masks, **kwargs):
    batch = batch_of(torch.as_tensor(maps, dtype=torch.float32), masks, **kwargs)
    return metric.measure(batch, batch.models['student'])


def evaluate(metric, *batches):
    for batch in batches:
        metric.process(batch)
    return metric.evaluate(sum(len(batch.index) for batch in batches))


def blob_masks(n=6, side=32):
    """A rectangle in each mask, of another size and place."""
    masks = np.zeros((n, side, side), np.uint8)
    for i, mask in enumerate(masks):
        mask[2 + i : 12 + 2 * i, 4 + 2 * i : 18 + i] = 1
    return masks


# Maps as they are evaluated


def test_enlarged_maps():
    raw = torch.tensor([[[0.5, 1.5], [2.5, 2]]])
    rows = [
        [0, 0.125, 0.375, 0.5],
        [0.25, 0.328125, 0.484375, 0.5625],
        [0.75, 0.734375, 0.703125, 0.6875],
        [1, 0.9375, 0.8125, 0.75],
    ]
    assert resize_maps(normalize_maps(raw), (4, 4))[0].tolist() == rows
    # The threshold is the mean of the enlarged map
    mean = np.mean(rows)
    masks = [np.array(rows) > mean]
    values = measure(MapSegmentation(), raw, [mask.astype(np.uint8) for mask in masks])
    assert values['foreground_both'].item() == values['foreground_either'].item() == masks[0].sum()
    assert values['background_both'].item() == 16 - masks[0].sum()
    peak = torch.zeros(1, 7, 7)
    peak[0, 3, 3] = 1
    assert resize_maps(peak, (224, 224)).max().item() == 0.968994140625


# MapSegmentation

TOY_MAPS = [[[0, 1, 2], [3, 6, 4], [1, 10, 1]], [[5, 1, 1], [1, 1, 1], [1, 1, 1]]]
TOY_MASKS = [
    torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 0]]),
    torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]),
]


def test_segmentation_toy():
    values = measure(MapSegmentation(), TOY_MAPS, TOY_MASKS)
    assert {name: column.tolist() for name, column in values.items()} == dict(
        labelled=[9, 9],
        background_both=[5, 6],
        background_either=[7, 8],
        foreground_both=[2, 1],
        foreground_either=[4, 3],
        average_precision=pytest.approx([0.94753086420, 0.71604938272], rel=1e-6),
    )
    metric = METRICS.build(dict(type='MapSegmentation'))
    scores = evaluate(metric, batch_of(torch.tensor(TOY_MAPS).float(), TOY_MASKS))
    assert {name: score.value for name, score in scores.items()} == dict(
        pixel_accuracy=pytest.approx(0.77777778),
        mean_iou=pytest.approx((11 / 15 + 3 / 7) / 2),  # 0.58095238, not the mean of images
        mean_ap=pytest.approx(0.83179012),
    )
    assert all(score.n == 2 and score.better == 'higher' for score in scores.values())


def test_a_constant_map_is_background_and_is_counted():
    maps = torch.tensor(TOY_MAPS[:1] * 4).float()
    maps[1], maps[2], maps[3] = 3, 0, float('nan')
    values = measure(MapSegmentation(), maps, TOY_MASKS[:1] * 4)
    assert values['foreground_both'].tolist() == [2, 0, 0, 0]
    assert values['background_both'].tolist() == [5, 6, 6, 6]
    assert values['foreground_either'].tolist() == [4, 3, 3, 3]
    assert values['average_precision'][1:].tolist() == [0.5] * 3
    scores = evaluate(MapSegmentation(), batch_of(maps, TOY_MASKS[:1] * 4))
    assert [scores[name].n for name in SEGMENTATION] == [4] * 3
    assert scores['pixel_accuracy'].value == pytest.approx((7 + 6 * 3) / 36)


@pytest.mark.parametrize('ignored', [255, -1])
def test_ignored_pixels_of_a_segmentation(ignored):
    mask = np.array([[0, 0, ignored], [1, ignored, 0], [0, 1, 0]], dtype=np.int16)
    values = measure(MapSegmentation(), TOY_MAPS[:1], [mask])
    got = {name: column.item() for name, column in values.items()}
    scores = normalize_maps(torch.tensor(TOY_MAPS[:1]).float())[0].numpy()[mask != ignored]
    truth = mask[mask != ignored]
    ap = average_precision_score(np.r_[truth == 0, truth == 1], np.r_[1 - scores, scores])
    assert got == dict(
        labelled=7,
        background_both=4,
        background_either=6,
        foreground_both=1,
        foreground_either=3,
        average_precision=pytest.approx(ap, rel=1e-6),
    )


@pytest.mark.parametrize('size', [(7, 7), (14, 9), (64, 48), (90, 70)])
def test_segmentation_against_numpy_and_scikit_learn(size):
    maps = random(5, *size) - 0.4
    masks = (random(5, 64, 48, seed=1) > 0.6).int()
    metric = MapSegmentation()
    scores = evaluate(metric, batch_of(maps, masks))
    correct, both, either, precisions = 0, np.zeros(2), np.zeros(2), []
    for relevance, mask in zip(normalize_maps(resize_maps(maps, (64, 48))).numpy(), masks.numpy()):
        found = relevance > relevance.mean()
        correct += (found == (mask == 1)).sum()
        for c in (0, 1):
            both[c] += ((found == c) & (mask == c)).sum()
            either[c] += ((found == c) | (mask == c)).sum()
        truth = np.stack([mask == 0, mask == 1]).ravel()
        stacked = np.stack([1 - relevance, relevance]).ravel()
        precisions.append(average_precision_score(truth, stacked))
    assert scores['pixel_accuracy'].value == pytest.approx(correct / masks.numel())
    assert scores['mean_iou'].value == pytest.approx((both / either).mean())
    assert scores['mean_ap'].value == pytest.approx(np.mean(precisions), rel=1e-5)


def test_a_class_that_is_nowhere_has_no_iou():
    # The region is the whole image, and the map finds all of it but one corner
    maps = torch.ones(1, 4, 4)
    maps[0, 0, 0] = 0
    scores = evaluate(MapSegmentation(), batch_of(maps, [torch.ones(4, 4)]))
    assert scores['mean_iou'].value == pytest.approx((0 + 15 / 16) / 2)
    assert ratio_score(np.array([[0.0, 3.0]]), np.array([[0.0, 4.0]])).value == 0.375


# PointingGame


def disc_world():
    """A peak in each of two maps of 224 × 224, 14 and 15 pixels from the region's edge."""
    masks = torch.zeros(2, 224, 224).int()
    masks[:, 50:100, 50:100] = 1
    maps = torch.zeros(2, 224, 224)
    maps[0, 70, 99 + 14], maps[1, 70, 99 + 15] = 1, 1
    return maps, masks


def test_the_tolerance_is_an_open_disc_of_15_pixels_at_224():
    maps, masks = disc_world()
    assert measure(PointingGame(), maps, masks)['pointing_game'].tolist() == [1, 0]
    assert measure(PointingGame(15.1), maps, masks)['pointing_game'].tolist() == [1, 1]
    assert measure(PointingGame(tolerance=0), maps, masks)['pointing_game'].tolist() == [0, 0]
    # Half the size, half the tolerance
    half = torch.zeros(2, 112, 150)
    half[0, 35, 56], half[1, 35, 57] = 1, 1
    masks = masks[:, ::2, ::2]
    masks = torch.cat([masks, torch.zeros(2, 112, 38)], 2)
    assert masks[0, 35, 49] == 1 and masks[0, 35, 50] == 0
    # 7 and 8 pixels from the edge
    for tolerance, hits in ((14, [0, 0]), (15, [1, 0]), (16, [1, 0]), (17, [1, 1])):
        values = measure(PointingGame(tolerance), half, masks)
        assert values['pointing_game'].tolist() == hits


def test_chances():
    masks = torch.from_numpy(blob_masks())
    values = measure(PointingGame(tolerance=21), random(6, 4, 4), masks)
    share = masks.float().mean((1, 2))
    near = dilate(masks > 0, 3).float().mean((1, 2))
    assert values['energy_chance'].tolist() == pytest.approx(share.tolist())
    assert values['pointing_game_chance'].tolist() == pytest.approx(near.tolist())
    assert (near > 1.3 * share).all()


def test_maxima_that_tie_count_in_equal_parts():
    mask = torch.zeros(8, 8).int()
    mask[:4] = 1
    maps = torch.zeros(3, 8, 8)
    maps[0, 0, 0] = maps[0, 7, 7] = maps[0, 6, 6] = maps[0, 5, 5] = 1
    maps[1, 1, 1:3] = 1
    maps[2, 7, 1:3] = 1
    values = measure(PointingGame(tolerance=0), maps, [mask] * 3)
    assert values['pointing_game'].tolist() == [0.25, 1, 0]
    # A plateau at the border of an enlarged map has no first pixel
    corner = torch.zeros(1, 2, 2)
    corner[0, 0, 0] = 1
    mask = torch.zeros(8, 8).int()
    mask[:2, :1] = 1
    values = measure(PointingGame(tolerance=0), corner, [mask])
    assert values['pointing_game'].tolist() == [0.5]


def test_energy_is_of_positive_evidence_before_enlarging():
    maps = torch.tensor([[[3.0, -5], [1, 0]], [[-1, -2], [-3, -4]]])
    mask = torch.zeros(4, 4).int()
    mask[:2, :2] = 1
    values = measure(PointingGame(), maps, [mask] * 2)
    enlarged = resize_maps(maps.relu(), (4, 4))[0]
    expected = enlarged[:2, :2].sum() / enlarged.sum()
    assert values['energy'].tolist() == pytest.approx([expected.item(), math.nan], nan_ok=True)
    assert measure(PointingGame(), maps, [torch.ones(4, 4)] * 2)['energy'][0] == 1


def test_ignored_pixels_are_no_part_of_the_image():
    maps = torch.arange(16.0).view(1, 4, 4)  # 15 is the maximum, 14 comes next
    mask = torch.zeros(4, 4, dtype=torch.int)
    mask[3, 2], mask[3, 3] = 1, 255
    values = measure(PointingGame(tolerance=0), maps, [mask])
    values = {name: value.item() for name, value in values.items()}
    assert values['pointing_game'] == values['rank_accuracy'] == 1
    assert values['energy'] == pytest.approx(14 / 105)
    assert values['energy_chance'] == values['pointing_game_chance'] == pytest.approx(1 / 15)


def test_quantus():
    quantus = pytest.importorskip('quantus')
    maps, masks = random(8, 20, 20), (random(8, 20, 20, seed=1) > 0.8).int()
    values = measure(PointingGame(tolerance=0), maps, masks)
    arguments = dict(normalise=False, abs=False, disable_warnings=True)
    for peer, name in (
        (quantus.RelevanceMassAccuracy, 'energy'),
        (quantus.RelevanceRankAccuracy, 'rank_accuracy'),
        (quantus.PointingGame, 'pointing_game'),
    ):
        expected = peer(**arguments)(
            model=None,
            x_batch=np.zeros((8, 1, 20, 20)),
            y_batch=np.zeros(8),
            a_batch=maps[:, None].numpy().copy(),  # Quantus writes into its arguments
            s_batch=masks[:, None].numpy().copy(),
        )
        np.testing.assert_allclose(values[name].numpy(), expected, rtol=1e-5)


def test_classes_count_alike():
    maps = torch.zeros(4, 8, 8)
    maps[:, 1, 1] = 1
    masks = torch.zeros(4, 8, 8).int()
    masks[0, :4], masks[1:, 4:] = 1, 1
    targets = [3, 7, 7, 7]  # the sample of class 3 is hit, those of class 7 are not
    by_class = evaluate(PointingGame(0), batch_of(maps, masks, targets))
    by_sample = evaluate(PointingGame(0, average='sample'), batch_of(maps, masks, targets))
    assert by_class['pointing_game'].value == 0.5 and by_sample['pointing_game'].value == 0.25
    assert by_class['pointing_game_chance'].value == 0.5
    for scores in (by_class, by_sample):
        names = {*POINTING, 'pointing_game_chance', 'energy_chance'}
        assert set(scores) == names and all(score.n == 4 for score in scores.values())
        assert scores['energy'].value == 0.25
        assert {n: s.better for n, s in scores.items() if s.better} == dict.fromkeys(
            POINTING, 'higher'
        )


def test_other_models_have_their_own_scores():
    maps, masks = torch.zeros(2, 8, 8), torch.zeros(2, 8, 8).int()
    maps[:, 1, 1] = 1
    masks[:, 4:] = 1
    teacher = Explained(-maps + 1, torch.tensor([1, 2]), torch.zeros(2, 3), None, None)
    teacher.maps[:, 6, 6] = 2
    for metric, names in ((PointingGame(0), POINTING), (MapSegmentation(), SEGMENTATION)):
        scores = evaluate(metric, batch_of(maps, masks, teacher=teacher))
        for name in names:
            assert scores[f'teacher/{name}'].value > scores[name].value
            assert scores[f'teacher/{name}'].better == 'higher'


# Regions


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
@pytest.mark.parametrize(
    'labels, fields, members',
    [
        (None, None, [[1, 2, 3], [1, 2, 3]]),
        ([2], None, [[2], [2]]),
        ((3, 1), None, [[1, 3], [1, 3]]),
        ([0], None, [[0], [0]]),
        ('parts', dict(parts=[[1], (2, 3)]), [[1], [2, 3]]),
        ('parts', dict(parts=[np.array([2]), torch.tensor([3, 9])]), [[2], [3]]),
    ],
)
def test_regions(metric, labels, fields, members):
    mask = np.array([[0, 1, 2, 3], [3, 255, 0, 1]], dtype=np.uint8)
    metric = metric(labels=labels)
    region, kept = metric.regions(batch_of(torch.zeros(2, 2, 4), [mask] * 2, fields=fields))
    assert (kept.numpy() == (mask != 255)).all()
    for result, ids in zip(region.numpy(), members):
        assert (result == np.isin(mask, ids)).all()


@pytest.mark.parametrize(
    'kind',
    [
        lambda mask: mask,
        lambda mask: mask.astype(np.int64),
        lambda mask: mask.astype(np.uint16),
        lambda mask: torch.from_numpy(mask),
        lambda mask: torch.from_numpy(mask).long(),
        lambda mask: mask[:, ::-1].copy()[:, ::-1],  # what flips yield
    ],
)
def test_masks_of_any_kind(kind):
    masks = blob_masks(2)
    maps = random(2, 8, 8)
    expected = measure(PointingGame(), maps, masks)
    values = measure(PointingGame(), maps, [kind(mask) for mask in masks])
    for name in expected:
        assert (values[name] == expected[name]).all()


def test_masks_that_mmpretrain_packs():
    packer = PackInputs(algorithm_keys=('gt_seg_map',), meta_keys=('deciding_labels',))
    masks = blob_masks(2)
    packed = [
        packer(dict(img=np.zeros((32, 32, 3), np.uint8), gt_seg_map=mask, deciding_labels=[1]))
        for mask in masks
    ]
    batch = batch_of(random(2, 8, 8), masks)
    batch.data_samples = [data['data_samples'] for data in packed]
    region, _ = PointingGame(labels='deciding_labels').regions(batch)
    assert (region.numpy() == masks).all()


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
def test_a_sample_without_its_region_is_not_counted(metric):
    maps, masks = random(3, 8, 8), blob_masks(3)
    fields = dict(mark_labels=[[1], [], [4]])
    batch = batch_of(maps, masks, fields=fields)
    scores = evaluate(metric(labels='mark_labels'), batch)
    alone = evaluate(metric(labels='mark_labels'), batch_of(maps[:1], masks[:1], fields=fields))
    for name, score in scores.items():
        assert score.n == 1 and score.value == alone[name].value


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
def test_no_region_at_all(metric):
    batch = batch_of(random(2, 8, 8), np.zeros((2, 32, 32), np.uint8))
    scores = evaluate(metric(), batch)
    assert scores and all(score.n == 0 and math.isnan(score.value) for score in scores.values())


# Errors


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
@pytest.mark.parametrize('samples', [[], [dict(gt_label=1)] * 2])
def test_data_without_masks(metric, samples):
    batch = batch_of(random(2, 8, 8), blob_masks(2), start=40)
    batch.data_samples = samples
    message = f"{metric.__name__} needs masks and sample 40 has none; .* 'gt_seg_map'"
    with pytest.raises(ValueError, match=message):
        metric().process(batch)


def test_mask_of_another_size():
    batch = batch_of(random(2, 8, 8), blob_masks(2), size=(32, 28))
    message = r'gt_seg_map of sample 0 has the shape \(32, 32\) and the input \(32, 28\)'
    with pytest.raises(ValueError, match=message):
        PointingGame().process(batch)


def test_unknown_field_of_labels():
    batch = batch_of(random(2, 8, 8), blob_masks(2))
    with pytest.raises(ValueError, match="labels is 'parts' and sample 0 has no such field"):
        MapSegmentation(labels='parts').process(batch)


@pytest.mark.parametrize(
    'metric, arguments, message',
    [
        (
            PointingGame,
            dict(tolerance=-1),
            'tolerance is -1; it must be a finite number of at least 0',
        ),
        (PointingGame, dict(average='mean'), "average is 'mean'; it must be one of class, sample"),
        (PointingGame, dict(labels=[]), r'labels is (\[\]|\(\)); it must be a list of label ids'),
        (
            MapSegmentation,
            dict(labels=()),
            r'labels is (\[\]|\(\)); it must be a list of label ids',
        ),
        (
            MapSegmentation,
            dict(labels=[3, 255]),
            'labels has 255, which marks pixels that are ignored',
        ),
        (PointingGame, dict(labels=[-1]), 'labels has -1'),
    ],
)
def test_arguments_out_of_range(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric(**arguments)


# Sanity


def test_perfect_random_and_inverted_maps():
    masks = blob_masks(6)
    perfect = torch.from_numpy(masks).float()
    noise = random(6, 32, 32)
    results = {}
    for kind, maps in (('perfect', perfect), ('random', noise), ('inverted', 1 - perfect)):
        scores = evaluate(PointingGame(0), batch_of(maps, masks))
        scores.update(evaluate(MapSegmentation(), batch_of(maps, masks)))
        results[kind] = {name: scores[name].value for name in POINTING + SEGMENTATION}
    assert results['perfect'] == dict.fromkeys(POINTING + SEGMENTATION, 1)
    # All scores of the right class are 0 and all others 1: the precision of any recall is a half
    worst = dict.fromkeys(POINTING + SEGMENTATION, 0) | dict(mean_ap=0.5)
    assert results['inverted'] == pytest.approx(worst)
    for name in POINTING + SEGMENTATION:
        if name not in ('mean_ap', 'pointing_game'):
            assert 1 > results['random'][name] > 0, name
    assert results['random']['mean_ap'] == pytest.approx(0.5, abs=0.05)


def test_random_maps_are_at_chance():
    n = 400
    masks = np.repeat(blob_masks(1), n, 0)
    for side, tolerance in ((32, 0), (32, 21)):
        metric = PointingGame(tolerance, average='sample')
        scores = evaluate(metric, batch_of(random(n, side, side), masks))
        for name, chance in (
            ('pointing_game', 'pointing_game_chance'),
            ('energy', 'energy_chance'),
            ('rank_accuracy', 'energy_chance'),
        ):
            score, share = scores[name], scores[chance].value
            deviation = (score.high - score.low) / 2
            assert 0 < deviation < 0.06 and abs(score.value - share) < 2 * deviation, name
    scores = evaluate(MapSegmentation(), batch_of(random(n, 32, 32), masks))
    assert scores['pixel_accuracy'].value == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
def test_constant_maps(metric):
    maps = random(4, 8, 8)
    maps[1], maps[2] = 0, 2
    scores = evaluate(metric(), batch_of(maps, blob_masks(4)))
    counted = 2 if metric is PointingGame else 4
    assert scores and all(score.n == counted for score in scores.values())


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
def test_scores_do_not_depend_on_batches(metric):
    maps, masks = random(9, 8, 8) - 0.3, blob_masks(9)
    targets = [0, 1, 1, 2, 2, 2, 0, 1, 5]
    whole = evaluate(metric(), batch_of(maps, masks, targets))

    def part(a, b):
        return batch_of(maps[a:b], masks[a:b], targets[a:b], start=a)

    # The last samples come first, and twice, as samplers repeat them
    parts = evaluate(metric(), part(5, 9), part(0, 1), part(1, 5), part(7, 9))
    assert list(parts) == list(whole)
    for name, score in whole.items():
        assert parts[name][:4] == pytest.approx(score[:4], rel=1e-6), name


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
def test_flipping_image_and_map_changes_nothing(metric):
    maps, masks = random(4, 8, 8) - 0.3, blob_masks(4)
    expected = measure(metric(), maps, masks)
    for axis in (1, 2):
        values = measure(metric(), maps.flip(axis), np.flip(masks, axis))
        for name in expected:
            # Rounding decides which pixels of a plateau tie, which average precision can feel
            rtol = 1e-3 if name == 'average_precision' else 1e-5
            torch.testing.assert_close(values[name], expected[name], rtol=rtol, atol=0)


@pytest.mark.parametrize('metric', [PointingGame, MapSegmentation])
def test_half_precision_and_autocast(metric):
    maps, masks = (random(4, 8, 8) - 0.3).bfloat16(), blob_masks(4)
    expected = measure(metric(), maps.float(), masks)
    batch = batch_of(maps, masks)
    with torch.autocast('cpu', torch.bfloat16):
        values = metric().measure(batch, batch.models['student'])
    for name in expected:
        torch.testing.assert_close(values[name], expected[name])


# Intervals


def test_pooled_intervals_are_seeded_and_cover():
    """Of 100 data sets with a known accuracy, the interval should hold it in about 95."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        wholes = rng.integers(50, 150, (60, 1)).astype(float)
        parts = wholes * rng.beta(6, 2, (60, 1))  # the ratio of sums is 6 / 8
        score = ratio_score(parts, wholes, 'higher')
        assert score.low < score.value < score.high and score.n == 60
        covered += score.low <= 0.75 <= score.high
    assert 88 <= covered <= 99
    assert ratio_score(parts, wholes, 'higher') == score
    assert score.value == pytest.approx(parts.sum() / wholes.sum())
    # Student's interval of the mean is about as wide
    half = 2.001 * (parts / wholes).std(ddof=1) / np.sqrt(60)
    assert (score.high - score.low) / 2 == pytest.approx(half, rel=0.25)


def test_class_means_are_bootstrapped_over_samples():
    rng = np.random.default_rng(0)
    classes, hits = rng.integers(0, 5, 300), rng.random(300)
    pairs = [*zip(classes, hits), (math.nan, 1.0), (2, math.nan)]
    score = class_mean_score(pairs, 'higher')
    means = [hits[classes == c].mean() for c in range(5)]
    assert score.value == pytest.approx(np.mean(means)) and score.n == 300
    spread = [hits[classes == c].var(ddof=1) / (classes == c).sum() for c in range(5)]
    half = 1.96 * math.sqrt(sum(spread)) / 5
    assert (score.high - score.low) / 2 == pytest.approx(half, rel=0.15)


def test_few_samples():
    single = pooled_score(lambda index: index.mean(-1) + 3, 1, 'lower')
    assert single.value == 3 and single.n == 1 and single.better == 'lower'
    assert math.isnan(single.low) and math.isnan(single.high)
    none = pooled_score(lambda index: index.mean(-1), 0)
    assert none.n == 0 and math.isnan(none.value) and math.isnan(none.low)


def test_an_interval_of_many_samples_takes_seconds_at_most():
    rng = np.random.default_rng(0)
    n = 20_000
    wholes = rng.integers(50, 150, (n, 2)).astype(float)
    start = time.process_time()
    ratio_score(wholes * 0.7, wholes)
    class_mean_score(list(zip(rng.integers(0, 1000, n), rng.random(n))))
    assert time.process_time() - start < 20
