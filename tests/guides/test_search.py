"""Exact search: candidates never lose a true neighbour, whatever precision chose them, and ties have an order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipling.guides import candidates
from clipling.guides import search as searching
from clipling.guides.candidates import TooMany
from clipling.guides.precision import BF16, FP32
from clipling.guides.search import ExactSearch, check_unit, exact_dots, in_parts
from tests.guides.making import unit_rows

NONE: list[list[int]] = []


@pytest.fixture(params=[FP32, BF16], ids=["fp32", "bf16"], autouse=True)
def precision(request, monkeypatch):
    """Whichever is quicker here, tables must be the same by both."""
    monkeypatch.setattr(candidates, "quickest", lambda device: request.param)
    return request.param


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


def test_rows_that_bf16_cannot_tell_apart_are_ranked_in_full(precision):
    """Similarities that differ by less than bf16's rounding, among thousands of columns and for several parts of queries."""
    rng = np.random.default_rng(0)
    columns = unit_rows(1, 64, 0, np.float32) + 0.02 * rng.standard_normal((6000, 64), dtype=np.float32) / 8
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    search = ExactSearch(columns, np.arange(6000), no_links(6000))
    assert search.choose.precision == precision
    asked = np.arange(0, 6000, 13)
    ids, sims = search.of_columns(asked, 7)
    assert search.choose.precision == FP32  # of bf16 nearly all columns would have to be ranked
    dots = np.stack([(columns[q].astype(np.float64) * columns).sum(axis=1) for q in asked])
    dots[np.arange(len(asked)), asked] = -np.inf
    expected = np.lexsort((np.broadcast_to(np.arange(6000), dots.shape), -dots), axis=1)[:, :7]
    assert np.array_equal(ids, expected)
    np.testing.assert_allclose(sims, np.take_along_axis(dots, expected, axis=1), rtol=0, atol=1e-15)


def test_few_near_ties_are_ranked_without_giving_up_the_quick_precision(precision):
    columns = unit_rows(3000, 32, 4, np.float32)
    search = ExactSearch(columns, np.arange(3000), no_links(3000))
    ids, _ = search.of_columns(np.arange(3000), 5)
    assert search.choose.precision == precision
    dots = columns.astype(np.float64) @ columns.T.astype(np.float64)
    np.fill_diagonal(dots, -np.inf)
    assert np.array_equal(ids, np.argsort(-dots, axis=1, kind="stable")[:, :5])


def test_neighbours_with_negative_similarities_are_found():
    """Rows that all point away from each other: the nearest are below 0."""
    corners = np.concatenate([np.eye(3), -np.ones((1, 3)) / np.sqrt(3)])
    columns = np.repeat(corners, 400, axis=0)
    links = [[pair // 400] for pair in range(1600)]  # those of one corner are no neighbours
    ids, sims = ExactSearch(columns.astype(np.float32), np.arange(1600), links).of_columns(np.arange(1200, 1600), 3)
    assert (ids == [0, 1, 2]).all()
    np.testing.assert_allclose(sims, -1 / np.sqrt(3), atol=1e-7)


def test_exact_ties_go_to_the_smaller_pair():
    row = unit_rows(1, 12, 0)
    columns = np.repeat(row, 90, axis=0)
    ids, sims = ExactSearch(columns, np.arange(90), no_links(90)).top(columns[[7]], np.array([7]), 9)
    assert ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert len(set(sims[0])) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("alike", [True, False], ids=["rows", "classes"])
def test_memory_is_bounded_where_rows_are_alike_or_classes_are_large(monkeypatch, alike):
    """All rows the same, or all of one class: no more columns are held at a time than stated, but for a single query."""
    held, count = [], 600
    for module in (candidates, searching):
        monkeypatch.setattr(module, "HELD", 9000)
    ranked, excluded = searching.rank_pairs, searching.Excluded.columns
    monkeypatch.setattr(searching, "rank_pairs", lambda *given: held.append(len(given[1])) or ranked(*given))
    monkeypatch.setattr(
        searching.Excluded, "columns", lambda self, pairs: (found := excluded(self, pairs), held.append(len(found[0]) - len(pairs)))[0]
    )
    columns = np.repeat(unit_rows(1, 12, 0), count, axis=0) if alike else unit_rows(count, 12, 0)
    ids, _ = ExactSearch(columns, np.arange(count), [[] if alike else [pair % 2] for pair in range(count)]).of_columns(np.arange(count), 3)
    assert 3000 < max(held) <= 9000
    if alike:
        assert ids[5:].tolist() == [[0, 1, 2]] * (count - 5)
    else:
        assert ((ids % 2) != np.arange(count)[:, None] % 2).all()


def test_what_is_too_much_for_fp32_is_not_tried_twice(monkeypatch, precision):
    tried = []

    def never(*given) -> None:
        tried.append(given[5])
        raise TooMany

    monkeypatch.setattr(candidates, "candidates", never)
    choose = candidates.Chooser("cpu")
    for expected in ([precision, FP32] if precision != FP32 else [FP32], [FP32]):
        tried.clear()
        with pytest.raises(TooMany):
            choose(None, None, 1, None, 1)
        assert tried == expected


def test_parts_are_halved_as_long_as_they_are_too_many_and_grow_again():
    done = []

    def work(part: slice) -> None:
        if part.stop - part.start > (3 if part.start < 10 else 100):
            raise TooMany
        done.append((part.start, part.stop))

    in_parts(50, 16, work)
    assert [i for start, stop in done for i in range(start, stop)] == list(range(50))
    assert max(stop - start for start, stop in done) == 16
