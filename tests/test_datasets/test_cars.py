"""Stanford Cars, on small files in the layouts of the public archives and of their copies."""

import re
import shutil
from pathlib import Path

import mmpretrain.datasets
import numpy as np
import pytest
from mmengine.registry import DATASETS as ROOT
from mmengine.registry import DefaultScope
from prototype_layouts import CAR_FIELDS, write_cars, write_records
from scipy.io import loadmat, savemat

from mmkdx.datasets.cars import SOURCE, StanfordCars

LAYOUTS = ('devkit', 'doubled', 'all')
LABELS = dict(train='devkit/cars_train_annos.mat', test='devkit/cars_test_annos_withlabels.mat')
SPLITS = pytest.mark.parametrize('split', list(LABELS))


def check(root, split, rows, folder):
    """Compares a data set with the records that were written."""
    data = StanfordCars(data_root=str(root), split=split)
    assert len(data) == len(rows) and data.test_mode == (split == 'test')
    for i, row in enumerate(rows):
        info = data.get_data_info(i)
        assert info['img_path'] == str(root / folder / row['fname'])
        assert Path(info['img_path']).is_file()
        assert info['gt_label'] == row['class'] - 1 and type(info['gt_label']) is int
        assert info['gt_bboxes'].dtype == np.float32
        assert info['gt_bboxes'].tolist() == [[row[field] for field in CAR_FIELDS[:4]]]
    return data


@SPLITS
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('count', [1, 4])
def test_samples_are_those_of_the_files(layout, split, count, tmp_path):
    """Also where a file has one record, which readers of .mat files squeeze."""
    rows = write_cars(tmp_path, layout, count)[split]
    folder = dict(devkit=f'cars_{split}', doubled=f'cars_{split}/cars_{split}', all='car_ims')
    data = check(tmp_path, split, rows, folder[layout])
    assert data.metainfo['classes'][173] == 'Ram C/V Cargo Van Minivan 2012'


@SPLITS
@pytest.mark.parametrize('layout', ['devkit', 'all'])
def test_mmpretrains_reader_reads_the_same(layout, split, tmp_path):
    write_cars(tmp_path, layout)
    theirs = mmpretrain.datasets.StanfordCars(data_root=str(tmp_path), split=split)
    ours = StanfordCars(data_root=str(tmp_path), split=split)
    assert ours.metainfo == theirs.metainfo and ours.test_mode == theirs.test_mode
    assert len(ours) == len(theirs) == 4
    for i in range(4):
        info = ours.get_data_info(i)
        assert info.pop('gt_bboxes').shape == (1, 4)
        assert info == theirs.get_data_info(i)
    assert repr(ours) == repr(theirs)


def test_labels_of_the_test_split_beside_the_devkit(tmp_path):
    """Where torchvision expects them."""
    rows = write_cars(tmp_path)['test']
    shutil.move(tmp_path / LABELS['test'], tmp_path)
    check(tmp_path, 'test', rows, 'cars_test')


@SPLITS
@pytest.mark.parametrize('layout', ['devkit', 'doubled'])
def test_stray_list_of_all_images(layout, split, tmp_path):
    rows = write_cars(tmp_path, layout)[split]
    write_cars(tmp_path / 'all', 'all', count=2)
    shutil.move(tmp_path / 'all/cars_annos.mat', tmp_path)
    folder = f'cars_{split}' if layout == 'devkit' else f'cars_{split}/cars_{split}'
    check(tmp_path, split, rows, folder)


def test_numbers_that_were_saved_as_float64(tmp_path):
    rows = write_cars(tmp_path)['train']
    records = np.empty((1, len(rows)), dtype=[(field, object) for field in rows[0]])
    for record, row in zip(records[0], rows):
        for field, value in row.items():
            record[field] = value if isinstance(value, str) else np.array([[float(value)]])
    savemat(tmp_path / LABELS['train'], {'annotations': records})
    check(tmp_path, 'train', rows, 'cars_train')


def test_test_mode_may_be_given(tmp_path):
    write_cars(tmp_path)
    assert StanfordCars(str(tmp_path), 'test', test_mode=False).test_mode is False


def test_name_leads_to_mmpretrains_class_in_its_scope_and_to_the_subclass_in_mmkdxs():
    pairs = ('mmpretrain', mmpretrain.datasets.StanfordCars), ('mmkdx', StanfordCars)
    for scope, expected in pairs:
        with DefaultScope.overwrite_default_scope(scope):
            with ROOT.switch_scope_and_registry(None) as registry:
                assert registry.get('StanfordCars') is expected


# Errors


def sentence(root, split='train'):
    """What is said of a folder that cannot be read."""
    with pytest.raises(FileNotFoundError) as error:
        StanfordCars(data_root=str(root), split=split)
    return str(error.value)


def test_nothing_there(tmp_path):
    where = f'{tmp_path / "a"} (data_root of StanfordCars)'
    assert sentence(tmp_path / 'a') == f'there is no folder {where}; {SOURCE}'


