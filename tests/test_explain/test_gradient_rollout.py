"""Gradient rollout: the numbers of the page "transformer-explainers", T1 to T7 and T12."""

import pytest
import torch
import torch.nn.functional as F
from attending import LAYERS, Given, Sines
from families import FAMILIES, family, images
from torch import nn

from mmkdx.explain import CosineTarget, GradientRollout, LeGrad
from mmkdx.functional import degenerate_maps


def close(result, expected, rel=1e-10, abs=1e-11):
    expected = torch.as_tensor(expected, dtype=result.dtype)
    torch.testing.assert_close(result, expected.reshape(result.shape), rtol=rel, atol=abs)


def given(attentions=LAYERS[0][:, None], gradients=LAYERS[1][:, None], extra=1):
    model = Given(list(attentions), list(gradients), extra)
    return model, model.images()


# The product, T1


def test_the_product_of_two_layers():
    maps = GradientRollout()(*given(), 0)
    close(maps, [1.19, 1.2])
    close(GradientRollout(layers=1)(*given(), 0), [0.4, 0.2])
    close(GradientRollout(layers=2)(*given(), 0), maps)


@pytest.mark.parametrize('scale, expected', [(0.1, [0.0839, 0.08175]), (10, [47, 50.25])])
def test_the_shape_depends_on_the_scale_of_the_score(scale, expected):
    model, inputs = given()
    close(
        GradientRollout()(model, inputs, torch.tensor([[scale, 0]], dtype=torch.float64)), expected
    )
    one = GradientRollout(layers=1)(model, inputs, torch.tensor([[scale, 0]], dtype=torch.float64))
    close(one, [0.4 * scale, 0.2 * scale])


def test_heads_are_averaged_last_and_in_any_order():
    model, inputs = given(LAYERS[0][:, None].flip(2), LAYERS[1][:, None].flip(2))
    close(GradientRollout()(model, inputs, 0), [1.19, 1.2])
    # ReLU behind the mean over heads would have less
    assert not torch.isclose(
        GradientRollout()(model, inputs, 0), torch.tensor([0.64, 0.94625]).double()
    ).any()


def test_a_batch_does_not_mix_images():
    attentions = torch.stack([LAYERS[0], LAYERS[0].flip(1)], 1)
    gradients = torch.stack([LAYERS[1], -LAYERS[1]], 1)
    close(GradientRollout()(*given(attentions, gradients), 0), [[1.19, 1.2], [0.52, 0.12]])


# Read-outs, T2


def test_the_mean_over_tokens_is_read():
    model, inputs = given(extra=0)
    close(
        GradientRollout(readout='mean')(model, inputs, 0), [0.49, 0.5466666667, 0.5333333333], 1e-9
    )


def test_class_and_distillation_tokens_are_read():
    gradients = LAYERS[1].clone()
    gradients[1, :, 1] = -1  # token 1 moves the score, and adds nothing of its own
    model, inputs = given(gradients=gradients[:, None], extra=2)
    close(GradientRollout()(model, inputs, 0), [0.6])


def test_attention_pooling_is_read():
    pooling = torch.tensor([[[[0.2, 0.3, 0.5]], [[0.6, 0.2, 0.2]]]], dtype=torch.float64)
    pulled = torch.tensor([[[[1, -1, 2]], [[0, 3, -2]]]], dtype=torch.float64)
    model, inputs = given([*LAYERS[0][:, None], pooling], [*LAYERS[1][:, None], pulled], extra=0)
    close(GradientRollout()(model, inputs, 0), [0.337, 0.584, 0.82])
    # A pool that leaves out the class token
    part = pooling[..., 1:] / pooling[..., 1:].sum(3, keepdim=True)
    model, inputs = given([*LAYERS[0][:, None], part], [*LAYERS[1][:, None], pulled[..., 1:]])
    row = torch.cat([torch.zeros(1).double(), (part * pulled[..., 1:]).relu().mean((0, 1))[0]])
    eye = torch.eye(3).double()
    first, second = ((a * g).relu().mean(0) for a, g in zip(*LAYERS))
    close(GradientRollout()(model, inputs, 0), (row @ (eye + second) @ (eye + first))[1:])


