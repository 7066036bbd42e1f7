"""Folders for prototype networks, from small files in the layouts of the public archives."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image
from prototype_layouts import CUB_FOLDERS, PARTS, write_cars, write_cub

from mmkdx.files import WriteError

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools/dataset_converters/prototype_folders.py'
spec = importlib.util.spec_from_file_location('prototype_folders', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(tool, 'track_iter_progress', iter)


@pytest.fixture
def cub(tmp_path):
    (tmp_path / 'cub').mkdir()
    return tmp_path, write_cub(tmp_path / 'cub')


def run(root, name='cub', *options, out='out'):
    """Converts in this process."""
    tool.main([name, str(root / name), str(root / out), '--workers', '0', *options])
    return root / out


def content(folder):
    """The files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def jpeg(pixels):
    """What a file holds of pixels in RGB."""
    return cv2.imencode('.jpg', pixels[..., ::-1])[1].tobytes()


# Folders


def test_cub(cub, capsys):
    root, rows = cub
    out = run(root, 'cub', '--augment', '2')
    assert sorted(path.name for path in out.iterdir()) == [
        *('test_cropped', 'train_cropped', 'train_cropped_augmented')
    ]
    for split, train in (('train_cropped', True), ('test_cropped', False)):
        files = content(out / split)
        expected = {row['name']: row for row in rows if row['train'] == train}
        assert set(files) == set(expected)
        for name, row in expected.items():
            x, y, width, height = row['box']
            with Image.open(out / split / name) as image:
                assert image.size == (width, height) and image.mode == 'RGB'
            source = cv2.imread(str(root / 'cub/images' / name))
            x, y, width, height = map(int, row['box'])
            assert files[name] == jpeg(source[y : y + height, x : x + width, ::-1])
    augmented = content(out / 'train_cropped_augmented')
    assert set(augmented) == {
        f'{row["name"][:-4]}_{operation}_{number}.jpg'
        for row in rows
        if row['train']
        for operation in ('rotate', 'skew', 'shear', 'distort')
        for number in (0, 1)
    }
    # no image is like another one, and all are as large as what they are made of
    assert len(set(augmented.values())) == len(augmented) == 48
    for row in rows:
        if row['train']:
            for path in (out / 'train_cropped_augmented').glob(f'{row["name"][:-4]}_*'):
                with Image.open(path) as image:
                    assert image.size == row['box'][2:]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f'{out}/train_cropped: 6 images',
        f'{out}/train_cropped_augmented: 48 images',
        f'{out}/test_cropped: 3 images',
    ]


@pytest.mark.parametrize('split', ['train_cropped', 'test_cropped', 'train_cropped_augmented'])
def test_folders_sort_in_the_order_of_labels(cub, split):
    root, rows = cub
    labels = {Path(row['name']).stem: row['label'] for row in rows}
    out = run(root, 'cub', '--augment', '1')
    folders = [path.name for path in sorted((out / split).iterdir())]
    assert len(folders) == 200
    assert (folders[0], folders[1], folders[199]) == CUB_FOLDERS
    data = CustomDataset(data_root=str(out), data_prefix=split)
    assert list(data.CLASSES) == folders and len(data) > 0
    for info in map(data.get_data_info, range(len(data))):
        stem = Path(info['img_path']).stem
        stem = stem.rsplit('_', 2)[0] if split.endswith('augmented') else stem
        assert info['gt_label'] == labels[stem]


def test_cars(tmp_path):
    rows = write_cars(tmp_path / 'cars')
    out = run(tmp_path, 'cars', '--augment', '1')
    assert sorted(path.name for path in out.iterdir()) == ['test', 'train', 'train_augmented']
    for split in ('train', 'test'):
        folders = [path.name for path in sorted((out / split).iterdir())]
        assert len(folders) == 196 and folders[173] == '174.Ram C-V Cargo Van Minivan 2012'
        # files, and not images that were written anew
        assert content(out / split) == {
            f'{folders[row["class"] - 1]}/{row["fname"]}': (
                tmp_path / f'cars/cars_{split}' / row['fname']
            ).read_bytes()
            for row in rows[split]
        }
    assert len(content(out / 'train_augmented')) == 16


