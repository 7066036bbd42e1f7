"""What a run's visualizer writes is whole, or an error."""

import json

import cv2
import mmengine.visualization
import numpy as np
import pytest
from full_disk import full_disk
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.visualization import Visualizer

from mmkdx.files import WriteError
from mmkdx.visualization.vis_backend import LocalVisBackend

PICTURE = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)


def visualizer(folder, scope='mmkdx'):
    """As a runner builds it from a config."""
    config = dict(
        type='UniversalVisualizer',
        save_dir=str(folder),
        vis_backends=[dict(type='LocalVisBackend')],
    )
    with DefaultScope.overwrite_default_scope(scope):
        return VISUALIZERS.build({**config, 'name': f'{folder}'})


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def fill(shown: Visualizer):
    shown.add_config(Config(dict(model=dict(type='Net', depth=18))))
    shown.add_image('a', PICTURE, 3)
    shown.add_scalar('lr', 0.5, 1)
    shown.add_scalars({'accuracy/top1': np.float32(50)}, 2, 'more.json')


def test_the_files_are_mmengines(tmp_path):
    ours, theirs = (visualizer(tmp_path / scope, scope) for scope in ('mmkdx', 'mmpretrain'))
    kinds = [type(each.get_backend('LocalVisBackend')) for each in (ours, theirs)]
    assert kinds == [LocalVisBackend, mmengine.visualization.LocalVisBackend]
    for each in (ours, theirs):
        fill(each)
    found = content(tmp_path / 'mmkdx')
    assert found.keys() == content(tmp_path / 'mmpretrain').keys()
    for name, value in content(tmp_path / 'mmpretrain').items():
        if not name.endswith('.png'):
            assert found[name] == value, name
    (path,) = (tmp_path / 'mmkdx').rglob('a_3.png')
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], PICTURE)


def test_a_full_disk_is_an_error_and_earlier_files_stay(tmp_path):
    shown = visualizer(tmp_path)
    fill(shown)
    before = content(tmp_path)
    calls = {
        'vis_image/a_3.png': lambda: shown.add_image('a', PICTURE[::-1], 3),
        'config.py': lambda: shown.add_config(Config(dict(model=dict(type='Network')))),
        'scalars.json': lambda: shown.add_scalar('lr', 0.25, 2),
    }
    for name, write in calls.items():
        with (
            pytest.raises(WriteError, match=f'cannot write .*{name}: File too large'),
            full_disk(9),
        ):
            write()
        assert content(tmp_path) == before
    shown.add_scalar('lr', 0.25, 3)
    (path,) = tmp_path.rglob('scalars.json')
    assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ('option', 'value'), [('save_dir', {}), ('scalar_save_file', 3), ('img_save_dir', None)]
)
def test_names_of_files_are_texts(option, value):
    with pytest.raises(ValueError, match=rf'^LocalVisBackend\.{option} is .*; it must be a text$'):
        LocalVisBackend(**{'save_dir': 'out', option: value})
