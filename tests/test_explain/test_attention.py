"""Attention rollout: products of matrices that the tests compute from queries and keys themselves."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, family, images, randomize
from torch import nn

from mmkdx.explain import AttentionRollout
from mmkdx.explain.attention_recorder import AttentionRecorder
from mmkdx.explain.layers import find_layers
from mmkdx.explain.layouts import Layout


def close(result, expected, rel=1e-9, abs=1e-12):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


def weights_of(model, inputs, heads=2):
    """The attention of each layer of a model with layers named 'qkv', averaged over heads."""
    attentions = []

    def keep(module, args, output):
        query, key, _ = output.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        attentions.append((scores.exp() / scores.exp().sum(3, keepdim=True)).mean(1))

    handles = [
        module.register_forward_hook(keep)
        for name, module in model.named_modules()
        if name.endswith('.qkv')
    ]
    with torch.no_grad():
        model(inputs, mode='tensor')
    for handle in handles:
        handle.remove()
    return attentions


def product(attentions):
    """Last layer first, each averaged with the identity that stands for the skip connection."""
    first, second = (
        0.5 * attention + 0.5 * torch.eye(attention.shape[1]).double() for attention in attentions
    )
    return second @ first


@pytest.mark.parametrize(
    'name, size, extra, grid',
    [
        ('VisionTransformer', 48, 1, (3, 3)),
        ('VisionTransformer', (32, 80), 1, (2, 5)),
        ('DistilledVisionTransformer', 48, 2, (3, 3)),
        ('DeiT3', 48, 1, (3, 3)),
    ],
)
def test_rollout_is_the_product_of_all_layers(name, size, extra, grid):
    model, inputs = family(name).double(), images(size).double()
    attentions = weights_of(model, inputs)
    expected = product(attentions)[:, 0, extra:].unflatten(1, grid)
    close(AttentionRollout()(model, inputs), expected)


def test_without_a_class_token_all_rows_count():
    model = family('VisionTransformer', with_cls_token=False, out_type='avg_featmap').double()
    inputs = images(48).double()
    expected = product(weights_of(model, inputs)).mean(1).unflatten(1, (3, 3))
    close(AttentionRollout()(model, inputs), expected)


def test_attention_that_is_not_fused():
    fused, plain = family('VisionTransformer').double(), family('VisionTransformer').double()
    for layer in plain.backbone.layers:
        layer.attn.scaled_dot_product_attention = softmax_attention
    inputs = images(48).double()
    close(AttentionRollout()(plain, inputs), AttentionRollout()(fused, inputs))


def softmax_attention(query, key, value, dropout_p=0.0):
    scores = (query @ key.mT) * query.shape[-1] ** -0.5
    return F.dropout(scores.softmax(-1), dropout_p) @ value


class Attending(nn.Module):
    """A layer of attention, spelt in one of the ways of torch, and a class token's classifier."""

    def __init__(self, attend, heads=2):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.fc = nn.Linear(8, 24), nn.Linear(8, 4)
        self.attend, self.heads = attend, heads
        self.double()

    def forward(self, images):
        x = self.patches(images).flatten(2).mT
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1)
        return self.fc(self.attend(*self.split(x)).transpose(1, 2).flatten(2)[:, 0])

    def split(self, x):
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


BIAS = torch.randn(10, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
MASK = BIAS < 1


@pytest.mark.parametrize(
    'attend, scores',
    [
        (F.scaled_dot_product_attention, lambda q, k: q @ k.mT / 2),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
            lambda q, k: 0.3 * q @ k.mT,
        ),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BIAS),
            lambda q, k: q @ k.mT / 2 + BIAS,
        ),
        (
            lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK),
            lambda q, k: (q @ k.mT / 2).masked_fill(~MASK, float('-inf')),
        ),
        (lambda q, k, v: F.softmax(q @ k.mT, -1) @ v, lambda q, k: q @ k.mT),
        (lambda q, k, v: torch.softmax(q @ k.mT, 3) @ v, lambda q, k: q @ k.mT),
        (lambda q, k, v: nn.Softmax(-1)(q @ k.mT) @ v, lambda q, k: q @ k.mT),
        (
            lambda q, k, v: torch.bmm(
                (q @ k.mT).flatten(0, 1).softmax(-1), v.flatten(0, 1)
            ).unflatten(0, (2, 2)),
            lambda q, k: q @ k.mT,
        ),
    ],
    ids=['fused', 'scale', 'bias', 'mask', 'functional', 'torch', 'module', 'batched'],
)
def test_all_ways_to_attend(attend, scores):
    model, inputs = Attending(attend), images(12).double()
    with torch.no_grad():
        x = model.patches(inputs).flatten(2).mT
        query, key, _ = model.split(torch.cat((model.token.expand(2, -1, -1), x), 1))
        attention = scores(query, key)
    attention = (attention.exp() / attention.exp().sum(3, keepdim=True)).mean(1)
    expected = ((attention + torch.eye(10)) / 2)[:, 0, 1:].unflatten(1, (3, 3))
    close(AttentionRollout()(model, inputs), expected)


