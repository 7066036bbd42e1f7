"""The configs of Fashion-MNIST fit together: checkpoints, caches, data and numbers of parameters."""

from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmkdx.apis.dry_run import build_from_config
from mmkdx.models.families import unwrap

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/fashion_mnist'
TINY = 'resnet18_resnet18-tiny_fashion'
#: Configs with 1,000 labels and what teaches the student, with the weights of its terms.
TERMS = {
    f'kd_{TINY}1000': dict(kd=1.0),
    f'cat_{TINY}1000': dict(cat=1.0),
    f'at_{TINY}1000': dict(at1=1000.0, at2=1000.0, at3=1000.0),
    f'exp_{TINY}1000': dict(expkd=100.0),
    f'e2kd_{TINY}1000': dict(kd=1.0, e2kd=5.0),
    'il_resnet18-tiny_fashion1000': dict(il=1.0),
    f'proto2proto_{TINY}1000': dict(prototypes=10.0, patches=10.0),
    f'kd_{TINY}1000-unicam': dict(kd=1.0),
    f'cat_{TINY}1000-unicam': dict(cat=1.0),
    f'kd_{TINY}': dict(kd=1.0),
    f'cat_{TINY}': dict(cat=1.0),
}
ALONE = ('resnet18_fashion', 'resnet18-tiny_fashion', 'resnet18-tiny_fashion1000')
ALONE += ('protopnet_resnet18_fashion', 'protopnet_resnet18-tiny_fashion1000')


@cache
def read(name):
    """A config, which is not to be changed."""
    return Config.fromfile(FOLDER / f'{name}.py')


def last(name):
    """The checkpoint after the last epoch of a config, below its work directory."""
    return f'{name}/epoch_{read(name).train_cfg.max_epochs}.pth'


def test_every_config_is_here():
    assert {path.stem for path in FOLDER.glob('*.py')} == {*TERMS, *ALONE}


@pytest.mark.parametrize('name', TERMS)
def test_terms_and_teachers(name):
    model = read(name).model
    assert {key: term.get('weight', 1.0) for key, term in model.terms.items()} == TERMS[name]
    assert model.get('student_weight', 1.0) == (0.0 if name.startswith('il_') else 1.0)
    teacher = model.get('teacher')
    if not name.startswith('il_'):
        source = 'protopnet_resnet18_fashion' if name.startswith('proto') else 'resnet18_fashion'
        given = dict(
            model=f'mmkdx::fashion_mnist/{source}.py', checkpoint=f'work_dirs/{last(source)}'
        )
        assert teacher.get('teacher', teacher) == given


def test_students_have_the_same_thousand_images():
    alone = read('resnet18-tiny_fashion1000').train_dataloader
    assert read('resnet18-tiny_fashion1000').train_cfg.max_epochs % alone.dataset.views == 0
    for name in TERMS:
        data = read(name).train_dataloader
        if name.startswith('proto2proto'):
            assert data.dataset == alone.dataset.dataset
        elif '1000' in name:
            assert data == alone
        else:
            assert data == read('resnet18-tiny_fashion').train_dataloader


def test_what_begins_with_a_trained_student():
    folder, file = last('resnet18-tiny_fashion1000').split('/')
    path = f'work_dirs/repeat/{folder}/seed_0/{file}'
    for method in ('kd', 'cat'):
        assert read(f'{method}_{TINY}1000-unicam').custom_hooks[1].base.checkpoint == path
    backbone = read('protopnet_resnet18-tiny_fashion1000').model.backbone
    assert backbone.init_cfg.checkpoint == path


def test_caches_hold_what_terms_read():
    caches = {name: read(name).model.teacher.get('cache') for name in TERMS if 'il_' not in name}
    common = {
        name for name, path in caches.items() if path == 'work_dirs/caches/resnet18_fashion1000'
    }
    # The cache of e2kd holds logits and class maps
    assert common == {
        f'{method}_{TINY}1000{end}'
        for method, end in [
            *[(method, '') for method in ('kd', 'cat', 'exp', 'e2kd')],
            *[(method, '-unicam') for method in ('kd', 'cat')],
        ]
    }
    paths = [path for name, path in caches.items() if path and name not in common]
    assert len(set(paths)) == len(paths) == 3


def test_metafile_has_the_sizes(monkeypatch):
    monkeypatch.chdir(ROOT)
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    sizes = {model['Name']: model['Metadata']['Parameters'] for model in models}
    assert set(sizes) == {*TERMS, *ALONE}
    page = (FOLDER / 'README.md').read_text()
    for name in ALONE:
        model = unwrap(build_from_config(read(name)))
        count = sum(weight.numel() for weight in model.parameters())
        assert sizes[name] == count and f'{count:,}' in page
