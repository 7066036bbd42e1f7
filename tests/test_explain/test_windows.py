"""Gradient rollout of attention in windows, against products of whole matrices."""

import pytest
import torch
import torch.nn.functional as F
from families import family, images, randomize
from torch import nn
from torch.overrides import TorchFunctionMode

from mmkdx.explain import AttentionRollout, GradientRollout
from mmkdx.explain.attention_recorder import Attention
from mmkdx.explain.windows import multiply

LAST = GradientRollout(stage='last')


def test_the_product_of_shifted_windows():
    """T8 of the page "transformer-explainers": 1 x 4 tokens, windows of 2, then shifted by 1."""
    first = [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.0], [0.2, 0.1]]]
    second = [[[0.2, 0.4], [0.1, 0.3]], [[0.6, 0.0], [0.0, 0.7]]]
    # The shifted windows are of the tokens 1 and 2, and 3 and 0
    layers = [(first, [0, 1, 2, 3]), (second, [3, 0, 1, 2])]
    row = start = torch.full((2, 1, 4), 0.25).double()
    for matrices, places in reversed(layers):
        attention = Attention(torch.empty(0), batch=2, places=torch.tensor(places))
        relevance = torch.tensor([*matrices, *matrices], dtype=torch.float64)
        relevance[2:] *= 2  # another image
        row = row + multiply(row, relevance, attention)
    expected = torch.tensor([0.315, 0.29, 0.4675, 0.19], dtype=torch.float64)
    torch.testing.assert_close((row - start)[0, 0], expected, rtol=0, atol=1e-15)
    assert not torch.allclose((row - start)[1, 0], expected)


# Swin, against the whole matrices of its last stage


