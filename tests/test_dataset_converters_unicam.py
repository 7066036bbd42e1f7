"""Lists of PetImages and PlantVillage, from small files in the layouts of the public archives."""

import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from layouts import images
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset, KFoldDataset, LoadImageFromFile
from PIL import Image
from processes import run_script
from tiny import tool

from mmkdx.datasets.image_list import ImageList
from mmkdx.registry import DATASETS

ROOT = Path(__file__).parents[1]
BASE = ROOT / 'configs/_base_/datasets'
converter = tool('dataset_converters/image_list')
PLANTS = converter.LAYOUTS['plantvillage'].classes
PUBLIC = 'https://example.org/images.zip'


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(converter, 'track_iter_progress', lambda tasks: tasks[0])


def save(path, seed=0, size=(24, 32), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images(1, *size, seed=seed)[0]).save(path, **kwargs)


@pytest.fixture
def pets(tmp_path):
    """PetImages with 20 cats and 10 dogs that can be read, and the files that cannot."""
    folder = tmp_path / 'PetImages'
    for name, count in (('Cat', 19), ('Dog', 9)):
        for i in range(count):
            save(folder / name / f'{i}.jpg', seed=i)
        (folder / name / 'Thumbs.db').write_bytes(b'\xd0\xcf\x11\xe0')
    # Readable, whatever their names say
    save(folder / 'Cat/19.jpg', format='BMP')
    save(folder / 'Dog/9.JPG', format='PNG')
    # Not readable
    for name in ('Cat/666.jpg', 'Dog/11702.jpg'):
        (folder / name).write_bytes(b'')
    (folder / 'Dog/12.jpg').write_text('<html>')
    # The header is there, and OpenCV would fill up the rest with grey
    save(folder / 'Dog/11.jpg', size=(96, 128))
    whole = (folder / 'Dog/11.jpg').read_bytes()
    (folder / 'Dog/11.jpg').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'readme[1].txt').write_text('')
    return folder


@pytest.fixture
def plants(tmp_path):
    """PlantVillage with three images of each class."""
    folder = tmp_path / 'raw/color'
    for label, name in enumerate(PLANTS):
        for i in range(3):
            save(
                folder / name / f'0a1b-{i}___RS_HL {label}.JPG', seed=i, size=(8, 8), format='JPEG'
            )
    return folder


def run(folder, *options, name='petimages', out=None):
    """Converts in this process, and yields the lists."""
    out = folder.parent if out is None else out
    converter.main([name, str(folder), str(out), '--workers', '2', *options])
    return {
        path.name: path.read_text(errors='surrogateescape').splitlines()
        for path in out.glob('*.txt')
    }


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# The converter


def test_what_can_be_read_is_listed_and_split(pets, capsys):
    before = files(pets)
    lists = run(pets)
    assert files(pets) == before
    readable = {f'PetImages/Cat/{i}.jpg 0' for i in range(20)}
    readable |= {f'PetImages/Dog/{i}.jpg 1' for i in range(9)} | {'PetImages/Dog/9.JPG 1'}
    assert set(lists['all.txt']) == readable and len(lists['all.txt']) == 30
    assert not set(lists['train.txt']) & set(lists['test.txt'])
    assert set(lists['train.txt'] + lists['test.txt']) == readable
    # each class in the same proportion
    assert Counter(line[-1] for line in lists['test.txt']) == {'0': 4, '1': 2}
    for part in ('all', 'train', 'test'):
        assert lists[f'{part}.txt'] == sorted(
            lists[f'{part}.txt'], key=lambda line: (line[-1], line)
        )
    assert lists['classes.txt'] == ['Cat', 'Dog']
    rejected = dict(line.split('\t') for line in lists['rejected.txt'])
    assert rejected.pop('PetImages/Dog/11.jpg').startswith('Pillow: image file is truncated')
    assert rejected == {
        'PetImages/Cat/666.jpg': 'empty',
        'PetImages/Dog/11702.jpg': 'empty',
        'PetImages/Dog/12.jpg': 'no image',
    }
    captured = capsys.readouterr()
    assert 'rejected.txt: 4 lines' in captured.out and 'all.txt: 30 lines' in captured.out
    assert captured.err == f'Warning: {pets} has 34 images, not 25,000\n'


