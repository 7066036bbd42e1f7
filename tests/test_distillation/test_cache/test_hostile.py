"""Caches that claim what is not there are damaged, before anything is listed or read."""

import json
import time

import pytest
import torch
from campaign.hostile import HEADER
from campaign.hostile_files import CACHES, cache
from safetensors.torch import save_file

from mmkdx.distillation.cache import CacheError, CacheReader
from mmkdx.distillation.cache.files import COMMAND, finish, prepare, shards, write_shard


@pytest.fixture
def good(tmp_path):
    """A cache of one part."""
    prepare(tmp_path, HEADER)
    write_shard(tmp_path, HEADER, shards(HEADER)[0], {'logits.x': torch.ones(1, 3)})
    finish(tmp_path, HEADER)
    return tmp_path


def test_a_good_cache(good):
    assert CacheReader(good).rows([0], [0], ['logits.x'])['logits.x'].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize('open_', [CacheReader, lambda folder: prepare(folder, HEADER)])
@pytest.mark.parametrize('change', CACHES.values(), ids=CACHES)
def test_claims_of_the_index(good, change, open_):
    path, start = cache(good, HEADER, change), time.monotonic()
    with pytest.raises(CacheError) as caught:
        open_(good)
    assert str(caught.value) == (
        f'teacher.cache: {path} is damaged; remove this file and keep the rest with: {COMMAND}'
    )
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    'text',
    [
        '[1]',
        '{"header": {}, "shards": {}}',
        '{"a": ' * 100_000,
        json.dumps(dict(header=HEADER, shards={'../../etc/hostname': dict(sha256='a', size=1)})),
        json.dumps(dict(header=HEADER, shards={'view-000/part-00000.safetensors': 3})),
    ],
    ids=['list', 'empty', 'deep', 'elsewhere', 'no entry'],
)
def test_other_damage_of_the_index(good, text):
    (good / 'cache.json').write_text(text)
    with pytest.raises(CacheError, match='cache.json is damaged; remove this file'):
        CacheReader(good)


@pytest.mark.parametrize('views', [1e9, 10**12])
def test_claims_of_a_part(good, views):
    """The header of a part counts where there is no index."""
    (good / 'cache.json').unlink()
    metadata = json.dumps(dict(header=dict(HEADER, views=views), sha256='a'))
    save_file({'x': torch.ones(1)}, good / shards(HEADER)[0].name, dict(mmkdx=metadata))
    sentence = (
        'there is no cache' if views == 1e9 else 'not whole, 1 of 1000000000000 parts are there'
    )
    with pytest.raises(CacheError, match=sentence):
        CacheReader(good)


def test_a_part_of_another_size(good):
    write_shard(good, HEADER, shards(HEADER)[0], {'logits.x': torch.ones(2, 3)})
    finish(good, HEADER)
    with pytest.raises(CacheError, match='part-00000.safetensors is damaged'):
        CacheReader(good).rows([0], [0], ['logits.x'])


def test_a_part_without_a_tensor(good):
    with pytest.raises(CacheError, match=f'{good} has no logits.y in a part'):
        CacheReader(good).rows([0], [0], ['logits.y'])
