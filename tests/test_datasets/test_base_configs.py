"""Configs of data sets yield batches from files in the public layouts; schedules keep their epochs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from layouts import (
    accept_cifar,
    images,
    write_cifar,
    write_stl10,
    write_tiny_imagenet,
    write_waterbirds,
)
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image

from mmkdx.datasets import CIFAR10, CIFAR100
from mmkdx.registry import PARAM_SCHEDULERS

BASE = Path(__file__).parents[2] / 'configs/_base_'
IMAGENET_MEAN = np.array([123.675, 116.28, 103.53])
IMAGENET_STD = np.array([58.395, 57.12, 57.375])


def load(name, root):
    """A config whose data sets lie in a folder."""
    cfg = Config.fromfile(BASE / f'datasets/{name}.py')
    for part in ('train', 'val', 'test'):
        loader = cfg[f'{part}_dataloader']
        loader.num_workers = 0
        loader.persistent_workers = False
        loader.dataset.data_root = str(root)
    return cfg


def batch(cfg, part):
    """The first batch, as models get it: images (N, H, W, 3) in RGB, data samples, raw images."""
    with DefaultScope.overwrite_default_scope('mmkdx'):
        loader = Runner.build_dataloader(cfg[f'{part}_dataloader'], seed=0)
        data = next(iter(loader))
        preprocess = ClsDataPreprocessor(**cfg.data_preprocessor)
        ready = preprocess(data, training=part == 'train')
    return ready['inputs'].permute(0, 2, 3, 1).numpy(), ready['data_samples']


def normalised(pixels, mean, std):
    return (np.asarray(pixels, np.float64) - mean) / std


def pillow(pixels, side):
    """Resized by Pillow, as torchvision resizes images."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def windows(image):
    """All crops of 32 x 32 of an image that is padded by 4 black pixels, and their mirror images."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + 32, left : left + 32]
            yield crop
            yield crop[:, ::-1]


def assert_crops(inputs, samples, sources, mean, std):
    """Each image is a padded crop of its source, and not all are the same one."""
    found = set()
    for image, sample in zip(inputs, samples):
        crops = np.array(list(windows(sources[sample.sample_idx])))
        back = np.rint(image * std + mean)
        hits = np.flatnonzero((crops == back).all((1, 2, 3)))
        assert len(hits) == 1
        found.add(int(hits[0]))
    assert {hit % 2 for hit in found} == {0, 1}
    # some are moved by more than two pixels
    assert len(found) > 3 and {hit // 18 for hit in found} & {0, 1, 7, 8}


CIFAR = dict(
    CIFAR10=('cifar10_bs64', [125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255]),
    CIFAR100=(
        'cifar100_bs64',
        255 * np.array([0.5071, 0.4867, 0.4408]),
        255 * np.array([0.2675, 0.2565, 0.2761]),
    ),
)


@pytest.mark.parametrize('cls', [CIFAR10, CIFAR100], ids=list(CIFAR))
def test_cifar(cls, tmp_path, monkeypatch):
    accept_cifar(monkeypatch, cls)
    splits = write_cifar(tmp_path, cls.__name__, 70 if cls is CIFAR100 else 14)
    name, mean, std = CIFAR[cls.__name__]
    cfg = load(name, tmp_path)
    assert cfg.data_preprocessor.num_classes == len(cls.METAINFO['classes'])
    inputs, samples = batch(cfg, 'train')
    assert inputs.shape == (64, 32, 32, 3)
    pixels, labels = splits['train']
    assert [s.gt_label.item() for s in samples] == [labels[s.sample_idx] for s in samples]
    assert_crops(inputs, samples, pixels, mean, std)
    for part in ('val', 'test'):
        inputs, samples = batch(cfg, part)
        pixels, labels = (values[:64] for values in splits['test'])
        assert len(inputs) == len(pixels)
        assert [s.gt_label.item() for s in samples] == labels
        np.testing.assert_allclose(inputs, normalised(pixels, mean, std), atol=1e-5)


def test_stl10(tmp_path):
    pixels = write_stl10(tmp_path / 'stl', labels=[i % 10 + 1 for i in range(70)])
    cfg = load('stl10_bs64', tmp_path / 'stl')
    small = [pillow(image, 32) for image in pixels]
    inputs, samples = batch(cfg, 'train')
    assert inputs.shape == (64, 32, 32, 3)
    assert_crops(inputs, samples, small, 127.5, 127.5)
    for part in ('val', 'test'):
        inputs, samples = batch(cfg, part)
        np.testing.assert_allclose(inputs, normalised(small[:64], 127.5, 127.5), atol=1e-5)
        assert [s.gt_label.item() for s in samples] == [i % 10 for i in range(64)]


def test_tiny_imagenet(tmp_path):
    write_tiny_imagenet(tmp_path, ids=[f'n{i:08}' for i in range(33)])
    cfg = load('tiny_imagenet_bs64', tmp_path)
    assert cfg.data_preprocessor.num_classes == 200
    train, samples = batch(cfg, 'train')
    assert train.shape == (64, 32, 32, 3)
    paths = {s.sample_idx: s.img_path for s in samples}
    small = {i: pillow(cv2.imread(path)[..., ::-1].copy(), 32) for i, path in paths.items()}
    assert_crops(train, samples, small, 0, 255)
    for part in ('val', 'test'):
        inputs, samples = batch(cfg, part)
        expected = [pillow(cv2.imread(s.img_path)[..., ::-1].copy(), 32) for s in samples]
        np.testing.assert_allclose(inputs, np.array(expected) / 255, atol=1e-6)
        assert [s.gt_label.item() for s in samples][:3] == [32, 31, 30]


def ramps(height, width):
    """An image that tells where each pixel is: rows in red, columns in green."""
    rows, columns = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3))
    image[..., 0], image[..., 1] = rows * 255 / (height - 1), columns * 255 / (width - 1)
    return image.round().astype(np.uint8)


def crop_of(image):
    """The share of the area that a crop of ramps shows, and whether it is mirrored."""
    height, width = (np.ptp(image[..., channel]) / 255 for channel in (0, 1))
    return height * width, image[0, 0, 1] > image[0, -1, 1]


def save_ramps(paths, height, width):
    for path in paths:
        # without losses, whatever the name says
        Image.fromarray(ramps(height, width)).save(path, format='PNG')


def test_waterbirds(tmp_path):
    rows = write_waterbirds(tmp_path)
    save_ramps([tmp_path / row['img_filename'] for row in rows], 320, 480)
    cfg = load('waterbirds_bs64', tmp_path)
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=16, dataset=cfg.train_dataloader.dataset
    )
    inputs, samples = batch(cfg, 'train')
    assert inputs.shape == (64, 224, 224, 3)
    shares, mirrored = zip(*map(crop_of, inputs * IMAGENET_STD + IMAGENET_MEAN))
    assert 0.69 < min(shares) < 0.75 and max(shares) <= 1.001 and 16 < sum(mirrored) < 48
    for part, split in (('val', 1), ('test', 2)):
        inputs, samples = batch(cfg, part)
        assert [(s.img_path, s.gt_label.item(), s.place, s.group) for s in samples] == [
            (
                str(tmp_path / row['img_filename']),
                *(row['y'], row['place'], 2 * row['y'] + row['place']),
            )
            for row in rows
            if row['split'] == split
        ]
        # the short side becomes 256: 224 / 256 of the height, 224 / 384 of the width, in the middle
        image = inputs[0] * IMAGENET_STD + IMAGENET_MEAN
        assert image.shape == (224, 224, 3)
        assert crop_of(image)[0] == pytest.approx(224 / 256 * 224 / 384, abs=0.005)
        assert image[111:113, 111:113, :2].mean() == pytest.approx(127.5, abs=1)
        with DefaultScope.overwrite_default_scope('mmkdx'):
            evaluator = Evaluator(cfg[f'{part}_evaluator'])
        for sample in samples:
            sample.set_pred_score(torch.tensor([0.9, 0.1])).set_pred_label(0)
        evaluator.process(samples)
        scores = evaluator.evaluate(4)
        assert scores['accuracy/top1'] == scores['group_accuracy/id'] == 50
        assert scores['group_accuracy/0'] == 100 and scores['group_accuracy/worst'] == 0


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet with flat folders and lists."""
    (tmp_path / 'meta').mkdir()
    for split, labels in (('train', [3, 999] * 32), ('val', [65, 970])):
        folder = tmp_path / split
        folder.mkdir()
        names = [f'{split}_{i:08}.JPEG' for i in range(len(labels))]
        save_ramps([folder / name for name in names], 320, 480)
        lines = [f'{name} {label}' for name, label in zip(names, labels)]
        (tmp_path / f'meta/{split}.txt').write_text('\n'.join(lines))
    return tmp_path