def test_a_file_that_opencv_cannot_decode_is_rejected(pets):
    with Image.open(pets / 'Cat/3.jpg') as image:
        image.save(pets / 'Cat/3.jpg', 'PCX')
    assert 'PetImages/Cat/3.jpg\tOpenCV cannot decode it' in run(pets)['rejected.txt']


def test_an_image_beyond_the_limit_is_rejected(pets, monkeypatch):
    save(pets / 'Cat' / '3.jpg', seed=0, size=(100, 100), format='JPEG')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9_999)
    (line,) = (each for each in run(pets)['rejected.txt'] if '/Cat/3.jpg' in each)
    assert 'an image of 100 x 100 pixels is beyond the limit of 9,999 pixels' in line


def test_what_cannot_be_opened_is_rejected(pets):
    (pets / 'Cat/folder.jpg').mkdir()
    assert 'PetImages/Cat/folder.jpg\tIs a directory' in run(pets)['rejected.txt']


def test_strange_names(pets, capsys):
    """Bytes that are no text stay as they are; a list cannot hold a line break."""
    names = {
        b'\xff\xfe.jpg': True,
        b'a\tb.jpg': True,
        b'%s #1 "\'.jpg': True,
        '🦜.jpg'.encode(): True,
        b'-.jpg': True,
        b'a' * 251 + b'.jpg': True,
        b'one\ntwo.jpg': False,
        b'one\rtwo.jpg': False,
        b'one\x0ctwo.jpg': False,
        'one\u2028two.jpg'.encode(): False,
    }
    paths = {pets / 'Cat' / os.fsdecode(name): whole for name, whole in names.items()}
    for path in paths:
        shutil.copy(pets / 'Cat/3.jpg', path)
    rejected = run(pets)['rejected.txt']
    assert len(rejected) == 4 + 4
    for shown in (r'one\ntwo', r'one\rtwo', r'one\x0ctwo', r'one\u2028two'):
        assert f'PetImages/Cat/{shown}.jpg\tits name has a line break' in rejected
    data = ImageList(data_root=str(pets.parent), ann_file='all.txt', source=PUBLIC)
    listed = {data[i]['img_path'] for i in range(len(data))}
    assert {path for path in paths if str(path) in listed} == {p for p in paths if paths[p]}
    assert len(listed) == 30 + 6
    image = LoadImageFromFile()(dict(img_path=str(pets / 'Cat' / os.fsdecode(b'\xff\xfe.jpg'))))
    assert image['img'].shape[2] == 3


def test_a_list_that_cannot_be_written_is_named(pets, tmp_path):
    (tmp_path / 'all.txt').mkdir()
    with pytest.raises(SystemExit, match=f'cannot write {tmp_path}/all.txt: Is a directory'):
        run(pets, out=tmp_path)


def test_the_folder_of_the_lists_may_have_any_name(pets, tmp_path, capsys):
    run(pets, out=tmp_path / os.fsdecode(b'a\n\xff'))
    assert f'{tmp_path}/a\\n\\udcff/test.txt: 6 lines' in capsys.readouterr().out


def test_the_split_depends_on_the_seed_alone(pets, tmp_path):
    first = run(pets)
    assert run(pets, '--workers', '1') == first
    other = run(pets, '--seed', '7')
    assert other['all.txt'] == first['all.txt'] and other['test.txt'] != first['test.txt']
    assert len(run(pets, '--test', '0.5')['test.txt']) == 15


def test_mmpretrain_reads_the_lists(pets):
    root = pets.parent
    run(pets)
    for cls, kwargs in ((CustomDataset, {}), (ImageList, dict(source=PUBLIC))):
        data = cls(data_root=str(root), ann_file='all.txt', **kwargs)
        assert len(data) == 30
        info = data.get_data_info(29)
        assert info['img_path'] == str(pets / 'Dog/9.JPG') and info['gt_label'] == 1
    assert data.metainfo['classes'] == ('Cat', 'Dog')


