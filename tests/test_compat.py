import argparse
import contextlib
import copy
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import pkgutil
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.visualization import Visualizer
from processes import launch

from mmkdx import checkpoints as checkpoints_module
from mmkdx import compat
from mmkdx.compat import (
    CheckpointError,
    RefusedCheckpointError,
    last_whole_checkpoint,
    load_checkpoint_file,
    prepare_cpu_launch,
)
from mmkdx.files import WriteError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module', autouse=True)
def fresh_managers():
    """Keeps the loggers, scopes and hubs of this file's runners away from other tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
            monkeypatch.setattr(manager, '_instance_dict', type(manager._instance_dict)())
        yield


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A function that reads what mmengine has logged since the test began."""
    monkeypatch.setattr(MMLogger, '_instance_dict', type(MMLogger._instance_dict)())
    path = tmp_path / 'log'
    MMLogger.get_instance('test', log_file=str(path))
    return path.read_text


def damage(*paths):
    """Cuts files off after 500 bytes."""
    for path in paths:
        path.write_bytes(path.read_bytes()[:500])


# ------------------------------------------------------------------------------------------------
# Resuming a real run
# ------------------------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    metainfo = dict(classes=['a', 'b'], parts=ConfigDict(a=dict(mark=1)), palette=np.arange(3))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample

        image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(index)) * 255
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % 2))


def train(work_dir, name, **options):
    """Trains mmpretrain's classifier with what a checkpoint can hold, and returns its runner."""
    loader = dict(
        batch_size=4,
        dataset=Images(),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )
    runner = Runner(
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(mean=[127.0], std=[127.0], num_classes=2, to_rgb=False),
            backbone=dict(type='LeNet5'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=120, topk=(1,)),
        ),
        work_dir=str(work_dir),
        experiment_name=name,
        default_scope='mmkdx',
        train_dataloader=loader,
        val_dataloader=copy.deepcopy(loader),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[
            dict(type='OneCycleLR', eta_max=0.05, total_steps=4, by_epoch=False),
            dict(type='MultiStepLR', milestones=[1], gamma=0.5),
        ],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto')),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        randomness=dict(seed=0),
        **options,
    )
    runner.train()
    return runner


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp('run')
    train(folder, 'whole')
    return folder


def losses(checkpoint):
    return checkpoint['message_hub']['log_scalars']['train/loss']


def test_checkpoint_of_a_run_loads_as_it_was_saved(work_dir):
    loaded = load_checkpoint_file(work_dir / 'epoch_2.pth')
    trusted = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert list(loaded) == list(trusted)
    for part in ('state_dict', 'ema_state_dict'):
        for name, tensor in trusted[part].items():
            assert torch.equal(loaded[part][name], tensor), name
    assert str(loaded['optimizer']) == str(trusted['optimizer'])
    assert loaded['param_schedulers'] == trusted['param_schedulers']
    assert loaded['meta']['dataset_meta']['parts'].a.mark == 1
    assert losses(loaded).data[0].tolist() == losses(trusted).data[0].tolist()
    assert losses(loaded).statistics('max') == losses(trusted).max()


def test_killed_run_resumes_and_ends_as_if_nothing_had_happened(work_dir, tmp_path):
    killed = tmp_path / 'killed'
    shutil.copytree(work_dir, killed)
    damage(killed / 'epoch_2.pth')  # what is left if the run is killed while it writes
    killed.joinpath('last_checkpoint').write_text(str(killed / 'epoch_1.pth'))
    runner = train(killed, 'resumed', load_from=last_whole_checkpoint(killed), resume=True)
    assert runner.epoch == 2 and runner.iter == 4
    whole, resumed = (load_checkpoint_file(run / 'epoch_2.pth') for run in (work_dir, killed))
    for part in ('state_dict', 'ema_state_dict'):
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), name
    assert str(resumed['optimizer']) == str(whole['optimizer'])
    assert resumed['param_schedulers'] == whole['param_schedulers']
    history = losses(whole).data[0].tolist()
    assert len(history) == 4 and losses(resumed).data[0].tolist() == history


