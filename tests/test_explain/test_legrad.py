"""LeGrad: the numbers of the page "transformer-explainers", T4 and T5, and torchcam's maps."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attending import Sines
from families import FAMILIES, family, images, randomize
from torch import nn

from mmkdx.explain import CosineTarget, LeGrad
from mmkdx.functional import degenerate_maps


def close(result, expected, rel=1e-10, abs=1e-11):
    expected = torch.as_tensor(expected, dtype=result.dtype)
    torch.testing.assert_close(result, expected.reshape(result.shape), rtol=rel, atol=abs)


SINES = [
    [0.181013187544, 0.170270921532, 0.259954345102, 0.081492394188],
    [0.036097114951, 0.083099966887, 0.072868754753, 0.052511523648],
    [0.025033544727, 0.048419445731, 0.096194895024, 0.002298495371],
]
FIRST = [0.070998286717, 0.272211365629, 0.099524944785, 0.070330423144]
SECOND = [0.29102808837, 0.068330477436, 0.420383745418, 0.092654365232]


@pytest.mark.parametrize('differentiable', [False, True], ids=['', 'differentiable'])
@pytest.mark.parametrize('fused', [True, False], ids=['fused', 'softmax'])
def test_a_class_token(fused, differentiable):
    model, inputs = Sines(fused=fused), Sines.images()
    explainer = LeGrad(differentiable=differentiable)
    for index, expected in enumerate(SINES):
        close(explainer(model, inputs, index).detach(), expected)
    close(explainer(model, inputs, 'all').detach(), SINES)
    last = LeGrad(1, differentiable=differentiable)(model, inputs, 0).detach()
    close(last, SECOND)
    close(2 * explainer(model, inputs, 0).detach() - last, FIRST)
    close(LeGrad(2)(model, inputs, 0), SINES[0])


def test_a_network_that_pools_all_tokens_keeps_its_order():
    expected = [0.134572165326, 0.106347890087, 0.247953929718, 0.056195192627]
    close(LeGrad()(Sines('all'), Sines.images(), 0), expected)


def test_the_predicted_class_is_that_of_the_network():
    """Not that of the mean token."""
    model, inputs = Sines(spread=0.3), Sines.images(3)
    close(LeGrad()(model, inputs), LeGrad()(model, inputs, model(inputs).argmax(1)))


class Plain(nn.Module):
    """T4 of the page: attention alone, without a norm."""

    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 1, 2, 2).double()
        self.x = nn.Parameter(torch.tensor([[[1.0, 0], [0, 1], [1, -1]]]).double())
        self.block = Attends()

    def forward(self, images):
        x = self.block(self.x + 0 * self.patches(images).sum())
        return x[:, 0] @ torch.tensor([[1, 0], [0, 1], [1, -1]]).double().T


class Attends(nn.Module):
    def forward(self, x):
        k, v, o = (
            torch.tensor(each).double()
            for each in ([[1, 1], [0, 1]], [[2, 0], [1, -1]], [[1, 1], [0, 2]])
        )
        return (
            x
            + F.scaled_dot_product_attention(*(each[:, None] for each in (x, x @ k, x @ v)))[:, 0]
            @ o
        )


def test_one_block_without_a_norm():
    maps = LeGrad()(Plain(), torch.zeros(1, 3, 2, 4).double(), 'all')
    close(maps, [[1 / 3, 1 / 3], [0, 1], [2 / 3, 0]])


class Pooled(Sines):
    """Attention of one latent in place of the class token."""

    num_prefix_tokens = 0

    def __init__(self, fused=True):
        super().__init__('class', fused, spread=0.5)
        self.tokens.data = self.tokens.data[1:]
        self.latent = nn.Parameter(torch.tensor([0.3, -1, 0.5, 1]).double())

    def forward(self, images):
        x = self.tokens + self.patches(images).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.pool(F.layer_norm(x, (4,), eps=1e-6)) @ self.head.T + self.bias

    def pool(self, x):
        query = self.latent.expand(len(x), 1, -1)
        if self.blocks[0].fused:
            return F.scaled_dot_product_attention(query, x, x)[:, 0]
        return ((query @ x.mT / 2).softmax(-1) @ x)[:, 0]


@pytest.mark.parametrize('fused', [True, False], ids=['fused', 'softmax'])
@pytest.mark.parametrize('differentiable', [False, True], ids=['', 'differentiable'])
def test_attention_pooling(fused, differentiable):
    """The tokens of each layer are given to the pool, by whose attention the gradient is taken."""
    model, inputs = Pooled(fused), Sines.images(2)
    tokens, rows = model.tokens + model.patches(inputs).flatten(2).mT, []
    for block in model.blocks:
        tokens = block(tokens)
        x = F.layer_norm(tokens, (4,), eps=1e-6)
        # The gradient of class 1 by the weights of the pool
        rows.append((x @ model.head[1]).relu())
    explainer = LeGrad(differentiable=differentiable)
    close(explainer(model, inputs, 1).detach(), ((rows[0] + rows[1]) / 2).detach())
    close(LeGrad(1)(model, inputs, 1), rows[1].detach())
    assert explainer(model, inputs, 'all').shape == (2, 3, 2, 2)


def test_torchcam():
    """Equal to 1e-5 on torchvision's ViT, of raw maps."""
    methods = pytest.importorskip('torchcam').methods
    vision = pytest.importorskip('torchvision').models
    torch.manual_seed(0)
    model = vision.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    model, inputs = randomize(model, images(32)), images(32, 3, seed=2)
    for layers, classes in ((2, [0, 3, 4]), (1, [1, 1, 2])):
        blocks = list(model.encoder.layers)[-layers:]
        with methods.LeGrad(model, blocks) as extractor:
            scores = model(inputs)
            found = extractor(classes, scores, normalized=False)
        expected = torch.stack(found).mean(0)
        torch.testing.assert_close(
            LeGrad(layers)(model, inputs, classes), expected, rtol=1e-5, atol=1e-9
        )


