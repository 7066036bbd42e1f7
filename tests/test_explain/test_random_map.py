"""RandomMap: noise that depends on the image, the class and the seed alone."""

import pytest
import torch
from explainable import images, model_for
from torch import nn

from mmkdx.explain import GradCAM, LayerCAM, RandomMap, build_explainer


class Plain(nn.Module):
    """Logits without a layer in space."""

    def forward(self, x):
        return x.flatten(1)[:, :4] * 3


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_noise_is_standard_normal():
    maps = RandomMap(100)(Plain(), images(), 1)
    assert maps.dtype == torch.float32 and maps.shape == (3, 100, 100)
    assert maps.mean().abs() < 4 / 30000**0.5
    assert (maps.std() - 1).abs() < 4 / 60000**0.5
    share = (maps.abs() < 1).float().mean()
    assert abs(share - 0.6827) < 0.011  # of a normal distribution


@pytest.mark.parametrize('explainer', [RandomMap(), RandomMap((3, 5))])
def test_neither_batch_nor_order_nor_weights_nor_calls_matter(explainer):
    model, x, targets = model_for('GradCAM'), images(5), torch.tensor([0, 1, 2, 3, 0])
    maps = explainer(model, x, targets)
    assert len({map_.numpy().tobytes() for map_ in maps}) == 5
    same(explainer(model, x, targets), maps)
    same(explainer(model, x.flip(0), targets.flip(0)), maps.flip(0))
    same(torch.cat([explainer(model, x[i : i + 1], int(targets[i])) for i in range(5)]), maps)
    same(explainer(model_for('GradCAM', seed=1), x, targets), maps)
    same(explainer(model, x.contiguous(memory_format=torch.channels_last), targets), maps)
    same(explainer(model.double(), x, targets), maps)


def test_the_class_the_image_and_the_seed_matter():
    model, x = model_for('GradCAM'), images()
    maps = RandomMap()(model, x, 'all')
    assert len({map_.numpy().tobytes() for map_ in maps.flatten(0, 1)}) == 12
    assert torch.corrcoef(maps.flatten(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.6
    for index in range(4):
        same(RandomMap()(model, x, index), maps[:, index])
    predicted = model(x).argmax(1)
    same(RandomMap()(model, x), maps[torch.arange(3), predicted])
    assert not torch.equal(RandomMap(seed=1)(model, x, 0), maps[:, 0])
    assert not torch.equal(RandomMap()(model, x + 1e-6, 0), maps[:, 0])


def test_soft_labels_of_one_class_are_the_class():
    x, explainer = images(), RandomMap(4)
    same(explainer(Plain(), x, torch.eye(4)[:3]), explainer(Plain(), x, [0, 1, 2]))
    soft = explainer(Plain(), x, torch.full((3, 4), 0.25))
    assert not torch.equal(soft, explainer(Plain(), x, torch.full((3, 4), 0.5)))


def test_a_model_of_more_classes_has_the_same_noise():
    class More(Plain):
        def forward(self, x):
            return x.flatten(1)[:, :9]

    same(RandomMap(4)(More(), images(), 2), RandomMap(4)(Plain(), images(), 2))


def test_a_function_has_noise_of_the_image_alone():
    model, x = model_for('GradCAM'), images()
    maps = RandomMap()(model, x, lambda logits: logits[:, 2])
    same(RandomMap()(model, x, lambda logits: logits.square().sum(1)), maps)
    assert len({map_.numpy().tobytes() for map_ in maps}) == 3
    with pytest.raises(ValueError, match='it must return a tensor with one score for each image'):
        RandomMap()(model, x, lambda logits: logits)


@pytest.mark.parametrize('name', ['GradCAM', 'AttentionRollout'])
def test_its_size_is_that_of_the_layer_that_auto_finds(name):
    model = model_for(name)
    assert RandomMap()(model, images(), 1).shape == GradCAM()(model, images(), 1).shape
    wide = images()[..., :8, :]
    if name == 'GradCAM':
        assert RandomMap()(model, wide, 1).shape == LayerCAM()(model, wide, 1).shape
    assert RandomMap((3, 7))(model, images(), 1).shape == (3, 3, 7)
    assert RandomMap([3, 7]).size == (3, 7)


def test_mistakes_are_refused():
    for explainer in (RandomMap(), GradCAM()):
        with pytest.raises(
            ValueError, match="layer 'auto' finds no spatial layer .* spatial layers are none"
        ):
            explainer(Plain(), images(), 1)
    with pytest.raises(ValueError, match='target 9 is no class of the model, which has 4'):
        RandomMap(3)(Plain(), images(), 9)
    for size in (0, -1, [3], (3, 0), 'auto', 2.0, True):
        with pytest.raises(
            ValueError, match='RandomMap.size is .* an integer of at least 1, or two'
        ):
            RandomMap(size)
    with pytest.raises(ValueError, match='RandomMap.seed is -1; it must be an integer of at leas'):
        RandomMap(seed=-1)
    with pytest.raises(ValueError, match='differentiable'):
        build_explainer(dict(type='RandomMap', differentiable=True))


def test_noise_of_a_given_size_for_known_classes_runs_no_model():
    class Unused(nn.Module):
        def forward(self, x):
            raise AssertionError('the model was run')

    explainer, x, targets = RandomMap(4), images(), torch.tensor([0, 3, 1])
    same(explainer(Unused(), x, targets), explainer(Plain(), x, targets.tolist()))
    for wrong in (torch.tensor([0, 1]), torch.tensor([0, -1, 1])):
        with pytest.raises(ValueError, match='target'):
            explainer(Plain(), x, wrong)