def test_lists_elsewhere_name_images_by_the_way_to_them(pets, tmp_path):
    lists = run(pets, out=tmp_path / 'lists')
    assert '../PetImages/Cat/0.jpg 0' in lists['all.txt']
    given = dict(data_root=str(tmp_path / 'lists'), ann_file='train.txt', source=PUBLIC)
    with pytest.raises(ValueError, match=r'lists .\.\./PetImages/.*, which is outside of .*=True'):
        ImageList(**given)
    data = ImageList(**given, allow_outside=True)
    assert len(data) == 24 and all(Path(data[i]['img_path']).is_file() for i in range(24))


def test_plants_keep_their_labels_under_other_names(plants, tmp_path, capsys):
    # as public listings of the archive sort them
    assert len(PLANTS) == 38 and list(PLANTS) == sorted(PLANTS)
    lists = run(plants, '--test', '0.34', name='plantvillage', out=tmp_path)
    assert lists['classes.txt'] == list(PLANTS)
    assert f'raw/color/{PLANTS[7]}/0a1b-1___RS_HL 7.JPG 7' in lists['all.txt']
    assert PLANTS[7] == 'Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot'
    labels = [int(line.rpartition(' ')[2]) for line in lists['test.txt']]
    assert len(labels) == 39 and set(labels) == set(range(38))
    assert '114 images, not 54,303 to 54,306' in capsys.readouterr().err
    # Mendeley's copy
    for name in PLANTS:
        other = name.replace('Cherry_(including_sour)', 'Cherry').replace('Corn_(maize)', 'Corn')
        (plants / name).rename(plants / other.replace('rust_', 'rust'))
    assert (plants / 'Corn___Common_rust').is_dir() and (plants / 'Cherry___healthy').is_dir()
    for folder in ('Background_without_leaves', '.ipynb_checkpoints', '__MACOSX'):
        save(plants / folder / 'image (1).jpg')
    again = run(plants, '--test', '0.34', name='plantvillage', out=tmp_path)

    def by_image(lines):
        return {line.split('/')[-1] for line in lines}

    assert by_image(again['all.txt']) == by_image(lists['all.txt'])
    assert 'raw/color/Corn___Common_rust/0a1b-0___RS_HL 8.JPG 8' in again['all.txt']
    assert again['classes.txt'] == lists['classes.txt']


def test_the_trap_of_one_level_too_high(pets, plants):
    # mmpretrain's reader says nothing, and everything is of one class
    data = CustomDataset(data_prefix=str(pets.parent))
    assert 'PetImages' in data.CLASSES and not {'Cat', 'Dog'} & set(data.CLASSES)
    for folder in (pets.parent, pets / 'Cat'):
        with pytest.raises(SystemExit) as error:
            run(folder)
        assert str(error.value) == (
            f'{folder} lacks the folders of 2 of the 2 classes, among them Cat; did you mean {pets}?'
        )
    with pytest.raises(SystemExit, match=r'38 of the 38 .* did you mean .*raw/color\?$'):
        run(plants.parents[1], name='plantvillage')


def test_other_folders(pets, plants):
    with pytest.raises(SystemExit) as error:
        run(pets / 'nowhere')
    assert str(error.value) == (
        f'there is no folder {pets / "nowhere"}; unpack '
        'https://www.microsoft.com/en-us/download/details.aspx?id=54765'
    )
    (plants / PLANTS[3]).rename(plants.parent / 'x')
    with pytest.raises(
        SystemExit, match=r'1 of the 38 .* Apple___healthy; unpack https://github.com'
    ):
        run(plants, name='plantvillage')
    (pets / 'Bird').mkdir()
    with pytest.raises(SystemExit, match='has folders that are no class: Bird; remove them'):
        run(pets)


def test_too_few_images(pets):
    for path in (pets / 'Dog').glob('[1-9].*'):
        path.unlink()
    with pytest.raises(
        SystemExit, match='class Dog has too few readable images: 1; a split needs two'
    ):
        run(pets)
    save(pets / 'Dog/1.jpg')
    with pytest.raises(SystemExit, match=r'22 images cannot be split by --test 0.01: '):
        run(pets, '--test', '0.01')


