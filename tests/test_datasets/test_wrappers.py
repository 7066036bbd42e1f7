"""What a data set is through wrappers: numbers of images, labels, names, transforms, image files."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import (
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
    pseudo_collate,
)
from mmpretrain.datasets import BaseDataset, KFoldDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset, TensorDataset

from mmkdx.datasets import SeededViews, class_subset, wrappers
from mmkdx.registry import MODELS

NAMES = ('cat', 'dog', 'fox')
PACK = dict(type='PackInputs')


class Listed(BaseDataset):
    """Images of one pixel, which is its place, with given labels."""

    def __init__(self, labels, classes=NAMES, pipeline=(PACK,), **kwargs):
        self.given = labels
        super().__init__(
            ann_file='',
            metainfo=dict(classes=classes),
            pipeline=wrappers.compose(pipeline).transforms,
            serialize_data=False,  # for which mmengine collects all garbage
            **kwargs,
        )

    def load_data_list(self):
        return [
            dict(img=np.full((1, 1, 3), i, np.uint8), gt_label=label)
            for i, label in enumerate(self.given)
        ]


def a():
    return Listed([0, 1, 2])


def b():
    return Listed([2, 0, 0, 1])


def folds():
    config = dict(type=Listed, labels=[0, 1, 2, 0, 1, 2])
    return KFoldDataset(config, fold=1, num_splits=3, seed=0)


def deep():
    """A joined data set in a joined one, behind a subset that leaves out most of the first part."""
    inner = ConcatDataset([a(), b()])
    return TorchConcatDataset([Subset(inner, [6, 0]), RepeatDataset(a(), 2), b()])


#: Data sets, with the number of the image and the label of each index.
WRAPPED = dict(
    plain=(a, [0, 1, 2], [0, 1, 2]),
    joined=(lambda: ConcatDataset([a(), b()]), range(7), [0, 1, 2, 2, 0, 0, 1]),
    joined_lazily=(
        lambda: ConcatDataset([a(), b()], lazy_init=True),
        range(7),
        [0, 1, 2, 2, 0, 0, 1],
    ),
    joined_by_torch=(lambda: TorchConcatDataset([a(), b()]), range(7), [0, 1, 2, 2, 0, 0, 1]),
    joined_twice=(
        lambda: ConcatDataset([dict(type=ConcatDataset, datasets=[a(), b()]), a()]),
        range(10),
        [0, 1, 2, 2, 0, 0, 1, 0, 1, 2],
    ),
    repeated=(lambda: RepeatDataset(a(), 2), [0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2]),
    # Half of the images are of class 0, a quarter of each other: sqrt(2) copies of these, rounded up
    balanced=(lambda: ClassBalancedDataset(b(), 0.5), [0, 0, 1, 2, 3, 3], [2, 2, 0, 0, 1, 1]),
    chosen=(lambda: Subset(b(), [3, 0]), [3, 0], [1, 2]),
    views=(lambda: SeededViews(RepeatDataset(a(), 2), views=2), [0, 1, 2, 0, 1, 2], [0, 1, 2] * 2),
    reduced=(lambda: class_subset(b(), num_classes=2, per_class=1), [0, 1], [0, 1]),
    deep=(deep, [6, 0, 7, 8, 9, 7, 8, 9, 10, 11, 12, 13], [1, 0, *[0, 1, 2] * 2, 2, 0, 0, 1]),
)


def shown(dataset):
    """The numbers and labels of data samples as they are loaded."""
    samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
    return [s.sample_idx for s in samples], [int(s.gt_label) for s in samples]


@pytest.mark.parametrize('name', WRAPPED)
def test_numbers_and_labels(name):
    make, numbers, labels = WRAPPED[name]
    dataset = make()
    assert wrappers.positions(dataset).tolist() == list(numbers)
    assert wrappers.labels(dataset).tolist() == list(labels)
    assert shown(dataset) == (list(numbers), list(labels))
    assert wrappers.class_names(dataset) == NAMES
    images = wrappers.images(dataset)
    assert list(images) == sorted(set(numbers))
    for index in (0, len(dataset) - 1, -1):
        leaf, inner = wrappers.locate(dataset, index)
        assert isinstance(leaf, Listed) and leaf in wrappers.leaves(dataset)
        assert torch.equal(leaf[inner]['inputs'], dataset[index % len(dataset)]['inputs'])
    assert all(numbers[index] == image for image, index in images.items())


def test_folds_are_numbered_in_themselves():
    """mmpretrain cuts the data set in a fold down, so that its images are counted from 0."""
    dataset = folds()
    assert len(dataset) == 4 and wrappers.positions(dataset).tolist() == [0, 1, 2, 3]
    numbers, labels = shown(dataset)
    assert numbers == [0, 1, 2, 3] and wrappers.labels(dataset).tolist() == labels
    joined = TorchConcatDataset([folds(), a()])
    assert wrappers.positions(joined).tolist() == list(range(7)) == shown(joined)[0]


def test_numbers_in_workers_and_copies():
    dataset = ConcatDataset([a(), b()])
    loader = DataLoader(dataset, 4, num_workers=1, collate_fn=pseudo_collate)
    assert [s.sample_idx for data in loader for s in data['data_samples']] == list(range(7))
    # A process that imports nothing but what a pickle names imports mmkdx
    pickled = pickle.dumps(dataset)
    assert b'mmkdx.sample_numbers' in pickled
    assert shown(pickle.loads(pickled))[0] == list(range(7))
    assert [dataset.get_data_info(i)['sample_idx'] for i in (0, 3, -1)] == [0, 3, 6]


def test_numbers_are_written_into_copies():
    """A data set may keep what it yields, test-time augmentation yields lists, others no data sample."""
    kept = [Listed([0])[0] for _ in range(2)]
    kept[1]['data_samples'] = [kept[1]['data_samples']] * 2
    joined = TorchConcatDataset([a(), kept, TensorDataset(torch.arange(1))])
    for _ in range(2):
        assert joined[3]['data_samples'].sample_idx == 3
        assert [s.sample_idx for s in joined[4]['data_samples']] == [3, 3]
    assert joined[5] == (torch.tensor(0),)
    assert kept[0]['data_samples'].sample_idx == 0


class Wrapper(Dataset):
    """A third party's wrapper, which shows some images, and may say which."""

    def __init__(self, dataset, shown, **attributes):
        self.dataset, self.shown = dataset, shown
        vars(self).update(attributes)

    def __len__(self):
        return len(self.shown)

    def __getitem__(self, index):
        return self.dataset[self.shown[index]]


