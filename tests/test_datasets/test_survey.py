"""What is found in a user's folder or CSV."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmkdx.datasets.survey import survey


def save(path, size=(12, 10), mode='RGB'):
    """An image of a width and a height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 90).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten images of one class, five of the other, with folders below."""
    for i in range(10):
        save(tmp_path / 'data/cat' / f'{i}.png', (12 + i, 20))
    for i in range(5):
        save(tmp_path / 'data/dog/deep/down' / f'{i}.PNG', (30, 10))
    return tmp_path / 'data'


def test_a_folder_of_classes_is_split(folder):
    (folder / '.hidden').mkdir()
    (folder / '__MACOSX').mkdir()
    (folder / 'cat/._0.png').write_bytes(b'resource fork')
    (folder / 'cat/notes.txt').write_text('no image')
    found = survey(folder)
    assert (found.root, found.classes, found.split) == (folder, ('cat', 'dog'), True)
    assert Counter(label for _, label in found.val) == {0: 2, 1: 1}
    both = [*found.train, *found.val]
    expected = [(f'cat/{i}.png', 0) for i in range(10)]
    assert sorted(both) == expected + [(f'dog/deep/down/{i}.PNG', 1) for i in range(5)]
    # Of 12 to 21, and of 10
    assert found.short_side == np.median([*(min(12 + i, 20) for i in range(10)), *[10] * 5])
    assert found.sentences() == [
        '2 classes, 12 images to train on and 3 to validate on, of 10 x 12 to 20 x 30 pixels (height '
        'x width).',
        '20% of the images of each class are held out for validation.',
    ]


def test_the_split_depends_on_the_seed_alone(folder):
    first = survey(folder)
    assert survey(folder, seed=0) == first
    assert survey(folder, seed=1).val != first.val


@pytest.mark.parametrize('name', ['val', 'valid', 'validation', 'test'])
def test_two_folders_are_taken_as_they_are(tmp_path, name):
    for part, count in (('train', 3), (name, 1)):
        for label in ('a', 'b c'):
            for i in range(count):
                save(tmp_path / part / label / f'{i}.jpg')
    found = survey(tmp_path)
    assert not found.split and found.val == [(f'{name}/a/0.jpg', 0), (f'{name}/b c/0.jpg', 1)]
    assert len(found.train) == 6 and 'held out' not in ' '.join(found.sentences())


def test_a_training_folder_alone_is_split_and_train_may_be_a_class(tmp_path):
    for i in range(2):
        for name in ('x/train/a', 'x/train/b', 'y/train', 'y/bus'):
            save(tmp_path / name / f'{i}.png')
    found = survey(tmp_path / 'x')
    assert found.classes == ('a', 'b') and found.split
    assert all(name.startswith('train/') for name, _ in found.train)
    assert survey(tmp_path / 'y').classes == ('bus', 'train')


def test_a_class_may_lack_images_to_validate_on(tmp_path):
    for name in ('train/a', 'train/b', 'val/b'):
        save(tmp_path / name / '0.png')
    assert 'No image to validate on is of class a.' in survey(tmp_path).sentences()


def test_files_that_cannot_be_read_are_named_and_left_out(folder):
    (folder / 'cat/empty.png').write_bytes(b'')
    (folder / 'cat/page.jpg').write_text('<html>')
    whole = save(folder / 'dog/torn.bmp', (40, 40)).read_bytes()
    (folder / 'dog/torn.bmp').write_bytes(whole[:200])
    save(folder / 'dog/two\nlines.png')
    found = survey(folder)
    reason = found.unreadable.pop('dog/torn.bmp')
    assert reason.startswith('Pillow: image file is truncated')
    assert found.unreadable == {
        'cat/empty.png': 'empty',
        'cat/page.jpg': 'no image',
        'dog/two\nlines.png': 'its name has a line break, which a list cannot hold',
    }
    assert len(found.train) + len(found.val) == 15
    assert (
        'Files that cannot be read are left out, 3 in all: cat/empty.png (empty), cat/page.jpg (no '
        r'image), dog/two\nlines.png (its name has a line break, which a list cannot hold).'
        in found.sentences()
    )
    (folder / 'cat/more.png').write_bytes(b'')
    found = survey(folder)
    assert ', and others.' in found.sentences()[2] and '4' not in found.sentences()[0][:2]


def test_what_a_user_should_know(folder):
    save(folder / 'cat/gray.png', mode='L')
    save(folder / 'cat/alpha.png', mode='RGBA')
    for i in range(200):
        save(folder / 'cat' / f'more{i}.png')
    text = ' '.join(survey(folder).sentences())
    assert 'Grey images, which get three equal channels: 1.' in text
    assert 'Images with an alpha channel, which is dropped: 1.' in text
    assert 'Classes have 4 (dog) to 170 images to train on.' in text


def write_csv(folder, text):
    path = folder / 'labels.csv'
    path.write_text(text)
    return path


def test_a_csv(folder, tmp_path):
    rows = [f'cat/{i}.png;a pet' for i in range(10)]
    rows += [f'{folder}/dog/deep/down/{i}.PNG; dog ' for i in range(5)]
    rows += ['"cat/no;where.png";dog', rows[0], '']
    path = write_csv(folder, '\ufeffID;File;Label\n' + ''.join(f'7;{row}\n' for row in rows if row))
    found = survey(path)
    assert found.classes == ('a pet', 'dog') and found.root == folder and found.split
    assert len(found.train) + len(found.val) == 15
    assert found.unreadable == {'cat/no;where.png': 'No such file or directory'}
    # Images that are not below the folder of the CSV
    (tmp_path / 'else').mkdir()
    other = write_csv(
        tmp_path / 'else',
        'path,label\n' + ''.join(f'../data/cat/{i}.png,{"ab"[i % 2]}\n' for i in range(10)),
    )
    found = survey(other)
    assert found.root == tmp_path and found.train[0][0].startswith('data/cat/')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is no CSV with a header and rows'),
        ('a,b\nx,y\n', "has the columns a, b; call one 'path' (or file, filename, image)"),
        ('path,file,label\nx,y,z\n', "has the columns path, file, label; call one 'path'"),
        ('path,kind\nx,y\n', "call one 'label' (or class, category, target)"),
        ('path,label\ncat/0.png,\n', 'line 2: the path or the label is missing'),
        ('path,label\ncat/0.png\n', 'line 2: the path or the label is missing'),
        (
            'path,label\ncat/0.png,a\ncat/../cat/0.png,b\n',
            "line 3: cat/../cat/0.png is of class 'b' and, in a line before, of class 'a'; an image "
            'has one class',
        ),
        ('path,label\n"cat/0.png,a\n', 'is no CSV with a header and rows'),
        (
            'path,label\ncat/0.png,a\ncat/1.png,b\n',
            "class 'a' has too few readable images to train on: 1",
        ),
        ('path,label\ncat/0.png,a\ncat/1.png,a\n', "has one class, 'a', and two are needed"),
    ],
)
def test_what_is_no_csv(folder, text, message):
    with pytest.raises(ValueError) as error:
        survey(write_csv(folder, text))
    assert str(error.value).startswith('--data: ') and message in str(error.value)


def _nowhere(folder):
    return folder / 'nowhere', FileNotFoundError, 'there is no folder or CSV'


def _no_images(folder):
    (folder / 'a/b').mkdir(parents=True)
    return folder / 'a', FileNotFoundError, 'holds no images; it needs a folder for each class'


def _empty_class(folder):
    (folder / 'empty').mkdir()
    return folder, ValueError, f"the class 'empty' in {folder} has no image"


def _flat(folder):
    return folder / 'cat', ValueError, f'images lie in {folder}/cat itself; put those of each class'


def _one_level_too_high(folder):
    return folder.parent, ValueError, "has one class, 'data', and two are needed; are the folders"


def _strange_class(folder):
    for name in ('train/a', 'train/b', 'val/c'):
        save(folder / 'split' / name / '0.png')
    return (
        folder / 'split',
        ValueError,
        "class 'c' is among the images to validate on and not among",
    )


def _no_good_file_of_a_class(folder):
    for name in ('train/a', 'val/a', 'val/b'):
        save(folder / 'split' / name / '0.png')
    Path(folder / 'split/train/b').mkdir()
    (folder / 'split/train/b/0.png').write_bytes(b'')
    return (
        folder / 'split',
        ValueError,
        "class 'b' has too few readable images to train on: 0; it needs at",
    )


def _no_good_file_to_validate(folder):
    for name in ('train/a', 'train/b'):
        save(folder / 'split' / name / '0.png')
    (folder / 'split/val/a').mkdir(parents=True)
    (folder / 'split/val/a/0.png').write_bytes(b'')
    return folder / 'split', FileNotFoundError, 'has no image to validate on that can be read'


def _control_characters(folder):
    save(folder / 'a\tb/0.png')
    return folder, ValueError, r"the class 'a\\tb' has control characters"


@pytest.mark.parametrize(
    'make',
    [
        *(_nowhere, _no_images, _empty_class, _flat, _one_level_too_high, _strange_class),
        *(_no_good_file_of_a_class, _no_good_file_to_validate, _control_characters),
    ],
)
def test_bad_folders(folder, make):
    path, kind, message = make(folder)
    with pytest.raises(kind) as error:
        survey(path)
    assert str(error.value).startswith('--data: ') and message in str(error.value)
    assert '\n' not in str(error.value)