def test_softmax_over_classes_is_no_attention():
    attend = F.scaled_dot_product_attention
    plain, inputs = Attending(attend), images(12).double()

    class Probabilities(Attending):
        def forward(self, images):
            return super().forward(images).softmax(1)

    close(AttentionRollout()(Probabilities(attend), inputs), AttentionRollout()(plain, inputs))


def test_torchvision_and_torchs_own_attention():
    models = pytest.importorskip('torchvision').models
    torch.manual_seed(0)
    model = models.VisionTransformer(48, 16, 2, 2, 16, 32, num_classes=4)
    model, inputs = randomize(model, images(48)).double(), images(48, seed=2).double()
    attentions = []
    for block in model.encoder.layers:
        block.self_attention.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, 'need_weights': True}), with_kwargs=True
        )
        block.self_attention.register_forward_hook(
            lambda module, args, output: attentions.append(output[1])
        )
    with torch.no_grad():
        model(inputs)
    expected = product(attentions)[:, 0, 1:].unflatten(1, (3, 3))
    close(AttentionRollout()(model, inputs), expected)
    for block in model.encoder.layers:
        block.self_attention._forward_pre_hooks.clear()
        block.self_attention._forward_hooks.clear()
    close(AttentionRollout()(model, inputs), expected)


class Encoder(nn.Module):
    """A class token's classifier on torch's own encoder, whose fast path shows nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(8, 4)
        self.double().eval()

    def embed(self, images):
        return torch.cat(
            (self.token.expand(len(images), -1, -1), self.patches(images).flatten(2).mT), 1
        )

    def forward(self, images):
        return self.fc(self.layers(self.embed(images))[:, 0])


@pytest.mark.parametrize('graph', [True, False])
def test_torchs_own_encoder(graph):
    model, inputs = Encoder(), images(12).double()
    x, attentions = model.embed(inputs), []
    for layer in model.layers.layers:
        attentions.append(layer.self_attn(x, x, x)[1].detach())
        x = layer(x)
    expected = product(attentions)[:, 0, 1:].unflatten(1, (3, 3))
    with torch.set_grad_enabled(graph):
        close(AttentionRollout()(model, inputs), expected)


@pytest.mark.parametrize(
    'asked', [dict(), dict(need_weights=False), dict(average_attn_weights=False)]
)
def test_a_model_gets_the_weights_it_asks_for(asked):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    kept = []

    class Asking(Attending):
        def forward(self, images):
            x = torch.cat((self.token.expand(2, -1, -1), self.patches(images).flatten(2).mT), 1)
            output, weights = attention(x, x, x, **asked)
            kept.append(None if weights is None else weights.shape)
            return self.fc(output[:, 0])

    model, inputs = Asking(None), images(12).double()
    maps = AttentionRollout()(model, inputs)
    model(inputs)
    assert kept[0] == kept[1] and maps.shape == (2, 3, 3)


# Grids that are not square, and registers


def timm_vit(size, **options):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        size, 14, embed_dim=16, depth=2, num_heads=2, num_classes=4, fc_norm=False, **options
    )


def hugging_face_vit(size, **options):
    transformers = pytest.importorskip('transformers')
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        num_labels=4, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Dinov2WithRegistersForImageClassification(config)


@pytest.mark.parametrize('size, grid', [((56, 112), (4, 8)), ((28, 84), (2, 6)), (56, (4, 4))])
@pytest.mark.parametrize(
    'build, extra',
    [
        (lambda size: timm_vit(size, reg_tokens=4), 5),
        (lambda size: timm_vit(size, class_token=False, global_pool='avg'), 0),
        (lambda size: hugging_face_vit(size), 5),
        (lambda size: hugging_face_vit(size, num_register_tokens=0), 1),
        (lambda size: Hidden(timm_vit(size, reg_tokens=4)), 5),
    ],
    ids=['timm, 4 registers', 'timm, no class token', 'registers', 'no registers', 'unknown'],
)
def test_the_grid_is_that_of_the_patches(build, extra, size, grid):
    """A class token and 4 registers stand before 4 x 8 patches of 14 pixels, and 37 is 1 + 6 x 6."""
    model, inputs = build(size).eval().double(), images(size).double()
    with AttentionRecorder(2) as recorder, torch.no_grad():
        model(inputs)
    expected = product([each.weights().mean(1) for each in recorder.attentions])
    row = expected[:, 0] if extra else expected.mean(1)
    close(AttentionRollout()(model, inputs), row[:, extra:].unflatten(1, grid))
    (layer,) = find_layers(model, inputs, ['auto'])
    assert layer.layout == Layout(grid, 'tokens', extra)


class Hidden(nn.Module):
    """A model of which only the layers are known."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs)


