"""Waterbirds, on small files in the layout of the public ones."""

import pytest
from layouts import write_waterbirds

from mmkdx.datasets import Waterbirds


@pytest.mark.parametrize('split, code', [('train', 0), ('val', 1), ('test', 2)])
def test_samples_are_those_of_the_table(split, code, tmp_path):
    rows = [row for row in write_waterbirds(tmp_path) if row['split'] == code]
    data = Waterbirds(data_root=str(tmp_path), split=split)
    infos = [data.get_data_info(i) for i in range(len(data))]
    assert [info['img_path'] for info in infos] == [
        str(tmp_path / row['img_filename']) for row in rows
    ]
    # landbird on water, landbird on land, waterbird on water, waterbird on land
    assert [info['gt_label'] for info in infos] == [0, 0, 1, 1]
    assert [info['place'] for info in infos] == [1, 0, 1, 0]
    assert [info['group'] for info in infos] == [1, 0, 3, 2]
    assert data.test_mode == (split != 'train')
    assert data.metainfo['classes'] == ('landbird', 'waterbird')


def test_missing_table(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Waterbirds(data_root=str(tmp_path))
    assert str(error.value) == (
        f'there is no file {tmp_path}/metadata.csv (below data_root of Waterbirds); unpack '
        'https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz'
    )


def test_missing_images_of_the_split(tmp_path):
    rows = write_waterbirds(tmp_path)
    name = next(row['img_filename'] for row in rows if row['split'] == 1)
    (tmp_path / name).unlink()
    assert len(Waterbirds(data_root=str(tmp_path), split='train')) == 4
    sentence = f'{tmp_path} lacks 1 of the 4 images that metadata.csv lists, among them {name}; unp'
    with pytest.raises(FileNotFoundError, match=sentence):
        Waterbirds(data_root=str(tmp_path), split='val')


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('place,', 'background,', 'metadata.csv has no column place'),
        ('y,split', 'label,part', 'metadata.csv has no column split, y'),
        ('jpg,0,2,1,', 'jpg,-1,2,1,', r'metadata.csv, line 2: y -1, place 1, split 2; y and place'),
        ('jpg,0,2,0,', 'jpg,0,3,0,', r'metadata.csv, line 3: y 0, place 0, split 3; '),
        ('jpg,1,2,1,', 'jpg,1,2,2,', r'metadata.csv, line 4: y 1, place 2, split 2; '),
    ],
)
def test_wrong_table(old, new, message, tmp_path):
    write_waterbirds(tmp_path)
    table = tmp_path / 'metadata.csv'
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        Waterbirds(data_root=str(tmp_path))


def test_table_without_the_split(tmp_path):
    write_waterbirds(tmp_path)
    table = tmp_path / 'metadata.csv'
    kept = [line for line in table.read_text().splitlines() if ',1,1,' not in line]
    table.write_text('\n'.join(line for line in kept if ',0,1,' not in line))
    with pytest.raises(ValueError, match="metadata.csv lists no image of the split 'val'"):
        Waterbirds(data_root=str(tmp_path), split='val')


def test_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match="Waterbirds.split is 'ood'; it must be one of train, val, test"
    ):
        Waterbirds(data_root=str(tmp_path), split='ood')