def test_strict_counts(pets):
    with pytest.raises(SystemExit) as error:
        run(pets, '--strict')
    assert str(error.value) == f'{pets} has 34 images, not 25,000'
    assert not (pets.parent / 'all.txt').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (('--test', '1'), '--test is 1.0 and has to be between 0 and 1'),
        (('--test', '0'), '--test is 0.0 and has to be between 0 and 1'),
        (('--workers', '0'), '--workers is 0 and has to be 1 or more'),
        (('--seed', '-1'), '--seed is -1 and has to be 0 or more'),
    ],
)
def test_options(options, message, capsys):
    with pytest.raises(SystemExit):
        converter.parse_args(['petimages', 'a', 'b', *options])
    assert message in capsys.readouterr().err


def test_the_tool_runs(pets):
    path = ROOT / 'tools/dataset_converters/image_list.py'
    done = run_script(path, 'petimages', pets, pets.parent)
    assert done.returncode == 0 and 'test.txt: 6 lines' in done.stdout


# The reader


def write_list(root, lines, classes=('a', 'b')):
    save(root / 'one image.png')
    (root / 'list.txt').write_text(lines)
    if classes:
        (root / 'classes.txt').write_text('\n'.join(classes) + '\n')
    return dict(type='ImageList', data_root=str(root), ann_file='list.txt', source=PUBLIC)


def test_image_list(tmp_path):
    (tmp_path / 'b').mkdir()
    save(tmp_path / 'b/2.jpg')
    cfg = write_list(tmp_path, 'one image.png 1\nb/2.jpg 0\n')
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = DATASETS.build(dict(cfg, pipeline=[dict(type='LoadImageFromFile')], test_mode=True))
    assert data.test_mode and data.metainfo['classes'] == ('a', 'b')
    assert [data[i]['gt_label'] for i in (0, 1)] == [1, 0]
    assert (data[0]['img'][..., ::-1] == images(1, 24, 32)[0]).all()


def test_subsets_share_nothing(tmp_path):
    # A copy that mmengine remembers would turn up in place of what has come to its address
    data = DATASETS.build(write_list(tmp_path, 'one image.png 1\n' * 3))
    (remembered,) = BaseDataset._copy_without_annotation.__defaults__
    remembered = {} if remembered is None else remembered  # None in onedl's mmengine
    before = dict(remembered)
    part = data.get_subset([1, 2])
    assert remembered == before
    assert type(part) is ImageList and len(part) == 2 and len(data) == 3
    assert part.pipeline is not data.pipeline


@pytest.mark.parametrize('line', ['one image.png 2', 'one image.png', '', 'one image.png -1', ' 0'])
def test_bad_lines(line, tmp_path):
    cfg = write_list(tmp_path, f'one image.png 1\n{line}\none image.png 1\n')
    with pytest.raises(
        ValueError, match=r'list.txt, line 2: .* is not a path and a label from 0 to 1'
    ):
        DATASETS.build(cfg)


def test_missing_files(tmp_path):
    cfg = write_list(tmp_path, 'one image.png 1\nthree.png 0\n')
    with pytest.raises(FileNotFoundError) as error:
        DATASETS.build(cfg)
    for part in (
        f'{tmp_path} lacks 1 of the 2 images that list.txt',
        'three.png',
        f'unpack {PUBLIC}',
    ):
        assert part in str(error.value)
    for name in ('classes.txt', 'list.txt'):
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError) as error:
            DATASETS.build(cfg)
        assert str(error.value).endswith(
            f'there is no file {tmp_path / name} (ann_file of ImageList); unpack {PUBLIC} and run '
            'tools/dataset_converters/image_list.py'
        )


# The configs


def load(name, root, monkeypatch, fold=0):
    """A config whose images lie in a folder."""
    monkeypatch.setenv('FOLD', str(fold))
    cfg = Config.fromfile(BASE / f'{name}.py')
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].num_workers = 0
        dataset = cfg[f'{part}_dataloader'].dataset
        dataset.get('dataset', dataset).data_root = str(root)
    return cfg


def loader(cfg, part):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return Runner.build_dataloader(cfg[f'{part}_dataloader'], seed=0)


def paths(data):
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