def test_half_of_class_token_and_mean():
    gradients = LAYERS[1].clone()
    gradients[1, :, 1:] = -1
    model, inputs = given(gradients=gradients[:, None])
    eye = torch.eye(3).double()
    first, second = ((a * g).relu().mean(0) for a, g in zip(LAYERS[0], gradients))
    product = (eye + second) @ (eye + first) - eye
    row = torch.tensor([0.5, 0.25, 0.25]).double()
    close(GradientRollout()(model, inputs, 0), (row @ product)[1:])
    close(GradientRollout(readout='class')(model, inputs, 0), product[0, 1:])
    close(GradientRollout(readout='mean')(model, inputs, 0), product[1:, 1:].mean(0))


# A network, T4 and T5


HEAD = [[1, 0], [0, 1], [1, -1]]


class OneBlock(nn.Module):
    """Attention alone, T4 of the page."""

    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 1, 2, 2).double()
        self.x = nn.Parameter(torch.tensor([[[1.0, 0], [0, 1], [1, -1]]]).double())

    def forward(self, images):
        x = self.x + 0 * self.patches(images).sum()
        k, v, o, head = (
            torch.tensor(each).double()
            for each in ([[1, 1], [0, 1]], [[2, 0], [1, -1]], [[1, 1], [0, 2]], HEAD)
        )
        y = F.scaled_dot_product_attention(x[:, None], (x @ k)[:, None], (x @ v)[:, None])[:, 0]
        return (x + y @ o)[:, 0] @ head.T


def test_one_block():
    model, inputs = OneBlock(), torch.zeros(1, 3, 2, 4).double()
    close(model(inputs), [2.40111209268, 1.807784648759, 0.593327443921])
    maps = GradientRollout()(model, inputs, 'all')
    close(maps, [[0.19777581464, 0.40111209268], [0, 1.203336278039], [0.395551629281, 0]])


SINES = {
    'class': [
        [0.173987460993, 1.075944618049, 0.230973772084, 0.219644524852],
        [0.034124219796, 0.81942424325, 0.227523718213, 0.133215101027],
        [0.014950649288, 0.396978331157, 0.071866454677, 0.064343359141],
    ],
    'patches': [
        [0.032356322964, 0.108494162731, 0.096478531665, 0.017538448334],
        None,
        [0.03913637287, 0.338255028672, 0.362807563592, 0.052626227077],
    ],
}


@pytest.mark.parametrize('fused', [True, False], ids=['fused', 'softmax'])
@pytest.mark.parametrize('read', SINES)
def test_two_blocks(read, fused):
    model, inputs = Sines(read, fused), Sines.images()
    every = GradientRollout()(model, inputs, 'all')
    for index, expected in enumerate(SINES[read]):
        maps = GradientRollout()(model, inputs, index)
        close(every[:, index], maps)
        if expected:
            close(maps, expected)
    if read == 'class':
        expected = [0.1340022184, 0, 0.109684749148, 0.108294854135]
        close(GradientRollout(layers=1)(model, inputs, 0), expected)


@pytest.mark.parametrize('explainer', [GradientRollout(), LeGrad(), LeGrad(1)])
@pytest.mark.parametrize('name', ['VisionTransformer', 'DistilledVisionTransformer'])
def test_fused_and_explicit_attention_of_mmpretrain(name, explainer):
    fused, plain, inputs = family(name).double(), family(name).double(), images(48).double()
    for layer in plain.backbone.layers:
        layer.attn.scaled_dot_product_attention = explicit
    close(explainer(plain, inputs, [1, 3]), explainer(fused, inputs, [1, 3]))


def explicit(query, key, value, dropout_p=0.0):
    return ((query @ key.mT) * query.shape[-1] ** -0.5).softmax(-1) @ value


def test_targets_are_weights_functions_and_cosines():
    model, inputs = Sines(spread=0.3), Sines.images(2)
    maps = GradientRollout()(model, inputs, [0, 2])
    close(GradientRollout()(model, inputs, torch.eye(3).double()[[0, 2]]), maps)
    pick = GradientRollout()(model, inputs, lambda logits: logits[[0, 1], [0, 2]])
    close(pick, maps)
    vector = torch.tensor([1.0, -2, 0.5]).double()
    cosine = GradientRollout()(model, inputs, CosineTarget(vector))
    unit = vector / vector.norm()
    close(cosine, GradientRollout()(model, inputs, lambda p: (p @ unit) / p.norm(dim=1)))
    assert not torch.allclose(cosine, GradientRollout()(model, inputs, lambda p: p @ unit))


