"""The files of a cache: what is read is what was written, and nothing half written is ever read."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mmkdx.distillation.cache import CacheError, CacheReader
from mmkdx.distillation.cache import files as cache_files
from mmkdx.distillation.cache.files import (
    finish,
    is_whole,
    prepare,
    shards,
    write_shard,
)

HEADER = dict(
    format=1,
    teacher='aa',
    data='bb',
    pipeline='cc',
    samples=10,
    views=2,
    seed=0,
    taps={'logits': ['tensor', 3]},
    top_k=None,
    resolution=None,
    shard_size=4,
)


def rows(view, positions):
    """Rows that say who they are."""
    positions = torch.tensor(positions)[:, None]
    return {
        'logits.values': (positions + 100 * view + torch.tensor([0.25, 0.5, 0.75])).half(),
        'logits.index': (positions * 3 + torch.tensor([0, 1])).to(torch.int16),
        'signature': torch.full((len(positions), 4), view + 0.125),
    }


def write(folder, header=HEADER, skip=()):
    prepare(folder, header)
    for shard in shards(header):
        if shard.name not in skip:
            write_shard(folder, header, shard, rows(shard.view, range(shard.start, shard.stop)))
    if not skip:
        finish(folder, header)


@pytest.fixture
def cache(tmp_path):
    write(tmp_path)
    return tmp_path


def test_the_plan_covers_each_sample_once_in_each_view():
    plan = shards(HEADER)
    assert [(each.view, each.start, each.stop) for each in plan] == [
        (0, 0, 4),
        (0, 4, 8),
        (0, 8, 10),
        (1, 0, 4),
        (1, 4, 8),
        (1, 8, 10),
    ]
    assert plan[4].name == 'view-001/part-00001.safetensors'


@pytest.mark.parametrize('keys', [['logits.values', 'logits.index'], ['signature']])
def test_rows_come_in_the_order_that_is_asked_for(cache, keys):
    views, positions = [1, 0, 0, 1, 1, 0, 0], [9, 0, 5, 3, 3, 8, 4]
    found = CacheReader(cache).rows(views, positions, keys)
    assert set(found) == set(keys)
    for key in keys:
        expected = torch.cat([rows(*each)[key] for each in zip(views, [[p] for p in positions])])
        assert torch.equal(found[key], expected) and found[key].dtype == expected.dtype


def test_shards_are_plain_safetensors_and_say_what_they_are(cache):
    with safe_open(cache / 'view-001/part-00001.safetensors', 'pt') as file:
        assert torch.equal(file.get_tensor('logits.values'), rows(1, range(4, 8))['logits.values'])
        assert json.loads(file.metadata()['mmkdx'])['header'] == HEADER
    index = json.loads((cache / 'cache.json').read_text())
    sizes = [(cache / name).stat().st_size for name in index['shards']]
    assert [entry['size'] for entry in index['shards'].values()] == sizes
    assert sizes == [entry.stat().st_size for entry in sorted(cache.rglob('*.safetensors'))]


def test_the_format_does_not_change(cache):
    """Caches of other versions stay readable: the checksum of an earlier version for these tensors."""
    index = json.loads((cache / 'cache.json').read_text())
    assert index['shards']['view-000/part-00000.safetensors']['sha256'] == (
        '9f262015e80cfa8c762f77a0bbf2d9992983117171c8170b3d2eae608ab0a9e8'
    )


def test_a_shard_is_verified_once_when_it_is_read_first(cache, monkeypatch):
    found, checked = CacheReader(cache), []
    checksum = cache_files.checksum
    monkeypatch.setattr(
        cache_files, 'checksum', lambda *args: checked.append(args[1].name) or checksum(*args)
    )
    for _ in range(2):
        found.rows([1, 1], [4, 7], ['signature'])
    assert checked == ['view-001/part-00001.safetensors']


@pytest.mark.parametrize('place', [-1, -20, 20])
def test_one_changed_bit_is_found(cache, place):
    path = cache / 'view-000/part-00002.safetensors'
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    found = CacheReader(cache)
    found.rows([0], [0], ['signature'])
    with pytest.raises(
        CacheError, match='view-000/part-00002.safetensors is damaged; .*cache_teacher.py CONFIG'
    ):
        found.rows([0], [8], ['signature'])
    if place != 20:  # in the header, which then may be that of another cache
        assert not is_whole(cache, HEADER, shards(HEADER)[2])


def test_exchanged_shards_are_found(cache):
    first, second = (cache / f'view-00{i}/part-00000.safetensors' for i in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other), second.write_bytes(one)
    with pytest.raises(CacheError, match='view-000/part-00000.safetensors is damaged'):
        CacheReader(cache).rows([0], [0], ['signature'])
    assert not is_whole(cache, HEADER, shards(HEADER)[0])


def test_truncated_and_missing_shards_are_found_at_once(cache):
    path = cache / 'view-000/part-00001.safetensors'
    size = path.stat().st_size
    os.truncate(path, size - 5)
    with pytest.raises(
        CacheError, match=f'part-00001.safetensors has {size - 5} bytes, not {size}'
    ):
        CacheReader(cache)
    assert [is_whole(cache, HEADER, shard) for shard in shards(HEADER)][:3] == [True, False, True]
    for left in (5, 0):
        os.truncate(path, left)
        assert not is_whole(cache, HEADER, shards(HEADER)[1])
    path.unlink()
    with pytest.raises(CacheError, match='part-00001.safetensors is missing; .*cache_teacher.py'):
        CacheReader(cache)
    with pytest.raises(CacheError, match='part-00001.safetensors was not written'):
        finish(cache, HEADER)


def test_no_cache(tmp_path):
    with pytest.raises(
        CacheError, match='there is no cache .*nowhere; write it first: python tools'
    ):
        CacheReader(tmp_path / 'nowhere')


def test_a_cache_that_is_not_whole(tmp_path):
    write(tmp_path, skip=['view-001/part-00002.safetensors', 'view-000/part-00000.safetensors'])
    with pytest.raises(
        CacheError, match='is not whole, 4 of 6 parts are there; .*cache_teacher.py'
    ):
        CacheReader(tmp_path)


@pytest.mark.parametrize('content', ['', '[]', '{"header": 1}', '{"header'])
def test_a_damaged_index(cache, content):
    (cache / 'cache.json').write_text(content)
    for action in (lambda: CacheReader(cache), lambda: prepare(cache, HEADER)):
        with pytest.raises(CacheError, match='cache.json is damaged; remove this file'):
            action()


def test_the_format_of_another_version(cache):
    path = cache / 'cache.json'
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(CacheError, match=r'what differs: the format \(7, not 1\)'):
        CacheReader(cache)


@pytest.mark.parametrize('views, positions', [([0, 2], [0, 0]), ([0, 0], [0, 10])])
def test_what_is_not_in_the_cache(cache, views, positions):
    with pytest.raises(CacheError, match='holds 2 views of 10 images, and view . and image'):
        CacheReader(cache).rows(views, positions, ['signature'])


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(teacher='x'), "the teacher's weights, precision, normalize or resize"),
        (dict(data='x'), 'the training images'),
        (dict(pipeline='x'), 'the pipeline of the training images or the seed of SeededViews'),
        (dict(views=3), r'views \(2, not 3\)'),
        (dict(samples=11), r'the number of images \(10, not 11\)'),
        (dict(seed=1), r'the seed of SeededViews \(0, not 1\)'),
        (dict(taps={'cam': ['maps', 3, 2, 2]}), r'the taps \(.*logits.*, not .*cam.*\)'),
        (dict(top_k=2, resolution=2), r'top_k \(None, not 2\); resolution \(None, not 2\)'),
        (dict(shard_size=5), r'the shard size \(4, not 5\)'),
    ],
)
@pytest.mark.parametrize('whole', [True, False])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, whole, change, words):
    write(tmp_path, skip=() if whole else ['view-000/part-00000.safetensors'])
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(
        CacheError,
        match=f'holds outputs of something else; what differs: {words}. Remove the folder',
    ):
        prepare(tmp_path, {**HEADER, **change})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}


def test_a_foreign_shard_among_ours_is_refused(cache):
    other = {**HEADER, 'teacher': 'x'}
    write_shard(cache, other, shards(other)[1], rows(0, range(4, 8)))
    with pytest.raises(CacheError, match="what differs: the teacher's weights"):
        is_whole(cache, HEADER, shards(HEADER)[1])


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_file_has_its_name_only_when_it_is_on_the_disk(tmp_path, monkeypatch, step):
    def power_cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, power_cut)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


@pytest.mark.parametrize('delay', [0, 2, 5, 10, 20, 40])
def test_a_writer_that_is_killed_leaves_whole_shards_and_no_whole_cache(tmp_path, delay):
    header = {**HEADER, 'samples': 4000, 'shard_size': 20}
    child = os.fork()
    if not child:
        try:
            write(tmp_path, header)
            time.sleep(60)
        finally:
            os._exit(0)
    time.sleep(delay / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    plan = shards(header)
    there = [shard for shard in plan if (tmp_path / shard.name).is_file()]
    assert len(there) < len(plan) and all(is_whole(tmp_path, header, shard) for shard in there)
    with pytest.raises(CacheError, match='there is no cache|is not whole, '):
        CacheReader(tmp_path)


def test_rows_of_many_shards_are_those_of_an_array(tmp_path):
    header = {**HEADER, 'samples': 100, 'shard_size': 7}
    write(tmp_path, header)
    generator = np.random.default_rng(0)
    views, positions = generator.integers(2, size=200), generator.integers(100, size=200)
    found = CacheReader(tmp_path).rows(views.tolist(), positions.tolist(), ['logits.values'])
    whole = np.stack([rows(view, range(100))['logits.values'].numpy() for view in (0, 1)])
    assert np.array_equal(found['logits.values'].numpy(), whole[views, positions])