@pytest.mark.parametrize('name', ['imagenet_bs64_cat', 'imagenet_224_square'])
def test_imagenet(name, imagenet):
    cfg = load(name, imagenet)
    inputs, samples = batch(cfg, 'train')
    assert inputs.shape == (64, 224, 224, 3) and {s.gt_label.item() for s in samples} == {3, 999}
    shares, mirrored = zip(*map(crop_of, inputs * IMAGENET_STD + IMAGENET_MEAN))
    assert 0.05 < min(shares) < 0.3 and 16 < sum(mirrored) < 48
    for part in ('val', 'test'):
        inputs, samples = batch(cfg, part)
        assert [s.gt_label.item() for s in samples] == [65, 970]
        image = inputs[0] * IMAGENET_STD + IMAGENET_MEAN
        assert image.shape == (224, 224, 3)
        if part == 'test' and name == 'imagenet_224_square':
            raw = cv2.imread(samples[0].img_path)[..., ::-1].copy()
            np.testing.assert_allclose(image, pillow(raw, 224), atol=1e-4)
        else:
            assert crop_of(image)[0] == pytest.approx(224 / 256 * 224 / 384, abs=0.005)


SCHEDULES = [
    ('cifar_240e', 0.05, 5e-4, 64, 240, (150, 180, 210)),
    ('imagenet_100e', 0.2, 1e-4, 512, 100, (30, 60, 90)),
]


