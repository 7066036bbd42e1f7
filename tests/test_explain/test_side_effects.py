"""Explaining leaves a model, its gradients and the random state as they were, wherever it happens."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from explainable import explainer_for, images, model_for, state_of
from families import randomize
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmpretrain.models.tta import AverageClsScoreTTA
from torch import nn

from mmkdx.explain import Explainer
from mmkdx.functional import degenerate_maps
from mmkdx.registry import EXPLAINERS

EXPLAINERS.import_from_location()
ALL = sorted(
    name
    for name, kind in EXPLAINERS.module_dict.items()
    if kind.__module__.startswith('mmkdx.') and issubclass(kind, Explainer)
)
HEADS = ('linear', 'hidden')
#: Noise reads no weights, and is other noise for an image that is rounded.
INFORMED = [name for name in ALL if name != 'RandomMap']


def reference(name: str, head: str) -> torch.Tensor:
    return explainer_for(name)(model_for(name, head), images(), [0, 1, 2])


every = pytest.mark.parametrize('name', ALL)
both = pytest.mark.parametrize('head', HEADS)


@every
@both
def test_a_model_comes_out_as_it_was(name, head):
    model = model_for(name, head).train()
    # A mixture of modes, frozen parameters and gradients that are there already
    list(model.modules())[3].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 7.0)
    before = state_of(model)
    explainer = explainer_for(name)
    for targets in (None, 2, [0, 1, 2], 'all'):
        maps = explainer(model, images(), targets)
        assert not maps.requires_grad and maps.dtype == torch.float32
    assert state_of(model) == before


@pytest.mark.parametrize(
    'name', [name for name in INFORMED if name not in ('AblationCAM', 'ScoreCAM')]
)
@both
def test_differentiable_maps_change_nothing_either(name, head):
    model = model_for(name, head)
    parameter = next(model.parameters())
    parameter.grad = torch.full_like(parameter, 7.0)
    before = state_of(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        maps = explainer_for(name, differentiable=True)(model, images(), [0, 1, 2])
    assert maps.requires_grad and state_of(model) == before
    torch.testing.assert_close(maps.detach(), reference(name, head))


@every
def test_a_model_in_training_is_explained_in_eval_mode(name):
    expected = reference(name, 'linear')
    maps = explainer_for(name)(model_for(name).train(), images(), [0, 1, 2])
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


@every
@both
@pytest.mark.parametrize(
    'where', ['no_grad', 'inference', 'soft inference', 'frozen', 'autocast', 'leaf']
)
def test_maps_are_the_same_everywhere(name, head, where):
    expected = reference(name, head)
    model, explainer, x = model_for(name, head), explainer_for(name), images()
    if where == 'no_grad':
        with torch.no_grad():
            maps = explainer(model, images(), [0, 1, 2])
    elif where == 'inference':
        with torch.inference_mode():
            maps = explainer(model, images() + 0, [0, 1, 2])
    elif where == 'soft inference':
        with torch.inference_mode():
            maps = explainer(model, images() + 0, torch.eye(4)[:3])
    elif where == 'frozen':
        maps = explainer(model.requires_grad_(False), images(), [0, 1, 2])
    elif where == 'autocast':
        with torch.autocast('cpu', dtype=torch.bfloat16):
            maps = explainer(model, images(), [0, 1, 2])
    else:
        maps = explainer(model, x.requires_grad_(), torch.tensor([0, 1, 2]))
    assert not maps.requires_grad and not maps.is_inference() and x.grad is None
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', INFORMED)
def test_half_precision_models_have_maps_in_full_precision(name):
    expected = reference(name, 'linear')
    maps = explainer_for(name)(model_for(name).bfloat16(), images(), [0, 1, 2])
    assert maps.dtype == torch.float32 and maps.isfinite().all()
    for map_, wanted in zip(maps, expected):
        pair = torch.stack([map_.flatten(), wanted.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.9


@every
def test_an_exception_in_the_model_leaves_nothing_behind(name):
    model = model_for(name).train()
    explainer = explainer_for(name)
    explainer(model, images())
    before = state_of(model)
    last = list(model.modules())[-1]

    def fail(*_):
        raise ZeroDivisionError

    handle = model.head.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        explainer(model, images())
    handle.remove()
    assert state_of(model) == before and last.training


@every
def test_maps_do_not_depend_on_the_rest_of_the_batch(name):
    model, explainer = model_for(name), explainer_for(name)
    together = explainer(model, images(), [0, 1, 2])
    alone = [explainer(model, images()[i : i + 1], i)[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', INFORMED)
def test_maps_of_a_reinitialised_model_differ(name):
    """The sanity check of Adebayo et al. (NeurIPS 2018): a map must depend on the parameters."""
    maps = [explainer_for(name)(model_for(name, seed=seed), images(), 1) for seed in (0, 1)]
    for first, second in zip(*maps):
        pair = torch.stack([first.flatten(), second.flatten()])
        assert torch.corrcoef(pair)[0, 1].abs() < 0.98


@pytest.fixture(scope='module')
def process_group(tmp_path_factory):
    # A file, as another run of the tests may have any port
    store = tmp_path_factory.mktemp('group') / 'store'
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every
def test_a_distributed_model_is_taken_out_of_its_wrapper(name, process_group):
    wrapped = MMDistributedDataParallel(model_for(name))

    def fail(*_, **__):
        raise AssertionError('A wrapper waits for the other processes, which may explain nothing')

    wrapped.forward = fail
    maps = explainer_for(name)(wrapped, images(), [0, 1, 2])
    torch.testing.assert_close(maps, reference(name, 'linear'), rtol=0, atol=0)


def compiled(model: nn.Module) -> nn.Module:
    """A compiled model that ran once, after which its code is another."""
    wrapped = torch.compile(model, backend='eager')
    with torch.no_grad():
        wrapped(images())
    return wrapped


WRAPPERS = dict(
    compiled=compiled,
    parallel=nn.DataParallel,
    averaged=ExponentialMovingAverage,
    augmented=lambda model: AverageClsScoreTTA(module=model),
    twice=lambda model: nn.DataParallel(compiled(model)),
)


@pytest.mark.parametrize(
    'name', ['GradCAM', 'AttentionRollout', 'LeGrad', 'IntegratedGradients', 'ScoreCAM']
)
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrapped_models_have_the_maps_of_the_plain_one(name, wrapper):
    maps = explainer_for(name)(WRAPPERS[wrapper](model_for(name)), images(), [0, 1, 2])
    torch.testing.assert_close(maps, reference(name, 'linear'), rtol=0, atol=0)


def test_a_model_that_is_compiled_in_place_has_the_maps_of_the_plain_one():
    for name in ('GradCAM', 'AttentionRollout', 'GradientRollout'):
        model = model_for(name)
        model.compile(backend='eager')
        model(images())
        maps = explainer_for(name)(model, images(), [0, 1, 2])
        torch.testing.assert_close(maps, reference(name, 'linear'), rtol=0, atol=0)


@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_a_script_is_refused_in_a_sentence():
    script = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), images())
    for name in ('GradCAM', 'InputGradient'):
        with pytest.raises(
            ValueError, match='the model is a ScriptModule, .* pass the Python module'
        ):
            explainer_for(name)(script, images())


@pytest.fixture(scope='module')
def hugging_face() -> nn.Module:
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=4, num_labels=4,
    )  # fmt: skip
    return randomize(transformers.ViTForImageClassification(config), images()).eval()


class Logits(nn.Module):
    """A model that returns the logits alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs).logits


@pytest.mark.parametrize('name', [name for name in ALL if name not in ('CAM', 'PrototypeMap')])
def test_models_of_hugging_face_are_explained_by_their_logits(name, hugging_face):
    maps = explainer_for(name)(hugging_face, images(), [0, 1, 2])
    assert maps.shape[1:] in ((4, 4), (16, 16)) and not degenerate_maps(maps, 1e-4).any()
    expected = explainer_for(name)(Logits(hugging_face), images(), [0, 1, 2])
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['CAM', 'GradCAM', 'LayerCAM', 'InputGradient'])
def test_a_thousand_calls_do_not_leak(name):
    model, explainer = model_for(name, 'hidden'), explainer_for(name)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

    explainer(model, images(1), 0)
    before = tensors()
    for _ in range(1000):
        explainer(model, images(1), 0)
    assert tensors() <= before


@every
def test_a_model_can_be_collected_after_it_was_explained(name):
    model, explainer = model_for(name), explainer_for(name)
    explainer(model, images(1), 0)
    ghost = weakref.ref(model)
    del model
    gc.collect()
    assert ghost() is None