class Softmaxes(TorchFunctionMode):
    """Keeps the results of softmax."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (F.softmax, torch.softmax, torch.Tensor.softmax):
            self.results.append(result)
        return result


def windows_of(grid, window, shift, padded_first):
    """The number of the token at each position of each window, -1 for padding."""
    height, width = grid
    tokens = torch.arange(height * width).view(1, 1, *grid)
    pad = (0, -width % window, 0, -height % window)
    if padded_first:
        tokens = F.pad(tokens, pad, value=-1).roll((-shift, -shift), (2, 3))
    else:
        tokens = F.pad(tokens.roll((-shift, -shift), (2, 3)), pad, value=-1)
    rows = range(0, tokens.shape[2], window)
    return torch.stack([
        tokens[0, 0, y : y + window, x : x + window].flatten()
        for y in rows for x in range(0, tokens.shape[3], window)
    ])  # fmt: skip


def by_whole_matrices(model, inputs, target, grid, window, padded_first, graph=False):
    with Softmaxes() as seen:
        logits = model(inputs)
    logits = getattr(logits, 'logits', logits)
    kept = seen.results[-2:]
    slopes = torch.autograd.grad(logits[:, target].sum(), kept, create_graph=graph)
    count = grid[0] * grid[1]
    product = eye = torch.eye(count).double().expand(len(inputs), count, count)
    for attention, slope, shift in zip(kept, slopes, (0, window // 2)):
        windows = windows_of(grid, window, shift, padded_first)
        parts = (attention * slope).relu().mean(1).double().unflatten(0, (len(inputs), -1))
        whole = torch.zeros_like(product)
        for k, tokens in enumerate(windows):
            real = (tokens >= 0).nonzero()[:, 0]
            block = torch.zeros_like(whole)
            block[:, tokens[real][:, None], tokens[real]] = parts[:, k][:, real[:, None], real]
            whole = whole + block
        product = (eye + whole) @ product
    return (product - eye).mean(1).unflatten(1, grid)


def mmpretrain(size):
    return family('SwinTransformer', size)


def mmpretrain_v2(size):
    return family('SwinTransformerV2', size)


_TINY = dict(embed_dim=16, window_size=2, num_heads=(1, 2))


def timm(size, name='SwinTransformer', **options):
    models = pytest.importorskip('timm').models
    return getattr(models, name)(size, depths=(1, 2), num_classes=4, **_TINY, **options)


def timm_v2(size):
    return timm(size, 'SwinTransformerV2')


def torchvision(size, **options):
    models = pytest.importorskip('torchvision').models
    return models.SwinTransformer([4, 4], 16, [1, 2], [1, 2], [2, 2], num_classes=4, **options)


def torchvision_v2(size):
    blocks = pytest.importorskip('torchvision').models.swin_transformer
    return torchvision(
        size, block=blocks.SwinTransformerBlockV2, downsample_layer=blocks.PatchMergingV2
    )


def hugging_face(size, name='Swin'):
    library = pytest.importorskip('transformers')
    options = dict(_TINY, image_size=size, patch_size=4, depths=[1, 2], num_labels=4)
    return getattr(library, f'{name}ForImageClassification')(
        getattr(library, f'{name}Config')(**options)
    )


def hugging_face_v2(size):
    return hugging_face(size, 'Swinv2')


#: For each network: the size of the images, the last stage's grid, its windows, what comes first.
SWINS = {
    'mmpretrain': (mmpretrain, (64, 64), (8, 8), 4, True),
    'mmpretrain, padded': (mmpretrain, (72, 56), (9, 7), 4, True),
    'mmpretrain V2': (mmpretrain_v2, (64, 96), (8, 12), 4, True),
    'timm': (timm, (32, 32), (4, 4), 2, False),
    'timm, padded': (timm, (24, 40), (3, 5), 2, False),
    'timm V2': (timm_v2, (32, 32), (4, 4), 2, False),
    'torchvision': (torchvision, (32, 48), (4, 6), 2, True),
    'torchvision, padded': (torchvision, (24, 40), (3, 5), 2, True),
    'torchvision V2': (torchvision_v2, (24, 40), (3, 5), 2, True),
    'Hugging Face': (hugging_face, (32, 32), (4, 4), 2, True),
    'Hugging Face, padded': (hugging_face, (40, 24), (5, 3), 2, True),
    'Hugging Face V2': (hugging_face_v2, (32, 32), (4, 4), 2, True),
}


def swin(name, **options):
    build, size, *arrangement = SWINS[name]
    torch.manual_seed(0)
    model = randomize(build(size, **options).eval(), images(size)).double()
    for key, parameter in model.named_parameters():
        if 'norm' in key and key.endswith('weight'):
            nn.init.uniform_(
                parameter, 0.5, 1.5
            )  # Swin V2 begins with 0, which hides its attention
    return model, images(size, 3, seed=2).double(), arrangement


def close(result, expected, rtol=1e-8):
    torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize('name', SWINS)
def test_several_windows(name):
    model, inputs, arrangement = swin(name)
    maps = LAST(model, inputs, 1)
    for i in range(3):
        close(LAST(model, inputs[i : i + 1], 1)[0], maps[i])
    if name.startswith('Hugging Face') and 'V2' not in name:
        model.set_attn_implementation('eager')
    expected = by_whole_matrices(model, inputs, 1, *arrangement)
    assert expected.std() > 0.1 * expected.mean() > 0
    close(maps, expected, rtol=1e-4 if 'Hugging' in name else 1e-8)  # its softmax is in fp32


def test_half_precision_finds_the_same_windows():
    model, inputs, _ = swin('timm')
    maps = LAST(model.bfloat16(), inputs.bfloat16(), 1)
    close(maps.double(), LAST(model.double(), inputs, 1), rtol=0.3)


def test_the_gradient_of_a_map():
    model, inputs, arrangement = swin('mmpretrain')
    weights = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    wanted = [model.backbone.patch_embed.projection.weight, model.head.fc.weight]
    maps = GradientRollout(stage='last', differentiable=True)(model, inputs, 1)
    expected = by_whole_matrices(model, inputs, 1, *arrangement, graph=True)
    for pair in zip(*(torch.autograd.grad((each * weights).sum(), wanted)
                      for each in (maps, expected))):  # fmt: skip
        close(*pair)


@pytest.mark.parametrize('rate', [0.5, 1 - 1e-9], ids=['some images', 'all images'])
def test_stochastic_depth(rate):
    """It leaves out an attention for an image, whose M is then 0."""
    model, inputs, arrangement = swin('timm', drop_path_rate=rate)
    model.train()
    explainer = GradientRollout(stage='last', readout='mean', differentiable=True)
    for seed in range(4):
        torch.manual_seed(seed)
        maps = explainer(model, inputs, 1).detach()
        torch.manual_seed(seed)
        close(maps, by_whole_matrices(model, inputs, 1, *arrangement).detach())


def test_one_padded_window():
    """Swin pads a map that is smaller than its windows, here one of 4 x 4 to 8 x 8."""
    models = pytest.importorskip('torchvision').models
    torch.manual_seed(0)
    model = (
        models.SwinTransformer([4, 4], 16, [1, 2], [1, 2], [8, 8], num_classes=4).eval().double()
    )
    inputs = images(32).double()
    # torchvision does not shift a single window
    with Softmaxes() as seen:
        logits = model(inputs)
    real = torch.arange(64).view(8, 8)[:4, :4].flatten()
    eye = product = torch.eye(16).double()
    for attention, slope in zip(seen.results[-2:], torch.autograd.grad(
            logits[:, 1].sum(), seen.results[-2:])):  # fmt: skip
        whole = (attention * slope).relu().mean(1)[:, real[:, None], real]
        product = (eye + whole) @ product
    close(LAST(model, inputs, 1), (product - eye).mean(1).unflatten(1, (4, 4)))
    for explainer in (GradientRollout(), AttentionRollout()):
        with pytest.raises(ValueError, match='use GradCAM'):
            explainer(model, inputs, 1)


# What is refused


class Windows(nn.Module):
    """One layer of attention in two windows of 1 x 2 tokens.

    Args:
        kind (str): 'right', or what is wrong with it.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind, self.patches = kind, nn.Conv2d(3, 8, 4, 4)
        self.proj, self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, images):
        x = self.patches(images).flatten(2).mT.contiguous()
        if self.kind == 'a layer over all tokens before':
            x = x + self.mlp(self.proj(((x @ x.mT)[:, None].softmax(-1) @ x[:, None])[:, 0]))
        windows = x.view(-1, 2, 8)
        if self.kind == 'window by window':
            windows = x.view(-1, 2, 2, 8).transpose(0, 1).reshape(-1, 2, 8)
        keys = windows
        if self.kind == 'more keys than queries':
            keys = torch.cat([windows, windows.flip(0)], 1)
        weights = windows @ keys.mT
        if self.kind == 'no axis of heads':
            windows = self.proj(weights.softmax(-1) @ keys)
        else:
            windows = self.proj(weights[:, None].softmax(-1) @ keys[:, None])[:, 0]
        if self.kind == 'two layers in a window':
            windows = self.proj(windows)
        if self.kind == 'window by window':
            windows = windows.view(2, -1, 2, 8).transpose(0, 1)
        y = windows.reshape(x.shape)
        if self.kind == 'mixed tokens':
            y = y + 0.3 * y.roll(1, 1)
        elif self.kind == 'a token twice':
            y = y[:, [0, 1, 2, 2]]
        elif self.kind == 'a token without window':
            y = torch.cat([y[:, :3], x[:, 3:]], 1)
        if self.kind == 'no layer behind':
            return (x + y).mean(1)
        behind = self.mlp(x if self.kind == 'layers side by side' else x + y)
        return self.head((y + behind).mean(1))


def test_windows_of_no_library():
    torch.manual_seed(0)
    assert LAST(Windows('right'), images((4, 16)).double(), 1).shape == (2, 1, 4)


@pytest.mark.parametrize('kind', ['window by window', 'mixed tokens', 'a token twice',
    'a token without window', 'layers side by side',
    'no layer behind', 'no axis of heads', 'more keys than queries', 'two layers in a window',
    'a layer over all tokens before'])  # fmt: skip
def test_tokens_that_do_not_match_windows(kind):
    torch.manual_seed(0)
    message = (
        "GradientRollout.stage is 'last', and the last stage of Windows does not attend to the "
        r'positions of an image of \(4, 16\) pixels in one window, or in several that share no '
        'position; use GradCAM'
    )
    with pytest.raises(ValueError, match=message):
        LAST(Windows(kind), images((4, 16)).double(), 1)
    with pytest.raises(ValueError, match=message):
        explainer = GradientRollout(stage='last', differentiable=True)
        explainer(Windows(kind), images((4, 16)).double(), 1)
