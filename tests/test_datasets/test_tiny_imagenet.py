"""Tiny-ImageNet, on small files in the layouts of the public archive and of its copies."""

import shutil
from pathlib import Path

import pytest
from layouts import IDS, write_tiny_imagenet

from mmkdx.datasets import TinyImageNet


def content(data):
    """The file names and labels of a data set."""
    infos = [data.get_data_info(i) for i in range(len(data))]
    assert all(Path(info['img_path']).is_file() for info in infos)
    return {Path(info['img_path']).name: info['gt_label'] for info in infos}


def test_train(tmp_path):
    write_tiny_imagenet(tmp_path)
    data = TinyImageNet(data_root=str(tmp_path))
    # in ascending order of the ids, and not in that of wnids.txt
    assert data.metainfo['classes'] == IDS and not data.test_mode
    assert content(data) == {f'{w}_{i}.JPEG': label for label, w in enumerate(IDS) for i in (0, 1)}


@pytest.mark.parametrize('val', ['public', 'ids', 'ids-images'])
@pytest.mark.parametrize('leftover', [True, False])
@pytest.mark.parametrize('texts', [True, False])
def test_val(val, leftover, texts, tmp_path):
    write_tiny_imagenet(tmp_path, val=val)
    if val != 'public':
        if leftover:  # other folders are no classes, whatever is in them
            for name in ('images', 'new', 'n02231487-copy'):
                (tmp_path / 'val' / name).mkdir()
            shutil.copy(next((tmp_path / 'val').rglob('val_0.JPEG')), tmp_path / 'val/new/a.JPEG')
        if not texts:
            (tmp_path / 'val/val_annotations.txt').unlink()
    data = TinyImageNet(data_root=str(tmp_path), split='val')
    assert data.metainfo['classes'] == IDS and data.test_mode
    assert content(data) == {f'val_{i}.JPEG': (2, 1, 0)[i % 3] for i in range(6)}


def test_without_texts_there_are_200_classes(tmp_path):
    ids = [f'n{number:08}' for number in range(1, 201)]
    write_tiny_imagenet(tmp_path, ids, per_class=1, val='ids')
    for path in (tmp_path / 'wnids.txt', tmp_path / 'val/val_annotations.txt'):
        path.unlink()
    for split in ('train', 'val'):
        data = TinyImageNet(data_root=str(tmp_path), split=split)
        assert data.metainfo['classes'] == tuple(ids)
    assert content(data)['val_0.JPEG'] == 199
    shutil.rmtree(tmp_path / 'train/n00000007')
    sentence = 'train has images of 199 classes, and not of the 200 of Tiny-ImageNet; unpack http'
    with pytest.raises(ValueError, match=sentence):
        TinyImageNet(data_root=str(tmp_path))


def test_own_names_of_classes_stay(tmp_path):
    write_tiny_imagenet(tmp_path)
    data = TinyImageNet(data_root=str(tmp_path), classes=('goldfish', 'mantis', 'made up'))
    assert data.metainfo['classes'] == ('goldfish', 'mantis', 'made up')


def test_blank_lines(tmp_path):
    write_tiny_imagenet(tmp_path)
    with open(tmp_path / 'val/val_annotations.txt', 'a') as file:
        file.write('\n \n')
    assert len(TinyImageNet(data_root=str(tmp_path), split='val')) == 6


@pytest.mark.parametrize('split', ['train', 'val'])
def test_missing(split, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        TinyImageNet(data_root=str(tmp_path), split=split)
    assert str(error.value) == (
        f'there are neither folders named by WordNet ids nor val_annotations.txt in {tmp_path}/{split} '
        '(data_root and split of TinyImageNet); unpack '
        'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
    )


@pytest.mark.parametrize('gone', ['train/n02231487', 'train/n02231487/images'])
def test_class_is_missing_or_empty(gone, tmp_path):
    write_tiny_imagenet(tmp_path)
    shutil.rmtree(tmp_path / gone)
    sentence = 'train has images of 2 classes, and not of the 3 of wnids.txt; unpack http.* again'
    with pytest.raises(ValueError, match=sentence):
        TinyImageNet(data_root=str(tmp_path))


def test_as_many_other_classes(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / 'train/n02231487').rename(tmp_path / 'train/n00000001')
    with pytest.raises(ValueError, match='images of 3 classes, and not of the 3 of wnids.txt'):
        TinyImageNet(data_root=str(tmp_path))


def test_images_are_missing(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / 'val/images/val_4.JPEG').unlink()
    sentence = 'val/images lacks 1 of the 6 images that val_annotations.txt lists, among them val_4'
    with pytest.raises(FileNotFoundError, match=sentence):
        TinyImageNet(data_root=str(tmp_path), split='val')


def test_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match="TinyImageNet.split is 'test'; it must be one of train, val"
    ):
        TinyImageNet(data_root=str(tmp_path), split='test')
