"""Folders of images without labels."""

import pytest
from mmpretrain.datasets import CustomDataset

from mmkdx.datasets import UnlabelledImages


def test_images_below_a_folder(tmp_path):
    for name in ('b.JPG', 'a/c.png', 'a/d/e.tif', 'notes.txt', 'a/table.csv'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    data = UnlabelledImages(str(tmp_path))
    found = [data.get_data_info(i) for i in range(len(data))]
    names = ['a/c.png', 'a/d/e.tif', 'b.JPG']
    assert found == [
        dict(img_path=str(tmp_path / name), sample_idx=i) for i, name in enumerate(names)
    ]
    other = CustomDataset(str(tmp_path), with_label=False)
    expected = {other.get_data_info(i)['img_path'] for i in range(len(other))}
    assert {each['img_path'] for each in found} == expected
    assert len(UnlabelledImages(tmp_path, extensions=('.png',))) == 1


def test_a_folder_that_is_missing_or_has_no_image(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        UnlabelledImages(str(tmp_path / 'none'))
    assert str(error.value) == (
        f'there is no folder {tmp_path / "none"} (data_root of UnlabelledImages)'
    )
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(FileNotFoundError) as error:
        UnlabelledImages(str(tmp_path))
    assert str(error.value) == (
        f'the folder {tmp_path} (data_root of UnlabelledImages) holds no image (.bmp, .jpeg, .jpg, '
        '.pgm, .png, .ppm, .tif)'
    )
    with pytest.raises(ValueError, match='data_root is 3; it must be the path of a folder'):
        UnlabelledImages(3)