def test_the_gradient_of_a_cosine():
    """T9 of the page: it is orthogonal to the embedding, whatever its length."""
    embedding = torch.tensor([[3, 4, 0]], dtype=torch.float64, requires_grad=True)
    score = CosineTarget(torch.tensor([0, 2, 1], dtype=torch.float64))(embedding)
    close(score.detach(), [0.7155417528], 1e-9)
    (slope,) = torch.autograd.grad(score.sum(), embedding)
    close(slope, [-0.0858650103, 0.0643987578, 0.0894427191], 1e-8)


# Properties, section 11


@pytest.mark.parametrize('read', ['class', 'patches', 'all'])
def test_properties(read):
    model, inputs = Sines(read, spread=0.3), Sines.images(3)
    maps = GradientRollout()(model, inputs, [0, 1, 2])
    assert (maps >= 0).all() and not degenerate_maps(maps).any()
    for i in range(3):
        close(GradientRollout()(model, inputs[i : i + 1], i), maps[i : i + 1])
    # Patches in another order, with their positions
    order = torch.tensor([2, 0, 3, 1])
    model.tokens.data[1:] = model.tokens.data[1:][order]
    moved = inputs.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[:, :, order]
    moved = moved.unflatten(2, (2, 2)).permute(0, 1, 2, 4, 3, 5).reshape(inputs.shape)
    close(GradientRollout()(model, moved, [0, 1, 2]).flatten(1), maps.flatten(1)[:, order])
    # An attention whose values are zero adds nothing
    model.blocks[1].v.data.zero_()
    one = GradientRollout()(model, moved, [0, 1, 2])
    assert degenerate_maps(GradientRollout(layers=1)(model, moved, 0)).all()
    assert not degenerate_maps(one).any()


def test_a_network_that_sees_nothing_has_an_empty_map():
    model = Sines()
    model.head.data.zero_()
    maps = GradientRollout()(model, Sines.images(), 0)
    assert maps.eq(0).all() and degenerate_maps(maps).all()


# In a loss, T6 and T12


@pytest.mark.parametrize('fused', [True, False], ids=['fused', 'softmax'])
def test_the_gradient_of_a_map(fused):
    weights = torch.tensor([1, -1, 2, 0.5]).double()

    def slopes(detach):
        model = Sines(fused=fused)
        maps = GradientRollout(differentiable=True, detach=detach)(model, Sines.images(), 0)
        wanted = model.blocks[0].q, model.head
        return torch.autograd.grad((maps.flatten() * weights).sum(), wanted, allow_unused=True)

    query, head = slopes('none')
    close(query[0], [2.084932763147, -0.201520557579, 1.712908865511, 1.659062361226])
    close(head[0], [0.179310603942, -0.142354205282, -0.166347156873, 0.129390758213])
    query, head = slopes('gradient')
    close(query[0], [0.063860334237, 0.250418193824, -0.485840803356, -0.49720775592])
    assert head is None


def test_fused_kernels_are_differentiated_twice():
    model, inputs = Sines().requires_grad_(False), Sines.images()
    explainer = GradientRollout(differentiable=True)

    def maps(query):
        return torch.func.functional_call(
            Explained(model, explainer), {'model.blocks.0.q': query}, inputs
        )

    query = model.blocks[0].q.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(maps, query)
    # Without the math kernel there is no such derivative
    leaf = inputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(Sines(spread=0.3)(leaf)[0, 0], leaf, create_graph=True)
    with pytest.raises(RuntimeError, match='derivative for aten::_scaled_dot_product'):
        slope.sum().backward()


class Explained(nn.Module):
    """A model's maps of class 0."""

    def __init__(self, model, explainer):
        super().__init__()
        self.model, self.explainer = model, explainer

    def forward(self, inputs):
        return self.explainer(self.model, inputs, 0)


def test_a_frozen_backbone_and_a_head_that_is_trained():
    model = Sines()
    model.blocks.requires_grad_(False), model.tokens.requires_grad_(False)
    model.patches.requires_grad_(False)
    maps = GradientRollout(differentiable=True)(model, Sines.images(), 0)
    close(maps.detach(), SINES['class'][0])
    (slope,) = torch.autograd.grad(
        (maps.flatten() * torch.tensor([1, -1, 2, 0.5])).sum(), model.head
    )
    close(slope[0], [0.179310603942, -0.142354205282, -0.166347156873, 0.129390758213])


# Local attention


