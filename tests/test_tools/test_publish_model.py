import hashlib
import runpy
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from full_disk import full_disk
from mmengine.logging import MessageHub

import mmkdx

TOOL = Path(__file__).parents[2] / 'tools/model_converters/publish_model.py'
main = runpy.run_path(str(TOOL))['main']


def save(path, **others):
    """Saves a checkpoint as a distillation with an EMA hook does."""
    weights = OrderedDict(weight=torch.ones(2, 3), bias=torch.zeros(2))
    weights['distill.adapters.fit.weight'] = torch.ones(4)
    weights._metadata = {'': dict(version=1)}
    torch.save(dict(state_dict=weights, **others), path)


def published(folder, name='out'):
    """Loads the one published file, whose name must tell its hash."""
    (path,) = folder.glob(f'{name}-*.pth')
    digest = path.stem.removeprefix(f'{name}-')
    assert len(digest) == 8 and hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest)
    return torch.load(path, weights_only=True)


def test_keeps_the_student_and_what_is_said_about_it(tmp_path, capsys):
    hub = MessageHub('publish')
    hub.update_scalar('loss', 0.5)
    save(
        tmp_path / 'epoch_3.pth',
        meta=dict(epoch=3, dataset_meta=dict(classes=('cat', 'dog'))),
        optimizer=dict(state={}),
        param_schedulers=[],
        message_hub=hub.state_dict(),
        ema_state_dict=dict(steps=torch.tensor(3)),
    )
    main([str(tmp_path / 'epoch_3.pth'), str(tmp_path / 'new folder/out.pth')])
    checkpoint = published(tmp_path / 'new folder')
    assert checkpoint.keys() == {'meta', 'state_dict'}
    assert list(checkpoint['state_dict']) == ['weight', 'bias']
    assert checkpoint['state_dict']._metadata == {'': dict(version=1)}
    assert checkpoint['meta'] == dict(
        epoch=3, dataset_meta=dict(classes=('cat', 'dog')), mmkdx_version=mmkdx.__version__
    )
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith(f'Published as {tmp_path}/new folder/out-')
    )


def test_same_content_has_the_same_name(tmp_path):
    for name in ('a', 'b'):
        save(tmp_path / f'{name}.pth', optimizer=dict(lr=name))
        main([str(tmp_path / f'{name}.pth'), str(tmp_path / 'out')])
    assert len(list(tmp_path.glob('out-*.pth'))) == 1


def test_file_with_nothing_but_weights(tmp_path):
    torch.save(OrderedDict(weight=torch.ones(2)), tmp_path / 'weights.pth')
    main([str(tmp_path / 'weights.pth'), str(tmp_path / 'out')])
    checkpoint = published(tmp_path)
    assert list(checkpoint['state_dict']) == ['weight']
    assert checkpoint['meta'] == dict(mmkdx_version=mmkdx.__version__)


@pytest.mark.parametrize('content', [[torch.ones(2)], dict(epoch=3), dict(state_dict={})])
def test_file_without_weights(tmp_path, content):
    path = tmp_path / 'other.pth'
    torch.save(content, path)
    with pytest.raises(SystemExit) as error:
        main([str(path), str(tmp_path / 'out')])
    assert str(error.value) == f'Checkpoint {path} holds no weights: it is not one of a model.'
    assert not list(tmp_path.glob('out*'))


def test_full_disk(tmp_path):
    save(tmp_path / 'in.pth')
    with pytest.raises(SystemExit, match='^cannot write .*/out-[0-9a-f]{8}.pth: File too large$'):
        with full_disk(500):
            main([str(tmp_path / 'in.pth'), str(tmp_path / 'new/out')])
    assert not list((tmp_path / 'new').iterdir())


def test_missing_and_corrupt_file(tmp_path):
    path = tmp_path / 'broken.pth'
    for _ in range(2):
        with pytest.raises(SystemExit) as error:
            main([str(path), str(tmp_path / 'out')])
        assert str(path) in str(error.value)
        path.write_bytes(b'not a checkpoint')


def test_runs_as_a_script(tmp_path, monkeypatch):
    save(tmp_path / 'model.pth')
    monkeypatch.setattr(
        sys, 'argv', [str(TOOL), str(tmp_path / 'model.pth'), str(tmp_path / 'out')]
    )
    runpy.run_path(str(TOOL), run_name='__main__')
    assert list(published(tmp_path)['state_dict']) == ['weight', 'bias']
