"""Transforms: what is painted is found where its coordinates went."""

import numpy as np
import pytest
from mmcv.transforms import Compose, Resize
from mmengine.registry import DefaultScope

from mmkdx.datasets.transforms import (
    CropToBox,
    DeleteCell,
    DisturbLabel,
    KeypointRegions,
    RandomPixelRemoval,
)
from mmkdx.registry import TRANSFORMS

HEIGHT, WIDTH = 60, 90
#: Points of the form x, y in whole pixels.
POINTS = [(30, 20), (52, 41), (70, 12), (10, 10), (45, 58), (69, 41), (70, 20), (29, 31)]


def sample(box=(29.6, 9.4, 70.2, 42.0), dtype=np.uint8):
    """Black, with a white block of 3 x 3 pixels of a grey level of its own round each point."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype)
    for number, (x, y) in enumerate(POINTS, 1):
        image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 25 * number
    return dict(
        img=image,
        ori_shape=(HEIGHT, WIDTH),
        img_shape=(HEIGHT, WIDTH),
        gt_bboxes=np.array([box], np.float32),
        gt_seg_map=image[..., 0].copy(),
        # the middle of a pixel
        gt_keypoints=np.array([POINTS], np.float32) + 0.5,
        gt_keypoints_visible=np.ones((1, len(POINTS)), np.float32),
    )


def test_crop():
    before = sample()
    image = before['img'].copy()
    before['gt_keypoints_visible'][0, 1] = 0  # stays invisible inside
    result = CropToBox()(before)
    # rounded: columns 30 to 69, rows 9 to 41
    assert (result['img'] == image[9:42, 30:70]).all() and result['img'].flags.c_contiguous
    assert (result['gt_seg_map'] == image[9:42, 30:70, 0]).all()
    assert result['img_shape'] == (33, 40) and result['ori_shape'] == (HEIGHT, WIDTH)
    moved = np.array(POINTS, np.float32) + 0.5 - (30, 9)
    assert (result['gt_keypoints'] == moved[None]).all()
    assert result['gt_keypoints'].dtype == result['gt_keypoints_visible'].dtype == np.float32
    assert result['gt_keypoints_visible'].tolist() == [[1, 0, 0, 0, 0, 1, 0, 0]]
    np.testing.assert_allclose(result['gt_bboxes'], [[0, 0.4, 40, 33]], atol=1e-5)
    assert result['gt_bboxes'].dtype == np.float32


def test_crop_of_the_image_alone():
    before = {key: sample()[key] for key in ('img', 'gt_bboxes')}
    assert set(CropToBox()(before)) == {'img', 'gt_bboxes', 'img_shape'}
    grey = dict(img=sample()['gt_seg_map'], gt_bboxes=np.array([[1, 2, 4, 8.0]]), gt_keypoints=None)
    assert CropToBox()(grey)['img'].shape == (6, 3)


def test_further_boxes_move_along():
    before = sample()
    before['gt_bboxes'] = np.array([[30, 10, 70, 40], [20, 20, 50, 90]], np.float32)
    assert CropToBox()(before)['gt_bboxes'].tolist() == [[0, 0, 40, 30], [0, 10, 20, 30]]


@pytest.mark.parametrize(
    'box, rows, columns',
    [
        ((-3, -2, 20, 10), (0, 10), (0, 20)),
        ((80, 50, 91, 61), (50, 60), (80, 90)),
        ((-5, -5, 200, 200), (0, 60), (0, 90)),
        ((12, 7, 12, 7), (7, 8), (12, 13)),
        ((12.2, 7.1, 12.4, 7.3), (7, 8), (12, 13)),
        ((95, 70, 99, 80), (59, 60), (89, 90)),
        ((-9, -9, -2, -2), (0, 1), (0, 1)),
        ((12, 20, 8, 10), (20, 21), (12, 13)),
    ],
)
def test_box_is_clipped_and_leaves_a_pixel(box, rows, columns):
    image = np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    result = CropToBox()(dict(img=image, gt_bboxes=np.array([box], np.float32)))
    assert (result['img'] == image[slice(*rows), slice(*columns)]).all()
    assert result['img_shape'] == (rows[1] - rows[0], columns[1] - columns[0])


def test_points_on_the_border():
    results = dict(
        img=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        gt_bboxes=np.array([[30, 10, 70, 40]], np.float32),
        gt_keypoints=np.array([[[30, 10], [70, 20], [50, 40], [69.9, 39.9]]], np.float32),
        gt_keypoints_visible=np.ones((1, 4), np.float32),
    )
    assert CropToBox()(results)['gt_keypoints_visible'].tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize('size', [(224, 224), (112, 300)])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_painted_points_are_found_after_cropping_and_resizing(size, backend):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        transform = Compose(
            [
                TRANSFORMS.build(dict(type='CropToBox')),
                TRANSFORMS.build(dict(type='Resize', scale=size, backend=backend)),
            ]
        )
    assert isinstance(transform.transforms[1], Resize)
    before = sample()
    given = before['gt_keypoints']
    result = transform(before)
    assert (given == np.array([POINTS], np.float32) + 0.5).all()
    assert result['img'].shape[:2] == result['gt_seg_map'].shape == size[::-1]
    visible = result['gt_keypoints_visible'][0] == 1
    # the sixth point is one pixel from the border
    assert np.flatnonzero(visible).tolist() == [0, 1, 5]
    scale = np.array(size) / (40, 33)
    for number in (0, 1, 5):
        value = 25 * (number + 1)
        # what is left of the block of 3 x 3 after the crop, in pixels of the result
        rows, columns = np.nonzero(result['gt_seg_map'] == value)
        low = np.array([columns.min(), rows.min()])
        high = np.array([columns.max(), rows.max()]) + 1
        corners = np.array(POINTS[number]) - (30, 9) + [[-1, -1], [2, 2]]
        np.testing.assert_allclose(low, np.clip(corners[0], 0, (40, 33)) * scale, atol=1)
        np.testing.assert_allclose(high, np.clip(corners[1], 0, (40, 33)) * scale, atol=1)
        x, y = result['gt_keypoints'][0, number]
        np.testing.assert_allclose((x, y), (corners.mean(0)) * scale, rtol=1e-5)
        assert abs(int(result['img'][int(y), int(x), 1]) - value) <= 2
    np.testing.assert_allclose(result['gt_bboxes'][0, 2:], size, rtol=1e-5)


@pytest.mark.parametrize('boxes', [None, np.zeros((0, 4), np.float32)])
def test_no_box(boxes):
    results = dict(sample(), gt_bboxes=boxes)
    with pytest.raises(ValueError, match="CropToBox finds no box in 'gt_bboxes', which a data set"):
        CropToBox()(results)
    del results['gt_bboxes']
    with pytest.raises(ValueError, match="finds no box in 'gt_bboxes'"):
        CropToBox()(results)


# KeypointRegions


def test_regions_around_key_points():
    before = dict(sample(), gt_keypoints=np.array([[[10.5, 8.5], [14.5, 8.5], [40, 30], [-4, 2]]]))
    before['gt_keypoints_visible'] = np.array([[1, 1, 0, 1]])
    mask = KeypointRegions(radius=0.1)(before)['gt_seg_map']
    assert mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH)
    # 6 pixels around, of which each belongs to the nearer point, the first of two at equal distance
    assert set(np.flatnonzero(mask[8] == 1)) == set(range(4, 13))
    assert set(np.flatnonzero(mask[8] == 2)) == set(range(13, 21))
    assert mask[14, 10] == 1 and mask[15, 10] == 0 and mask[13, 14] == 2 and mask[14, 4] == 0
    assert not (mask == 3).any() and (mask[:3, :2] == 4).any()
    again = sample()
    del again['gt_seg_map']
    with DefaultScope.overwrite_default_scope('mmkdx'):
        moved = Compose(
            [CropToBox(), Resize((80, 66)), TRANSFORMS.build(dict(type='KeypointRegions'))]
        )
    result = moved(again)
    x, y = result['gt_keypoints'][0, 0].astype(int)
    assert result['gt_seg_map'].shape == (66, 80) and result['gt_seg_map'][y, x] == 1
    assert repr(moved.transforms[2]) == 'KeypointRegions(radius=0.1)'


@pytest.mark.parametrize('points', [None, np.zeros((0, 4, 2))])
def test_no_key_points(points):
    message = "KeypointRegions finds no 'gt_keypoints', which a data set such as CUB"
    with pytest.raises(ValueError, match=message):
        KeypointRegions()(dict(sample(), gt_keypoints=points))


# DeleteCell


def cells_of(image, grid):
    """Which cells hold a changed pixel of an image of zeros, and whether all their pixels changed."""
    height, width = image.shape[:2]
    rows, columns = np.arange(height) * grid // height, np.arange(width) * grid // width
    changed = {}
    for i in range(grid):
        for j in range(grid):
            part = image[np.ix_(rows == i, columns == j)] != 0
            if part.any():
                changed[i, j] = bool(part.all())
    return changed


@pytest.mark.parametrize('shape', [(8, 8, 3), (9, 14, 3), (7, 5)])
def test_one_whole_cell_is_deleted_and_each_as_often(shape):
    np.random.seed(0)
    fill = [7, 8, 9] if len(shape) == 3 else [7]
    transform, counts = DeleteCell(prob=1, fill=fill), {}
    given = np.zeros(shape, np.uint8)
    for _ in range(800):
        image = transform(dict(img=given))['img']
        ((cell, whole),) = cells_of(image, 4).items()
        assert whole and image.dtype == np.uint8
        assert (image[image.reshape(*shape[:2], -1)[..., 0] != 0] == fill).all()
        counts[cell] = counts.get(cell, 0) + 1
    assert not given.any()  # a data set may keep it
    assert len(counts) == 16
    # 50 are expected of each: five standard deviations
    assert all(abs(count - 50) < 5 * (800 / 16 * 15 / 16) ** 0.5 for count in counts.values())


@pytest.mark.parametrize('prob', [0, 0.25, 1])
def test_how_often_a_cell_is_deleted(prob):
    np.random.seed(0)
    transform = DeleteCell(grid=2, prob=prob, fill=[1.0])
    image = np.zeros((4, 4), np.float32)
    share = np.mean([transform(dict(img=image))['img'].any() for _ in range(1000)])
    assert abs(share - prob) <= 5 * np.sqrt(prob * (1 - prob) / 1000)


def test_a_deleted_cell_is_zero_after_normalisation_with_the_mean():
    mean = [103.53, 116.28, 123.675]
    image = np.random.default_rng(0).uniform(0, 255, (12, 12, 3))
    np.random.seed(1)
    normalised = (DeleteCell(prob=1, fill=mean)(dict(img=image))['img'] - mean) / [57.4, 57.1, 58.4]
    zero = (normalised == 0).all(2)
    ((cell, whole),) = cells_of(zero, 4).items()
    assert whole and zero.sum() == 9
    # Of an image of bytes the mean is rounded and not cut off
    whole = DeleteCell(prob=1, fill=mean)(dict(img=np.zeros((4, 4, 3), np.uint8)))['img']
    assert whole.max((0, 1)).tolist() == [104, 116, 124]


def test_delete_cell_in_a_pipeline_follows_numpys_seed():
    with DefaultScope.overwrite_default_scope('mmkdx'):
        transform = Compose(
            [
                TRANSFORMS.build(dict(type='DeleteCell', prob=0.9, fill=[9, 9, 9])),
                TRANSFORMS.build(dict(type='PackInputs')),
            ]
        )
    assert repr(transform.transforms[0]) == 'DeleteCell(grid=4, prob=0.9, fill=[9, 9, 9])'
    assert DeleteCell(fill=[9]).prob == 0.5
    rows = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        image = np.zeros((4, 4, 3), np.uint8)
        inputs = [transform(dict(img=image))['inputs'] for _ in range(12)]
        rows.append([each.tolist() for each in inputs])
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(grid=1), 'DeleteCell.grid is 1; it must be an integer of at least 2'),
        (
            dict(prob=1.1),
            'DeleteCell.prob is 1.1; it must be a finite number of at least 0 and of ',
        ),
        (dict(fill=3), 'DeleteCell.fill is 3; it must be a list of numbers'),
        (dict(fill='3'), "DeleteCell.fill is '3'; it must be a list of numbers"),
        (dict(fill=[]), r'DeleteCell.fill is \[\]; it must be a list of numbers'),
        (
            dict(fill=[256]),
            'DeleteCell.fill is 256; it must be a finite number of at least 0 and of',
        ),
        (dict(fill=[True]), 'DeleteCell.fill is True; it must be a finite number'),
    ],
)
def test_arguments_of_delete_cell(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        DeleteCell(**dict(dict(fill=[0, 0, 0]), **arguments))


def test_images_whose_cells_cannot_be_deleted():
    message = 'DeleteCell.fill has 1 values and the image has 3 channels; give one value for each'
    with pytest.raises(ValueError, match=f'^{message}'):
        DeleteCell(fill=[0])(sample())
    with pytest.raises(ValueError, match='fill has 3 values and the image has 1 channels'):
        DeleteCell(fill=[0, 0, 0])(dict(img=np.zeros((8, 8))))
    # Also where no cell is drawn, so that a mistake shows at once
    with pytest.raises(ValueError, match='^DeleteCell.grid is 61 and the image has 60x90 pixels'):
        DeleteCell(grid=61, prob=0, fill=[0, 0, 0])(sample())


# DisturbLabel


@pytest.mark.parametrize('classes, prob', [(10, 0.1), (4, 0.5), (2, 1.0), (3, 0.0)])
def test_disturbed_labels_are_uniform(classes, prob):
    np.random.seed(0)
    transform, n = DisturbLabel(num_classes=classes, prob=prob), 20000
    labels = [transform(dict(gt_label=np.int64(1)))['gt_label'] for _ in range(n)]
    assert all(type(label) is int for label in labels)
    expected = np.full(classes, prob / classes)
    expected[1] += 1 - prob
    deviation = 5 * np.sqrt(expected * (1 - expected) / n) + 1e-12
    assert (np.abs(np.bincount(labels, minlength=classes) / n - expected) <= deviation).all()


def test_disturbed_labels_follow_numpys_seed():
    transform, rows = DisturbLabel(num_classes=10, prob=0.5), []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        rows.append([transform(dict(gt_label=np.int64(3)))['gt_label'] for _ in range(30)])
    assert rows[0] == rows[1] != rows[2]


def test_disturb_label_before_pack_inputs():
    np.random.seed(0)
    image = np.zeros((4, 4, 3), np.uint8)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        transform = Compose(
            [
                TRANSFORMS.build(dict(type='DisturbLabel', num_classes=9, prob=1.0)),
                TRANSFORMS.build(dict(type='PackInputs')),
            ]
        )
    found = {
        transform(dict(img=image, gt_label=8))['data_samples'].gt_label.item() for _ in range(200)
    }
    assert found == set(range(9))
    assert repr(transform.transforms[0]) == 'DisturbLabel(num_classes=9, prob=1.0)'
    assert DisturbLabel(num_classes=9).prob == 0.1


@pytest.mark.parametrize('label', [None, [1, 2], 1.0, 4, -1, np.array([1])])
def test_labels_that_cannot_be_disturbed(label):
    message = (
        r'DisturbLabel needs one gt_label below num_classes \(4\) in each sample, and there is '
    )
    with pytest.raises(ValueError, match=message):
        DisturbLabel(num_classes=4)(dict(gt_label=label))
    with pytest.raises(ValueError, match=message + 'None'):
        DisturbLabel(num_classes=4)({})


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_classes=1), 'DisturbLabel.num_classes is 1; it must be an integer of at least 2'),
        (
            dict(prob=1.5),
            'DisturbLabel.prob is 1.5; it must be a finite number of at least 0 and of at most 1',
        ),
        (dict(prob=-0.1), 'DisturbLabel.prob is -0.1; it must be a finite number'),
    ],
)
def test_arguments_of_disturb_label(arguments, message):
    with pytest.raises(ValueError, match=message):
        DisturbLabel(**dict(dict(num_classes=4), **arguments))


# RandomPixelRemoval


def test_removed_pixels_lose_all_channels():
    np.random.seed(0)
    image = np.ones((4, 4, 3), np.float32)
    removed = RandomPixelRemoval(0.25, fill=[0, 0, 0])(dict(img=image))['img']
    gone = (removed == 0).all(2)
    assert gone.sum() == 4 and removed.sum() == 36 and image.all()


def test_each_pixel_is_removed_as_often_and_gets_the_colour():
    np.random.seed(0)
    transform, image = RandomPixelRemoval(0.1, fill=[103.53, 9, 7]), np.zeros((5, 8, 3), np.uint8)
    counts = np.zeros((5, 8))
    for _ in range(1000):
        found = transform(dict(img=image))['img']
        gone = found.any(2)
        assert gone.sum() == 4 and (found[gone] == [104, 9, 7]).all() and found.dtype == np.uint8
        counts += gone
    assert abs(counts - 100).max() < 5 * (1000 * 0.1 * 0.9) ** 0.5
    assert repr(transform) == 'RandomPixelRemoval(share=0.1, fill=[103.53, 9, 7])'
    assert RandomPixelRemoval(1, fill=[5])(dict(img=np.zeros((2, 3))))['img'].min() == 5


@pytest.mark.parametrize('share', [0, 1.1, -0.5])
def test_shares_of_pixels_that_cannot_be(share):
    with pytest.raises(ValueError, match=f'^RandomPixelRemoval.share is {share}; it must be'):
        RandomPixelRemoval(share, fill=[0])


def test_a_colour_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r'^RandomPixelRemoval.fill has 1 values and the image ha'):
        RandomPixelRemoval(fill=[0])(sample())