def with_program(path, *places):
    """Writes a checkpoint again, with Python that leaves a mark where the text of a config stands."""
    checkpoint = torch.load(path, weights_only=False)
    text = f'_base_ = []\nopen({str(path.with_name("mark"))!r}, "w")\n'
    for *owners, key in places:
        functools.reduce(dict.__getitem__, owners, checkpoint)[key] = text
    torch.save(checkpoint, path)
    return path.with_name('mark')


PLACES = [('meta', 'config'), ('meta', 'cfg'), ('message_hub', 'runtime_info', 'cfg')]


@pytest.mark.parametrize('named', [True, False])
def test_resuming_runs_nothing_that_a_checkpoint_says(work_dir, tmp_path, named):
    """``Runner.resume`` runs ``meta['config']``."""
    folder = tmp_path / 'run'
    shutil.copytree(work_dir, folder)
    mark = with_program(folder / 'epoch_1.pth', *PLACES)
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    # With resume=True alone, mmengine finds the checkpoint itself
    load_from = str(folder / 'epoch_1.pth') if named else None
    runner = train(folder, f'evil {named}', load_from=load_from, resume=True)
    assert runner.epoch == 2 and not mark.exists()
    hub = load_checkpoint_file(folder / 'epoch_2.pth')['message_hub']['runtime_info']
    assert 'cfg' not in hub and 'epoch' in hub


def test_texts_of_configs_are_left_out(zipped, monkeypatch):
    torch.save(dict(CONTENT, meta=dict(epoch=3), message_hub=dict(runtime_info=dict(a=1))), zipped)
    with_program(zipped, *PLACES)
    loaded = load_checkpoint_file(zipped)
    assert loaded['meta'] == dict(epoch=3) and loaded['message_hub'] == dict(runtime_info=dict(a=1))
    monkeypatch.setenv('MMKDX_UNSAFE_LOAD', '1')
    assert {*load_checkpoint_file(zipped)['meta']} == {'epoch', 'cfg', 'config'}


# ------------------------------------------------------------------------------------------------
# Checkpoint files
# ------------------------------------------------------------------------------------------------

CONTENT = dict(
    state_dict={'weight': torch.arange(2000.0)},
    optimizer={'state': {0: {'step': torch.tensor(2.0)}}},
    best=np.float64(0.75),
    classes=np.array(['cat', 'dog']),
    counts=np.array([[1, 2], [3, 4]], dtype=np.int32),
    seen=np.array([True, False]),
    half=np.array([1.5], dtype=np.float16),
)


@pytest.fixture
def zipped(tmp_path):
    torch.save(CONTENT, tmp_path / 'zipped.pth')
    return tmp_path / 'zipped.pth'


@pytest.fixture
def legacy(tmp_path):
    """A file in the format that torch wrote before version 1.6."""
    torch.save(CONTENT, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    return tmp_path / 'legacy.pth'


def check_content(path):
    loaded = load_checkpoint_file(path)
    assert torch.equal(loaded['state_dict']['weight'], torch.arange(2000.0))
    assert loaded['best'] == 0.75
    for key in ('classes', 'counts', 'seen', 'half'):
        assert loaded[key].dtype == CONTENT[key].dtype
        assert loaded[key].tolist() == CONTENT[key].tolist()


@pytest.mark.parametrize('core', ['core', '_core'])
def test_numpy_1_and_numpy_2_in_both_formats_of_torch(zipped, legacy, core):
    check_content(zipped)
    raw = legacy.read_bytes()
    own = f'numpy.{"_core" if np.__version__[0] != "1" else "core"}.multiarray'.encode()
    assert own in raw
    legacy.write_bytes(raw.replace(own, f'numpy.{core}.multiarray'.encode()))
    check_content(legacy)


def test_file_without_checksums(zipped):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, zipped)
    finally:
        torch.serialization.set_crc32_options(True)
    check_content(zipped)