# Properties


@pytest.mark.parametrize('read', ['class', 'patches', 'all', 'pooled'])
def test_properties(read):
    model = Pooled() if read == 'pooled' else Sines(read, spread=0.3)
    inputs = Sines.images(3)
    maps = LeGrad()(model, inputs, [0, 1, 2])
    assert (maps >= 0).all() and not degenerate_maps(maps).any()
    for i in range(3):
        close(LeGrad()(model, inputs[i : i + 1], i), maps[i : i + 1])
    weights = torch.eye(3).double()
    close(LeGrad()(model, inputs, 3.5 * weights), 3.5 * maps)
    assert not torch.allclose(LeGrad()(model, inputs, -weights), maps)


def test_functions_and_cosines():
    model, inputs = Sines(spread=0.3), Sines.images(2)
    maps = LeGrad()(model, inputs, [0, 2])
    close(LeGrad()(model, inputs, lambda logits: logits[[0, 1], [0, 2]]), maps)
    vectors = torch.tensor([[1.0, -2, 0.5], [0, 1, 1]]).double()
    unit = F.normalize(vectors, dim=1)
    cosine = LeGrad()(model, inputs, CosineTarget(vectors))
    close(cosine, LeGrad()(model, inputs, lambda p: (p * unit).sum(1) / p.norm(dim=1)))


class Wrapped(nn.Module):
    """A network that returns a dict with several outputs."""

    def __init__(self):
        super().__init__()
        self.inner, self.num_prefix_tokens = Sines(spread=0.3), 1

    def forward(self, images):
        return dict(scores=self.inner(images), scale=torch.tensor(2.0))


def test_functions_of_outputs_in_a_dict():
    model, inputs = Wrapped(), Sines.images(2)
    maps = LeGrad()(model, inputs, lambda output: output['scores'][:, 1] * output['scale'])
    close(maps, 2 * LeGrad()(model.inner, inputs, 1))


def test_a_head_that_is_trained_is_looked_at_again():
    """A head of zeros does not tell which tokens it reads."""
    model, inputs, explainer = Sines('all'), Sines.images(), LeGrad()
    head = model.head.data.clone()
    model.head.data.zero_()
    maps = explainer(model, inputs, 0)
    assert maps.eq(0).all() and degenerate_maps(maps).all()
    model.head.data = head
    close(explainer(model, inputs, 0), LeGrad()(Sines('all'), inputs, 0))


@pytest.mark.parametrize('differentiable', [False, True], ids=['', 'differentiable'])
def test_blocks_that_overwrite_their_input(differentiable):
    model, explainer = Sines('all'), LeGrad(differentiable=differentiable)
    expected = LeGrad()(model, Sines.images(), 0)
    for block in model.blocks:
        block.forward = partial(overwrite, block.forward)
    close(explainer(model, Sines.images(), 0).detach(), expected)


