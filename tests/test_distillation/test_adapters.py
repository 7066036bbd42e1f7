"""Adapters: every bridge between maps, tokens and vectors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkdx.distillation.adapters import Adapter
from mmkdx.functional import tokens_to_map
from mmkdx.models.intercept import fake_forward


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# student, teacher, what both become, and the shape of the weight of the channel layer
BRIDGES = dict(
    maps=((2, 8, 4, 4), (2, 12, 4, 4), (2, 12, 4, 4), (12, 8, 1, 1)),
    maps_up=((2, 8, 4, 5), (2, 12, 7, 9), (2, 12, 7, 9), (12, 8, 1, 1)),
    maps_down=((2, 8, 8, 8), (2, 12, 4, 2), (2, 12, 4, 2), (12, 8, 1, 1)),
    size_alone=((2, 8, 8, 8), (2, 8, 4, 4), (2, 8, 4, 4), None),
    same_maps=((2, 8, 4, 4), (2, 8, 4, 4), (2, 8, 4, 4), None),
    vectors=((2, 8), (2, 12), (2, 12), (12, 8)),
    same_vectors=((2, 8), (2, 8), (2, 8), None),
    tokens=((2, 17, 8), (2, 17, 12), (2, 17, 12), (12, 8)),
    tokens_without_grid=((2, 15, 8), (2, 15, 12), (2, 15, 12), (12, 8)),
    same_tokens=((2, 17, 8), (2, 17, 8), (2, 17, 8), None),
    more_tokens=((2, 17, 8), (2, 50, 12), (2, 12, 7, 7), (12, 8, 1, 1)),
    fewer_tokens=((2, 64, 8), (2, 17, 8), (2, 8, 4, 4), None),
    class_token=((2, 16, 8), (2, 17, 8), (2, 8, 4, 4), None),
    tokens_to_map=((2, 17, 8), (2, 12, 7, 7), (2, 12, 7, 7), (12, 8, 1, 1)),
    tokens_to_same_map=((2, 18, 8), (2, 8, 4, 4), (2, 8, 4, 4), None),
    map_to_tokens=((2, 8, 7, 7), (2, 17, 12), (2, 12, 4, 4), (12, 8, 1, 1)),
)


@pytest.mark.parametrize('bridge', BRIDGES)
@pytest.mark.parametrize('fake', [False, True])
def test_bridges(bridge, fake):
    student_shape, teacher_shape, shape, weight = BRIDGES[bridge]
    student, teacher = random(*student_shape), random(*teacher_shape, seed=1).requires_grad_()
    if fake:
        with fake_forward(nn.Identity()):
            examples = torch.empty(student_shape), torch.empty(teacher_shape)
    else:
        examples = student, teacher
    adapter = Adapter(*examples)
    parameters = dict(adapter.named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == (
        {} if weight is None else {'project.weight': weight, 'project.bias': (weight[0],)}
    )
    student.requires_grad_()
    bridged, goal = adapter(student, teacher)
    assert bridged.shape == goal.shape == shape
    # the teacher's values stay, the class token is left out where tokens become a map
    laid_out = tokens_to_map(teacher) if teacher.dim() == 3 and len(shape) == 4 else teacher
    assert torch.equal(goal, laid_out)
    bridged.square().sum().backward()
    assert teacher.grad is None
    extra = student_shape[1] - 16 if bridge in ('class_token', 'tokens_to_same_map') else 0
    assert student.grad[:, extra:].count_nonzero() > 0.9 * student.grad[:, extra:].numel()
    for parameter in parameters.values():
        assert parameter.grad.count_nonzero() == parameter.numel()


@pytest.mark.parametrize('shape', [(2, 8, 4, 4), (2, 8), (2, 17, 8)])
def test_equal_shapes_pass_as_they_are(shape):
    student, teacher = random(*shape), random(*shape, seed=1)
    bridged, goal = Adapter(student, teacher)(student, teacher)
    assert bridged is student and goal is teacher


def test_channels_of_maps_are_projected_at_each_position():
    student, teacher = random(2, 8, 4, 4), random(2, 12, 4, 4, seed=1)
    adapter = Adapter(student, teacher)
    weight, bias = adapter.project.weight[:, :, 0, 0], adapter.project.bias
    expected = F.linear(student.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(adapter(student, teacher)[0], expected)


@pytest.mark.parametrize('shape', [(2, 8), (2, 17, 8)])
def test_channels_of_tokens_and_vectors_are_projected(shape):
    student, teacher = random(*shape), random(*shape[:-1], 12, seed=1)
    adapter = Adapter(student, teacher)
    expected = F.linear(student, adapter.project.weight, adapter.project.bias)
    torch.testing.assert_close(adapter(student, teacher)[0], expected)


def test_sizes_shrink_by_averaging_and_grow_bilinearly():
    student, small, big = random(2, 8, 4, 4), random(2, 8, 2, 2), random(2, 8, 8, 8)
    blocks = student.view(2, 8, 2, 2, 2, 2).mean((3, 5))
    torch.testing.assert_close(Adapter(student, small)(student, small)[0], blocks)
    bilinear = F.interpolate(student, (8, 8), mode='bilinear', align_corners=False)
    torch.testing.assert_close(Adapter(student, big)(student, big)[0], bilinear)


def test_tokens_lie_on_the_grid_of_the_map():
    student, teacher = random(2, 17, 8), random(2, 8, 4, 4)
    bridged, _ = Adapter(student, teacher)(student, teacher)
    assert torch.equal(bridged[:, :, 2, 1], student[:, 1 + 2 * 4 + 1])


@pytest.mark.parametrize(
    'student, teacher, bridged, goal',
    [
        ((2, 8, 8, 8), (2, 12, 4, 4), (2, 8, 4, 4), (2, 12, 4, 4)),
        ((2, 17, 8), (2, 12, 7, 7), (2, 8, 7, 7), (2, 12, 7, 7)),
        ((2, 8, 7, 7), (2, 17, 12), (2, 8, 4, 4), (2, 12, 4, 4)),
        ((2, 17, 8), (2, 17, 12), (2, 8, 4, 4), (2, 12, 4, 4)),
    ],
)
def test_channels_may_differ_where_the_loss_does_not_care(student, teacher, bridged, goal):
    student, teacher = random(*student), random(*teacher, seed=1)
    adapter = Adapter(student, teacher, channels=False)
    assert list(adapter.parameters()) == []
    assert tuple(value.shape for value in adapter(student, teacher)) == (bridged, goal)


@pytest.mark.parametrize('channels', [True, False])
@pytest.mark.parametrize(
    'student, teacher',
    [
        ((2, 8), (2, 8, 4, 4)),
        ((2, 8, 4, 4), (2, 8)),
        ((2, 17, 8), (2, 8)),
        ((2, 8, 4, 4, 4), (2, 8, 4, 4, 4)),
        ((2,), (2,)),
        ((2, 15, 8), (2, 17, 8)),
        ((2, 17, 8), (2, 15, 8)),
        ((2, 15, 8), (2, 8, 4, 4)),
    ],
)
def test_what_cannot_be_bridged(student, teacher, channels):
    with pytest.raises(ValueError) as error:
        Adapter(torch.zeros(student), torch.zeros(teacher), channels)
    start = f'no adapter bridges {student} of the student and {teacher} of the teacher'
    assert str(error.value).startswith(start)
    if (2, 15, 8) in (student, teacher):
        assert '15 tokens do not fill a square grid' in str(error.value)


def test_tokens_of_images_that_are_not_square():
    wide = (96, 192)
    student, teacher = torch.zeros(2, 37, 8), torch.zeros(2, 8, 4, 8)
    Adapter(student, teacher).check(student, teacher, [(96, 96), wide])
    Adapter(student, student).check(student, student, [wide, wide])
    with pytest.raises(ValueError, match='the grid of 37 tokens is known only for square images'):
        Adapter(teacher, student).check(teacher, student, [(96, 96), wide])


# Orthogonal projections


@pytest.mark.parametrize(
    'bridge', ['maps', 'maps_up', 'same_maps', 'vectors', 'same_vectors', 'tokens', 'more_tokens']
)
def test_orthogonal_bridges(bridge):
    """They are there for equal channels, too, and keep all inner products of the student."""
    student_shape, teacher_shape, shape, _ = BRIDGES[bridge]
    student, teacher = random(*student_shape), random(*teacher_shape, seed=1)
    adapter = Adapter(student, teacher, kind='orthogonal')
    bridged, goal = adapter(student.requires_grad_(), teacher)
    assert bridged.shape == goal.shape == shape
    bridged.square().sum().backward()
    assert student.grad.any()
    if student.dim() == 2:
        torch.testing.assert_close(bridged @ bridged.T, student @ student.T)
        expected = student @ adapter.project.linear.weight.T
        torch.testing.assert_close(bridged, expected)
        assert not torch.allclose(bridged[:, :8], student)
