"""Casts to fp32, and products that autocast leaves in fp32."""

import pytest
import torch

from mmkdx.functional import full_precision, no_autocast


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_becomes_fp32(dtype):
    values = torch.tensor([0.1, -3.0, 1e4], dtype=dtype, requires_grad=True)
    full = full_precision(values)
    assert full.dtype == torch.float32
    assert full.tolist() == values.tolist()
    (full * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1, 2, 3] and values.grad.dtype == dtype


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.int64, torch.bool])
def test_all_else_stays_what_it_is(dtype):
    values = torch.ones(3, dtype=dtype)
    assert full_precision(values) is values


def test_products_stay_in_fp32_inside_autocast():
    # 1 + 2^-10 is 1 in bf16
    values = torch.full((1, 1), 1 + 2**-10)
    with torch.autocast('cpu', torch.bfloat16):
        assert (values @ torch.ones(1, 1)).item() == 1
        with no_autocast(values):
            product = values @ torch.ones(1, 1)
        assert (values @ torch.ones(1, 1)).dtype == torch.bfloat16
    assert product.item() == 1 + 2**-10 and product.dtype == torch.float32


def test_without_autocast_nothing_changes():
    with no_autocast(torch.ones(1)):
        assert not torch.is_autocast_enabled('cpu')
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
    assert not torch.is_autocast_enabled('cpu')