class Reduced:
    """Pickles to a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('new_format', [True, False])
def test_refused_object_is_named_and_does_not_run(tmp_path, new_format):
    path, mark = tmp_path / 'evil.pth', tmp_path / 'mark'
    torch.save(
        dict(state_dict=Reduced(os.mkdir, str(mark))),
        path,
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(RefusedCheckpointError) as caught:
        load_checkpoint_file(path)
    assert str(caught.value) == (
        f'Checkpoint {path} holds {os.name}.mkdir, which can run code and is not loaded by '
        'default: if you trust the file, set MMKDX_UNSAFE_LOAD=1 in the environment.'
    )
    assert not mark.exists()


def test_explicit_word(tmp_path, monkeypatch):
    path = tmp_path / 'old.pth'
    torch.save(dict(args=argparse.Namespace(lr=0.1)), path)
    with pytest.raises(RefusedCheckpointError, match=f'{path} holds argparse.Namespace, which'):
        load_checkpoint_file(path)
    monkeypatch.setenv('MMKDX_UNSAFE_LOAD', '1')
    assert load_checkpoint_file(path)['args'].lr == 0.1


def test_explicit_word_for_an_object_of_unknown_code(tmp_path, monkeypatch):
    path = tmp_path / 'old.pth'
    (tmp_path / 'forgotten_module.py').write_text('class Thing:\n    pass\n')
    with monkeypatch.context() as context:
        context.syspath_prepend(tmp_path)
        torch.save(importlib.import_module('forgotten_module').Thing(), path)
    del sys.modules['forgotten_module']
    with pytest.raises(RefusedCheckpointError, match='holds forgotten_module.Thing, which'):
        load_checkpoint_file(path)
    monkeypatch.setenv('MMKDX_UNSAFE_LOAD', '1')
    with pytest.raises(CheckpointError, match=f'{path} needs code .* named .forgotten_module.'):
        load_checkpoint_file(path)


@pytest.mark.parametrize(
    'owner, name',
    [(HistoryBuffer, 'register_statistics'), (HistoryBuffer, '__init__'), ([1], 'append')],
)
def test_getattr_reaches_nothing_but_the_statistics_of_a_buffer(tmp_path, owner, name):
    torch.save(Reduced(getattr, owner, name), tmp_path / 'evil.pth')
    with pytest.raises(RefusedCheckpointError, match='holds getattr, which can run code'):
        load_checkpoint_file(tmp_path / 'evil.pth')
    torch.save(Reduced(getattr, HistoryBuffer, 'mean'), tmp_path / 'good.pth')
    assert load_checkpoint_file(tmp_path / 'good.pth') is HistoryBuffer.mean


@pytest.mark.filterwarnings('ignore:Detected pickle protocol 4')
@pytest.mark.parametrize(
    'content, named',
    [
        (np.array([None]), 'numpy.dtypes.ObjectDType'),
        (np.zeros(1, [('meta', 'U9')])[0], 'numpy.dtypes.VoidDType'),
        (Reduced(np.zeros(0).__reduce__()[0], np.ndarray, (1 << 40,), b'b'), 'numpy._reconstruct'),
        (dict(state_dict={}), 'a kind of pickle that cannot be checked'),
    ],
)
def test_other_refused_content(tmp_path, content, named):
    path = tmp_path / 'odd.pth'
    torch.save(content, path, pickle_protocol=2 if 'numpy' in named else 4)
    with pytest.raises(RefusedCheckpointError, match=f'holds {named}, which'):
        load_checkpoint_file(path)


def cut(share):
    return lambda raw: raw[: int(len(raw) * share)]


def overwrite(share):
    return lambda raw: cut(share)(raw) + b'\xff' * 8 + raw[int(len(raw) * share) + 8 :]


DAMAGES = dict(
    empty=cut(0),
    only_start=cut(0.01),
    half=cut(0.5),
    end_missing=cut(0.99),
    start_overwritten=overwrite(0.01),
    tensor_overwritten=overwrite(0.5),
    end_overwritten=overwrite(0.99),
    text=lambda raw: b'<html>Not Found</html>',
)


@pytest.mark.parametrize('kind', DAMAGES)
def test_damaged_file_is_named(zipped, kind):
    zipped.write_bytes(DAMAGES[kind](zipped.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint_file(zipped)
    assert type(caught.value) is CheckpointError
    assert str(caught.value) == (
        f'Checkpoint {zipped} ({zipped.stat().st_size} bytes) is empty, '
        'truncated, corrupt or no checkpoint at all.'
    )


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.99])
def test_damaged_legacy_file_is_named(legacy, share):
    legacy.write_bytes(cut(share)(legacy.read_bytes()))
    with pytest.raises(CheckpointError, match=f'{legacy} .* is empty, truncated') as caught:
        load_checkpoint_file(legacy)
    assert type(caught.value) is CheckpointError


def test_members_that_are_larger_than_the_file(zipped):
    with zipfile.ZipFile(zipped) as source:
        members = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(zipped, 'w', zipfile.ZIP_DEFLATED) as bomb:
        for name, raw in members.items():
            bomb.writestr(name, bytes(1 << 24) if '/data/' in name else raw)
    assert zipped.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=f'{zipped} .* is empty, truncated, corrupt'):
        load_checkpoint_file(zipped)


def test_more_memory_than_there_is(zipped, monkeypatch):
    def load(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(torch, 'load', load)
    size = zipped.stat().st_size
    with pytest.raises(
        CheckpointError, match=rf'{zipped} .{size} bytes. needs more memory than there'
    ):
        load_checkpoint_file(zipped)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'There is no checkpoint file {tmp_path}/none.pth'):
        load_checkpoint_file(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match=f'There is no checkpoint file {tmp_path}'):
        load_checkpoint_file(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_fault_of_the_device_is_not_blamed_on_the_file(zipped):
    with pytest.raises(RuntimeError, match='CUDA') as caught:
        load_checkpoint_file(zipped, 'cuda')
    assert not isinstance(caught.value, CheckpointError)
    zipped.write_bytes(cut(0.5)(zipped.read_bytes()))
    with pytest.raises(CheckpointError, match='truncated'):
        load_checkpoint_file(zipped, 'cuda')


def test_mmengine_loads_files_through_mmkdx(zipped, tmp_path):
    loaded = CheckpointLoader.load_checkpoint(str(zipped), map_location='cpu')
    assert torch.equal(loaded['state_dict']['weight'], torch.arange(2000.0))
    torch.save(Reduced(os.mkdir, str(tmp_path / 'mark')), zipped)
    with pytest.raises(RefusedCheckpointError, match=f'{zipped} holds {os.name}.mkdir'):
        CheckpointLoader.load_checkpoint(str(zipped))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server that offers the files in `tmp_path`."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_url(server, zipped, monkeypatch):
    url = f'{server}/zipped.pth?download=1'
    assert CheckpointLoader.load_checkpoint(url)['best'] == 0.75
    zipped.unlink()  # from now on the cached copy serves
    assert CheckpointLoader.load_checkpoint(url)['best'] == 0.75
    with pytest.raises(CheckpointError, match=f'{server}/none.pth cannot be downloaded: File not'):
        CheckpointLoader.load_checkpoint(f'{server}/none.pth')


def test_urls_of_one_name_are_two_files(server, zipped, tmp_path):
    for folder, best in (('a', 1), ('b', 2)):
        (tmp_path / folder).mkdir()
        torch.save(dict(best=best), tmp_path / folder / 'model.pth')
    for _ in range(2):
        for folder, best in (('a', 1), ('b', 2)):
            loaded = CheckpointLoader.load_checkpoint(f'{server}/{folder}/model.pth')
            assert loaded['best'] == best
    cache = tmp_path / 'cache/hub/checkpoints'
    assert sorted(path.name[:6] for path in cache.iterdir()) == ['model.', 'model.']


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('name', ['resnet18-{}.pth', 'r18_8xb32_in1k_20210831-{}.pth'])
def test_checksum_in_a_name(server, zipped, tmp_path, name):
    good = tmp_path / name.format(checksum(zipped)[:8])
    zipped.rename(good)
    assert CheckpointLoader.load_checkpoint(f'{server}/{good.name}')['best'] == 0.75
    shutil.rmtree(tmp_path / 'cache')
    damage(good)
    begin = checksum(good)[:8]
    with pytest.raises(CheckpointError) as caught:
        CheckpointLoader.load_checkpoint(f'{server}/{good.name}')
    assert str(caught.value) == (
        f'Checkpoint {server}/{good.name} was downloaded and does not match the checksum in its name: '
        f'its SHA-256 begins with {begin}. If you trust the file, download it yourself and give its '
        'path.'
    )
    assert not [*(tmp_path / 'cache/hub/checkpoints').iterdir()]


@pytest.mark.parametrize('name', ['vit-16.pth', 'model-20210831.pth'])
def test_numbers_that_are_no_checksum(server, zipped, tmp_path, name):
    zipped.rename(tmp_path / name)
    assert CheckpointLoader.load_checkpoint(f'{server}/{name}')['best'] == 0.75


def test_damaged_download_is_not_kept(server, zipped, tmp_path):
    damage(zipped)
    sentence = (
        f'{server}/zipped.pth was downloaded .500 bytes. and is empty, truncated, corrupt or no'
    )
    with pytest.raises(CheckpointError, match=sentence):
        CheckpointLoader.load_checkpoint(f'{server}/zipped.pth')
    assert not [*(tmp_path / 'cache/hub/checkpoints').iterdir()]


def test_file_of_another_program_is_taken_if_its_checksum_fits(server, zipped, tmp_path):
    name = f'model-{checksum(zipped)[:8]}.pth'
    cache = tmp_path / 'cache/hub/checkpoints'
    cache.mkdir(parents=True)
    zipped.rename(cache / name)  # nothing is left on the server
    assert CheckpointLoader.load_checkpoint(f'{server}/{name}')['best'] == 0.75
    damage(cache / name)
    with pytest.raises(CheckpointError, match='cannot be downloaded: File not found'):
        CheckpointLoader.load_checkpoint(f'{server}/{name}')


def test_object_stores_are_loaded_safely(tmp_path, monkeypatch):
    torch.save(Reduced(os.mkdir, str(tmp_path / 'mark')), tmp_path / 'evil.pth')

    @contextlib.contextmanager
    def local(name, backend_args):
        assert (name, backend_args) == ('s3://bucket/evil.pth', dict(backend='petrel'))
        yield tmp_path / 'evil.pth'

    monkeypatch.setattr(checkpoints_module, 'get_local_path', local)
    with pytest.raises(RefusedCheckpointError, match='evil.pth holds'):
        CheckpointLoader.load_checkpoint('s3://bucket/evil.pth')


def test_url_of_a_name_is_loaded_safely(server, tmp_path, monkeypatch):
    torch.save(Reduced(os.mkdir, str(tmp_path / 'mark')), tmp_path / 'evil.pth')
    monkeypatch.setattr(
        mmengine_checkpoint, 'get_torchvision_models', lambda: dict(resnet=f'{server}/evil.pth')
    )
    with pytest.raises(RefusedCheckpointError, match=rf'evil\.\w+\.pth holds {os.name}.mkdir'):
        CheckpointLoader.load_checkpoint('torchvision://resnet')
    assert not (tmp_path / 'mark').exists()


# ------------------------------------------------------------------------------------------------
# Which checkpoint to resume from
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with checkpoints of three epochs, the third recorded as the last, and a best one."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for age, name in enumerate(('best_accuracy_epoch_2', 'epoch_3', 'epoch_2', 'epoch_1')):
        path = folder / f'{name}.pth'
        torch.save(CONTENT, path)
        os.utime(path, (1e9 - age, 1e9 - age))
    folder.joinpath('last_checkpoint').write_text(str(folder / 'epoch_3.pth'))
    return folder


def test_recorded_checkpoint_comes_first(checkpoints, log):
    os.utime(checkpoints / 'epoch_1.pth')  # newer, but not what mmengine recorded
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / 'epoch_3.pth')
    assert log() == ''


def test_broken_checkpoints_are_passed_over_with_a_word(checkpoints, log):
    damage(checkpoints / 'epoch_3.pth', checkpoints / 'epoch_2.pth')
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / 'epoch_1.pth')
    lines = [line.partition('WARNING - ')[2] for line in log().splitlines()]
    assert lines == [
        f'Checkpoint {checkpoints}/{name}.pth (500 bytes) is empty, truncated, corrupt or no '
        'checkpoint at all. It is skipped.'
        for name in ('epoch_3', 'epoch_2')
    ] + [f'Resuming from {checkpoints}/epoch_1.pth instead.']


def test_record_of_a_file_that_is_gone(checkpoints, log):
    (checkpoints / 'epoch_3.pth').unlink()
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / 'epoch_2.pth')
    assert f'There is no checkpoint file {checkpoints}/epoch_3.pth. It is skipped.' in log()


def test_without_a_record_the_newest_is_taken(checkpoints, log):
    for left in (b'', b'\0' * 40):
        (checkpoints / 'last_checkpoint').write_bytes(left)
        assert last_whole_checkpoint(checkpoints) == str(checkpoints / 'epoch_3.pth')
    (checkpoints / 'last_checkpoint').unlink()
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / 'epoch_3.pth')
    assert log() == ''


def test_best_checkpoint_is_the_last_resort(checkpoints, log):
    damage(*checkpoints.glob('epoch_*.pth'))
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / 'best_accuracy_epoch_2.pth')


def test_weights_alone_are_not_enough_to_resume(checkpoints, log):
    damage(*checkpoints.glob('epoch_*.pth'))
    best = checkpoints / 'best_accuracy_epoch_2.pth'
    torch.save(dict(state_dict={}), best)
    assert last_whole_checkpoint(checkpoints) is None
    assert f"Checkpoint {best} holds no 'optimizer' to resume from. It is skipped." in log()
    assert f'No checkpoint in {checkpoints} can be resumed from.' in log()


def test_new_folder_has_nothing_to_resume_from(tmp_path, log):
    assert last_whole_checkpoint(tmp_path / 'none') is None
    assert log() == ''


def test_refused_checkpoint_is_not_passed_over(checkpoints):
    torch.save(dict(CONTENT, args=argparse.Namespace()), checkpoints / 'epoch_3.pth')
    with pytest.raises(RefusedCheckpointError, match='epoch_3.pth holds argparse.Namespace'):
        last_whole_checkpoint(checkpoints)


def test_checkpoints_in_another_folder(checkpoints, tmp_path, log):
    work_dir = tmp_path / 'work_dir'
    work_dir.mkdir()
    (checkpoints / 'last_checkpoint').rename(work_dir / 'last_checkpoint')
    damage(checkpoints / 'epoch_3.pth')
    assert last_whole_checkpoint(work_dir) == str(checkpoints / 'epoch_2.pth')


def test_a_copied_folder_has_its_own_checkpoints(checkpoints, tmp_path, log):
    copied = shutil.copytree(checkpoints, tmp_path / 'copied')
    assert last_whole_checkpoint(copied) == str(copied / 'epoch_3.pth') and log() == ''


# ------------------------------------------------------------------------------------------------
# Packages
# ------------------------------------------------------------------------------------------------


def test_config_of_mmkdx_as_base(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = ['mmkdx::digits/resnet18_digits.py']\nmodel = dict(head=dict(topk=(1, 2)))"
    )
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.dataset.type.split('.')[-1] == 'Digits'
    assert cfg.model.head.topk == (1, 2)


def test_config_of_a_package_by_name():
    cfg = Config.fromfile('mmkdx::digits/resnet18_digits.py')
    assert cfg.filename == str(
        Path(compat.__file__).parent / '.mim/configs/digits/resnet18_digits.py'
    )
    cfg = Config.fromfile('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    assert cfg.model.backbone.depth == 18


@pytest.mark.parametrize(
    'name, reason',
    [
        ('mmkdx::digits/none.py', 'digits/none.py" does not exist'),
        ('mmkdx::none', 'please specify the package name and relative config path'),
        ('mmfewshot::folder/config.py', 'mmfewshot is not installed'),
        ('otter::folder/config.py', 'does not support to load otter'),
    ],
)
def test_no_config_of_a_package(name, reason):
    with pytest.raises(
        ValueError, match=f'^{name} is no config of an installed package: .*{reason}'
    ):
        Config.fromfile(name)


def test_config_of_mmpretrain_as_base(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        "_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']\n"
        'model = dict(head=dict(num_classes=7))\n'
    )
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.depth == 18 and cfg.model.head.num_classes == 7
    path.write_text("_base_ = ['mmpretrain::_base_/models/resnet34.py']\n")
    assert Config.fromfile(path).model.backbone.depth == 34


def test_mmengine_hub():
    from mmengine.hub import get_config, get_model

    cfg = get_config('mmpretrain::resnet/resnet18_8xb32_in1k.py', pretrained=True)
    assert Path(cfg.model_path).name.startswith('resnet18_8xb32_in1k')
    assert get_model('mmpretrain::resnet/resnet18_8xb32_in1k.py').backbone.depth == 18


def test_missing_package_is_named(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("_base_ = ['mmfewshot::folder/config.py']\n")
    with pytest.raises(ModuleNotFoundError, match='mmfewshot is not installed'):
        Config.fromfile(path)
    with pytest.raises(ModuleNotFoundError, match='no_such_package'):
        mmengine.utils.get_installed_path('no_such_package')


def test_package_whose_distribution_has_another_name(tmp_path, monkeypatch):
    (tmp_path / 'otter').mkdir()
    (tmp_path / 'otter/__init__.py').touch()
    info = tmp_path / 'river_otter-1.0.dist-info'
    info.mkdir()
    info.joinpath('METADATA').write_text('Name: river-otter\nVersion: 1.0\n')
    info.joinpath('top_level.txt').write_text('otter\n')
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('otter', 'river-otter'):
        assert mmengine.utils.is_installed(name)
        assert mmengine.utils.get_installed_path(name) == str(tmp_path / 'otter')


def test_editable_install(tmp_path, monkeypatch):
    """The metadata is in one place, and a finder leads to the code in another."""
    site, source = tmp_path / 'site', tmp_path / 'source/weasel'
    info = site / 'weasel-1.0.dist-info'
    info.mkdir(parents=True)
    source.mkdir(parents=True)
    source.joinpath('__init__.py').touch()
    info.joinpath('METADATA').write_text('Name: weasel\nVersion: 1.0\n')
    info.joinpath('top_level.txt').write_text('weasel\n')

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'weasel':
                return importlib.util.spec_from_file_location(name, source / '__init__.py')

    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, Finder])
    assert mmengine.utils.is_installed('weasel')
    assert mmengine.utils.get_installed_path('weasel') == str(source)


def test_installing_twice_changes_nothing():
    names = ('is_installed', 'get_installed_path')
    before = [getattr(mmengine.utils, name) for name in names], dict(CheckpointLoader._schemes)
    compat.install()
    after = [getattr(mmengine.utils, name) for name in names], dict(CheckpointLoader._schemes)
    assert before == after


def test_working_package_lookup_is_left_alone(monkeypatch):
    import mmengine.config.config as user

    folder = os.path.dirname(mmengine.__file__)

    def is_installed(package):
        return True

    def get_installed_path(package):
        return folder

    for function in (is_installed, get_installed_path):
        monkeypatch.setattr(compat, function.__name__, function)
        monkeypatch.setattr(user, function.__name__, function)
    compat._find_packages_without_pkg_resources()
    assert user.is_installed is is_installed and user.get_installed_path is get_installed_path
    folder = os.path.dirname(folder)  # the answer of a broken look-up
    compat._find_packages_without_pkg_resources()
    assert user.is_installed is compat._is_installed
    assert user.get_installed_path is compat._get_installed_path


def test_lookup_that_asks_pkg_resources_is_replaced(monkeypatch):
    import mmengine.config.config as user

    def is_installed(package):
        import pkg_resources

        return pkg_resources.get_distribution(package)

    monkeypatch.setattr(compat, 'is_installed', is_installed)
    monkeypatch.setattr(user, 'is_installed', is_installed)
    compat._find_packages_without_pkg_resources()
    assert user.is_installed is compat._is_installed


def test_python_without_find_loader(monkeypatch):
    import mmengine.model.utils as user

    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)
    monkeypatch.setattr(user, 'mmcv_full_available', compat.mmcv_full_available)
    compat._look_for_mmcv_ops_without_find_loader()
    assert user.mmcv_full_available is compat._mmcv_full_available
    assert user.mmcv_full_available() is (importlib.util.find_spec('mmcv._ext') is not None)
    assert isinstance(revert_sync_batchnorm(torch.nn.SyncBatchNorm(2)), torch.nn.Module)


# ------------------------------------------------------------------------------------------------
# Several processes without CUDA
# ------------------------------------------------------------------------------------------------


def test_one_process_needs_no_preparation():
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl'))))
    prepare_cpu_launch(cfg, 'none')
    assert cfg.to_dict() == dict(env_cfg=dict(dist_cfg=dict(backend='nccl')))


def test_machine_with_cuda_needs_no_preparation(monkeypatch):
    monkeypatch.setattr(compat, 'get_device', lambda: 'cuda')
    cfg = Config(dict(a=1))
    for launcher in ('pytorch', 'slurm', 'mpi'):
        prepare_cpu_launch(cfg, launcher)
    assert cfg.to_dict() == dict(a=1)


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_launchers_that_need_cuda(monkeypatch, launcher):
    monkeypatch.setattr(compat, 'get_device', lambda: 'cpu')
    with pytest.raises(RuntimeError, match=f"launcher='{launcher}' needs CUDA, which this machine"):
        prepare_cpu_launch(Config(), launcher)


def test_prepared_config(monkeypatch):
    monkeypatch.setattr(compat, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(compat, 'is_distributed', lambda: True)
    cfg = Config(dict(find_unused_parameters=True))
    prepare_cpu_launch(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    assert cfg.env_cfg == dict(dist_cfg=dict(backend='gloo'))
    cfg = Config(
        dict(
            model_wrapper_cfg=dict(type='MyWrapper', static_graph=True),
            env_cfg=dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl', timeout=60)),
        )
    )
    prepare_cpu_launch(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg == dict(type='MyWrapper', static_graph=True, device_ids=None)
    assert cfg.env_cfg == dict(cudnn_benchmark=True, dist_cfg=dict(backend='gloo', timeout=60))


LAUNCHED = """
import json
import os
import sys