def test_cropped_cars(tmp_path):
    row = write_cars(tmp_path / 'cars')['test'][1]
    out = run(tmp_path, 'cars', '--crop', '--augment', '0')
    assert sorted(path.name for path in out.iterdir()) == ['test_cropped', 'train_cropped']
    with Image.open(next(out.glob(f'test_cropped/*/{row["fname"]}'))) as image:
        assert image.size == (row['bbox_x2'] - row['bbox_x1'], row['bbox_y2'] - row['bbox_y1'])


def test_cub_without_crops(cub):
    root, rows = cub
    out = run(root, 'cub', '--no-crop', '--augment', '0')
    files = content(out / 'test')
    assert files == {
        row['name']: (root / 'cub/images' / row['name']).read_bytes()
        for row in rows
        if not row['train']
    }


# The same, however it is written


def test_processes_seeds_and_runs(cub):
    root, _ = cub
    expected = content(run(root, 'cub', '--augment', '1'))
    command = [sys.executable, str(TOOL), 'cub', str(root / 'cub'), str(root / 'two')]
    command += ['--workers', '2', '--augment', '1']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and f'{root}/two/test_cropped: 3 images' in result.stdout
    assert content(root / 'two') == expected
    other = content(run(root, 'cub', '--augment', '1', '--seed', '1', out='other'))
    different = {name for name in expected if other[name] != expected[name]}
    assert different == {name for name in expected if 'augmented' in name}
    # the first passes are the same, however many follow
    more = content(run(root, 'cub', '--augment', '2', out='more'))
    assert len(more) == len(expected) + 24 and expected.items() <= more.items()


def test_a_stopped_run_goes_on(cub, monkeypatch):
    root, _ = cub
    whole = content(run(root, 'cub', '--augment', '2', out='whole'))
    save, saved = tool.write_file, []

    def stop(path, content):
        if len(saved) == 20:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(tool, 'write_file', stop)
        with pytest.raises(KeyboardInterrupt):
            run(root, 'cub', '--augment', '2')
    # a crop, one of the images that were made of it, and another one that is missing again
    kept = saved[0], saved[3]
    for path in kept:
        path.write_bytes(b'as it was')
    saved[5].unlink()
    run(root, 'cub', '--augment', '2')
    now = content(root / 'out')
    for path in kept:
        assert now.pop(str(path.relative_to(root / 'out'))) == b'as it was'
    assert len(now) == len(whole) - 2 and now.items() <= whole.items()


def test_nothing_is_read_where_all_is_there(cub, monkeypatch):
    run(cub[0], 'cub', '--augment', '1')
    monkeypatch.setattr(cv2, 'imread', None)
    run(cub[0], 'cub', '--augment', '1')


def test_no_part_of_a_file_is_left(tmp_path):
    source = tmp_path / 'source.png'
    cv2.imwrite(str(source), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / 'new').mkdir()
    for box, name in ((None, 'a.png'), (np.array([[1.0, 1, 8, 8]]), 'a.jpg')):
        job = tool.Job(source, box, tmp_path / 'new' / name, None, 0, 0)
        with pytest.raises(WriteError, match=f'cannot write .*new/{name}: '), full_disk(40):
            tool.write_images(job)
    assert not list((tmp_path / 'new').iterdir())


# Operations

SIZE = (120, 90)  # width, height


def where(operation, seed, size=SIZE):
    """For each pixel of the result, which point of the image it shows: (H, W, 2)."""
    columns, rows = np.meshgrid(*map(np.arange, size))
    places = np.stack([columns, rows], -1).astype(np.float32) + 0.5
    return tool.OPERATIONS[operation](places, np.random.default_rng(seed))


def linear_part(places):
    """Of an affine map from the result to the image, with what it does to the centre."""
    height, width = places.shape[:2]
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    design = np.stack([columns - width / 2, rows - height / 2, np.ones_like(rows)], -1)
    inner = (slice(4, -4),) * 2  # beside the border, where pixels are blended with mirrored ones
    x, y = design[inner].reshape(-1, 3), places[inner].reshape(-1, 2)
    solution, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(x @ solution, y, atol=0.1)
    return solution[:2].T, solution[2]


def reach(linear):
    """The largest share of half the image that the frame's corners go to: 1 is the border."""
    corners = np.array([[1, 1], [1, -1]]) * np.array(SIZE) / 2
    return np.abs(corners @ linear.T / (np.array(SIZE) / 2)).max()


