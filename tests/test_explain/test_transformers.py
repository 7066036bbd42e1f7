"""GradientRollout and LeGrad on transformers of four libraries, each built once without positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from explainable import state_of
from families import family, images, randomize
from torch import nn

from mmkdx.explain import AttentionRollout, GradientRollout, LeGrad

_TIMM = dict(embed_dim=16, depth=2, num_heads=4, num_classes=4)
_HF = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=4
)


def timm(name: str, size: tuple[int, int], **options) -> nn.Module:
    library = pytest.importorskip('timm')
    options = {**_TIMM, **options}
    if name == 'SwinTransformer':
        del options['depth']
    return getattr(library.models, name)(img_size=size, **options)


def hugging_face(name: str, size: tuple[int, int], patch: int = 8, **options) -> nn.Module:
    library = pytest.importorskip('transformers')
    config = getattr(library, f'{name}Config')(
        image_size=size, patch_size=patch, **{**_HF, **options}
    )
    kind = dict(DeiT='DeiTForImageClassificationWithTeacher', SiglipVision='SiglipVisionModel')
    return getattr(library, kind.get(name, f'{name}ForImageClassification'))(config)


def torchvision(size: tuple[int, int]) -> nn.Module:
    models = pytest.importorskip('torchvision').models
    return models.VisionTransformer(size[0], 8, 2, 2, 16, 32, num_classes=4)


#: For each network: how it is built, the images' size, the grid of its tokens.
NETWORKS: dict[str, tuple[Callable, tuple[int, int], tuple[int, int]]] = {
    'timm class token': (
        lambda size: timm('VisionTransformer', size, patch_size=8), (32, 64), (4, 8)
    ),
    'timm distilled': (
        lambda size: timm('VisionTransformerDistilled', size, patch_size=8), (64, 32), (8, 4)
    ),
    'timm registers': (
        lambda size: timm('VisionTransformer', size, patch_size=14, reg_tokens=4), (28, 84), (2, 6)
    ),
    'timm attention pooling': (
        lambda size: timm(
            'VisionTransformer', size, patch_size=8, class_token=False, global_pool='map'
        ),
        (24, 48), (3, 6),
    ),
    'timm mean pooling': (
        lambda size: timm(
            'VisionTransformer', size, patch_size=8, class_token=False, global_pool='avg'
        ),
        (48, 24), (6, 3),
    ),
    'timm BEiT': (
        lambda size: timm('Beit', size, patch_size=8, init_values=0.5), (32, 32), (4, 4)
    ),
    'timm Swin': (
        lambda size: timm(
            'SwinTransformer', size, depths=(1, 2), num_heads=(1, 2), window_size=(8, 16)
        ),
        (32, 64), (4, 8),
    ),
    'torchvision class token': (torchvision, (32, 32), (4, 4)),
    'mmpretrain class token': (
        lambda size: family('VisionTransformer', size), (32, 96), (2, 6)
    ),
    'mmpretrain distilled': (
        lambda size: family('DistilledVisionTransformer', size), (64, 32), (4, 2)
    ),
    'mmpretrain mean pooling': (
        lambda size: family(
            'VisionTransformer', size, with_cls_token=False, out_type='avg_featmap'
        ),
        (48, 96), (3, 6),
    ),
    'mmpretrain BEiT': (
        lambda size: family('BEiTViT', size), (48, 48), (3, 3)
    ),
    'Hugging Face class token': (lambda size: hugging_face('ViT', size), (16, 48), (2, 6)),
    'Hugging Face distilled': (lambda size: hugging_face('DeiT', size), (32, 64), (4, 8)),
    'Hugging Face registers': (
        lambda size: hugging_face('Dinov2WithRegisters', 64), (64, 32), (8, 4)
    ),
    'Hugging Face attention pooling': (
        lambda size: hugging_face('SiglipVision', 32), (32, 32), (4, 4)
    ),
}  # fmt: skip


@pytest.fixture(scope='module', params=NETWORKS)
def network(request):
    build, size, grid = NETWORKS[request.param]
    torch.manual_seed(0)
    model = randomize(build(size).eval(), images(size)).double()
    for name, parameter in model.named_parameters():
        if 'pos_' in name or 'position' in name:
            nn.init.zeros_(parameter)
    return model, images(size, 3, seed=2).double(), grid, request.param


@pytest.mark.parametrize('kind', [GradientRollout, LeGrad])
def test_a_transformer(network, kind):
    model, inputs, grid, name = network
    if 'Swin' in name and kind is LeGrad:
        with pytest.raises(ValueError, match='^LeGrad needs a transformer whose layers all attend'):
            LeGrad()(model, inputs, [0, 1, 2])
        return
    explainer = kind(stage='last') if 'Swin' in name else kind()
    before = state_of(model)
    maps = explainer(model, inputs, [0, 1, 2])
    assert state_of(model) == before
    assert maps.shape == (3, *grid) and (maps >= 0).all()
    assert (maps.flatten(1).std(1) > 1e-3 * maps.flatten(1).mean(1)).all()
    # Another class
    other = explainer(model, inputs, [1, 2, 0])
    for pair in zip(maps.flatten(1), other.flatten(1)):
        assert torch.corrcoef(torch.stack(pair))[0, 1] < 0.999
    # The rest of the batch
    for i in range(3):
        alone = explainer(model, inputs[i : i + 1], i)
        torch.testing.assert_close(alone[0], maps[i], rtol=1e-9, atol=1e-12)
    # A shift by one token of the map
    height, width = (side // count for side, count in zip(inputs.shape[2:], grid))
    for shift, dim, step in ((height, 2, (1, 0)), (width, 3, (0, 1))):
        moved = explainer(model, inputs.roll(shift, dim), [0, 1, 2])
        torch.testing.assert_close(moved, maps.roll(step, (1, 2)), rtol=1e-7, atol=1e-10)


def test_rollout_has_the_grid_too(network):
    model, inputs, grid, kind = network
    if 'pooling' in kind and 'mean' not in kind or 'Swin' in kind:
        with pytest.raises(ValueError, match='has no such attention; use GradCAM'):
            AttentionRollout()(model, inputs)
        return
    maps = AttentionRollout()(model, inputs)
    assert maps.shape == (3, *grid)
    moved = AttentionRollout()(model, inputs.roll(inputs.shape[3] // grid[1], 3))
    torch.testing.assert_close(moved, maps.roll(1, 2), rtol=1e-7, atol=1e-10)


def test_a_pooling_head_that_nobody_reads():
    """SigLIP's classifier of Hugging Face takes the mean of the tokens, and pools them as well."""
    library = pytest.importorskip('transformers')
    vision = {**_HF, 'image_size': 32, 'patch_size': 8}
    del vision['num_labels']
    torch.manual_seed(0)
    config = library.SiglipConfig(vision_config=vision, num_labels=4)
    model = library.SiglipForImageClassification(config)
    inputs = images(32).double()
    model = randomize(model, images(32)).double()
    maps = GradientRollout()(model, inputs, 1)
    torch.testing.assert_close(maps, GradientRollout(readout='mean')(model, inputs, 1))
    assert LeGrad()(model, inputs, 1).shape == maps.shape == (2, 4, 4)