def test_wrappers_of_others():
    assert wrappers.positions(Wrapper(b(), [0, 1, 2, 3])).tolist() == [0, 1, 2, 3]
    known = Wrapper(b(), [3, 1], indices=[3, 1])
    assert wrappers.labels(known).tolist() == shown(known)[1] == [1, 0]
    method = Wrapper(b(), [3, 1, 0, 2], _get_ori_dataset_idx=[3, 1, 0, 2].__getitem__)
    assert wrappers.positions(method).tolist() == [3, 1, 0, 2]
    with pytest.raises(
        ValueError, match='Wrapper shows 2 of the 4 images of Listed and does not sa'
    ):
        wrappers.positions(Wrapper(b(), [3, 1]))
    pairs = StackDataset(a(), a())
    with pytest.raises(
        ValueError, match='StackDataset does not show its parts one after the other'
    ):
        wrappers.positions(pairs)


def test_labels_of_other_data_sets():
    images = torch.zeros(3, 3, 2, 2)
    plain = TensorDataset(images, torch.tensor([2, 0, 1]))
    assert wrappers.labels(plain).tolist() == [2, 0, 1]
    assert wrappers.labels(Subset(plain, [1, 2])).tolist() == [0, 1]
    assert wrappers.class_names(plain) is None
    with_targets = Wrapper([], range(3), targets=[2, 0, 1], classes=['x', 'y', 'z'])
    del with_targets.dataset
    assert wrappers.labels(with_targets).tolist() == [2, 0, 1]
    assert wrappers.class_names(with_targets) == ('x', 'y', 'z')
    # As mmpretrain's MNIST has them
    numpy = Listed([np.array(1), np.int64(2)])
    assert wrappers.labels(numpy).tolist() == [1, 2]


@pytest.mark.parametrize(
    'dataset, message',
    [
        (lambda: Listed([0, None]), 'sample 1 of Listed has the label None; each sample must have'),
        (lambda: Listed([[0, 2]]), r'sample 0 of Listed has the label \[0, 2\]'),
        (lambda: RepeatDataset(Listed([0.5]), 2), 'sample 0 of RepeatDataset has the label 0.5'),
        (lambda: TensorDataset(torch.zeros(2, 3)), 'sample 0 of TensorDataset has the label None'),
    ],
)
def test_samples_without_one_class(dataset, message):
    with pytest.raises(ValueError, match=message):
        wrappers.labels(dataset())


def test_transforms_of_all_parts():
    flipped = Listed([0], pipeline=[dict(type='RandomFlip', prob=1.0), PACK])
    joined = TorchConcatDataset([a(), TensorDataset(torch.zeros(1)), RepeatDataset(flipped, 2)])
    names = [[type(t).__name__ for t in each.transforms] for each in wrappers.pipelines(joined)]
    assert names == [['PackInputs'], ['RandomFlip', 'PackInputs']]


def test_parts_that_differ():
    names = ConcatDataset([a(), Listed([0], classes=NAMES[::-1])], ignore_keys=['classes'])
    with pytest.raises(
        ValueError, match='the parts of ConcatDataset have different names of class'
    ):
        wrappers.class_names(names)


# Configs

LOAD = dict(type='LoadImageFromFile')


def joined(*pipelines, kind='CustomDataset'):
    parts = [dict(type=kind, data_root=f'{i}', pipeline=p) for i, p in enumerate(pipelines)]
    return Config(dict(d=dict(type='RepeatDataset', dataset=dict(type='C', datasets=parts)))).d


