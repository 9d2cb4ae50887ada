"""Exact search: the candidates of fp32 never lose a true neighbour, and ties have an order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.guides.candidates import full_precision, tile
from clipling.guides.search import ExactSearch, check_unit, exact_dots
from tests.guides.making import unit_rows

NONE: list[list[int]] = []


def no_links(count: int) -> list[list[int]]:
    return [[] for _ in range(count)]


@pytest.mark.parametrize("dim", [1, 3, 8, 130, 1280])
def test_dots_are_the_same_bits_in_any_company(dim):
    one, other = unit_rows(40, dim, 1, np.float32), unit_rows(50, dim, 2, np.float32)
    rows, columns = np.random.default_rng(0).integers(0, 40, 700), np.random.default_rng(1).integers(0, 50, 700)
    together = exact_dots(one, rows, other, columns)
    alone = [exact_dots(one, rows[[i]], other, columns[[i]])[0] for i in range(700)]
    assert together.tolist() == alone
    backwards = exact_dots(one, rows[::-1], other, columns[::-1])[::-1]
    assert together.tolist() == backwards.tolist()
    expected = (one.astype(np.float64)[rows] * other[columns]).sum(1)
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-15)


def test_rows_with_many_near_ties_are_looked_through_in_full():
    """300 columns within fp32's error of each other: only the exact ranking can tell them apart."""
    rng = np.random.default_rng(0)
    base = unit_rows(1, 256, 0, np.float64)
    columns = base + 1e-9 * rng.normal(size=(300, 256))
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    columns = np.concatenate([columns, unit_rows(100, 256, 3, np.float64)])
    query = unit_rows(1, 256, 0, np.float64)
    search = ExactSearch(columns, np.arange(400) + 1, no_links(401))
    ids, sims = search.top(query, np.array([0]), 5)
    dots = (columns * query[0]).sum(axis=1)
    expected = sorted(range(400), key=lambda c: (-dots[c], c))[:5]
    assert ids[0].tolist() == [c + 1 for c in expected]
    assert sims[0].tolist() == dots[expected].tolist()


def test_exact_ties_go_to_the_smaller_pair():
    row = unit_rows(1, 12, 0)
    columns = np.repeat(row, 90, axis=0)
    ids, sims = ExactSearch(columns, np.arange(90), no_links(90)).top(columns[[7]], np.array([7]), 9)
    assert ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert len(set(sims[0])) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6), st.integers(1, 4))
def test_many_columns_of_one_pair_count_once(seed, pairs, count, most):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(pairs), rng.integers(1, most + 1, pairs))
    columns = unit_rows(len(owner), 5, seed, np.float32)
    links = [sorted({int(c) for c in rng.integers(0, 6, rng.integers(0, 3))}) for _ in range(pairs)]
    query, of = unit_rows(3, 5, seed + 1, np.float32), rng.integers(0, pairs, 3)
    ids, sims = ExactSearch(columns, owner, links).top(query, of, count)
    for q in range(3):
        best = {}
        for c in range(len(owner)):
            p = int(owner[c])
            if p != of[q] and not set(links[p]) & set(links[of[q]]):
                dot = float((columns[c].astype(np.float64) * query[q]).sum())
                best[p] = max(best.get(p, -9.0), dot)
        nearest = sorted(best, key=lambda p: (-best[p], p))[:count]
        assert ids[q].tolist() == nearest + [-1] * (count - len(nearest))
        assert sims[q][: len(nearest)].tolist() == [best[p] for p in nearest]


def test_the_margin_covers_the_error_of_the_product():
    columns = unit_rows(2000, 1280, 0)
    search = ExactSearch(columns, np.arange(2000), no_links(2000))
    with full_precision():
        scores = (tile(columns[:200]) @ tile(columns).T).numpy()
    true = columns[:200].astype(np.float64) @ columns.astype(np.float64).T
    assert np.abs(scores - true).max() < search.margin / 2


def test_precision_of_the_program_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_that_are_not_unit_rows_are_refused():
    rows = unit_rows(10, 4, 0, np.float32)
    check_unit(rows)
    rows[6] *= 1.5
    with pytest.raises(ValueError, match=r"row 6 has norm 1\.5"):
        check_unit(rows)
    rows[6] = np.nan
    with pytest.raises(ValueError, match="unit rows"):
        check_unit(rows)


def test_no_columns_no_neighbours():
    search = ExactSearch(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), no_links(3))
    ids, sims = search.top(unit_rows(2, 4, 0), np.array([0, 1]), 3)
    assert (ids == -1).all()
    assert (sims == -np.inf).all()
