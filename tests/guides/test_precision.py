"""The margin covers what a product can be off by, and the quicker precision is taken only where it is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipling.guides import precision
from clipling.guides.columns import tile
from clipling.guides.precision import BF16, FP32, plain_products, quickest
from tests.guides.making import unit_rows


@pytest.fixture
def unmeasured():
    quickest.cache_clear()
    yield
    quickest.cache_clear()


@pytest.mark.parametrize("numbers", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dim", [8, 384, 1280])
def test_the_margin_covers_the_error_of_the_product(numbers, dim):
    rows = unit_rows(2000, dim, 0)
    with plain_products():
        scores = (tile(rows[:200], numbers.dtype) @ tile(rows, numbers.dtype).T).double().numpy()
    true = rows[:200].astype(np.float64) @ rows.astype(np.float64).T
    error = np.abs(scores - true).max()
    assert error < numbers.margin(dim) / 2
    assert error > numbers.unit / 200  # the numbers were rounded at all


def test_the_margin_holds_for_the_worst_rounding():
    """The largest rounding of bf16 in the same direction in all features: numbers just below the middle of two that it has."""
    value = 2.0**-3 * (1 + 2.0**-8 - 2.0**-20)
    row = torch.full((1, 64), value, dtype=torch.float64)  # of norm 1 + 2^-8, within the slack
    rounded = row.bfloat16().double()
    assert float(rounded[0, 0]) == 2.0**-3
    error = abs(float(rounded @ rounded.T) - float(row @ row.T))
    assert 1.9 * BF16.unit < error < BF16.margin(64) / 2


def test_the_margin_holds_for_the_worst_rounding_of_result_and_rows_at_once():
    """Both rows of a product rounded down by half a unit, and their product as well: more than three units, as the norm is above 1."""
    rounded = torch.tensor([[2.0**-3] * 64 + [2.0**-4]], dtype=torch.float64)
    row = rounded * (1 + 2.0**-8 - 2.0**-20)
    assert torch.equal(row.bfloat16().double(), rounded)
    with plain_products():
        score = float(row.float().bfloat16() @ row.float().bfloat16().T)
    assert score == 1.0  # of 1 + 2^-8, a tie
    error, unit = float(row @ row.T) - score, BF16.unit
    assert (3 + 2 * unit) * unit + 66 * 2.0**-24 < error < BF16.margin(65) / 2
    assert float(row.norm()) < 1 + precision.NORM_SLACK


@pytest.mark.parametrize(("ratio", "expected"), [(1.2, FP32), (1.8, BF16)])
def test_bf16_is_taken_where_it_is_clearly_quicker(monkeypatch, unmeasured, ratio, expected):
    monkeypatch.setattr(precision, "_seconds", lambda rows, device: 1.0 if rows.dtype == torch.float32 else 1 / ratio)
    assert quickest("cpu") == expected


def test_a_product_that_sums_in_bf16_is_not_taken(monkeypatch, unmeasured):
    monkeypatch.setattr(precision, "_seconds", lambda rows, device: 1.0 if rows.dtype == torch.float32 else 0.1)
    honest = torch.Tensor.__matmul__

    def careless(one, other):
        return honest(one, other) * 1.05 if one.dtype == torch.bfloat16 else honest(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", careless)
    assert quickest("cpu") == FP32


def test_precision_of_the_program_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with plain_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    finally:
        torch.set_float32_matmul_precision(before)