@pytest.mark.parametrize('operation', ['rotate', 'shear'])
def test_affine_operations(operation):
    angles = []
    for seed in range(40 if operation == 'rotate' else 80):
        linear, centre = linear_part(where(operation, seed))
        np.testing.assert_allclose(centre, np.array(SIZE) / 2, atol=0.05)
        # enlarged so that the frame just stays in the image
        assert reach(linear) == pytest.approx(1, abs=3e-3)
        if operation == 'rotate':
            zoom = np.sqrt(np.linalg.det(linear))
            np.testing.assert_allclose(linear @ linear.T, np.eye(2) * zoom**2, atol=5e-3)
            angles.append(np.degrees(np.arctan2(linear[1, 0], linear[0, 0])))
        else:
            assert linear[0, 0] == pytest.approx(linear[1, 1], abs=2e-3)
            slopes = linear / linear[0, 0]
            axis = int(np.abs(slopes[0, 1]) < np.abs(slopes[1, 0]))
            assert slopes[1 - axis, axis] == pytest.approx(0, abs=2e-3)
            angles.append(np.degrees(np.arctan(slopes[axis, 1 - axis])) + 100 * axis)
    limit = dict(rotate=15, shear=10)[operation]
    for axis in (0, 1) if operation == 'shear' else (0,):
        group = [angle - 100 * axis for angle in angles if (angle > 50) == axis]
        assert len(group) > 9
        assert -limit - 0.2 < min(group) < -0.7 * limit and 0.7 * limit < max(group) < limit + 0.2


def corners_of_the_image(places):
    """Where a projective map brings the corners of the image, as shares of the frame from 0 to 1."""
    height, width = places.shape[:2]
    inner = (slice(4, -4, 8),) * 2
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    frame = np.stack([columns, rows], -1)[inner].reshape(-1, 2)
    matrix, _ = cv2.findHomography(places[inner].reshape(-1, 2), frame)
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], float)
    return cv2.perspectiveTransform(corners, matrix)[0] - corners[0]


def test_skew():
    sides, single, amounts = set(), set(), []
    for seed in range(200):
        moves = corners_of_the_image(where('skew', seed))
        moved = np.abs(moves) > 0.35
        outwards = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        np.testing.assert_allclose(moves[~moved], 0, atol=0.35)
        assert (moves[moved] * outwards[moved] > 0).all()
        if moved.sum() == 0:
            continue
        amount = np.abs(moves[moved])
        np.testing.assert_allclose(amount, amount[0], atol=0.35)
        amounts.append(amount[0])
        which = tuple(map(tuple, np.argwhere(moved)))
        # two corners along their side, or one
        (sides if len(which) == 2 else single).add(which)
    assert sides == {((0, 1), (3, 1)), ((1, 1), (2, 1)), ((0, 0), (1, 0)), ((2, 0), (3, 0))}
    assert len(single) == 8 and all(len(which) == 1 for which in single)
    # up to 0.2 of the longer side
    assert 23 < max(amounts) < 24.4 and 11 < np.mean(amounts) < 13.5


def test_a_side_is_skewed_in_three_of_four_cases():
    counts = [
        (np.abs(corners_of_the_image(where('skew', seed, (40, 40)))) > 0.5).sum()
        for seed in range(300)
    ]
    ones, twos = counts.count(1), counts.count(2)
    assert ones + twos > 250 and 0.68 < twos / (ones + twos) < 0.82


def misfit(columns, rows, moves):
    """How far moves are at most from being bilinear in the coordinates."""
    x, y = columns.ravel() - columns.mean(), rows.ravel() - rows.mean()
    design = np.stack([np.ones_like(x), x, y, x * y], -1)
    moves = moves.reshape(-1, 2)
    return np.abs(design @ np.linalg.lstsq(design, moves, rcond=None)[0] - moves).max()


