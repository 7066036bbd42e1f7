"""The recorder of attention: closed forms against autograd, numbers of a network kept (T3, T10)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkdx.explain.attention_recorder import _FUSED, AttentionRecorder, FusedAttention

Q, K = [[1, 0], [0, 1], [1, 1]], [[1, 1], [0, 2], [-1, 0]]
V, PULL = [[1, 2], [0, -1], [3, 0]], [[1, -1], [0, 2], [0.5, 0]]


def heads(*values):
    """Values (1, heads, L, d) in double precision."""
    return torch.tensor([list(values)]).double()


def close(result, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def record(function, *args, first=0, batch=1, **kwargs):
    with AttentionRecorder(batch, first) as recorder:
        output = function(*args, **kwargs)
    return output, recorder.attentions


def test_the_closed_form():
    output, (attention,) = record(F.scaled_dot_product_attention, heads(Q), heads(K), heads(V))
    weights, gradient = attention.weights(), attention.gradient(heads(PULL))
    close(weights[0, 0, 0], [0.575975345215, 0.283995409741, 0.140029245043])
    close(weights[0, 0, 2], [0.471726316633, 0.471726316633, 0.056547366734])
    close(gradient[0, 0], [[-1, 1, 3], [4, -2, 0], [0.5, 0, 1.5]])
    sums = (gradient * weights).sum(3)
    close(sums[0, 0], [0.128107799656, -0.015969051466, 0.320684208418])
    close(sums, (heads(PULL) * output.detach()).sum(3))
    assert attention.shape == (1, 1, 3, 3) and not attention.masked


def test_groups_of_heads():
    pulls = heads(PULL, [[0, 1], [1, 0], [-1, 1]])
    query = heads(Q, Q).requires_grad_()
    output, (attention,) = record(
        F.scaled_dot_product_attention, query, heads(K), heads(V), enable_gqa=True
    )
    close(attention.gradient(pulls)[0, 1], [[2, -1, 0], [1, 0, 3], [1, -1, -3]])
    close(attention.weights() @ heads(V), output)
    assert attention.shape == (1, 2, 3, 3)


MASK = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(scale=0.3),
        dict(is_causal=True),
        dict(attn_mask=MASK),
        dict(attn_mask=torch.zeros(3, 3).double().masked_fill(~MASK, -torch.inf)),
        dict(attn_mask=torch.linspace(-2, 2, 18).view(1, 2, 3, 3).double()),
        dict(attn_mask=torch.linspace(-2, 2, 18).view(2, 3, 3).double()),
    ],
    ids=['plain', 'scale', 'causal', 'mask', 'infinite', 'bias', 'heads'],
)
def test_the_gradient_is_that_of_explicit_attention(options):
    torch.manual_seed(0)
    query, key, value, pull = torch.randn(4, 2, 2, 3, 4).double()
    query.requires_grad_()
    output, (attention,) = record(
        F.scaled_dot_product_attention, query, key, value, batch=2, **options
    )
    weights = attention.weights().detach().requires_grad_()
    close(weights @ value, output)
    (expected,) = torch.autograd.grad((weights @ value * pull).sum(), weights)
    gradient = attention.gradient(pull)
    close(gradient, expected)
    forbidden = weights == 0
    close(attention.allowed(gradient), expected.masked_fill(forbidden, 0))


@pytest.mark.parametrize('mask', [None, MASK, torch.linspace(-2, 2, 36).view(4, 3, 3).double()])
def test_heads_and_images_in_one_dimension(mask):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 3, 5).double()
    output, (attention,) = record(
        F.scaled_dot_product_attention, query, key, value, batch=2, attn_mask=mask
    )
    assert attention.shape == (2, 2, 3, 3)
    close(attention.weights().flatten(0, 1) @ value, output)
    close(attention.gradient(value), (value @ value.mT).unflatten(0, (2, 2)))


def test_windows_in_a_dimension_of_their_own():
    windows = torch.randn(2, 4, 2, 3, 5).double()
    _, (attention,) = record(F.scaled_dot_product_attention, windows, windows, windows, batch=2)
    assert attention.shape == attention.weights().shape == (8, 2, 3, 3)


def test_forbidden_keys_have_no_gradient():
    call = dict(
        query=heads([[0.0]]), key=heads([[0.0], [0], [0]]), value=heads([[1.0], [-2], [5]]),
        attn_mask=torch.tensor([True, True, False]), dropout_p=0.0, is_causal=False, scale=None,
        enable_gqa=False,
    )  # fmt: skip
    attention = FusedAttention(heads([[1.0]]), 1, call=call)
    close(attention.weights(), heads([[0.5, 0.5, 0]]))
    gradient = attention.gradient(heads([[1.0]]))
    close(attention.allowed(gradient.relu()), heads([[1, 0, 0]]))


# nn.MultiheadAttention


def test_the_output_projection_of_torchs_attention():
    """T3: gO = gY W_O, by head."""
    attention = nn.MultiheadAttention(4, 2, bias=False, batch_first=True).double()
    attention.out_proj.weight.data = torch.tensor(
        [[1, 0, 2, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, -1]]
    ).double()
    tokens = torch.randn(1, 1, 4).double()
    (result, _), (kept,) = record(attention, tokens, tokens, tokens)
    pull = torch.tensor([1.0, 2, 0, -1]).double()
    (slope,) = torch.autograd.grad((result[0, 0] * pull).sum(), kept.output)
    close(slope[0, :, 0], [[1, 2], [3, 2]])


PADDING = torch.tensor([[False, False, True, False], [False] * 4])


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(need_weights=False),
        dict(average_attn_weights=False),
        dict(key_padding_mask=PADDING),
        dict(attn_mask=torch.eye(4).bool()),
        dict(attn_mask=torch.linspace(-1, 1, 64).view(4, 4, 4).double(), key_padding_mask=PADDING),
    ],
    ids=['plain', 'no weights', 'heads', 'padding', 'mask', 'both'],
)
@pytest.mark.parametrize(
    'kind', [dict(), dict(bias=False), dict(kdim=5, vdim=3), dict(batch_first=True)], ids=str
)
def test_torchs_attention_keeps_its_numbers(kind, options):
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(6, 2, **kind).double().eval()
    nn.init.normal_(attention.out_proj.weight)
    widths = 6, kind.get('kdim', 6), kind.get('vdim', 6)
    tokens = [torch.randn(4, 2, width).double() for width in widths]
    if 'batch_first' in kind:
        tokens = [torch.randn(2, 4, 6).double()] * 3
    expected = attention(*tokens, **options)
    result, (kept,) = record(attention, *tokens, batch=2, **options)
    close(result[0], expected[0])
    assert (result[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        close(result[1], expected[1])
        weights = kept.weights()
        close(weights if expected[1].dim() == 4 else weights.mean(1), expected[1])


@pytest.mark.parametrize(
    'kind, dims', [(dict(add_bias_kv=True), 3), (dict(add_zero_attn=True), 3), (dict(), 2)]
)
def test_attention_to_what_is_no_token(kind, dims):
    attention, tokens = nn.MultiheadAttention(4, 2, **kind), torch.randn((3,) * (dims - 1) + (4,))
    message = (
        r'nn.MultiheadAttention with keys that are no tokens \(add_bias_kv, add_zero_attn\), or '
    )
    with pytest.raises(ValueError, match=message + 'without a batch, has no map .*; use GradCAM'):
        record(attention, tokens, tokens, tokens)


# Explicit attention


@pytest.mark.parametrize('batched', [False, True])
def test_explicit_attention(batched):
    scores = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    given = scores.flatten(0, 1) if batched else scores
    _, (attention,) = record(given.softmax, -1, batch=2)
    close(attention.weights().double(), scores.softmax(-1).double())
    assert attention.shape == (2, 2, 3, 3) and attention.output.shape == given.shape
    close(attention.gradient(given).double(), scores.double())


def test_what_is_no_attention():
    image = torch.randn(2, 3, 4, 4)
    for function, args in (
        (torch.softmax, (image, 1)),
        (torch.softmax, (image[0, 0], 1)),
        (torch.softmax, (image[0], 2)),
        (F.scaled_dot_product_attention, (image[0, 0],) * 3),
        (F.softmax, (image[:, :, 0][:, None, None], -1)),
        (torch.sigmoid, (image,)),
    ):
        assert record(function, *args, batch=2)[1] == []


def test_the_positions_that_the_next_layers_take():
    """They tell attention over tokens from one over as many channels."""
    tokens, linear, conv = torch.randn(2, 9, 4), nn.Linear(4, 4), nn.Conv2d(4, 4, 1)

    def over_tokens():
        weights = (tokens @ tokens.mT)[:, None].softmax(-1)
        return linear(linear((weights @ tokens[:, None])[:, 0])[:, ::3])

    def over_channels():
        weights = (tokens.mT @ tokens)[:, None].softmax(-1)
        return linear((weights @ tokens.mT[:, None])[:, 0].mT)

    def before_a_convolution():
        weights = (tokens @ tokens.mT)[:, None].softmax(-1)
        return conv((weights @ tokens[:, None])[:, 0].mT.unflatten(2, (3, 3)))

    def before_a_classifier():
        return linear((tokens @ tokens.mT)[:, None].softmax(-1)[:, 0, 0, :4])

    def in_torchs_attention():
        attention = nn.MultiheadAttention(4, 2, batch_first=True)
        return linear(attention(tokens, tokens, tokens)[0][:, ::3])

    found = [
        record(function, batch=2)[1][0].positions
        for function in (
            over_tokens, over_channels, before_a_convolution, before_a_classifier,
            in_torchs_attention,
        )
    ]  # fmt: skip
    assert found == [[9, 3], [9], [9], [], [9, 3]]
    assert record(over_channels, batch=2)[1][0].shape == (2, 1, 4, 4)


# The graph


def test_a_graph_starts_at_the_first_attention_that_is_asked_for():
    tokens = torch.randn(1, 1, 3, 2)
    results = []
    with torch.no_grad(), AttentionRecorder(1, 1) as recorder:
        for _ in range(3):
            tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
            results.append(tokens)
        assert torch.is_grad_enabled()
    assert [each.requires_grad for each in results] == [False, True, True]
    assert results[1].is_leaf and recorder.attentions[1].output is results[1]
    assert not results[2].is_leaf


def test_the_signature_is_torchs():
    """The names of the fused kernel's arguments, which torch tells in a text alone."""
    text = F.scaled_dot_product_attention.__doc__
    arguments = text[text.index('(') + 1 : text.index(')')].split(',')
    assert [each.strip().partition('=')[0] for each in arguments] == list(_FUSED.parameters)
