"""CIFAR: mmpretrain's reader with a sentence about what is missing."""

from pathlib import Path
from urllib.error import URLError

import mmpretrain.datasets
import numpy as np
import pytest
from layouts import accept_cifar, write_cifar
from mmengine.registry import DATASETS as ROOT
from mmengine.registry import DefaultScope

from mmkdx.datasets import CIFAR10, CIFAR100

SETS = pytest.mark.parametrize('cls', [CIFAR10, CIFAR100], ids=['CIFAR10', 'CIFAR100'])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def download(*args, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr('mmpretrain.datasets.cifar.download_and_extract_archive', download)


@SETS
def test_images_are_those_of_the_files(cls, tmp_path, monkeypatch):
    accept_cifar(monkeypatch, cls)
    splits = write_cifar(tmp_path, cls.__name__)
    for split, (pixels, labels) in splits.items():
        data = cls(data_root=str(tmp_path), split=split)
        assert data.get_gt_labels().tolist() == labels
        read = np.stack([data.get_data_info(i)['img'] for i in range(len(data))])
        assert (read == pixels).all()


@SETS
@pytest.mark.parametrize('split', ['train', 'test'])
def test_missing(cls, split, tmp_path):
    root = tmp_path / 'cifar'
    first = cls.train_list[0][0]
    sentence = (
        f'{root / cls.base_folder / first} is missing (downloading it failed: <urlopen error no '
        f'network>); unpack {cls.url} into {root}, the data_root of {cls.__name__}'
    )
    with pytest.raises(FileNotFoundError) as error:
        cls(data_root=f'{root}/', split=split)
    assert str(error.value) == sentence
    with pytest.raises(FileNotFoundError, match=r'is missing \(download=False\)'):
        cls(data_root=str(root), split=split, download=False)


def test_one_file_is_missing_or_damaged(tmp_path, monkeypatch):
    write_cifar(tmp_path, 'CIFAR100')
    with pytest.raises(FileNotFoundError, match=r'100-python/train is damaged .*download=False'):
        CIFAR100(data_root=str(tmp_path), download=False)
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])
    with pytest.raises(FileNotFoundError, match='100-python/test is damaged or another file'):
        CIFAR100(data_root=str(tmp_path))
    Path(tmp_path / 'cifar-100-python/test').unlink()
    with pytest.raises(FileNotFoundError, match='100-python/test is missing'):
        CIFAR100(data_root=str(tmp_path))


def test_other_errors_stay_as_they_are(tmp_path, monkeypatch):
    accept_cifar(monkeypatch, CIFAR100)
    write_cifar(tmp_path, 'CIFAR100')

    def load(*args, **kwargs):
        raise OSError('disk')

    monkeypatch.setattr('mmpretrain.datasets.cifar.get', load)
    with pytest.raises(OSError, match='^disk$'):
        CIFAR100(data_root=str(tmp_path))


@SETS
def test_name_leads_to_mmpretrains_class_in_its_scope_and_to_the_subclass_in_mmkdxs(cls):
    original = getattr(mmpretrain.datasets, cls.__name__)
    assert issubclass(cls, original) and cls.METAINFO == original.METAINFO
    for scope, expected in (('mmpretrain', original), ('mmkdx', cls)):
        with DefaultScope.overwrite_default_scope(scope):
            with ROOT.switch_scope_and_registry(None) as registry:
                assert registry.get(cls.__name__) is expected