def test_folds(pets, monkeypatch):
    run(pets)
    every = paths(ImageList(data_root=str(pets.parent), ann_file='all.txt', source=PUBLIC))
    order = list(range(30))
    np.random.default_rng(42).shuffle(order)
    tested = []
    for fold in range(5):
        cfg = load('petimages', pets.parent, monkeypatch, fold)
        train, val, test = (loader(cfg, part).dataset for part in ('train', 'val', 'test'))
        assert isinstance(train, KFoldDataset) and len(train) == 24
        assert not set(paths(train)) & set(paths(val))
        # as KFoldDataset draws them, which is to stay so
        assert paths(val) == paths(test) == [every[i] for i in order[6 * fold : 6 * fold + 6]]
        # the images to test on go through the pipeline for it, and none is replaced by another one
        assert val.dataset.test_mode and test.dataset.test_mode and not train.dataset.test_mode
        assert [type(step).__name__ for step in val.dataset.pipeline.transforms] == [
            *('LoadImageFromFile', 'Resize', 'PackInputs')
        ]
        tested += paths(val)
    assert sorted(tested) == sorted(every)


def test_batches_of_pets(tmp_path, monkeypatch):
    for name in ('Cat', 'Dog'):
        (tmp_path / 'PetImages' / name).mkdir(parents=True)
        for i in range(20):
            # red pictures; what rotations bring in from outside is black
            pixels = np.full((150, 200, 3), (200, 100, 60), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'PetImages/{name}/{i}.jpg')
    run(tmp_path / 'PetImages')
    cfg = load('petimages', tmp_path, monkeypatch)
    np.random.seed(0)
    torch.manual_seed(0)
    data = next(iter(loader(cfg, 'train')))
    inputs = np.stack([each.numpy() for each in data['inputs']]).astype(float)
    assert inputs.shape == (32, 3, 224, 224)
    assert (np.ptp(inputs.max(1), axis=(1, 2)) > 30).sum() > 24  # turned
    centre = inputs[:, :, 112, 112]  # BGR
    assert np.ptp(centre[:, 2]) > 60 and (centre[:, 2] > centre[:, 0]).all()  # brightness, red
    hues = cv2.cvtColor(centre[None].astype(np.uint8), cv2.COLOR_BGR2HSV_FULL)[0, :, 0]
    turns = (hues.astype(int) - 12 + 128) % 256 - 128  # of 17 degrees
    assert turns.min() < -10 and turns.max() > 10 and abs(turns).max() < 0.11 * 256 + 3
    data = next(iter(loader(cfg, 'test')))
    assert len(data['inputs']) == 8 and data['inputs'][0].shape == (3, 224, 224)
    middle = data['inputs'][0].numpy().reshape(3, -1)
    assert abs(middle - [[60], [100], [200]]).max() <= 3


def test_batches_of_plants(plants, tmp_path, monkeypatch):
    run(plants, '--test', '0.5', name='plantvillage', out=tmp_path)
    cfg = load('plantvillage', tmp_path, monkeypatch)
    parts = {}
    for part in ('train', 'val', 'test'):
        data = loader(cfg, part)
        batch = next(iter(data))
        assert len(batch['inputs']) == 16 and batch['inputs'][0].shape == (3, 224, 224)
        assert data.dataset.test_mode == (part != 'train')
        assert data.dataset.metainfo['classes'] == PLANTS
        parts[part] = set(paths(data.dataset))
    assert parts['val'] == parts['test'] and not parts['train'] & parts['test']
    assert len(parts['train'] | parts['test']) == 114


def test_missing_data_is_said_by_the_config(tmp_path, monkeypatch):
    for name, source in (('petimages', 'id=54765'), ('plantvillage', 'PlantVillage-Dataset')):
        cfg = load(name, tmp_path, monkeypatch)
        with pytest.raises(FileNotFoundError, match=rf'no file {tmp_path}.*unpack https.*{source}'):
            loader(cfg, 'train')
        # as the converter says it
        assert converter.LAYOUTS[name].source in str(cfg.train_dataloader.dataset)


@pytest.mark.parametrize(
    'fold, message', [('5', 'FOLD is 5; the folds of PetImages are 0 to 4'), ('-1', 'FOLD is -1;')]
)
def test_folds_that_are_not_there(fold, message, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=message):
        load('petimages', tmp_path, monkeypatch, fold)
