"""The watch over what is not finite: it names the first, and waits for nothing."""

import copy

import pytest
import torch
from tiny import batch, distiller

from mmkdx.distillation.finite_watch import FiniteWatch


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_loss_that_is_not_finite_is_named(value):
    losses = {
        f'terms.{name}': torch.tensor(1.0, requires_grad=True) for name in ('kd', 'cat', 'at')
    }
    watch = FiniteWatch()
    watch(losses)
    losses['terms.cat'] = torch.tensor(value, requires_grad=True)
    with pytest.raises(FloatingPointError, match='^terms.cat became NaN or infinite'):
        watch(losses)
    losses['terms.at'] = losses['terms.cat'] * 2
    with pytest.raises(FloatingPointError, match='^terms.cat became NaN or infinite'):
        copy.deepcopy(watch)(losses)
    watch({'terms.kd': losses['terms.kd']})
    watch({})


def test_numbers_that_are_merely_large_are_finite():
    watch = FiniteWatch()
    watch({'terms.kd': torch.tensor(3e38), 'terms.cat': torch.tensor(-3e38)})
    watch({'terms.kd': torch.tensor(65504.0, dtype=torch.float16), 'terms.cat': torch.tensor(0.0)})


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_the_first_that_is_not_finite_is_blamed(value):
    model = distiller()
    images, samples = batch()
    images[2, 1, 3, 3] = value
    with pytest.raises(FloatingPointError, match='^images became NaN .* look at data_preprocessor'):
        model(images, samples, mode='loss')
    images, samples = batch()
    model.student.head.fc.weight.data[1, 2] = value
    with pytest.raises(FloatingPointError, match='^student.loss became NaN .* learning rate, or'):
        model(images, samples, mode='loss')
    model.student_weight = 0
    with pytest.raises(FloatingPointError, match='^terms.kd became NaN .* lower its weight'):
        model(images, samples, mode='loss')


def test_the_sum_of_large_images_is_finite():
    FiniteWatch()({'images': torch.full((2, 3, 64, 64), 6e4, dtype=torch.float16)})