def test_transforms_in_a_config():
    config = joined([LOAD, PACK], [LOAD, PACK])
    assert [leaf.data_root for leaf in wrappers.leaf_configs(config)] == ['0', '1']
    assert wrappers.config_pipeline(config) == [LOAD, PACK]
    changed = wrappers.with_pipeline(config, [PACK])
    assert wrappers.config_pipeline(changed) == [PACK]
    assert wrappers.config_pipeline(config) == [LOAD, PACK] and changed.type == 'RepeatDataset'
    for read in (wrappers.config_pipeline, wrappers.file_pipeline):
        with pytest.raises(ValueError, match='the parts of RepeatDataset have different pipelines'):
            read(joined([LOAD, PACK], [PACK]))


def test_class_names_in_a_config(tmp_path):
    names = wrappers.config_class_names
    assert names(dict(type='mmkdx.Digits')) == tuple('0123456789')
    assert names(dict(type='ClassSubset', dataset=dict(type='Waterbirds')))[0] == 'landbird'
    assert names(dict(type='CustomDataset', classes=['x', 'y'])) == ('x', 'y')
    (tmp_path / 'names.txt').write_text('x\ny\n')
    assert names(dict(type='CustomDataset', classes=f'{tmp_path}/names.txt')) == ('x', 'y')
    assert names(dict(type='CUB', metainfo=dict(classes=['z']))) == ('z',)
    assert names(joined([])) is None
    with pytest.raises(ValueError, match='the parts of C have different names of classes'):
        names(dict(type='C', datasets=[dict(type='Digits'), dict(type='Waterbirds')]))


@pytest.fixture(scope='module')
def red(tmp_path_factory):
    """A file of the colour (200, 0, 0) in RGB, and the image as OpenCV reads it."""
    path = tmp_path_factory.mktemp('red') / 'red.png'
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 200
    cv2.imwrite(str(path), image)
    return path, image


@pytest.mark.parametrize(
    'config, pixel',
    [
        (dict(type='CIFAR100', pipeline=[PACK]), [200, 0, 0]),
        (dict(type='mmpretrain.CIFAR10', pipeline=[PACK]), [200, 0, 0]),
        (dict(type='STL10', pipeline=[PACK]), [200, 0, 0]),
        (dict(type='Digits', pipeline=[PACK]), [0, 0, 200]),
        # .299 times red
        (dict(type='FashionMNIST', pipeline=[PACK]), [60]),
        (dict(type='CustomDataset', pipeline=[LOAD, PACK]), [0, 0, 200]),
        (joined([PACK], [PACK], kind='CIFAR10'), [200, 0, 0]),
    ],
)
def test_a_file_is_read_as_the_images_of_the_data_set(red, config, pixel):
    path, image = red
    file = wrappers.compose(wrappers.file_pipeline(config))(dict(img_path=str(path)))
    array = wrappers.compose(wrappers.file_pipeline(config, True))(dict(img=image))
    for data in (file, array):
        assert data['inputs'][:, 0, 0].tolist() == pixel and data['inputs'].shape[1:] == (32, 32)


def test_the_pipelines_own_loader_reads_the_file(red):
    config = dict(type='CustomDataset', pipeline=[dict(LOAD, color_type='grayscale'), PACK])
    file = wrappers.compose(wrappers.file_pipeline(config))(dict(img_path=str(red[0])))
    assert file['inputs'][:, 0, 0].tolist() == [cv2.imread(str(red[0]), cv2.IMREAD_GRAYSCALE)[0, 0]]
    array = wrappers.compose(wrappers.file_pipeline(config, True))(dict(img=red[1]))
    assert array['inputs'][:, 0, 0].tolist() == [60]


def test_the_network_of_cifar_sees_red(red):
    config = Config.fromfile('configs/cifar/resnet20_cifar100.py')
    pipeline = wrappers.compose(wrappers.file_pipeline(config.test_dataloader.dataset))
    data = pseudo_collate([pipeline(dict(img_path=str(red[0])))])
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor', **config.data_preprocessor))
    seen = preprocessor(data)['inputs'] * preprocessor.std + preprocessor.mean
    # CIFAR's mean and std are of RGB
    assert config.data_preprocessor.mean[0] > config.data_preprocessor.mean[2]
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([200.0, 0, 0]), atol=1e-3, rtol=0)


def test_images_of_several_orders(red):
    config = dict(type='C', datasets=[dict(type=k, pipeline=[PACK]) for k in ('CIFAR10', 'Digits')])
    with pytest.raises(ValueError, match='the parts of C have different orders of channels'):
        wrappers.file_pipeline(config)


def test_a_class_in_words():
    names = ['crane', '猫', 'crane', '']
    words = [wrappers.class_text(label, names) for label in range(5)]
    assert words == ['crane (0)', '猫 (1)', 'crane (2)', '3', '4']
    assert wrappers.class_text(7, None) == '7' and wrappers.class_text(-1, names) == '-1'
