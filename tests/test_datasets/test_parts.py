"""The drawn birds: that they are what is said about them."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from scipy import stats

from mmkdx.datasets import Parts, bird_drawing
from mmkdx.registry import DATASETS

REGIONS = ['background', 'tail', 'legs', 'body', 'crest', 'beak', 'head', 'wing', 'mark']
MARK = 8
# What the first three images of the default are
PINNED_VARIANTS = [
    ('fanned', 'barred', 'banded', 'spiked', 'straight'),
    ('forked', 'barred', 'hooked', 'spiked', 'webbed'),
    ('long', 'barred', 'banded', 'spiked', 'bent'),
]
PINNED_MEANS = [92.9, 77.7, 134.9]
PINNED_SIZES = [1274, 1006, 895]
# Well below what any of some hundred true null hypotheses will show
P = 1e-5


def infos(**arguments):
    data = Parts(**arguments)
    return [data.get_data_info(i) for i in range(len(data))]


@pytest.fixture(scope='module')
def plain():
    return infos(num_samples=1350)


@pytest.fixture(scope='module')
def marked():
    return infos(num_samples=1350, mark='class')


def digest(samples):
    arrays = b''.join(s['img'].tobytes() + s['gt_seg_map'].tobytes() for s in samples)
    return hashlib.sha256(arrays).hexdigest()


# Samples


def test_sample(plain):
    info = plain[7]
    assert info['img'].shape == (64, 64, 3) and info['img'].dtype == np.uint8
    assert info['gt_seg_map'].shape == (64, 64) and info['gt_seg_map'].dtype == np.uint8
    assert info['gt_label'] == 7
    assert info['object_labels'] == [1, 2, 3, 4, 5, 6, 7]
    assert info['mark_labels'] == [] and info['mark_label'] is None and 'group' not in info
    meta = Parts(num_samples=1).metainfo
    assert list(meta['regions']) == REGIONS
    assert meta['classes'][7] == 'plumed crest, banded beak' and len(set(meta['classes'])) == 9
    assert meta['deciding_parts'][7] == ('crest', 'beak')


def test_every_region_can_be_seen(plain, marked):
    for info in plain + marked:
        sizes = np.bincount(info['gt_seg_map'].ravel(), minlength=9)
        assert (sizes[:8] >= 20).all() and (sizes[MARK] > 0) == (info['mark_labels'] == [MARK])
        bird = np.pad(np.isin(info['gt_seg_map'], info['object_labels'])[1:-1, 1:-1], 1)
        assert bird.sum() == sizes[1:8].sum()  # the whole bird is in the image


def test_another_size_is_the_same_scene(plain):
    for small, large in zip(plain[:20], infos(num_samples=20, image_size=128)):
        assert large['img'].shape == (128, 128, 3)
        assert large['variants'] == small['variants']
        shrunk = cv2.resize(large['gt_seg_map'], (64, 64), interpolation=cv2.INTER_NEAREST)
        both = [image > 0 for image in (shrunk, small['gt_seg_map'])]
        assert (both[0] & both[1]).sum() > 0.85 * (both[0] | both[1]).sum()
        shrunk = cv2.resize(large['img'], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), small['img'].ravel())[0, 1] > 0.8


# Determinism


def test_a_sample_depends_on_seed_split_and_index_alone(plain):
    np.random.seed(1)
    cv2.setRNGSeed(1)
    assert digest(infos(num_samples=50)) == digest(plain[:50])
    others = [dict(split='val'), dict(split='test'), dict(seed=1)]
    images = [infos(num_samples=50, **other) for other in others]
    digests = {sample['img'].tobytes() for sample in plain}
    digests |= {sample['img'].tobytes() for samples in images for sample in samples}
    assert len(digests) == 1350 + 150
    some = Parts(num_samples=30, indices=[29, 3])
    assert digest([some.get_data_info(0)]) == digest([plain[29]])


@pytest.mark.slow
def test_another_process_draws_the_same(plain):
    code = (
        'import sys; sys.path.insert(0, "tests/test_datasets"); import test_parts as t;'
        'print(t.digest(t.infos(num_samples=50)[::-1]))'
    )
    output = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[-1] == digest(plain[49::-1])


def test_images_are_those_of_this_version(plain):
    """A change of these numbers is another data set; it has to be in the change log."""
    names = [tuple(plain[i]['variants'].values()) for i in range(3)]
    assert names == PINNED_VARIANTS
    means = [plain[i]['img'].mean() for i in range(3)]
    assert means == pytest.approx(PINNED_MEANS, abs=1)  # room for another version of OpenCV
    sizes = [(plain[i]['gt_seg_map'] > 0).sum() for i in range(3)]
    assert sizes == pytest.approx(PINNED_SIZES, abs=15)


# Masks


def draw(index, keep, mark=None):
    """Image and label map of a sample of which only some regions are drawn."""
    rng = np.random.default_rng((0, 0, index, 0))
    layers, things, bird = bird_drawing.scene(rng, index % 9)
    shapes = [shape for shape in things + bird.shapes(bird.variants) if keep(shape[1][3])]
    return bird_drawing.develop(bird_drawing.paint(layers, shapes, 64), rng)


@pytest.mark.parametrize('part', range(1, MARK))
def test_a_part_is_where_its_mask_is(plain, part):
    seen = 0
    for index in range(60):
        image, mask = plain[index]['img'], plain[index]['gt_seg_map']
        whole, again = draw(index, lambda region: True)
        assert (whole == image).all() and (again == mask).all()
        without, _ = draw(index, lambda region: region != part)
        changed = (without != image).any(-1)
        # on the rim of a later part both may cover a pixel in part, which is the later one's
        assert not changed[mask < part].any()
        for later in range(part + 1, MARK):
            inside = cv2.erode((mask == later).astype(np.uint8), np.ones((3, 3)), borderValue=1)
            assert not changed[inside > 0].any()
        seen += changed[mask == part].mean()
    # behind the head is the body, which has the same colour
    assert seen / 60 > (0.8 if REGIONS[part] in ('body', 'head') else 0.97)


def test_the_bird_is_where_its_masks_are(plain):
    for index in range(60):
        without, mask = draw(index, lambda region: region == 0)
        changed = (without != plain[index]['img']).any(-1)
        bird = plain[index]['gt_seg_map'] > 0
        assert not mask.any() and not changed[~bird].any() and changed[bird].mean() > 0.98


def test_the_mark_is_where_its_mask_is_and_nothing_else_changes(plain, marked):
    for without, sample in zip(plain, marked):
        mark = sample['gt_seg_map'] == MARK
        assert not (without['img'] != sample['img']).any(-1)[~mark].any()
        assert (without['gt_seg_map'] == sample['gt_seg_map'])[~mark].all()
        assert (without['variants'], without['gt_label']) == (
            sample['variants'],
            sample['gt_label'],
        )
        # a square of 10 pixels, which does not touch the bird
        rows, columns = np.flatnonzero(mark.any(1)), np.flatnonzero(mark.any(0))
        assert mark.sum() == 100 and np.ptp(rows) == np.ptp(columns) == 9
        around = cv2.dilate(mark.astype(np.uint8), np.ones((3, 3))) > 0
        assert not without['gt_seg_map'][around].any()
    # it lies everywhere, rather than at one place
    places = np.mean([sample['gt_seg_map'] == MARK for sample in marked], 0)
    assert (places[:8].max(), places[-8:].max()) > (0, 0) and places.max() < 0.1


def test_each_class_has_a_mark_of_its_own():
    plates = set()
    for label in range(9):
        for seed in range(2):  # the place does not matter
            canvas = np.zeros((128, 128, 4), np.uint8)
            place = bird_drawing.mark_place(canvas, np.random.default_rng(seed))
            bird_drawing.paint_mark(canvas, label, place)
            plates.add(canvas[canvas[..., 3] == MARK].tobytes())
    assert len(plates) == 9


# What decides


def test_the_class_is_the_crest_and_the_part_it_points_to(plain):
    variants = dict(
        tail=['fanned', 'forked', 'long'],
        wing=['plain', 'barred', 'spotted'],
        beak=['hooked', 'banded', 'spooned'],
    )
    points_to = dict(spiked='tail', bobbled='wing', plumed='beak')
    for index, info in enumerate(plain):
        has = info['variants']
        part = points_to[has['crest']]
        label = 3 * list(variants).index(part) + variants[part].index(has[part])
        assert info['gt_label'] == label == index % 9
        assert info['deciding_labels'] == [REGIONS.index('crest'), REGIONS.index(part)]
        assert bird_drawing.CLASSES[label] == f'{has["crest"]} crest, {has[part]} {part}'


@pytest.mark.parametrize('part', ['tail', 'wing', 'beak', 'legs'])
def test_other_parts_say_nothing(plain, part):
    rows = [i for i in plain if REGIONS.index(part) not in i['deciding_labels']]
    labels = sorted({i['gt_label'] for i in rows})
    names = list(bird_drawing.VARIANTS[part])
    table = np.zeros((len(labels), 3))
    for info in rows:
        table[labels.index(info['gt_label']), names.index(info['variants'][part])] += 1
    assert stats.chi2_contingency(table).pvalue > P
    assert stats.chisquare(table.sum(0)).pvalue > P
    # nor do two of them together
    pairs = np.zeros((3, 3))
    for info in rows:
        legs = list(bird_drawing.VARIANTS['legs']).index(info['variants']['legs'])
        pairs[names.index(info['variants'][part]), legs] += 1
    assert part == 'legs' or stats.chi2_contingency(pairs).pvalue > P


def attributes(info):
    """Numbers that may not depend on the class."""
    mask = info['gt_seg_map']
    body = mask == REGIONS.index('body')
    rows, columns = np.nonzero(body)
    background = info['img'][mask == 0]
    return [
        *(rows.mean(), columns.mean(), body.sum()),
        *info['img'][body].mean(0),
        *info['img'][mask == REGIONS.index('crest')].mean(0),
        *info['img'][mask == REGIONS.index('legs')].mean(0),
        *background.mean(0),
        *background.std(0),
    ]


def test_colours_place_and_background_say_nothing(plain):
    values = np.array([attributes(info) for info in plain])
    # Deciding parts hide more or less of what is beside them, so classes are compared by the second
    # part within a crest, and the crests by the background alone
    for first in (0, 3, 6):
        for column in values[:, [0, 1, *range(3, 18)]].T:
            assert (
                stats.f_oneway(*(column[label::9] for label in range(first, first + 3))).pvalue > P
            )


@pytest.fixture(scope='module')
def backgrounds():
    return [draw(index, lambda region: region == 0)[0] for index in range(1350)]


def test_backgrounds_are_alike_in_all_classes(backgrounds):
    values = [[*image.mean((0, 1)), *image.std((0, 1)), image.mean()] for image in backgrounds]
    for column in np.array(values).T:
        assert stats.f_oneway(*(column[label::9] for label in range(9))).pvalue > P


def test_a_linear_probe_on_the_background_is_at_chance(backgrounds):
    linear_model = pytest.importorskip('sklearn.linear_model')
    images = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA) for image in backgrounds]
    features, labels = np.reshape(images, (1350, -1)) / 255 - 0.4, np.arange(1350) % 9
    probe = linear_model.LogisticRegression(C=0.1, max_iter=300).fit(features[:900], labels[:900])
    hits = (probe.predict(features[900:]) == labels[900:]).sum()
    assert P < stats.binomtest(int(hits), 450, 1 / 9).pvalue


# The bias


@pytest.mark.parametrize('bias', [0, 0.3, 0.5, 0.7, 0.95, 1])
def test_share_of_marks_of_the_class_is_exact(bias):
    samples = infos(num_samples=450, image_size=32, mark='class', bias=bias)
    for label in range(9):
        own = [sample['mark_label'] == label for sample in samples[label::9]]
        for n in (1, 10, 20, 37, 50):
            assert sum(own[:n]) == np.floor(round(n * bias, 9) + 0.5)
    others = [(s['mark_label'] - s['gt_label']) % 9 for s in samples]
    table = np.bincount(others, minlength=9)[1:]
    assert bias == 1 or stats.chisquare(table).pvalue > P
    assert all(sample['mark_labels'] == [MARK] for sample in samples)
    assert all(s['group'] == (s['mark_label'] == s['gt_label']) for s in samples)


def test_random_marks_say_nothing():
    table = np.zeros((9, 9))
    for sample in infos(num_samples=1350, image_size=32, mark='random'):
        table[sample['gt_label'], sample['mark_label']] += 1
    assert stats.chi2_contingency(table).pvalue > P
    assert stats.chisquare(table.sum(0)).pvalue > P


# Pipelines


def test_shipped_pipelines_carry_masks_and_regions():
    cfg = Config.fromfile('configs/_base_/datasets/parts.py')
    loaders = [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]
    with DefaultScope.overwrite_default_scope('mmkdx'):
        for loader, split in zip(loaders, ('train', 'val', 'test')):
            loader.dataset.update(num_samples=10, mark='class')
            data = DATASETS.build(loader.dataset)
            assert data.split == split and data.test_mode == (split != 'train')
            info, sample = data.get_data_info(4), data[4]
            packed = sample['data_samples']
            assert packed.gt_label.tolist() == [4] and packed.sample_idx == 4
            assert packed.object_labels == [1, 2, 3, 4, 5, 6, 7]
            assert packed.deciding_labels == [4, 7] and packed.mark_labels == [MARK]
            turned = slice(None, None, -1 if packed.get('flip', False) else 1)
            assert (packed.gt_seg_map == info['gt_seg_map'][:, turned]).all()
            assert (sample['inputs'].permute(1, 2, 0).numpy() == info['img'][:, turned]).all()


@pytest.mark.parametrize(
    'transform', [dict(type='RandomFlip', prob=1.0), dict(type='Resize', scale=(96, 80))]
)
def test_masks_follow_the_image(transform):
    pack = dict(type='PackInputs', algorithm_keys=('gt_seg_map',))
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = DATASETS.build(dict(type='Parts', num_samples=1, pipeline=[transform, pack]))
        packed, mask = data[0]['data_samples'].gt_seg_map, data.get_data_info(0)['gt_seg_map']
    if transform['type'] == 'RandomFlip':
        assert (packed == mask[:, ::-1]).all()
    else:
        assert packed.shape == (80, 96) and set(np.unique(packed)) == set(np.unique(mask))


# Errors


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(split='all'), "split is 'all'; it must be one of train, val, test"),
        (dict(mark='yes'), "mark is 'yes'; it must be one of none, class, random"),
        (dict(num_samples=0), 'num_samples is 0; it must be an integer of at least 1'),
        (dict(num_samples=9.0), 'num_samples is 9.0; it must be an integer'),
        (dict(image_size=31), 'image_size is 31; it must be an integer of at least 32'),
        (dict(seed=-1), 'seed is -1; it must be an integer of at least 0'),
        (
            dict(mark='class', bias=1.1),
            'bias is 1.1; it must be a finite number of at least 0 and of at most 1',
        ),
        (dict(mark='class', bias=-0.1), 'bias is -0.1; it must be a finite number'),
        (dict(missing=1.5), 'missing is 1.5; it must be a finite number of at least 0 and of at'),
        (dict(mark='random', bias=0.5), "bias is 0.5, which is used only with mark='class'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parts(**arguments)
