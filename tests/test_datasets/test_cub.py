"""CUB-200-2011, on small files in the layout of the public archive."""

import shutil
from pathlib import Path

import mmpretrain.datasets
import numpy as np
import pytest
from mmengine.registry import DATASETS as ROOT
from mmengine.registry import DefaultScope
from prototype_layouts import PARTS, write_cub

from mmkdx.datasets.cub import CUB, URL


@pytest.fixture
def archive(tmp_path):
    return str(tmp_path), write_cub(tmp_path)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_samples_are_those_of_the_files(archive, split):
    root, rows = archive
    rows = [row for row in rows if row['train'] == (split == 'train')]
    data = CUB(data_root=root, split=split, parts=True)
    assert len(data) == len(rows) == {'train': 6, 'test': 3}[split]
    assert data.test_mode == (split == 'test')
    assert data.metainfo['parts'] == PARTS and len(data.metainfo['classes']) == 200
    for info, row in zip((data.get_data_info(i) for i in range(len(data))), rows):
        assert info['img_path'] == f'{root}/images/{row["name"]}'
        assert Path(info['img_path']).is_file() and info['gt_label'] == row['label']
        x, y, width, height = row['box']
        assert info['gt_bboxes'].tolist() == [[x, y, x + width, y + height]]
        assert info['gt_keypoints'].shape == (1, 15, 2)
        assert info['gt_keypoints'][0].tolist() == [list(point[:2]) for point in row['points']]
        assert info['gt_keypoints_visible'].tolist() == [[point[2] for point in row['points']]]
        for key in ('gt_bboxes', 'gt_keypoints', 'gt_keypoints_visible'):
            assert info[key].dtype == np.float32


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mmpretrains_reader_reads_the_same(archive, split):
    theirs = mmpretrain.datasets.CUB(data_root=archive[0], split=split)
    ours = CUB(data_root=archive[0], split=split)
    assert ours.metainfo == theirs.metainfo
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
        info = ours.get_data_info(i)
        assert info.pop('gt_bboxes').shape == (1, 4)
        assert info == theirs.get_data_info(i)


def test_test_mode_may_be_given(archive):
    assert CUB(data_root=archive[0], split='test', test_mode=False).test_mode is False


def test_order_of_lines_and_blank_lines_do_not_matter(archive):
    root, rows = archive
    names = ('image_class_labels', 'train_test_split', 'bounding_boxes', 'parts/part_locs')
    for name in ('images', *names):
        path = Path(root, f'{name}.txt')
        lines = path.read_text().splitlines()
        path.write_text('\n\n'.join(lines if name == 'images' else lines[::-1]) + '\n\n\n')
    data = CUB(data_root=root, parts=True)
    rows = [row for row in rows if row['train']]
    assert data.get_gt_labels().tolist() == [row['label'] for row in rows]
    for i, row in enumerate(rows):
        info = data.get_data_info(i)
        assert info['gt_bboxes'][0, :2].tolist() == list(row['box'][:2])
        assert info['gt_keypoints'][0, :, 1].tolist() == [point[1] for point in row['points']]


def test_name_leads_to_mmpretrains_class_in_its_scope_and_to_the_subclass_in_mmkdxs():
    for scope, expected in (('mmpretrain', mmpretrain.datasets.CUB), ('mmkdx', CUB)):
        with DefaultScope.overwrite_default_scope(scope):
            with ROOT.switch_scope_and_registry(None) as registry:
                assert registry.get('CUB') is expected


# Errors


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        CUB(data_root=str(tmp_path / 'a'))
    assert str(error.value) == (
        f'there is no file {tmp_path / "a/images.txt"} (below data_root of CUB); unpack {URL}'
    )


FILES = ('images', 'image_class_labels', 'train_test_split', 'bounding_boxes')
FILES = [f'{name}.txt' for name in (*FILES, 'parts/parts', 'parts/part_locs')]


@pytest.mark.parametrize('name', FILES)
def test_missing_text(archive, name):
    root = Path(archive[0])
    (root / name).unlink()
    if name.startswith('parts'):
        CUB(data_root=str(root))
    with pytest.raises(FileNotFoundError, match=f'there is no file {root / name} .below data_root'):
        CUB(data_root=str(root), parts=True)