@pytest.mark.parametrize('size', [SIZE, (100, 155)])
def test_distort(size):
    width, height = size
    largest = 0
    for seed in range(10):
        columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        moves = where('distort', seed, size) - np.stack([columns, rows], -1)
        # bilinear within each cell, and not in all of them together
        assert misfit(columns, rows, moves) > 0.5
        for row in np.split(np.arange(height), 5):
            for column in np.split(np.arange(width), 5):
                cell = np.ix_(row[4:-4], column[4:-4])
                # OpenCV takes places in steps of 1/32, and mirrors what is beside the border
                assert misfit(columns[cell], rows[cell], moves[cell]) < 0.15
        assert np.abs(moves[[0, -1]]).max() < 0.7 and np.abs(moves[:, [0, -1]]).max() < 0.7
        nodes = moves[height // 5 :: height // 5, width // 5 :: width // 5][:4, :4]
        assert np.abs(nodes).max() < 5.2 and len(np.unique(nodes.round(1))) > 12
        largest = max(largest, np.abs(nodes).max())
    assert largest > 4.3


def test_the_grid_of_distortions_is_centred(monkeypatch):
    class Ones:
        """Moves all inner nodes alike."""

        uniform = staticmethod(lambda low, high, size: np.full(size, high))

    monkeypatch.setattr(np.random, 'default_rng', lambda seed: Ones)
    columns, rows = np.meshgrid(*(np.arange(side) + 0.5 for side in SIZE))
    moves = where('distort', 0) - np.stack([columns, rows], -1)
    inner = (slice(6, -6),) * 2
    np.testing.assert_allclose(moves[inner], moves[::-1, ::-1][inner], atol=0.1)
    np.testing.assert_allclose(moves[18:-18, 24:-24], 5, atol=0.05)


def test_half_of_the_images_are_flipped(tmp_path):
    # dark on the left, bright on the right
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    target = tmp_path / 'b.png'
    tool.write_images(tool.Job(tmp_path / 'a.png', None, target, tmp_path, 30, 0))
    assert target.read_bytes() == (tmp_path / 'a.png').read_bytes()
    means = [cv2.imread(str(path))[:, :30].mean() for path in tmp_path.glob('*_*.jpg')]
    assert len(means) == 120 and all(mean < 60 or mean > 195 for mean in means)
    assert 44 <= sum(mean > 195 for mean in means) <= 76


@pytest.mark.parametrize('operation', tool.OPERATIONS)
@pytest.mark.parametrize('size', [(1, 1), (1, 30), (200, 3), (64, 48)])
def test_nothing_from_outside_shows(operation, size):
    image = np.full((*size[::-1], 3), 200, np.uint8)
    for seed in range(5):
        result = tool.OPERATIONS[operation](image, np.random.default_rng(seed))
        assert result.shape == image.shape and result.dtype == np.uint8
        assert (result == 200).all()


# What is wrong


def test_counts_are_compared_with_the_published_ones(cub, capsys, monkeypatch):
    root, _ = cub
    run(root, 'cub', '--augment', '1')
    assert capsys.readouterr().err.splitlines() == [
        f'Warning: {root}/cub has 6 images in its split train, not 5,994',
        f'Warning: {root}/cub has 3 images in its split test, not 5,794',
    ]
    with pytest.raises(SystemExit, match='has 6 images in its split train, not 5,994'):
        run(root, 'cub', '--strict', out='strict')
    assert not (root / 'strict').exists()
    monkeypatch.setitem(tool.PUBLISHED, 'cub', dict(train=6, test=3))
    run(root, 'cub', '--strict', '--augment', '1')
    assert not capsys.readouterr().err
    stray = root / f'out/train_cropped_augmented/{CUB_FOLDERS[0]}/a.jpg'
    stray.write_bytes(b'')
    message = f'{root}/out/train_cropped_augmented has 25 images, not 24: some are of another run'
    run(root, 'cub', '--augment', '1')
    assert capsys.readouterr().err == f'Warning: {message}\n'
    with pytest.raises(SystemExit, match=message):
        run(root, 'cub', '--augment', '1', '--strict')


def test_published_counts():
    assert tool.PUBLISHED == dict(cub=dict(train=5994, test=5794), cars=dict(train=8144, test=8041))


def test_unreadable_image(cub):
    root, rows = cub
    path = root / 'cub/images' / rows[0]['name']
    path.write_text('an error page')
    sentence = f'{path} cannot be read as an image'
    with pytest.raises(SystemExit) as error:
        run(root, 'cub', '--augment', '1')
    assert str(error.value) == sentence
    command = [sys.executable, str(TOOL), 'cub', str(root / 'cub'), str(root / 'out')]
    result = subprocess.run([*command, '--workers', '2'], capture_output=True, text=True)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1] == sentence


def test_missing_archive(tmp_path):
    for name in ('cub', 'cars'):
        with pytest.raises(SystemExit, match='there is no f(ile|older) .*data_root of'):
            run(tmp_path, name)


