"""ImageNet-Segmentation, on small files in the layout of the public one."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign.hostile_files import Trap, masks
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from torch.utils.data import DataLoader

from mmkdx.datasets import ImageNetSegmentation
from mmkdx.datasets.imagenet_wordnet_ids import WORDNET_IDS
from mmkdx.registry import DATASETS

h5py = pytest.importorskip('h5py')

# Every image has another size, and none is square
SIZES = [(24, 40), (33, 17), (50, 21)]
IDS = ['n01440764', 'n12345678', 'n03126707']


def pairs(seed=0):
    """RGB images with a mask that fills their top left quarter."""
    rng = np.random.default_rng(seed)
    for height, width in SIZES:
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 2, : width // 2] = 1
        yield rng.integers(256, size=(height, width, 3), dtype=np.uint8), mask


def write(path, pairs, ids=IDS, drop=0):
    """Writes such a file: axes reversed, references to references, text as numbers."""
    pairs = list(pairs)
    reference = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(path, 'w', userblock_size=512) as file:
        objects, value = file.create_group('#refs#'), file.create_group('value')
        columns = {
            name: value.create_dataset(name, (len(pairs), 1), dtype=reference)
            for name in ('gt', 'id', 'img')
        }
        columns['target'] = value.create_dataset('target', (len(pairs) - drop, 1), dtype=reference)
        for i, (image, mask) in enumerate(pairs):
            data = np.ascontiguousarray(image.transpose(2, 1, 0))
            columns['img'][i, 0] = objects.create_dataset(f'i{i}', data=data).ref
            # a second mask, which does not count
            cell = objects.create_dataset(f'c{i}', (2, 1), dtype=reference)
            cell[0, 0] = objects.create_dataset(f'm{i}', data=mask.T).ref
            cell[1, 0] = objects.create_dataset(f'n{i}', data=1 - mask.T).ref
            columns['gt'][i, 0] = cell.ref
            texts = dict(id=f'{ids[i]}_{i}', target=ids[i])
            for name in ('id', 'target') if i < len(pairs) - drop else ('id',):
                codes = np.array([[ord(c)] for c in texts[name]], np.uint16)
                columns[name][i, 0] = objects.create_dataset(f'{name}{i}', data=codes).ref
    with open(path, 'r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file, HDF5 schema 1.00 .'.ljust(124) + b'\x00\x02IM')
    return path


@pytest.fixture
def root(tmp_path):
    write(tmp_path / 'gtsegs_ijcv.mat', pairs())
    return str(tmp_path)


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_samples_are_those_of_the_file(root):
    data = ImageNetSegmentation(data_root=root)
    assert len(data) == 3 and data.test_mode
    for i, (image, mask) in enumerate(pairs()):
        info = data.get_data_info(i)
        assert info['img'].dtype == info['gt_seg_map'].dtype == np.uint8
        assert (info['img'] == image[..., ::-1]).all()  # BGR
        assert (info['gt_seg_map'] == mask).all()
        assert info['img'].flags.c_contiguous and info['gt_seg_map'].flags.c_contiguous
        assert info['img_shape'] == info['ori_shape'] == SIZES[i]
        assert (info['img_id'], info['wordnet_id']) == (f'{IDS[i]}_{i}', IDS[i])
        assert info['sample_idx'] == i
    assert ImageNetSegmentation(data_root=root, indices=[2])[0]['img_id'] == 'n03126707_2'


def test_other_values_of_a_mask_are_object(tmp_path):
    path = write(tmp_path / 'a.mat', [(image, mask * 255) for image, mask in pairs()])
    info = ImageNetSegmentation(str(path), data_root='').get_data_info(1)
    assert np.unique(info['gt_seg_map']).tolist() == [0, 1]


def test_labels_are_found_by_the_wordnet_id(root, log):
    data = ImageNetSegmentation(data_root=root)
    # crane is the name of a bird and of a machine
    assert data.get_gt_labels().tolist() == [0, -1, 517]
    assert data.metainfo['classes'][517] == IMAGENET_CATEGORIES[517]
    assert '1 of 3 images are of none of the 1,000 classes' in log.text


def test_wordnet_ids_are_in_the_order_of_labels():
    assert len(set(WORDNET_IDS)) == 1000 == len(IMAGENET_CATEGORIES)
    assert sorted(WORDNET_IDS) == WORDNET_IDS and {len(name) for name in WORDNET_IDS} == {9}
    known = {
        'n01440764': 'tench',
        'n02012849': 'crane',
        'n02123045': 'tabby',
        'n02504458': 'African elephant',
        'n03126707': 'crane',
        'n04326547': 'stone wall',
        'n07753592': 'banana',
        'n15075141': 'toilet tissue',
    }
    for wordnet_id, name in known.items():
        assert name in IMAGENET_CATEGORIES[WORDNET_IDS.index(wordnet_id)]
    assert [WORDNET_IDS.index(name) for name in ('n02012849', 'n03126707')] == [134, 517]


def test_no_message_where_all_is_well(tmp_path, log):
    path = write(tmp_path / 'a.mat', pairs(), ids=WORDNET_IDS[:3])
    assert ImageNetSegmentation(str(path), data_root='').get_gt_labels().tolist() == [0, 1, 2]
    assert 'none of the 1,000' not in log.text and 'another size' not in log.text


def test_masks_of_another_size_are_reported(tmp_path, log):
    samples = list(pairs())
    samples[1] = (samples[1][0], np.ones((10, 12), np.uint8))
    data = ImageNetSegmentation(str(write(tmp_path / 'a.mat', samples)), data_root='')
    assert 'masks of another size than their images: [1]' in log.text
    info = data.get_data_info(1)
    assert info['img'].shape == (33, 17, 3) and info['gt_seg_map'].shape == (10, 12)


def test_protocol(root):
    """Image and mask are 224 x 224, the mask with values of its own only."""
    cfg = Config.fromfile('configs/_base_/datasets/imagenet_segmentation.py').test_dataloader
    cfg.dataset.data_root = root
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = DATASETS.build(cfg.dataset)
        samples = [data[i] for i in range(3)]
    for (image, mask), sample in zip(pairs(), samples):
        assert sample['inputs'].shape == (3, 224, 224) and sample['inputs'].dtype == torch.uint8
        packed = sample['data_samples']
        assert packed.gt_seg_map.shape == (224, 224)
        assert np.unique(packed.gt_seg_map).tolist() == [0, 1]
        # nearest neighbour: output pixel i shows input pixel floor(i * size / 224)
        rows, columns = (np.arange(224) * size // 224 for size in mask.shape)
        assert (packed.gt_seg_map == mask[rows][:, columns]).all()
        # the image is not turned against its mask
        height, width = image.shape[0] // 2, image.shape[1] // 2
        quarters = sample['inputs'].float()[:, :100, :100].mean((1, 2)).numpy()
        np.testing.assert_allclose(quarters, image[..., ::-1][:height, :width].mean((0, 1)), atol=8)
        assert packed.ori_shape == mask.shape and packed.img_shape == (224, 224)
    assert [sample['data_samples'].gt_label.item() for sample in samples] == [0, -1, 517]
    assert [sample['data_samples'].img_id for sample in samples][0] == 'n01440764_0'


def test_a_model_is_tested_on_it(root, tmp_path):
    base = Path('configs/_base_').resolve()
    path = tmp_path / 'config.py'
    path.write_text(
        f"""_base_ = [
            'mmpretrain::_base_/models/resnet18.py',
            '{base}/datasets/imagenet_segmentation.py',
            '{base}/default_runtime.py',
        ]
        """.replace('\n        ', '\n')
    )
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.data_root = root
    metrics = Runner.from_cfg(cfg).test()
    assert set(metrics) == {'accuracy/top1', 'accuracy/top5'}


@pytest.mark.parametrize('method', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_open_the_file_for_themselves(root, method):
    data = ImageNetSegmentation(data_root=root)
    data.get_data_info(0)
    # list, because new processes cannot import functions of a test
    loader = DataLoader(
        data, batch_size=1, num_workers=2, multiprocessing_context=method, collate_fn=list
    )
    for (info,), (image, _) in zip(loader, pairs()):
        assert (info['img'] == image[..., ::-1]).all()


def test_parts_of_it(root):
    data = ImageNetSegmentation(data_root=root)
    data.get_data_info(0)
    assert data.get_subset([2]).get_data_info(0)['img_id'] == 'n03126707_2'
    assert copy.deepcopy(data).get_data_info(1)['img_id'] == 'n12345678_1'


# Errors


def test_missing_file(tmp_path):
    path = tmp_path / 'folder' / 'gtsegs_ijcv.mat'
    with pytest.raises(FileNotFoundError, match=f'there is no file {path} .*data_root.*calvin'):
        ImageNetSegmentation(data_root=str(path.parent))


def test_missing_h5py(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match='with h5py, which is not installed'):
        ImageNetSegmentation(data_root=root)


def truncate(path):
    path.write_bytes(path.read_bytes()[:3000])


def text(path):
    path.write_text('an error page')


def another(path):
    with h5py.File(path, 'w') as file:
        file['x'] = 1


@pytest.mark.parametrize('damage', [truncate, text, another])
def test_damaged_file(root, tmp_path, damage):
    path = tmp_path / 'gtsegs_ijcv.mat'
    damage(path)
    with pytest.raises(ValueError, match=f'{path} is no complete copy of gtsegs_ijcv.mat .*calvin'):
        ImageNetSegmentation(data_root=root)


def test_columns_of_different_lengths(tmp_path):
    path = write(tmp_path / 'a.mat', pairs(), drop=1)
    with pytest.raises(ValueError, match=f'{path}: it has 3/3/3/2 images/masks/ids/classes'):
        ImageNetSegmentation(str(path), data_root='')


@pytest.mark.parametrize(
    'image, mask, message',
    [
        ((4, 6, 2), (4, 6), r'image 3 has shape \(2, 6, 4\) and its mask \(6, 4\)'),
        ((4, 6, 3), (4, 6, 1), r'image 3 has shape \(3, 6, 4\) and its mask \(1, 6, 4\)'),
    ],
)
def test_wrong_shapes(tmp_path, image, mask, message):
    samples = [*pairs(), (np.zeros(image, np.uint8), np.zeros(mask, np.uint8))]
    path = write(tmp_path / 'a.mat', samples, ids=[*IDS, 'n01440764'])
    with pytest.raises(ValueError, match=message):
        ImageNetSegmentation(str(path), data_root='')


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ('external storage', 'what a reference leads to has its content in another file, which is'),
        ('virtual', 'what a reference leads to has its content in another file, which is not read'),
        ('10 GiB', 'an array of 10,800,000,000 bytes is beyond the limit of 268,435,455 bytes'),
        ('a chunk of 3 GiB', 'an array of 3,072,000,000 bytes is beyond the limit of'),
        ('text of 8 GB', 'an array of 8,589,934,592 bytes is beyond the limit of'),
        ('a billion images', 'an array of 8,000,000,000 bytes is beyond the limit of'),
        ('group', 'what a reference leads to is no array'),
        ('no reference', 'a reference leads nowhere'),
        ('external link', r"'img' is a link .ExternalLink., which is not followed"),
        ('link', r"'value' is a link .SoftLink., which is not followed"),
    ],
)
def test_what_is_elsewhere_or_too_large_is_not_read(tmp_path, change, sentence):
    trap = Trap(tmp_path, tmp_path / 'mark', tmp_path / 'secret')
    trap.secret.write_bytes(b'S' * 48)
    masks(tmp_path / 'gtsegs_ijcv.mat', change, trap)
    with pytest.raises(ValueError, match=f'^{tmp_path}/gtsegs_ijcv.mat: {sentence}'):
        ImageNetSegmentation(data_root=str(tmp_path))
