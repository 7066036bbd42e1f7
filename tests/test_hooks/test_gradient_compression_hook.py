"""Arguments, and one process; two are in tests/test_scale_two_processes.py."""

from types import SimpleNamespace

import pytest
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from mmkdx.hooks import GradientCompressionHook, gradient_compression_hook
from mmkdx.registry import HOOKS


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(kind='int8'), "kind is 'int8'; it must be one of fp16, bf16, power_sgd"),
        (dict(kind='fp16', rank=2), "kind='fp16' takes no options, and there are rank"),
        (dict(kind='power_sgd', rank=2), "PowerSGD: .*unexpected keyword argument 'rank'"),
        (dict(kind='power_sgd', start_powerSGD_iter=1), 'PowerSGD: .*start_powerSGD_iter. > 1'),
    ],
)
def test_wrong_arguments(config, message):
    with pytest.raises(ValueError, match=f'GradientCompressionHook.*{message}'):
        HOOKS.build(dict(type='GradientCompressionHook', **config))


def test_with_one_process_nothing_is_exchanged():
    GradientCompressionHook().before_train(SimpleNamespace(model=nn.ReLU()))


@pytest.mark.parametrize(
    'kind, expected',
    [
        ('fp16', default_hooks.fp16_compress_hook),
        ('bf16', default_hooks.bf16_compress_hook),
        ('power_sgd', powerSGD_hook.powerSGD_hook),
    ],
)
def test_the_function_and_its_state(monkeypatch, kind, expected):
    class Wrapper(nn.Module):
        def register_comm_hook(self, state, hook):
            self.registered = state, hook

    monkeypatch.setattr(gradient_compression_hook, 'DistributedDataParallel', Wrapper)
    monkeypatch.setattr(gradient_compression_hook, 'get_world_size', lambda: 2)
    model = Wrapper()
    options = dict(matrix_approximation_rank=3) if kind == 'power_sgd' else {}
    GradientCompressionHook(kind, **options).before_train(SimpleNamespace(model=model))
    state, hook = model.registered
    assert hook is expected
    assert (state.matrix_approximation_rank == 3) if options else (state is None)
