"""Transforms: what is painted is found where its coordinates went."""

import numpy as np
import pytest
from mmcv.transforms import Compose, Resize
from mmengine.registry import DefaultScope

from mmkdx.datasets.transforms import CropToBox, DisturbLabel
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
