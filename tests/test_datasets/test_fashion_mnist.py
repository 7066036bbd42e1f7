"""Fashion-MNIST: small files in the layout of the public ones, and these themselves where they are."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from layouts import write_fashion_mnist
from mmengine.config import Config
from torchvision.datasets import FashionMNIST as Torchvision

from mmkdx.datasets import FashionMNIST

#: Where Debian's package dataset-fashion-mnist has the files.
PUBLIC = Path('/usr/share/datasets/fashion-mnist')
CONFIG = 'configs/_base_/datasets/fashion_mnist_bs128.py'


@pytest.mark.parametrize('split', ['train', 'test'])
def test_samples_are_those_of_the_files(split, tmp_path):
    raw = tmp_path / 'FashionMNIST/raw'  # where torchvision looks
    pixels = write_fashion_mnist(raw)[split]
    data = FashionMNIST(str(raw), split, indices=15)
    assert len(data) == 15 and data.test_mode == (split == 'test')
    assert data.metainfo['classes'][9] == 'Ankle boot'
    theirs = Torchvision(str(tmp_path), train=split == 'train')
    for i in (0, 14):
        info = data.get_data_info(i)
        assert info['img'].dtype == np.uint8 and (info['img'] == pixels[i]).all()
        assert (np.asarray(theirs[i][0]) == info['img']).all()
        assert info['gt_label'] == theirs[i][1] == i % 10


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        FashionMNIST(str(tmp_path / 'none'))
    folder = tmp_path / 'none'
    assert str(error.value) == (
        f'there is no file {folder}/train-images-idx3-ubyte (in data_root of FashionMNIST); install '
        "Debian's package dataset-fashion-mnist and unpack its four files there: mkdir -p "
        f'{folder}; for f in /usr/share/datasets/fashion-mnist/*.gz; do gunzip -c $f > '
        f'{folder}/$(basename $f .gz); done'
    )
    write_fashion_mnist(folder)
    (folder / 't10k-labels-idx1-ubyte').unlink()
    with pytest.raises(FileNotFoundError, match='no file .*/t10k-labels-idx1-ubyte'):
        FashionMNIST(str(folder))


@pytest.mark.parametrize(
    'name, count', [('t10k-images-idx3-ubyte', 20), ('t10k-labels-idx1-ubyte', 19)]
)
def test_incomplete_files(name, count, tmp_path):
    write_fashion_mnist(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    message = (
        f'^{tmp_path}/t10k-images-idx3-ubyte has {15_680 - (count == 20):,} pixels instead of 784 for '
        f'each of the {count} labels in t10k-labels-idx1-ubyte, so one of them is incomplete; install'
    )
    with pytest.raises(ValueError, match=message):
        FashionMNIST(str(tmp_path), 'test')


def test_mmpretrain_downloads_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, '_download', lambda self: write_fashion_mnist(tmp_path))
    assert len(FashionMNIST(str(tmp_path), download=True)) == 20


# .ci/run installs the package, so without it the test fails there
@pytest.mark.skipif(
    not PUBLIC.is_dir() and 'CI' not in os.environ, reason='needs the package dataset-fashion-mnist'
)
def test_the_public_files(tmp_path):
    for path in PUBLIC.glob('*.gz'):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    data = FashionMNIST(str(tmp_path), 'test')
    assert np.bincount(data.get_gt_labels()).tolist() == [1000] * 10
    assert data.get_gt_labels()[:5].tolist() == [9, 2, 1, 1, 6]
    statistics = Config.fromfile(CONFIG).data_preprocessor
    every_tenth = np.fromfile(tmp_path / 'train-images-idx3-ubyte', np.uint8, offset=16)[::10]
    assert [every_tenth.mean()] == pytest.approx(statistics.mean, abs=0.2)
    assert [every_tenth.std()] == pytest.approx(statistics.std, abs=0.2)