@pytest.mark.parametrize('name, rate, decay, total, epochs, steps', SCHEDULES)
def test_schedule(name, rate, decay, total, epochs, steps):
    cfg = Config.fromfile(BASE / f'schedules/{name}.py')
    assert cfg.train_cfg.max_epochs == epochs and cfg.auto_scale_lr.base_batch_size == total
    assert {'val_cfg', 'test_cfg'} <= set(cfg)
    settings = cfg.optim_wrapper.optimizer.to_dict()
    settings.pop('_scope_', None)
    assert settings.pop('type') == 'SGD' and not settings.get('nesterov')
    assert settings['momentum'] == 0.9 and settings['weight_decay'] == decay
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], **settings)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        schedule = PARAM_SCHEDULERS.build(dict(cfg.param_scheduler, optimizer=optimizer))
    rates = {}
    for epoch in range(1, epochs + 1):
        rates[epoch] = optimizer.param_groups[0]['lr']
        optimizer.step()
        schedule.step()
    assert rates[1] == rate
    for number, step in enumerate(steps):
        assert rates[step] == pytest.approx(rate * 0.1**number)
        assert rates[step + 1] == pytest.approx(rate * 0.1 ** (number + 1))
    assert len(set(rates.values())) == 4


def test_random_images_are_not_symmetric():
    # what every exact comparison above rests on
    pixels = images(1, 32, 32)[0]
    assert (pixels != pixels.transpose(1, 0, 2)).any() and (pixels != pixels[..., ::-1]).any()