def test_tokens_that_are_no_grid():
    model = Hidden(timm_vit(56, reg_tokens=4).eval())
    model.num_prefix_tokens = 3  # not what it has
    message = r'the 21 tokens of Hidden are no grid of .* after 3 other tokens; use GradCAM'
    with pytest.raises(ValueError, match=message):
        AttentionRollout()(model, images(56))


# Targets and batches


def test_the_map_is_the_same_for_all_classes():
    model, inputs = family('VisionTransformer').double(), images(48, 3).double()
    maps = AttentionRollout()(model, inputs)
    for targets in ('pred', 2, [0, 1, 3], torch.eye(4).double()[:3]):
        assert AttentionRollout()(model, inputs, targets).equal(maps)
    every = AttentionRollout()(model, inputs, 'all')
    assert every.shape == (3, 4, 3, 3) and every.eq(maps[:, None]).all()
    for i in range(3):
        close(AttentionRollout()(model, inputs[i : i + 1]), maps[i : i + 1])
    with pytest.raises(ValueError, match='target 4 is no class of the model, which has 4'):
        AttentionRollout()(model, inputs, 4)


def test_each_row_is_a_distribution():
    model, inputs = family('VisionTransformer').double(), images(48).double()
    maps = AttentionRollout()(model, inputs)
    assert (maps > 0).all() and (maps.sum((1, 2)) < 1).all()
    model = family('VisionTransformer', with_cls_token=False, out_type='avg_featmap').double()
    close(AttentionRollout()(model, inputs).sum((1, 2)), torch.ones(2).double())


def test_a_differentiable_map_moves_queries_and_keys():
    model, inputs = family('VisionTransformer').double(), images(48).double()
    maps = AttentionRollout(differentiable=True)(model, inputs)
    close(maps.detach(), AttentionRollout()(model, inputs))
    assert not AttentionRollout()(model, inputs).requires_grad
    maps.square().sum().backward()
    weight = model.backbone.layers[0].attn.qkv.weight
    slope, step = weight.grad.clone(), torch.randn_like(weight)
    values = []
    for sign in (1e-6, -2e-6):
        weight.data += sign * step
        values.append(AttentionRollout()(model, inputs).square().sum().item())
    expected = (values[0] - values[1]) / 2e-6
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_is_computed_in_fp32():
    model, inputs = family('VisionTransformer'), images(48)
    expected = AttentionRollout()(model, inputs)
    maps = AttentionRollout()(model.bfloat16(), inputs)
    assert maps.dtype == torch.float32
    close(maps, expected, rel=0.1)


@pytest.mark.parametrize(
    'name, message',
    [
        ('SwinTransformer', 'ImageClassifier has no such attention; use GradCAM'),
        ('PCPVT', 'ImageClassifier has no such attention; use GradCAM'),
        ('ResNet', 'ImageClassifier calls no such attention; use GradCAM'),
        ('MlpMixer', 'ImageClassifier calls no such attention; use GradCAM'),
    ],
)
def test_models_without_global_attention(name, message):
    with pytest.raises(ValueError, match=f'every token of the image, and {message}'):
        AttentionRollout()(family(name), images(FAMILIES[name][0]))
