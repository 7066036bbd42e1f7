"""STL-10, on small files in the layout of the public ones."""

import numpy as np
import pytest
from layouts import write_stl10
from torchvision import datasets

from mmkdx.datasets import STL10


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'stl10_binary'
    write_stl10(folder)
    return folder


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('serialize', [True, False])
def test_samples_are_those_of_the_files(split, serialize, tmp_path):
    folder = tmp_path / 'stl10_binary'
    pixels = write_stl10(folder)
    assert not (folder / 'unlabeled_X.bin').exists()
    data = STL10(data_root=str(folder), split=split, serialize_data=serialize)
    assert len(data) == 6 and data.test_mode == (split == 'test')
    assert data.get_gt_labels().tolist() == [0, 1, 9, 3, 4, 5]
    assert data.metainfo['classes'][2] == 'car' and data.metainfo['classes'][9] == 'truck'
    for i in (0, 5, 3):
        info = data.get_data_info(i)
        assert set(info) == {'img', 'gt_label', 'sample_idx'}
        assert info['img'].dtype == np.uint8 and info['img'].flags['C_CONTIGUOUS']
        assert (info['img'] == pixels[i]).all()


def test_torchvision_reads_the_same(folder, monkeypatch):
    for name in ('train_list', 'test_list'):
        unchecked = [[file, None] for file, _ in getattr(datasets.STL10, name)]
        monkeypatch.setattr(datasets.STL10, name, unchecked)
    (folder / 'unlabeled_X.bin').touch()
    (folder / 'class_names.txt').write_text('\n'.join(STL10.METAINFO['classes']))
    theirs = datasets.STL10(str(folder.parent), folds=7)
    ours = STL10(data_root=str(folder), fold=7)
    assert theirs.classes == list(STL10.METAINFO['classes'])
    assert len(ours) == len(theirs) == 3
    for i in range(3):
        image, label = theirs[i]
        info = ours.get_data_info(i)
        assert (np.asarray(image) == info['img']).all() and label == info['gt_label']


def test_missing(folder, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        STL10(data_root=str(tmp_path / 'elsewhere'))
    assert str(error.value) == (
        f'there is no file {tmp_path}/elsewhere/train_y.bin (below data_root of STL10); unpack '
        'http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz'
    )
    (folder / 'test_X.bin').unlink()
    with pytest.raises(FileNotFoundError, match='no file .*/test_X.bin'):
        STL10(data_root=str(folder), split='test')
    (folder / 'fold_indices.txt').unlink()
    assert len(STL10(data_root=str(folder))) == 6
    with pytest.raises(FileNotFoundError, match='no file .*/fold_indices.txt'):
        STL10(data_root=str(folder), fold=0)


def test_incomplete(folder):
    images = folder / 'train_X.bin'
    images.write_bytes(images.read_bytes()[:-1])
    sentence = (
        'train_X.bin has 165,887 bytes instead of 27,648 for each of the 6 labels in train_y.bin'
    )
    with pytest.raises(ValueError, match=sentence):
        STL10(data_root=str(folder))


@pytest.mark.parametrize('label', [0, 11])
def test_wrong_labels(folder, label):
    np.array([1, 2, 10, label, 5, 6], np.uint8).tofile(folder / 'train_y.bin')
    with pytest.raises(ValueError, match=rf'train_y.bin has the labels \[{label}\]; .* 1 to 10'):
        STL10(data_root=str(folder))


@pytest.mark.parametrize('text', ['0 1\n' * 9, '0 6\n' * 10, '\n' * 10, '0 -1\n' * 10])
def test_wrong_folds(folder, text):
    (folder / 'fold_indices.txt').write_text(text)
    with pytest.raises(ValueError, match='does not have ten lines of indices of the 6 training'):
        STL10(data_root=str(folder), fold=0)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(split='val'), "STL10.split is 'val'; it must be one of train, test"),
        (dict(fold=10), 'STL10.fold is 10; it must be an integer of at least 0 and of at most 9'),
        (dict(fold=0, split='test'), "fold goes with split 'train'; it is 0 with 'test'"),
    ],
)
def test_wrong_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        STL10(data_root=str(folder), **arguments)
