"""Paths in lists stay below the data root."""

import pytest
from campaign import hostile
from campaign.hostile_files import Trap, names
from PIL import Image

from mmkdx.datasets import CUB, ImageList, StanfordCars, TinyImageNet, Waterbirds
from mmkdx.datasets.listing import check_images, leaves, list_text, read_size, rejected_text


@pytest.mark.parametrize(
    ('name', 'outside'),
    [
        ('a.jpg', False),
        ('a/../b.jpg', False),
        ('a..b/..c', False),
        ('./a', False),
        ('../a', True),
        ('a/../../b', True),
        ('/etc/hostname', True),
        ('..', True),
        ('..\\a', True),
    ],
)
def test_what_leaves_a_folder(name, outside):
    assert leaves(name) == outside


@pytest.mark.parametrize('place', ['above', 'absolute', 'down and up'])
@pytest.mark.parametrize('cls', [CUB, ImageList, StanfordCars, TinyImageNet, Waterbirds])
def test_lists_that_leave_the_folder_are_refused(cls, place, tmp_path):
    trap = Trap(tmp_path / 'in', tmp_path / 'mark', tmp_path / 'out/secret.jpg')
    trap.folder.mkdir(), trap.secret.parent.mkdir()
    trap.secret.touch()
    name = names(trap)[place]
    sentence = (
        f'lists {name!r}, which is outside of {trap.folder}/data.*; pass allow_outside=True if'
    )
    with pytest.raises(ValueError, match=sentence):
        hostile._list(trap, cls, name)


def test_unless_it_is_asked_for(tmp_path):
    (tmp_path / 'a.jpg').touch()
    (tmp_path / 'data').mkdir()
    check_images(tmp_path / 'data', ['../a.jpg'], 'x.txt', 'advice', allow_outside=True)


def test_a_link_is_the_users_own(tmp_path):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there/a.jpg').touch()
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/link').symlink_to(tmp_path / 'there')
    check_images(tmp_path / 'data', ['link/a.jpg'], 'x.txt', 'advice')


def test_a_users_own_images_are_listed_again(tmp_path):
    for name, text in (('train.txt', 'gone.png 0\n'), ('classes.txt', 'a\n')):
        (tmp_path / name).write_text(text)
    (tmp_path / 'data').mkdir()
    given = dict(data_root=str(tmp_path / 'data'), ann_file=str(tmp_path / 'train.txt'))
    message = 'lacks 1 of the 1 .* gone.png; list your images again by tools/new_config.py$'
    with pytest.raises(FileNotFoundError, match=message):
        ImageList(**given)
    (tmp_path / 'classes.txt').unlink()
    with pytest.raises(FileNotFoundError, match='list your images again by tools/new_config.py$'):
        ImageList(**given)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', '1'])
def test_the_size_of_an_image(tmp_path, mode):
    Image.new(mode, (7, 5)).save(tmp_path / 'a.png')
    assert read_size(tmp_path / 'a.png') == (5, 7, mode)


def test_the_text_of_lists():
    rows = [('b', 1), ('c', 0), ('a\udcff', 0)]
    assert list_text(rows) == b'a\xff 0\nc 0\nb 1\n'
    assert rejected_text({'a\n\udcff': 'no\timage'}) == 'a\\n\\udcff\tno\\timage\n'