@pytest.mark.parametrize(
    'name, size, grid', [('SwinTransformer', 32, (4, 4)), ('SwinTransformerV2', 32, (4, 4))]
)
def test_the_last_stage_of_swin(name, size, grid):
    """One window of 4 x 4 in the last stage, whose attention is computed from queries and keys."""
    model, inputs = family(name, size).double(), images(size).double()
    attentions = []
    handles = [
        module.register_forward_hook(lambda module, args, out: attentions.append(out))
        for name, module in model.named_modules()
        if isinstance(module, nn.Softmax)
    ]
    logits = model(inputs, mode='tensor')
    for handle in handles:
        handle.remove()
    kept = [each for each in attentions if each.shape[0] == 2]
    eye, product = torch.eye(16).double(), torch.eye(16).double()
    for attention, slope in zip(kept, torch.autograd.grad(logits[:, 1].sum(), kept)):
        product = (eye + (attention * slope).relu().mean(1)) @ product
    expected = (product - eye).mean(1)
    close(
        GradientRollout(stage='last')(model, inputs, 1), expected.detach().unflatten(1, grid), 1e-8
    )


# What is refused


def refused(message, explainer, model, inputs, targets=0):
    with pytest.raises(ValueError, match=message):
        explainer(model, inputs, targets)


@pytest.mark.parametrize(
    'name, message',
    [
        ('SwinTransformer', "has no such attention; .* GradientRollout with stage='last'"),
        ('PCPVT', 'has no such attention; use GradCAM'),
        ('XCiT', 'has no such attention; use GradCAM'),
        ('T2T_ViT', 'has no such attention; use GradCAM'),
        ('ResNet', 'calls no such attention; use GradCAM'),
    ],
)  # fmt: skip
def test_networks_without_global_attention(name, message):
    refused(f'^GradientRollout needs a transformer .* {message}', GradientRollout(), family(name),
            images(FAMILIES[name][0]))  # fmt: skip


def test_attention_over_channels_in_the_last_stage():
    message = "GradientRollout.stage is 'last', and the last stage .* does not .*; use GradCAM"
    refused(message, GradientRollout(stage='last'), family('EdgeNeXt'), images(64))


def test_tokens_that_are_no_grid():
    model = Sines()
    model.num_prefix_tokens = 2
    refused('the 5 tokens of Sines are no grid of an image of .* after 2 other tokens; use GradCAM',
            GradientRollout(), model, Sines.images())  # fmt: skip


def test_a_pool_of_other_tokens():
    pooling = torch.full((1, 2, 1, 7), 1 / 7).double()
    model, inputs = given([*LAYERS[0][:, None], pooling], [*LAYERS[1][:, None], pooling])
    refused('the last attention of Given has 7 keys, which are not the 3 tokens before it',
            GradientRollout(), model, inputs)  # fmt: skip


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(layers=0), 'layers is 0; it must be an integer of at least 1'),
        (dict(readout='row'), "readout is 'row'; it must be one of auto, class, mean"),
        (dict(stage='first'), "stage is 'first'; it must be one of None, last"),
        (dict(detach='all'), "detach is 'all'; it must be one of none, gradient"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        GradientRollout(**options)


def test_more_layers_than_there_are():
    refused('GradientRollout.layers is 3, and Sines has 2 layers', GradientRollout(3), Sines(),
            Sines.images())  # fmt: skip


@pytest.mark.parametrize('read', ['patches', 'none'])
def test_no_class_token_to_read(read):
    model = Sines('patches')
    if read == 'none':
        model, inputs = given(extra=0)
    else:
        inputs = Sines.images()
    refused("readout is 'class', and no class token of (Sines|Given) moves the score; use 'mean'",
            GradientRollout(readout='class'), model, inputs)  # fmt: skip


def test_dropout_inside_a_kernel():
    model = family('VisionTransformer')
    for layer in model.backbone.layers:
        layer.attn.attn_drop = 0.1
    model.train()
    message = (
        'GradientRollout: the attention of ImageClassifier has dropout inside a fused kernel, which '
        'hides what it dropped; set its rate to 0, or call model.eval'
    )
    refused(message, GradientRollout(differentiable=True), model, images(48))
    assert GradientRollout()(model, images(48), 0).shape == (2, 3, 3)


def test_a_score_of_earlier_layers():
    class Early(Sines):
        def forward(self, images):
            x = self.tokens + F.pad(self.patches(images).flatten(2).mT, (0, 0, 1, 0))
            x = self.blocks[0](x)
            return x[:, 0], self.blocks[1](x)

    message = 'the score does not depend on the last attention of Early; use GradCAM'
    refused(message, GradientRollout(), Early(), Sines.images(), lambda output: output[0][:, 0])