import torch
from mmengine.config import Config
from mmengine.dist import all_gather, barrier, get_rank
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

from mmkdx.compat import prepare_cpu_launch


@MODELS.register_module()
class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def forward(self, x, mode):
        return dict(loss=self.layer(torch.stack(x)).mean())


@DATASETS.register_module()
class Numbers(torch.utils.data.Dataset):

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(x=torch.tensor([1. + 2 * index]))


cfg = Config(dict(
    model=dict(type='Line'), work_dir=sys.argv[1], launcher='pytorch',
    train_dataloader=dict(batch_size=1, dataset=dict(type='Numbers'),
                          sampler=dict(type='DefaultSampler', shuffle=False)),
    train_cfg=dict(by_epoch=True, max_epochs=1),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.)),
    env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60))))
prepare_cpu_launch(cfg, cfg.launcher)
runner = Runner.from_cfg(cfg)
runner.train()
weights = all_gather(runner.model.module.layer.weight.data)
if get_rank() == 0:
    with open(sys.argv[2], 'w') as file:
        json.dump(dict(weights=[w.item() for w in weights],
                       wrapper=type(runner.model).__name__,
                       backend=torch.distributed.get_backend()), file)
barrier()
# Once in a dozen runs a thread of gloo outlived the interpreter, which then aborted with all done.
os._exit(0)
"""


def test_two_processes_train_together(tmp_path):
    script = tmp_path / 'launched.py'
    script.write_text(LAUNCHED)
    result = tmp_path / 'result.json'
    launch(script, tmp_path / 'work_dir', result, env=dict(CUDA_VISIBLE_DEVICES=''))
    # one step of SGD with rate 1 on the mean of the inputs 1 and 3, of which each process sees one
    assert json.loads(result.read_text()) == dict(
        weights=[-2.0, -2.0], wrapper='MMDistributedDataParallel', backend='gloo'
    )


# Whole files


@pytest.fixture
def full(monkeypatch):
    """A disk that is full when a file is to get its name."""

    def refuse(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', refuse)


@pytest.mark.parametrize(
    'write',
    [
        lambda path: mmengine_checkpoint.save_checkpoint({'a': 1}, path),
        lambda path: mmengine_checkpoint.save_checkpoint({}, path, dict(backend='disk')),
        lambda path: mmengine.dump({'a': 1}, path, 'json'),
        lambda path: Config(dict(a=1)).dump(path),
    ],
)
def test_what_mmengine_writes_is_whole_or_the_old(tmp_path, write, full, monkeypatch):
    path = tmp_path / 'file.py'
    path.write_text('old')
    with pytest.raises(WriteError, match=f'cannot write {path}: No space left'):
        write(str(path))
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file.py']
    monkeypatch.undo()
    write(str(path))
    assert path.read_bytes() != b'old' and os.listdir(tmp_path) == ['file.py']


def test_folders_of_files_are_made_as_before(tmp_path):
    mmengine.dump([1], tmp_path / 'a' / 'b.json')
    assert mmengine.load(tmp_path / 'a' / 'b.json') == [1]


def test_a_config_is_still_text_without_a_file():
    assert Config(dict(a=1)).dump() == Config(dict(a=1)).pretty_text