@SPLITS
@pytest.mark.parametrize(
    'there, reason',
    [
        ([], ''),
        (['car_ims'], '; car_ims is of no use without cars_annos.mat'),
        (['cars_annos.mat'], '; cars_annos.mat is of no use without car_ims'),
    ],
)
def test_no_labels(split, there, reason, tmp_path):
    write_cars(tmp_path / 'all', 'all')
    for name in there:
        shutil.move(tmp_path / 'all' / name, tmp_path)
    name = Path(LABELS[split]).name
    assert sentence(tmp_path, split) == (
        f'there is neither devkit/{name} nor {name} in {tmp_path} (data_root of StanfordCars)'
        f'{reason}; {SOURCE}'
    )


def test_labels_of_the_test_split_are_a_separate_file(tmp_path):
    write_cars(tmp_path)
    (tmp_path / LABELS['test']).unlink()
    StanfordCars(data_root=str(tmp_path))
    assert '(data_root of StanfordCars); devkit/cars_test_annos.mat has no classes; ' in sentence(
        tmp_path, 'test'
    )


@SPLITS
def test_no_folder_of_images(split, tmp_path):
    write_cars(tmp_path)
    shutil.rmtree(tmp_path / f'cars_{split}')
    assert sentence(tmp_path, split) == (
        f'there is no folder cars_{split} in {tmp_path} (data_root of StanfordCars); {SOURCE}'
    )


@SPLITS
@pytest.mark.parametrize('layout', LAYOUTS)
def test_missing_images(layout, split, tmp_path):
    row = write_cars(tmp_path, layout)[split][2]
    if layout == 'all':
        folder, name, where = 'car_ims', f'car_ims/{row["fname"]}', tmp_path
    else:
        folder, name = f'cars_{split}' + f'/cars_{split}' * (layout == 'doubled'), row['fname']
        where = tmp_path / folder
    (tmp_path / folder / row['fname']).unlink()
    listed = 'cars_annos.mat' if layout == 'all' else Path(LABELS[split]).name
    assert sentence(tmp_path, split) == (
        f'{where} lacks 1 of the 4 images that {listed} lists, among them {name}; {SOURCE}'
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[:700])


def text(path):
    path.write_text('an error page')


def another(path):
    savemat(path, {'x': np.ones(3)})


@pytest.mark.parametrize('damage', [truncate, text, another])
@pytest.mark.parametrize('layout', ['devkit', 'all'])
def test_damaged_labels(layout, damage, tmp_path):
    write_cars(tmp_path, layout)
    path = tmp_path / ('cars_annos.mat' if layout == 'all' else LABELS['train'])
    damage(path)
    with pytest.raises(ValueError, match=f'{path} is no complete copy of {path.name} .*; the orig'):
        StanfordCars(data_root=str(tmp_path))


@pytest.mark.parametrize(
    'layout, field', [('devkit', 'class'), ('devkit', 'fname'), ('all', 'test'), ('all', 'bbox_y2')]
)
def test_labels_without_a_field(layout, field, tmp_path):
    rows = write_cars(tmp_path, layout)['train']
    path = tmp_path / ('cars_annos.mat' if layout == 'all' else LABELS['train'])
    if layout == 'all':
        rows = [
            dict(relative_im_path='car_ims/000001.jpg', **{k: row[k] for k in CAR_FIELDS}, test=0)
            for row in rows
        ]
    write_records(path, [{k: v for k, v in row.items() if k != field} for row in rows])
    message = f'{path} has no field {field}, so it is no copy of {path.name}; {SOURCE}'
    with pytest.raises(ValueError, match=re.escape(message)):
        StanfordCars(data_root=str(tmp_path))


def test_labels_that_are_no_records(tmp_path):
    write_cars(tmp_path)
    savemat(tmp_path / LABELS['train'], {'annotations': np.ones(3)})
    with pytest.raises(ValueError, match='has no field bbox_x1, bbox_y1, .*, class, fname, so it'):
        StanfordCars(data_root=str(tmp_path))


@pytest.mark.parametrize('label', [0, 197])
def test_classes_out_of_range(label, tmp_path):
    rows = write_cars(tmp_path)['train']
    rows[1]['class'] = label
    write_records(tmp_path / LABELS['train'], rows)
    with pytest.raises(ValueError, match=f'00002.jpg has class {label}; they are 1 to 196'):
        StanfordCars(data_root=str(tmp_path))


def test_split_without_images(tmp_path):
    write_cars(tmp_path, 'all')
    rows = loadmat(tmp_path / 'cars_annos.mat', squeeze_me=True)['annotations']
    rows = [dict(zip(row.dtype.names, row.item())) for row in rows.reshape(-1, 1)[:, 0]]
    write_records(tmp_path / 'cars_annos.mat', [dict(row, test=1) for row in rows])
    with pytest.raises(ValueError, match="cars_annos.mat lists no image of the split 'train'"):
        StanfordCars(data_root=str(tmp_path))


def test_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match="StanfordCars.split is 'val'; it must be one of train, test"
    ):
        StanfordCars(str(tmp_path), 'val')