@pytest.mark.parametrize('split, count', [('train', 6), ('test', 3)])
def test_missing_images(archive, split, count):
    root, rows = Path(archive[0]), [r for r in archive[1] if r['train'] == (split == 'train')]
    (root / 'images' / rows[1]['name']).unlink()
    CUB(data_root=str(root), split='test' if split == 'train' else 'train')
    message = (
        f'{root}/images lacks 1 of the {count} images that images.txt lists, among them '
        f'{rows[1]["name"]}; unpack {URL} again'
    )
    with pytest.raises(FileNotFoundError) as error:
        CUB(data_root=str(root), split=split)
    assert str(error.value) == message
    shutil.rmtree(root / 'images')
    with pytest.raises(FileNotFoundError, match=f'lacks {count} of the {count} images'):
        CUB(data_root=str(root), split=split)


@pytest.mark.parametrize('name', [n for n in FILES if n not in ('images.txt', 'parts/parts.txt')])
@pytest.mark.parametrize('shorter', ['file', 'images.txt'])
def test_truncated_text(archive, name, shorter):
    root = Path(archive[0])
    path = root / (name if shorter == 'file' else 'images.txt')
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(lines[: -15 if path.name == 'part_locs.txt' else -1]))
    if shorter == 'images.txt':
        for other in FILES[1:]:  # down to the file in question, all are short by an image
            if other == name:
                break
            lines = (root / other).read_text().splitlines()
            (root / other).write_text('\n'.join(lines[:-1] if 'parts' not in other else lines))
    verbs = ('lacks', 'has') if shorter == 'file' else ('has', 'lacks')
    message = f'{root / name} {verbs[0]} image 9, and {root}/images.txt {verbs[1]} it; unpack'
    with pytest.raises(ValueError, match=message):
        CUB(data_root=str(root), parts=True)


@pytest.mark.parametrize(
    'name, old, new, message',
    [
        ('images.txt', '2 001.', '001.', r"images.txt: a line is '001.*' and not a number and a"),
        ('image_class_labels.txt', '3 1\n', '3\n', "a line is '3' and not a number and a text"),
        ('image_class_labels.txt', '3 1\n', '3 201\n', "image 3 has '201'; classes are 1 to 200"),
        ('image_class_labels.txt', '3 1\n', '3 0\n', "image 3 has '0'; classes are 1 to 200"),
        ('train_test_split.txt', '3 1\n', '3 2\n', "image 3 has '2'; 1 is training, 0 is test"),
        ('bounding_boxes.txt', '3 12.0 5.0', '3 12.0', 'bounding_boxes.txt is damaged .*unpack'),
        ('bounding_boxes.txt', '3 12.0', '3 x', 'bounding_boxes.txt is damaged .*unpack'),
        ('parts/part_locs.txt', '\n3 4 ', '\n3 5 ', 'part_locs.txt has 135 lines and not one for'),
        ('parts/parts.txt', '15 throat\n', '', 'each of the 14 parts of each of 9 images; unpack'),
    ],
)
def test_damaged_text(archive, name, old, new, message):
    path = Path(archive[0], name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        CUB(data_root=archive[0], parts=True)


@pytest.mark.parametrize('columns', [4, 6])
def test_other_columns(archive, columns):
    path = Path(archive[0], 'bounding_boxes.txt')
    rows = [line.split() + ['7'] for line in path.read_text().splitlines()]
    path.write_text('\n'.join(' '.join(row[:columns]) for row in rows))
    with pytest.raises(ValueError, match=f'boxes.txt has {columns} columns instead of 5; unpack'):
        CUB(data_root=archive[0])


def test_split_without_images(archive):
    path = Path(archive[0], 'train_test_split.txt')
    path.write_text(path.read_text().replace(' 0', ' 1'))
    with pytest.raises(ValueError, match="train_test_split.txt lists no image of the split 'test'"):
        CUB(data_root=archive[0], split='test')


def test_unknown_split(archive):
    with pytest.raises(ValueError, match="CUB.split is 'val'; it must be one of train, test"):
        CUB(data_root=archive[0], split='val')
