"""Sizes that files claim are checked before memory is taken."""

import io

import cv2
import mmcv
import numpy as np
import pytest
from campaign.hostile_files import ARRAYS, IMAGES
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmkdx.bounds import TooLargeError, check_bytes, check_image, install, read_array

RAISE = 'set MMKDX_MAX_IMAGE_PIXELS in the environment to raise the limit'


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('name', IMAGES)
def test_an_image_that_claims_too_much(tmp_path, name, backend):
    path = tmp_path / 'bomb.png'
    path.write_bytes(IMAGES[name](None))
    with pytest.raises(TooLargeError) as caught:
        LoadImageFromFile(imdecode_backend=backend)(dict(img_path=str(path)))
    size = ' of 12,000 x 12,000 pixels' if '12,000' in name else ''
    assert (
        str(caught.value)
        == f'{path}: an image{size} is beyond the limit of 89,478,485 pixels; {RAISE}'
    )


def test_the_limit_itself(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 12)
    good, large = (cv2.imencode('.png', np.zeros((3, n), np.uint8))[1].tobytes() for n in (4, 5))
    assert mmcv.imfrombytes(good).shape == (3, 4, 3)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(TooLargeError, match='of 5 x 3'),
    ):
        mmcv.imfrombytes(large)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(TooLargeError, match='of 5 x 3'),
    ):
        check_image(io.BytesIO(large))
    check_bytes(36)
    with pytest.raises(
        TooLargeError, match=f'of 37 bytes is beyond the limit of 36 bytes; {RAISE}'
    ):
        check_bytes(37)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    assert mmcv.imfrombytes(large).shape == (3, 5, 3)
    check_bytes(1 << 60)


def test_the_environment_sets_the_limit(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(mmcv.image.io, 'imfrombytes', mmcv.image.io.imfrombytes.__wrapped__)
    for module in (mmcv, mmcv.image):
        monkeypatch.setattr(module, 'imfrombytes', module.imfrombytes)
    monkeypatch.setattr(LoadImageFromFile, 'transform', LoadImageFromFile.transform)
    monkeypatch.setenv('MMKDX_MAX_IMAGE_PIXELS', '2e9')
    with pytest.raises(
        ValueError, match="MMKDX_MAX_IMAGE_PIXELS is '2e9'; it must be a number of pix"
    ):
        install()
    monkeypatch.setenv('MMKDX_MAX_IMAGE_PIXELS', '200000000')
    install()
    assert Image.MAX_IMAGE_PIXELS == 200_000_000


def test_what_pillow_does_not_know_is_left_to_the_decoder():
    assert mmcv.imfrombytes(b'no image at all') is None


@pytest.mark.parametrize('name', ARRAYS)
def test_a_hostile_array(tmp_path, name):
    class Trap:
        mark, expression = tmp_path / 'mark', f'__import__("os").mkdir("{tmp_path}/mark")'

    path = tmp_path / 'array.npy'
    path.write_bytes(ARRAYS[name](Trap))
    with pytest.raises(ValueError):
        read_array(path)
    assert not Trap.mark.exists()


def test_an_array_is_read_into_memory(tmp_path):
    np.save(tmp_path / 'array.npy', np.arange(6.0).reshape(2, 3))
    found = read_array(tmp_path / 'array.npy')
    assert type(found) is np.ndarray and found.flags.writeable and found[1].tolist() == [3, 4, 5]