@pytest.mark.parametrize('option', ['augment', 'seed', 'workers'])
def test_negative_numbers(option, capsys):
    with pytest.raises(SystemExit):
        tool.main(['cub', 'a', 'b', f'--{option}', '-1'])
    assert f'--{option} is -1 and has to be 0 or more' in capsys.readouterr().err


# Configs


def batch(loader, preprocessor):
    """The first batch, in RGB and raw pixels again, and its data samples."""
    loader.update(num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = next(iter(Runner.build_dataloader(loader, seed=0)))
        inputs = ClsDataPreprocessor(**preprocessor)(data)
    pixels = inputs['inputs'].permute(0, 2, 3, 1).numpy() * STD + MEAN
    return pixels, inputs['data_samples']


@pytest.mark.parametrize('name', ['cub_cropped_bs80', 'cars_bs128'])
def test_configs_of_the_folders(name, tmp_path):
    kind, classes, sizes = {
        'cub_cropped_bs80': ('cub', 200, (80, 75, 100)),
        'cars_bs128': ('cars', 196, (128, 32, 100)),
    }[name]
    if kind == 'cub':
        (tmp_path / kind).mkdir()
        write_cub(tmp_path / kind)
    else:
        write_cars(tmp_path / kind)
    counts = dict(cub=(240, 6, 3), cars=(160, 4, 4))[kind]
    out = run(tmp_path, kind)
    cfg = Config.fromfile(ROOT / f'configs/_base_/datasets/{name}.py')
    assert cfg.data_preprocessor.num_classes == classes
    loaders = (cfg.train_dataloader, cfg.push_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    for loader, size, count in zip(loaders, (*sizes, sizes[2]), (*counts, counts[2])):
        assert loader.batch_size == size
        loader.dataset.data_root = str(out)
        train = loader is cfg.train_dataloader
        assert loader.sampler == dict(type='DefaultSampler', shuffle=train)
        pixels, samples = batch(loader, cfg.data_preprocessor)
        assert pixels.shape == (min(size, count), 224, 224, 3)
        for image, sample in zip(pixels[:8], samples):
            with Image.open(sample.img_path) as source:
                resized = source.convert('RGB').resize((224, 224), Image.Resampling.BILINEAR)
            # decoders of JPEG differ in the last bit
            assert np.abs(image - np.asarray(resized, float)).mean() < 2
            assert int(Path(sample.img_path).parent.name[:3]) == sample.gt_label.item() + 1
        paths = [sample.img_path for sample in samples]
        assert (paths == sorted(paths)) != train


def test_config_of_the_parts(cub, monkeypatch):
    root, rows = cub
    for row in rows:  # a bright square of 5 x 5 round each part that is visible, the only one
        image = np.zeros((60, 80, 3), np.uint8)
        row['shown'] = next(p for p in range(4, 15) if row['points'][p][2])
        x, y, _ = map(int, row['points'][row['shown']])
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
        Image.fromarray(image).save(root / 'cub/images' / row['name'], format='PNG')
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/cub_parts.py')
    cfg.test_dataloader.dataset.data_root = str(root / 'cub')
    pixels, samples = batch(cfg.test_dataloader, cfg.data_preprocessor)
    tests = [row for row in rows if not row['train']]
    assert pixels.shape == (3, 224, 224, 3) and cfg.data_preprocessor.num_classes == 200
    for image, sample, row in zip(pixels, samples, tests):
        assert sample.gt_label.tolist() == [row['label']]
        points, visible = sample.gt_keypoints, sample.gt_keypoints_visible
        assert points.shape == (1, len(PARTS), 2) and visible.shape == (1, len(PARTS))
        left, top, width, height = row['box']
        for (x, y, shown), point, now in zip(row['points'], points[0], visible[0]):
            x, y = x - left, y - top
            assert now == (shown and 0 <= x < width and 0 <= y < height)
            if now:
                scaled = x * 224 / width, y * 224 / height
                np.testing.assert_allclose(point, scaled, rtol=1e-5)
        assert 0 < visible.sum() < 15 and visible[0, row['shown']] == 1
        # the square is where its part went; a pixel's number is that of its upper left corner
        weights = torch.as_tensor(image).mean(-1).clamp(min=0).numpy()
        found = [
            (weights.sum(axis) * (np.arange(224) + 0.5)).sum() / weights.sum() for axis in (0, 1)
        ]
        half = np.array([112 / width, 112 / height])
        np.testing.assert_allclose(found, points[0, row['shown']] + half, atol=1)