def overwrite(forward, x):
    result = forward(x.clone())
    x.square_()  # what came in is of no use any more
    return result


def test_the_blocks_are_found_once():
    model, inputs, explainer = Sines(), Sines.images(2), LeGrad()
    counts = []
    model.patches.register_forward_hook(lambda *_: counts.append(1))
    for _ in range(3):
        explainer(model, inputs, 0)
    assert len(counts) == 2 + 3


def test_a_loss_of_maps():
    model, inputs = Sines(), Sines.images()
    weights = torch.tensor([1, -1, 2, 0.5]).double()

    def loss(explainer):
        return (explainer(model, inputs, 0).flatten() * weights).sum()

    parameters = model.blocks[0].q, model.blocks[1].v, model.blocks[0].one, model.head
    slopes = torch.autograd.grad(loss(LeGrad(differentiable=True)), parameters)
    for parameter, slope in zip(parameters, slopes):
        step, values = torch.randn_like(parameter), []
        for sign in (1e-6, -2e-6):
            parameter.data += sign * step
            values.append(loss(LeGrad()).item())
        parameter.data += 1e-6 * step
        expected = (values[0] - values[1]) / 2e-6
        assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-5)


# What is refused


def refused(message, explainer, model, inputs, targets=0):
    with pytest.raises(ValueError, match=message):
        explainer(model, inputs, targets)


@pytest.mark.parametrize('name', ['SwinTransformer', 'PCPVT', 'ResNet'])
def test_networks_without_global_attention(name):
    message = '^LeGrad needs a transformer .* no such attention; use GradCAM'
    refused(message, LeGrad(), family(name), images(FAMILIES[name][0]))


def test_layers_that_do_not_exist():
    with pytest.raises(ValueError, match='layers is 0; it must be an integer of at least 1'):
        LeGrad(0)
    refused('LeGrad.layers is 3, and Sines has 2 layers', LeGrad(3), Sines(), Sines.images())


class TwoLayers(Sines):
    """A head that reads two blocks."""

    def forward(self, images):
        x = self.tokens + F.pad(self.patches(images).flatten(2).mT, (0, 0, 1, 0))
        first = self.blocks[0](x)
        return self.join(first[:, 0], self.blocks[1](first)[:, 0]) @ self.head.T


class Sum(TwoLayers):
    def join(self, first, second):
        return first.mean(0) + second


class Joined(TwoLayers):
    def join(self, first, second):
        return torch.cat([first, second], 1)[:, :4]


class Few(TwoLayers):
    def join(self, first, second):
        return second[: len(first)]


class Nothing(TwoLayers):
    def join(self, first, second):
        return first.repeat(2, 1)


@pytest.mark.parametrize('network', [Sum, Joined, Few, Nothing])
def test_heads_that_need_more_than_the_last_block(network):
    name = network.__name__
    message = (
        f"the head of {name} cannot take them: it needs more than the last block's tokens; use Grad"
    )
    refused(message, LeGrad(), network(), Sines.images(1))


def test_networks_without_a_module_for_each_block():
    class Loose(Sines):
        def forward(self, images):
            x = self.tokens + F.pad(self.patches(images).flatten(2).mT, (0, 0, 1, 0))
            for block in self.blocks:
                x = block.forward(x)  # past the module's call
            return x[:, 0] @ self.head.T

    refused('LeGrad needs a module for each block, .* Loose has none for its attention 1; use Gradient',
            LeGrad(), Loose(), Sines.images())  # fmt: skip


def test_blocks_that_are_not_in_a_chain():
    class Between(Sines):
        def forward(self, images):
            x = self.tokens + F.pad(self.patches(images).flatten(2).mT, (0, 0, 1, 0))
            return self.blocks[1](self.blocks[0](x).tanh())[:, 0] @ self.head.T

    refused('gets the tokens of the block before, and Between has none for its attention 2; use Grad',
            LeGrad(), Between(), Sines.images())  # fmt: skip


def test_dropout_inside_a_kernel():
    model = family('VisionTransformer')
    for layer in model.backbone.layers:
        layer.attn.attn_drop = 0.1
    message = 'LeGrad: the attention of ImageClassifier has dropout inside a fused kernel'
    refused(message, LeGrad(differentiable=True), model.train(), images(48))
